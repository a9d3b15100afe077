//! The command line of the `coordinator` binary.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use mesh_daemon::{ConfigArgs, Overrides};

/// The control plane of a Wonder Mesh: networks, join tokens, identities, netmaps.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
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
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
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

impl Args {
    /// The arguments of the only verb.
    pub(crate) fn into_run(self) -> RunArgs {
        self.command.map_or(self.run, |Command::Run(args)| args)
    }
}

impl RunArgs {
    /// What the flags say about the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        let state_dir = self.state_dir.as_ref().map(|dir| dir.display().to_string());
        Overrides::new()
            .set("server.listen", self.listen)
            .set("server.advertise", self.advertise.as_deref())
            .set("state_dir", state_dir)
    }
}
