//! The `mesh` binary.

fn main() {}
