//! The `deploy-cli` binary.

fn main() {}
