//! The `worker-agent` binary.

fn main() {}
