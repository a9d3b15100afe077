//! The `relay` binary.

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    match relay::cli::run(relay::cli::Args::parse()).await {
        Ok(code) => code,
        Err(error) => {
            let text = mesh_daemon::report::chain(&*error);
            #[expect(clippy::print_stderr, reason = "the last word of a command line")]
            {
                eprintln!("error: {text}");
            }
            ExitCode::FAILURE
        }
    }
}
