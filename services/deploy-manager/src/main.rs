//! The deploy-manager's process.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    deploy_manager::cli::main().await
}
