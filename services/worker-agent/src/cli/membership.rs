//! `join` and `leave`.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_daemon::build_info;
use mesh_node::{ControlConfig, ControlSession, ControlStatus, StateDir};
use mesh_types::JoinToken;
use zeroize::Zeroizing;

use super::{JoinArgs, complain, say};
use crate::app::wipe;
use crate::config::Config;
use crate::join::JoinOptions;
use crate::local::{self, Reached, Request};

/// A token is not longer, in bytes.
const TOKEN_MAX: u64 = 16 * 1024;
/// How long the coordinator may take to hear of a stopped agent's leaving.
const LEAVE_LIMIT: Duration = Duration::from_secs(15);

/// How long the control session may take to hear that the node was removed.
const REMOVED_LIMIT: Duration = Duration::from_secs(3);

/// `worker-agent join`
pub(super) async fn join(config: &Config, args: JoinArgs) -> anyhow::Result<()> {
    let token = token(&args)?;
    let hostname = match &args.hostname {
        Some(name) => name.clone(),
        None => own_hostname()?,
    };
    let permit = args
        .permit
        .as_deref()
        .map(|text| URL_SAFE_NO_PAD.decode(text.trim()));
    let permit = permit
        .transpose()
        .context("the permit is damaged: copy it again, whole, from 'mesh node permit'")?;
    let timeout = humane_duration(&args.timeout)?;
    let options = JoinOptions {
        permit: permit.unwrap_or_default(),
        timeout,
        ..JoinOptions::new(hostname)
    };
    let state_dir = config.state_dir();
    let enrolled = crate::join::join(&token, options, &state_dir).await?;
    let network = enrolled
        .network
        .as_ref()
        .map_or("", |network| network.as_str());
    say(&format!(
        "joined network {network} as {} (node {})",
        enrolled.name, enrolled.node
    ));
    if let Some(addrs) = enrolled.addrs {
        say(&format!("  addresses  {}, {}", addrs.v4, addrs.v6));
    }
    say(&format!(
        "  console    {} at the gateway",
        enrolled.console_prefix
    ));
    say("next: worker-agent run");
    Ok(())
}

/// This machine's name.
pub(super) fn own_hostname() -> anyhow::Result<String> {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .context("this machine has no usable host name: give one with --hostname NAME")
}

/// The token, from a file, standard input, the environment or the command line.
fn token(args: &JoinArgs) -> anyhow::Result<JoinToken> {
    let text = match (&args.token_file, &args.token) {
        (Some(path), _) if path == Path::new("-") => {
            let mut text = Zeroizing::new(String::new());
            let stdin = std::io::stdin();
            stdin
                .take(TOKEN_MAX)
                .read_to_string(&mut text)
                .context("read the token")?;
            text
        }
        (Some(path), _) => {
            let text = std::fs::read_to_string(path);
            Zeroizing::new(text.with_context(|| format!("read the token from {}", path.display()))?)
        }
        (None, Some(text)) => {
            if std::env::var_os("MESH_JOIN_TOKEN").is_none() {
                complain(
                    "warning: the token is visible to every user of this machine as an argument; \
                     use --token-file FILE, or --token-file - and standard input",
                );
            }
            Zeroizing::new(text.clone())
        }
        (None, None) => bail!(
            "a join token is needed: --token-file FILE, or --token-file - for standard input (an \
             operator makes one with 'mesh token create --role worker')"
        ),
    };
    Ok(text.trim().parse()?)
}

fn humane_duration(text: &str) -> anyhow::Result<Duration> {
    #[derive(serde::Deserialize)]
    #[serde(transparent)]
    struct Wrapped(#[serde(with = "mesh_daemon::config::duration")] Duration);
    let value = serde_json::Value::String(text.to_owned());
    let Wrapped(duration) = serde_json::from_value(value)
        .with_context(|| format!("--timeout {text}: write a time such as 30s or 2m"))?;
    Ok(duration)
}

/// `worker-agent leave`
pub(super) async fn leave(config: &Config, force: bool) -> anyhow::Result<()> {
    let dir = config.state_dir();
    if !StateDir::is_enrolled_at(&dir)? {
        bail!("this machine is in no network: there is nothing to leave");
    }
    match local::ask_or_open(&dir, &Request::Leave { force }).await? {
        Reached::Agent(_) => {}
        Reached::Nobody(state) => leave_stopped(&state, force).await?,
    }
    say("left the network; the keys of this machine are gone");
    Ok(())
}

/// Leaves without a running agent.
async fn leave_stopped(state: &StateDir, force: bool) -> anyhow::Result<()> {
    let version = build_info::VERSION.to_owned();
    let control = ControlConfig {
        coordinators: Vec::new(),
        version,
    };
    let session = ControlSession::start(control, state);
    let told = match &session {
        Ok(session) => match tokio::time::timeout(LEAVE_LIMIT, session.leave()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) if was_removed(session).await => Ok(()),
            Ok(Err(error)) => Err(anyhow::Error::from(error)),
            Err(_) => Err(anyhow::anyhow!("the coordinator does not answer")),
        },
        Err(error) => Err(anyhow::anyhow!("{error}")),
    };
    if let Ok(session) = session {
        session.shutdown().await;
    }
    match told {
        Err(error) if !force => {
            Err(error.context("'worker-agent leave --force' leaves without the coordinator"))
        }
        _ => Ok(wipe(state)?),
    }
}

/// Whether the coordinator says that this node is part of nothing any more.
async fn was_removed(session: &ControlSession) -> bool {
    let mut status = session.status();
    let removed = status.wait_for(ControlStatus::is_removed);
    tokio::time::timeout(REMOVED_LIMIT, removed)
        .await
        .is_ok_and(|found| found.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(token_file: Option<&Path>, token: Option<&str>) -> JoinArgs {
        JoinArgs {
            token_file: token_file.map(Path::to_owned),
            token: token.map(str::to_owned),
            hostname: None,
            permit: None,
            timeout: "30s".into(),
        }
    }

    #[test]
    fn a_token_file_may_end_with_a_line_break() {
        let token = JoinToken {
            ca_fingerprint: [1; 32],
            id: mesh_types::TokenId::from_bytes([2; 16]),
            secret: [3; 32],
            coordinators: vec!["127.0.0.1:8080".into()],
        };
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        std::fs::write(&file, format!("{}\n", token.reveal())).expect("written");
        assert_eq!(super::token(&args(Some(&file), None)).expect("read"), token);
    }

    #[test]
    fn bad_tokens_and_files_say_what_is_wrong() {
        let text = |args| format!("{:#}", token(&args).expect_err("refused"));
        assert!(text(args(None, Some("mesh1.AAAA"))).contains("damaged"));
        assert!(text(args(None, Some("hello"))).contains("mesh token create"));
        assert!(text(args(Some(Path::new("/nonexistent")), None)).contains("/nonexistent"));
        assert!(text(args(None, None)).contains("--token-file"));
    }

    #[test]
    fn times_are_written_with_their_unit() {
        assert_eq!(
            humane_duration("90s").expect("a time"),
            Duration::from_secs(90)
        );
        assert!(format!("{:#}", humane_duration("soon").expect_err("no time")).contains("30s"));
    }

    #[tokio::test]
    async fn there_is_nothing_to_leave_before_the_join() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config {
            state_dir: Some(dir.path().join("none")),
            ..Config::default()
        };
        let error = leave(&config, false).await.expect_err("refused");
        assert!(error.to_string().contains("nothing to leave"));
        assert!(!dir.path().join("none").exists());
    }
}
