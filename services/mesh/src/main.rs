//! The `mesh` binary: the operator's command line, and the whole mesh in one process.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh::run(std::env::args_os())
}
