//! `cargo xtask <verb>`: everything a contributor or the CI runs on this repository.
//!
//! What lives here: one module per verb, plus [`workspace`] (where things are) and [`process`]
//! (running children). What does not: anything the product itself needs at run time.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to people")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod codegen;
mod process;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What a contributor or the CI runs on this repository")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Generate libs/api/src/gen from proto/mesh/v1 (no protoc needed).
    Codegen(codegen::Args),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().verb {
        Verb::Codegen(args) => codegen::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
