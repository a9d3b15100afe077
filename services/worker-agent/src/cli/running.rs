//! `run`, and what is asked of a running agent.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use mesh_daemon::{ShutdownTrigger, report, signals, telemetry};
use mesh_node::advice::{of_damaged, of_silent, of_stopped};
use mesh_node::{JOIN_PATIENCE, StateDir, StateDirError, first_join, fits_identities};
use mesh_types::{Finding, Role, ServiceName, Timestamp};

use super::{RunArgs, membership, say};
use crate::app::{App, change_services};
use crate::config::Config;
use crate::join::{JoinError, JoinOptions, join};
use crate::local::{self, Answer, AskError, Reached, Request};
use crate::services::described;
use crate::status::{AgentStatus, SCHEMA, render};

/// `worker-agent run`
pub(super) async fn run(config: Config, args: RunArgs) -> anyhow::Result<()> {
    let _log = telemetry::init(&config.log)?;
    let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
    let _signals = signals(trigger).context("listen to signals")?;
    let token_file = args.token_file.or_else(|| config.token_file.clone());
    if let Some(file) = &token_file {
        fits_identities(file, &[config.state_dir()])?;
    }
    if let Some(file) = token_file
        && !StateDir::is_enrolled_at(&config.state_dir())?
    {
        tokio::select! {
            joined = join_first(&config, &file, args.hostname) => joined?,
            () = shutdown.draining() => return Ok(()),
        }
    }
    let (handles, traces) = telemetry::handles("worker-agent")?;
    let ended = App::build(config, handles).await?.run(shutdown).await;
    traces.shutdown(mesh_trace::FLUSH).await;
    ended
}

/// Joins by the token file, as soon as it and the coordinator are there.
async fn join_first(config: &Config, file: &Path, hostname: Option<String>) -> anyhow::Result<()> {
    let hostname = match hostname.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => membership::own_hostname()?,
    };
    let state_dir = config.state_dir();
    let joining = async |token| {
        let options = JoinOptions::new(hostname.clone());
        join(&token, options, &state_dir).await
    };
    let passes = |error: &JoinError| match error {
        JoinError::Enrol(error) => error.may_pass(),
        _ => false,
    };
    let enrolled = first_join(file, JOIN_PATIENCE, joining, passes).await?;
    tracing::info!(name = %enrolled.name, node = %enrolled.node, "joined by the token file");
    Ok(())
}

/// `worker-agent status`: exit code 1 when a person must act.
pub(super) async fn status(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let dir = config.state_dir();
    let status = match asked(&dir).await {
        Ok(status) => status,
        Err(finding) => {
            say(&unanswered(&finding, json));
            return Ok(ExitCode::FAILURE);
        }
    };
    if json {
        say(&serde_json::to_string(&status)?);
    } else {
        say(&render(&status, Timestamp::from(SystemTime::now())));
    }
    Ok(match Finding::any_error(&status.findings) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The status of the agent that runs on this state directory, or why there is none.
async fn asked(dir: &Path) -> Result<AgentStatus, Finding> {
    let silent = |error: &(dyn Error + 'static)| of_silent(Role::Worker, &report::chain(error));
    let damaged = |error: &StateDirError| of_damaged(Role::Worker, error);
    let joined = StateDir::is_enrolled_at(dir).map_err(|error| silent(&error))?;
    if !joined {
        return Err(of_stopped(Role::Worker, joined, dir));
    }
    match local::ask_or_open(dir, &Request::Status).await {
        Ok(Reached::Agent(Answer::Status(status))) => Ok(*status),
        // It may be because of its files that it does not run.
        Ok(Reached::Nobody(_)) => Err(match StateDir::check_at(dir) {
            Ok(_) => of_stopped(Role::Worker, joined, dir),
            Err(error) => damaged(&error).unwrap_or_else(|| silent(&error)),
        }),
        Ok(Reached::Agent(_)) => Err(of_silent(Role::Worker, "it answered something else")),
        Err(AskError::State(error)) => Err(damaged(&error).unwrap_or_else(|| silent(&error))),
        Err(error) => Err(silent(&error)),
    }
}

/// What `status` prints of an agent that does not answer.
fn unanswered(finding: &Finding, json: bool) -> String {
    if !json {
        return finding.to_string();
    }
    let answer = serde_json::json!({
        "schema": SCHEMA, "running": false, "findings": [finding],
    });
    answer.to_string()
}

/// The status of the agent that runs on this state directory.
pub(super) async fn running(dir: &Path) -> anyhow::Result<AgentStatus> {
    must_have_joined(dir)?;
    match local::ask_or_open(dir, &Request::Status).await? {
        Reached::Agent(Answer::Status(status)) => Ok(*status),
        Reached::Agent(_) => bail!("the agent answered something else"),
        Reached::Nobody(_) => Err(AskError::NotRunning.into()),
    }
}

/// `worker-agent publish`
pub(super) async fn publish(
    config: &Config,
    name: ServiceName,
    port: u16,
    tcp: bool,
    direct: bool,
) -> anyhow::Result<()> {
    let service = described(name.clone(), port, tcp, direct);
    let live = change(config, Request::Publish { service }).await?;
    let whose = if direct {
        "this machine (with --net tun on its mesh addresses, otherwise on its loopback)"
    } else {
        "this machine's loopback"
    };
    say(&format!(
        "published {name}: port {port} of {whose}{}",
        when(live)
    ));
    Ok(())
}

/// `worker-agent unpublish`
pub(super) async fn unpublish(config: &Config, name: ServiceName) -> anyhow::Result<()> {
    let live = change(config, Request::Unpublish { name: name.clone() }).await?;
    say(&format!("{name} is no longer published{}", when(live)));
    Ok(())
}

fn when(live: bool) -> &'static str {
    if live {
        ""
    } else {
        " (from the agent's next start on: it does not run)"
    }
}

/// Changes what is published, by the agent or, while none runs, for it. Whether one runs.
async fn change(config: &Config, request: Request) -> anyhow::Result<bool> {
    let dir = config.state_dir();
    must_have_joined(&dir)?;
    match local::ask_or_open(&dir, &request).await? {
        Reached::Agent(_) => Ok(true),
        Reached::Nobody(state) => {
            change_services(&state, &request)?;
            Ok(false)
        }
    }
}

pub(super) fn must_have_joined(dir: &Path) -> anyhow::Result<()> {
    if !StateDir::is_enrolled_at(dir)? {
        bail!(
            "this machine has not joined a network (no identity in {}): run 'worker-agent join \
             --token-file FILE'",
            dir.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mesh_daemon::Handles;

    use super::*;

    #[tokio::test]
    async fn before_the_join_every_verb_names_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config {
            state_dir: Some(dir.path().join("none")),
            ..Config::default()
        };
        let web = || "web".parse().expect("a name");
        let stopped = asked(&config.state_dir()).await.expect_err("not joined");
        assert_eq!(stopped.code, "not-joined");
        assert!(stopped.next.contains("worker-agent join"), "{stopped}");
        for error in [
            publish(&config, web(), 80, false, false)
                .await
                .expect_err("refused"),
            unpublish(&config, web()).await.expect_err("refused"),
            App::build(config.clone(), Handles::default())
                .await
                .map(drop)
                .expect_err("refused"),
        ] {
            assert!(error.to_string().contains("worker-agent join"), "{error}");
        }
        assert!(!dir.path().join("none").exists());
    }

    #[tokio::test]
    async fn a_stopped_agent_takes_the_change_at_its_next_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let state_dir = dir.path().join("state");
        drop(StateDir::open(&state_dir).expect("opens"));
        for file in ["node.json", "node.crt", "ca.crt"] {
            std::fs::write(state_dir.join(file), "").expect("written");
        }
        let config = Config {
            state_dir: Some(state_dir),
            ..Config::default()
        };
        let web: ServiceName = "web".parse().expect("a name");
        publish(&config, web.clone(), 8000, false, false)
            .await
            .expect("stored");
        let error = publish(&config, "other".parse().expect("a name"), 8000, true, true).await;
        assert!(
            error
                .expect_err("taken")
                .to_string()
                .contains("unpublish web")
        );
        unpublish(&config, web).await.expect("stored");
        // It does not start by these files.
        let stopped = asked(&config.state_dir()).await.expect_err("stopped");
        assert_eq!(stopped.code, "file-damaged");
        assert!(stopped.what.contains("/node.crt is damaged"), "{stopped}");
        let json: serde_json::Value =
            serde_json::from_str(&unanswered(&stopped, true)).expect("JSON");
        assert_eq!(json["findings"][0]["code"], "file-damaged", "{json}");
    }
}
