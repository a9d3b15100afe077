//! The `deploy-manager` binary.

fn main() {}
