//! The `traffic-gateway` binary.

use std::process::ExitCode;

use clap::Parser;
use traffic_gateway::cli;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(cli::Args::parse()).await {
        Ok(code) => code,
        Err(err) => {
            let text = mesh_daemon::report::chain(&*err);
            #[expect(clippy::print_stderr, reason = "the last word of a command line")]
            {
                eprintln!("error: {text}");
            }
            ExitCode::FAILURE
        }
    }
}
