//! The `worker-agent` binary.

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    worker_agent::cli::run(worker_agent::cli::Args::parse()).await
}
