//! The command line of `relay`.
#![expect(clippy::print_stdout, reason = "a command line prints its answers")]

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use mesh_daemon::config::{ConfigArgs, Overrides, load_or_exit};
use mesh_daemon::{
    AskError, Handles, ServiceVerb, ShutdownTrigger, build_info, control_socket, report, signals,
    telemetry,
};
use mesh_node::advice::{of_damaged, of_silent, of_stopped};
use mesh_node::{
    EnrolError, EnrolOptions, JOIN_PATIENCE, StateDir, enrol, first_join, fits_identities,
};
use mesh_types::{Finding, JoinToken, Role};

use crate::status::{self, Status};
use crate::{App, Config};

const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// No token is longer than this.
const MAX_TOKEN: u64 = 64 * 1024;

/// Carries encrypted packets between nodes (DERP) and answers STUN.
#[derive(Debug, Parser)]
#[command(
    name = "relay",
    version,
    long_version = mesh_daemon::build_info::long_version()
)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the relay's identity is kept
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where nodes connect by DERP over TLS (port 0: any free one)
    #[arg(long, global = true, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where STUN is answered (port 0: any free one)
    #[arg(long, global = true, value_name = "ADDR")]
    stun_listen: Option<SocketAddr>,
    /// File with a join token, used when the relay has not joined yet; '-' is standard input
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve (the default)
    Run,
    /// Join the installation with a token of the role relay
    Join {
        /// The token itself (visible to other users of the machine: prefer --token-file)
        #[arg(value_name = "TOKEN", conflicts_with = "token_file")]
        token: Option<String>,
        /// Name shown in lists
        #[arg(long, default_value = "relay")]
        hostname: String,
    },
    /// Tell how the running relay is doing, what is wrong and what to type next; exit code 1 when
    /// something that should work does not
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Service(ServiceVerb),
}

/// Does what the arguments say.
///
/// # Errors
/// For people.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let overrides = Overrides::new()
        .set(
            "state_dir",
            args.state_dir.as_ref().map(|dir| dir.display()),
        )
        .set("server.listen", args.listen)
        .set("stun.listen", args.stun_listen);
    let flags = args.config.with_every_set(Args::command());
    let load = |overrides| load_or_exit::<Config>("relay", &flags, overrides);
    match args.verb.unwrap_or(Verb::Run) {
        Verb::Service(verb) => {
            return Ok(verb.run::<Config>(Args::command(), &flags, overrides));
        }
        Verb::Run => serve(load(overrides), args.token_file.as_deref()).await?,
        Verb::Join { token, hostname } => {
            let text = match (args.token_file, token) {
                (Some(path), _) => read_token(&path)?,
                (None, Some(token)) => {
                    warn_visible_token();
                    token
                }
                (None, None) => bail!("give a token with --token-file FILE"),
            };
            join(&load(overrides).state_dir, &text.trim().parse()?, hostname).await?;
            println!("joined; start the relay with: relay run");
        }
        Verb::Status { json } => return show(&load(overrides).state_dir, json).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(state_dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let answer = match control_socket::ask(state_dir, status::REQUEST).await {
        Ok(answer) => answer,
        Err(error) => {
            let finding = match error {
                AskError::NotRunning => match StateDir::check_at(state_dir) {
                    Ok(joined) => of_stopped(Role::Relay, joined, state_dir),
                    // What cannot be looked into is another user's, who joined.
                    Err(error) => of_damaged(Role::Relay, &error)
                        .unwrap_or_else(|| of_stopped(Role::Relay, true, state_dir)),
                },
                error => of_silent(Role::Relay, &report::chain(&error)),
            };
            if json {
                let answer = serde_json::json!({
                    "schema": status::SCHEMA, "running": false, "findings": [finding],
                });
                println!("{answer}");
            } else {
                println!("{finding}");
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    let status: Status = serde_json::from_str(&answer)
        .context("the running relay is of another version: restart it with this one")?;
    if json {
        println!("{}", answer.trim_end());
    } else {
        println!("{}", status::render(&status));
    }
    Ok(match Finding::any_error(&status.findings) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

#[expect(
    clippy::print_stderr,
    reason = "the warning must not mix with the answer"
)]
fn warn_visible_token() {
    eprintln!(
        "warning: a token among the arguments is visible to every user of this machine: \
         use --token-file"
    );
}

async fn serve(config: Config, token_file: Option<&Path>) -> anyhow::Result<()> {
    let _log = telemetry::init(&config.log)?;
    let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
    let _signals = signals(trigger)?;
    let token_file = token_file.or(config.token_file.as_deref());
    if let Some(path) = token_file {
        fits_identities(path, std::slice::from_ref(&config.state_dir))?;
    }
    if let Some(path) = token_file
        && !StateDir::open(&config.state_dir)?.is_enrolled()
    {
        let joining = async |token| join(&config.state_dir, &token, "relay".to_owned()).await;
        let passes = |error: &anyhow::Error| {
            let enrol = error.downcast_ref::<EnrolError>();
            enrol.is_some_and(EnrolError::may_pass)
        };
        tokio::select! {
            joined = first_join(path, JOIN_PATIENCE, joining, passes) => joined?,
            () = shutdown.draining() => return Ok(()),
        }
    }
    let handles = Handles {
        program: "relay",
        ..Handles::default()
    };
    let app = App::build(config, handles).await?;
    app.run(shutdown).await
}

async fn join(state_dir: &Path, token: &JoinToken, hostname: String) -> anyhow::Result<()> {
    let state = StateDir::open(state_dir)?;
    let options = EnrolOptions {
        version: build_info::VERSION.to_owned(),
        timeout: JOIN_LIMIT,
        roles: vec![Role::Relay],
        ..EnrolOptions::new(hostname)
    };
    let enrolled = enrol(token, options, &state).await?;
    if enrolled.role != Role::Relay {
        bail!(
            "this token is for the role {}, not for a relay: the identity in {} is now that; make \
             a token with 'mesh token create --role relay' and join with an empty directory",
            enrolled.role,
            state_dir.display()
        );
    }
    Ok(())
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .take(MAX_TOKEN)
            .read_to_string(&mut text)
            .context("read the token from standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| format!("read the token from {}", path.display()))
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
