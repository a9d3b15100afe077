//! The `coordinator` binary.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use coordinator::{App, Config};
use mesh_daemon::{ConfigArgs, Handles, Overrides, ShutdownTrigger, config, signals, telemetry};

/// The control plane of a Wonder Mesh: networks, join tokens, identities, netmaps.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until a signal (also without any verb).
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where gRPC and HTTPS are served, such as 0.0.0.0:8080; port 0 takes any free one.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// host:port under which nodes find this coordinator; several separated by commas.
    #[arg(long)]
    advertise: Option<String>,
    /// Database, keys and the first operator's credential.
    #[arg(long)]
    state_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { command, run } = Args::parse();
    let args = command.map_or(run, |Command::Run(args)| args);
    let state_dir = args.state_dir.map(|dir| dir.display().to_string());
    let overrides = Overrides::new()
        .set("server.listen", args.listen)
        .set("server.advertise", args.advertise)
        .set("state_dir", state_dir);
    let config: Config = config::load_or_exit("coordinator", &args.config, overrides);
    let _log = telemetry::init(&config.log)?;
    let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
    let _signals = signals(trigger)?;
    App::build(config, Handles::default())
        .await?
        .run(shutdown)
        .await
}
