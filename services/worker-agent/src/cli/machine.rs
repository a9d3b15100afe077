//! `console configure` and `ssh trust`: what changes the machine's own programs, for root.

use std::path::Path;

use anyhow::{Context as _, bail};
use mesh_node::StateDir;

use super::{complain, say};
use crate::cli::running;
use crate::config::Config;
use crate::console::{Configured, configure};
use crate::ssh::{Trusted, trust};

/// `worker-agent console configure`
pub(super) async fn configure_console(
    config: &Config,
    prefix: Option<String>,
) -> anyhow::Result<()> {
    let prefix = match prefix {
        Some(prefix) => checked(prefix)?,
        None => prefix_of(config).await?,
    };
    let conf = &config.console.cockpit_conf;
    match configure(conf, &prefix)? {
        Configured::Changed => {
            say(&format!("{} now serves {prefix}", conf.display()));
            say("next: sudo systemctl restart cockpit");
        }
        Configured::AsBefore => say(&format!("{} serves {prefix} already", conf.display())),
    }
    Ok(())
}

/// The prefix from the running agent, or from the time of the join.
async fn prefix_of(config: &Config) -> anyhow::Result<String> {
    let dir = config.state_dir();
    match running::running(&dir).await {
        Ok(status) => Ok(status.console.prefix),
        Err(error) if StateDir::is_enrolled_at(&dir)? => {
            // The lock is free when no agent runs.
            let state = StateDir::open(&dir).map_err(|_| error)?;
            let enrolled = state
                .enrolment()?
                .context("the identity is incomplete: join again")?;
            complain("the agent does not run: this is the path from the time of the join");
            Ok(enrolled.console_prefix)
        }
        Err(error) => Err(error),
    }
}

/// A path that begins and ends with a slash.
fn checked(prefix: String) -> anyhow::Result<String> {
    let plain = prefix.trim_matches('/');
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    if plain.is_empty() || !plain.chars().all(sound) || !prefix.starts_with('/') {
        bail!("--prefix {prefix}: give the path at the gateway, such as /worker-node-1/");
    }
    Ok(format!("/{plain}/"))
}

/// `worker-agent ssh trust`
pub(super) async fn trust_ssh(config: &Config, print: bool, sshd_dir: &Path) -> anyhow::Result<()> {
    let status = running::running(&config.state_dir()).await?;
    let authority = status.ssh.authority;
    if authority.is_empty() {
        bail!(
            "the network's SSH authority is not known yet: try again when the agent is connected ('worker-agent status')"
        );
    }
    if print {
        say(&authority);
        return Ok(());
    }
    match trust(sshd_dir, &authority)? {
        Trusted::Changed => {
            say("sshd is set up to accept the network's certificates");
            say("next: sudo systemctl reload ssh");
        }
        Trusted::AsBefore => say("sshd accepts the network's certificates already"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_path_with_slashes_at_both_ends() {
        assert_eq!(checked("/w".into()).expect("a path"), "/w/");
        assert_eq!(checked("/n/lab/w/".into()).expect("a path"), "/n/lab/w/");
        for bad in ["", "/", "w", "/a b/", "/a\nb/"] {
            assert!(checked(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn the_console_can_be_configured_with_a_given_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.console.cockpit_conf = dir.path().join("cockpit.conf");
        configure_console(&config, Some("/w/".into()))
            .await
            .expect("written");
        let text = std::fs::read_to_string(dir.path().join("cockpit.conf")).expect("there");
        assert!(text.contains("UrlRoot=/w\n"), "{text}");
    }
}
