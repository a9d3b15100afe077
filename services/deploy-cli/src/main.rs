//! Runs commands on the nodes of a mesh.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    deploy_cli::run(std::env::args_os().skip(1), None).await
}
