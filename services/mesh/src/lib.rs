//! The operator's command line (`mesh token`, `mesh node`, …) and `mesh up`: every role of a mesh
//! in one process on an embedded database.
//!
//! Everything but `up` and `db` speaks gRPC to a coordinator that a *context* names. `db` opens the
//! coordinator's database, by the coordinator's own code and lock, while that is stopped. `up` links
//! the services and starts them as they are; between them they use the same sockets, certificates
//! and tunnels as separate processes do.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks to its user on these"
)]

// First, for its macro.
#[macro_use]
mod output;

mod advice;
mod args;
mod commands;
mod redact;
mod text;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

pub use args::command;

/// Runs one command line, the program's name included, and gives its exit code: 0 done, 1 failed,
/// 2 wrong usage, 64 wrong configuration.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match args::Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mesh: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(commands::run(args));
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh: {}", text::explain(&error));
            ExitCode::FAILURE
        }
    }
}
