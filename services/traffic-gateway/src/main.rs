//! The `traffic-gateway` binary.

fn main() {}
