//! The command line of the process.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line prints"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use mesh_daemon::config::load_or_exit;
use mesh_daemon::{ConfigArgs, Handles, Overrides, ShutdownTrigger, signals, telemetry};
use mesh_types::JoinToken;

use crate::join::{join, joined};
use crate::{App, Config, status};

/// Carries programs into the mesh: SOCKS5 and the SSH runner.
#[derive(Debug, Parser)]
#[command(name = "deploy-manager", version, about)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    /// Join with the token in this file first, unless a network was joined already; repeatable,
    /// one for each network
    #[arg(long, value_name = "FILE")]
    token_file: Vec<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve (what is done when no verb is given)
    Run,
    /// Join a network; a running deploy-manager serves it within a second
    Join {
        /// File with the join token ("-": standard input)
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// The name to join as (default: this machine's)
        #[arg(long)]
        name: Option<String>,
    },
    /// Show what runs and which networks were joined
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the process's command line.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let config: Config = load_or_exit("deploy-manager", &cli.config, Overrides::new());
    let done = match cli.verb {
        None | Some(Verb::Run) => run(config, &cli.token_file).await,
        Some(Verb::Join { token_file, name }) => join_by(&config, &token_file, name).await,
        Some(Verb::Status { json }) => show(&config.state_dir, json),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config, tokens: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let _log = telemetry::init(&config.log)?;
    if joined(&config.state_dir)?.is_empty() {
        for file in tokens {
            join_by(&config, file, None).await?;
        }
    }
    let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
    let _signals = signals(trigger)?;
    let app = App::build(config, Handles::default()).await?;
    app.run(shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

async fn join_by(config: &Config, file: &Path, name: Option<String>) -> anyhow::Result<ExitCode> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("read the token from standard input")?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?
    };
    let token: JoinToken = text.trim().parse()?;
    let name = match name {
        Some(name) => name,
        None => nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_else(|| "deploy-manager".to_owned()),
    };
    let enrolled = join(&config.state_dir, &token, &name).await?;
    let network = enrolled
        .network
        .as_ref()
        .map_or("?", |network| network.as_str());
    println!("joined network {network} as {}", enrolled.name);
    Ok(ExitCode::SUCCESS)
}

fn show(state_dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let status =
        status::read(state_dir).with_context(|| format!("read {}", state_dir.display()))?;
    if json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        for line in status.lines(state_dir) {
            println!("{line}");
        }
    }
    let good = status.running && status.networks.iter().all(|network| network.up);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
