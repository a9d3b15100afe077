//! The command line of `traffic-gateway`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line prints its answers"
)]

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand};
use mesh_daemon::config::{ConfigArgs, Overrides, load_or_exit};
use mesh_daemon::{AskError, ServiceVerb, ShutdownTrigger, report, signals, telemetry};
use mesh_node::advice::{of_damaged, of_silent, of_stopped};
use mesh_node::{JOIN_PATIENCE, StateDir, first_join, fits_identities};
use mesh_types::{Finding, JoinToken, Role};

use crate::control::{self, Request, Status};
use crate::networks::dir_of;
use crate::{App, Config, JoinError, JoinOptions, join, networks};

/// What the gateway would like to be called in its networks.
const HOSTNAME: &str = "traffic-gateway";

/// One public URL in front of every worker's console.
#[derive(Debug, Parser)]
#[command(
    name = "traffic-gateway",
    version,
    long_version = mesh_daemon::build_info::long_version()
)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where identities are kept, one directory for each network
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where browsers connect (port 0: any free one)
    #[arg(long, global = true, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve (the default)
    Run(RunArgs),
    /// Join one more network; a running gateway serves it at once
    Join(JoinArgs),
    /// Show the networks and how they are doing
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Service(ServiceVerb),
}

#[derive(Debug, Default, ClapArgs)]
struct RunArgs {
    /// File with a join token, used while fewer networks were joined than files are given; may be
    /// given several times
    #[arg(long, value_name = "FILE")]
    token_file: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
struct JoinArgs {
    /// File with the join token; '-' is standard input
    #[arg(long, value_name = "FILE", required_unless_present = "token")]
    token_file: Option<PathBuf>,
    /// The join token itself (visible to other users of the machine: prefer --token-file)
    #[arg(value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// Name in the network
    #[arg(long, default_value = HOSTNAME)]
    hostname: String,
}

/// Does what the arguments say; gives the exit code.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let overrides = Overrides::new()
        .set(
            "state_dir",
            args.state_dir.as_ref().map(|dir| dir.display()),
        )
        .set("server.listen", args.listen);
    let flags = &args.config.with_every_set(Args::command());
    let load = |overrides| {
        let mut config: Config = load_or_exit("traffic-gateway", flags, overrides);
        config.server.dev |= flags.dev;
        config
    };
    match args.verb.unwrap_or(Verb::Run(args.run)) {
        Verb::Service(verb) => {
            return Ok(verb.run::<Config>(Args::command(), flags, overrides));
        }
        Verb::Run(args) => serve(load(overrides), args).await?,
        Verb::Join(args) => join_network(&load(overrides), args).await?,
        Verb::Status { json } => return status(&load(overrides).state_dir, json).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config, args: RunArgs) -> anyhow::Result<()> {
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
        () = shutdown.draining() => return Ok(()),
    }
    let (handles, traces) = telemetry::handles("traffic-gateway")?;
    let ended = App::build(config, handles).await?.run(shutdown).await;
    traces.shutdown(mesh_trace::FLUSH).await;
    ended
}

/// Joins by the tokens, unless as many networks were joined before: a service starts with the same
/// arguments each time, when its tokens were used long ago.
async fn first_joins(state_dir: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let joined = networks(state_dir).context("read the state directory")?;
    let dir = |network| dir_of(state_dir, network);
    let dirs: Vec<PathBuf> = joined.iter().map(dir).collect();
    if joined.len() >= files.len() {
        // With fewer, one of them may be for a network of another installation.
        for file in files {
            fits_identities(file, &dirs)?;
        }
        return Ok(());
    }
    for file in files {
        let joining = async |token: JoinToken| match join(
            state_dir,
            &token,
            JoinOptions::new(HOSTNAME),
        )
        .await
        {
            Ok(_) => Ok(()),
            Err(JoinError::Twice(network)) => {
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

async fn join_network(config: &Config, args: JoinArgs) -> anyhow::Result<()> {
    let text = match (args.token_file, args.token) {
        (Some(path), _) => read_token(&path)?,
        (None, Some(token)) => {
            eprintln!(
                "warning: a token among the arguments is visible to every user of this machine; \
                 prefer --token-file"
            );
            token
        }
        (None, None) => bail!("give a token with --token-file FILE"),
    };
    let token: JoinToken = text.parse()?;
    let enrolled = join(&config.state_dir, &token, JoinOptions::new(args.hostname)).await?;
    let network = enrolled.network.as_ref().map_or("", |name| name.as_str());
    println!("joined network {network} as {}", enrolled.name);
    if control::ask(&config.state_dir, Request::Status)
        .await
        .is_err()
    {
        println!("start the gateway with: traffic-gateway run");
    }
    Ok(())
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .take(64 * 1024)
            .read_to_string(&mut text)
            .context("read the token from standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| format!("read the token from {}", path.display()))
}

/// Prints the status; exit code 1 when no gateway runs, and when a person must act.
async fn status(state_dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let answer = match control::ask(state_dir, Request::Status).await {
        Ok(answer) => answer,
        Err(error) => {
            say_unanswered(state_dir, &error, json);
            return Ok(ExitCode::FAILURE);
        }
    };
    let status: Status = serde_json::from_str(&answer).context("read the gateway's answer")?;
    let code = match Finding::any_error(&status.findings) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    };
    if json {
        println!("{}", answer.trim_end());
        return Ok(code);
    }
    println!(
        "traffic-gateway {} at {} (pid {})",
        status.gateway, status.url, status.pid
    );
    for network in &status.networks {
        println!(
            "network {}: {} as {} ({}), {} workers",
            network.network,
            network.control,
            network.name,
            network.address.as_deref().unwrap_or("no address yet"),
            network.routes,
        );
    }
    println!();
    if status.findings.is_empty() {
        println!("Nothing is wrong.");
    }
    for finding in &status.findings {
        println!("{finding}");
    }
    Ok(code)
}

/// Prints why there is no status.
fn say_unanswered(state_dir: &Path, error: &AskError, json: bool) {
    let silent =
        |error: &(dyn std::error::Error + 'static)| of_silent(Role::Gateway, &report::chain(error));
    let (joined, finding) = match (networks(state_dir), error) {
        (Ok(joined), AskError::NotRunning) => {
            // It may be because of the files of a network that it does not run.
            let damaged = joined.iter().find_map(|network| {
                let checked = StateDir::check_at(&dir_of(state_dir, network));
                of_damaged(Role::Gateway, &checked.err()?)
            });
            let stopped = || of_stopped(Role::Gateway, !joined.is_empty(), state_dir);
            let finding = damaged.unwrap_or_else(stopped);
            (joined, finding)
        }
        (Ok(joined), error) => (joined, silent(error)),
        (Err(error), _) => (Vec::new(), silent(&error)),
    };
    if json {
        let networks: Vec<_> = joined
            .iter()
            .map(|network| serde_json::json!({ "network": network }))
            .collect();
        let answer = serde_json::json!({
            "schema": control::SCHEMA, "version": 1, "pid": null, "networks": networks,
            "findings": [finding],
        });
        println!("{answer}");
        return;
    }
    for network in &joined {
        println!("network {network}: joined");
    }
    println!("{finding}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_the_documents_tell_people_to_type_is_understood() {
        mesh_testkit::documented::assert_understood(&Args::command());
    }
}
