//! The command line of the process.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line prints"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use mesh_daemon::config::load_or_exit;
use mesh_daemon::{ConfigArgs, Overrides, ServiceVerb, ShutdownTrigger, signals, telemetry};
use mesh_node::{JOIN_PATIENCE, first_join, fits_identities};
use mesh_types::JoinToken;

use crate::join::{JoinError, join, joined};
use crate::{App, Config, status};

/// The name to join as: not the machine's, which a worker on the same machine takes.
const NODE_NAME: &str = "deploy-manager";

/// Carries programs into the mesh: SOCKS5 and the SSH runner.
#[derive(Debug, Parser)]
#[command(
    name = "deploy-manager",
    version,
    long_version = mesh_daemon::build_info::long_version(),
    about
)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Default, clap::Args)]
struct RunArgs {
    /// File with a join token, used while fewer networks were joined than files are given;
    /// repeatable, one for each network
    #[arg(long, value_name = "FILE")]
    token_file: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve (what is done when no verb is given)
    Run(RunArgs),
    /// Join a network; a running deploy-manager serves it within a second
    Join {
        /// File with the join token ("-": standard input)
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// The name to join as
        #[arg(long, default_value = NODE_NAME)]
        name: String,
    },
    /// Show what runs and which networks were joined
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Service(ServiceVerb),
}

impl Default for Verb {
    fn default() -> Self {
        Self::Run(RunArgs::default())
    }
}

/// Runs the process's command line.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let flags = &cli.config.with_every_set(Cli::command());
    let load = || load_or_exit::<Config>("deploy-manager", flags, Overrides::new());
    let done = match cli.verb.unwrap_or_default() {
        Verb::Service(verb) => {
            return verb.run::<Config>(Cli::command(), flags, Overrides::new());
        }
        Verb::Run(args) => {
            // Tokens before the verb count as well.
            let token_file = [cli.run.token_file, args.token_file].concat();
            run(load(), RunArgs { token_file }).await
        }
        Verb::Join { token_file, name } => join_by(&load(), &token_file, &name).await,
        Verb::Status { json } => show(&load().state_dir, json),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config, args: RunArgs) -> anyhow::Result<ExitCode> {
    let _log = telemetry::init(&config.log)?;
    let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
    let _signals = signals(trigger)?;
    let files = if args.token_file.is_empty() {
        &config.token_file
    } else {
        &args.token_file
    };
    tokio::select! {
        joined = first_joins(&config.state_dir, files) => joined?,
        () = shutdown.draining() => return Ok(ExitCode::SUCCESS),
    }
    let (handles, traces) = telemetry::handles("deploy-manager")?;
    let ended = App::build(config, handles).await?.run(shutdown).await;
    traces.shutdown(mesh_trace::FLUSH).await;
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// Joins by the tokens, unless as many networks were joined before: a service starts with the same
/// arguments each time, when its tokens were used long ago.
async fn first_joins(state_dir: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let dirs: Vec<PathBuf> = joined(state_dir)?.into_iter().map(|(_, dir)| dir).collect();
    if dirs.len() >= files.len() {
        // With fewer, one of them may be for a network of another installation.
        for file in files {
            fits_identities(file, &dirs)?;
        }
        return Ok(());
    }
    for file in files {
        let joining = async |token: JoinToken| match join(state_dir, &token, NODE_NAME).await {
            Ok(enrolled) => {
                tracing::info!(name = %enrolled.name, "joined by the token file");
                Ok(())
            }
            Err(JoinError::Joined(network)) => {
                tracing::info!(%network, "joined before; the token was not needed");
                Ok(())
            }
            Err(error) => Err(anyhow::Error::from(error)),
        };
        let passes = |error: &anyhow::Error| match error.downcast_ref::<JoinError>() {
            Some(JoinError::Enrol(error)) => error.may_pass(),
            _ => false,
        };
        first_join(file, JOIN_PATIENCE, joining, passes).await?;
    }
    Ok(())
}

async fn join_by(config: &Config, file: &Path, name: &str) -> anyhow::Result<ExitCode> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("read the token from standard input")?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?
    };
    let token: JoinToken = text.trim().parse()?;
    let enrolled = join(&config.state_dir, &token, name).await?;
    let network = enrolled
        .network
        .as_ref()
        .map_or("?", |network| network.as_str());
    println!("joined network {network} as {}", enrolled.name);
    Ok(ExitCode::SUCCESS)
}

fn show(state_dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let status = status::read(state_dir);
    if json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        for line in status.lines() {
            println!("{line}");
        }
    }
    Ok(if status.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_documents_tell_people_to_type_is_understood() {
        mesh_testkit::documented::assert_understood(&Cli::command());
    }
}
