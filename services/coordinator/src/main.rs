//! The `coordinator` binary.

mod args;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use coordinator::{App, Config};
use mesh_daemon::{Handles, ShutdownTrigger, config, signals, telemetry};

use crate::args::{Args, RunArgs};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse().into_run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let config: Config = config::load_or_exit("coordinator", &args.config, args.overrides());
    let _log = telemetry::init(&config.log)?;
    let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
    let _signals = signals(trigger)?;
    App::build(config, Handles::default())
        .await?
        .run(shutdown)
        .await
}
