//! A fresh Debian in a container engine, to install packages into: `deb/machine/compose.yml`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::file_name;
use crate::compose::Engine;
use crate::process::{output, run_quietly};
use crate::workspace;

const FILE: &str = "xtask/src/deb/machine/compose.yml";
const POLL: Duration = Duration::from_millis(100);

/// `docker compose` on the file that describes it.
fn compose(engine: &Engine) -> Command {
    let mut command = engine.docker();
    command.args(["compose", "--progress", "plain", "--file"]);
    command.arg(workspace::root().join(FILE));
    command
}

/// Makes the image.
pub(super) fn prepare(engine: &Engine, artefacts: &Path) -> Result<()> {
    run_quietly(
        compose(engine).args(["build", "machine"]),
        &artefacts.join("build.log"),
    )
}

/// One of the file's services; it goes when this does.
pub(super) struct Debian<'a> {
    engine: &'a Engine,
    container: String,
}

impl<'a> Debian<'a> {
    pub(super) fn start(engine: &'a Engine, service: &str) -> Result<Self> {
        let mut debian = Self {
            engine,
            container: String::new(),
        };
        output(compose(engine).args(["up", "--no-build", "--detach", service]))?;
        debian.container = output(compose(engine).args(["ps", "--all", "--quiet", service]))?;
        Ok(debian)
    }

    /// Ends its first process, and starts it again.
    pub(super) fn restart(&self) -> Result<()> {
        output(
            self.engine
                .docker()
                .args(["restart", "--time", "60", &self.container]),
        )?;
        Ok(())
    }

    /// Runs a script inside: its exit code, and everything that it prints.
    pub(super) fn ran(&self, script: &str) -> Result<(Option<i32>, String)> {
        let output = self
            .engine
            .docker()
            .args(["exec", "--env", "DEBIAN_FRONTEND=noninteractive"])
            .args([&self.container, "/bin/sh", "-ec", script])
            .output()
            .context("run docker exec")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code(), said))
    }

    /// Runs a script inside that must succeed; what it prints.
    pub(super) fn sh(&self, script: &str) -> Result<String> {
        let (code, said) = self.ran(script)?;
        ensure!(
            code == Some(0),
            "in the fresh Debian: {script}: {code:?}\n{said}"
        );
        Ok(said)
    }

    /// Tries a script until it succeeds; what it prints then.
    pub(super) fn eventually(&self, limit: Duration, script: &str) -> Result<String> {
        let begun = Instant::now();
        loop {
            let (code, said) = self.ran(script)?;
            if code == Some(0) {
                return Ok(said);
            }
            if begun.elapsed() > limit {
                bail!(
                    "in the fresh Debian, still after {} s: {script}: {code:?}\n{said}",
                    limit.as_secs()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Puts packages where `dpkg` can read them; their paths, for a command line.
    pub(super) fn copy_in(&self, debs: &[PathBuf]) -> Result<String> {
        self.sh("mkdir -p /root/debs")?;
        let mut names = Vec::new();
        for deb in debs {
            let name = format!("/root/debs/{}", file_name(deb));
            let mut copy = self.engine.docker();
            copy.arg("cp").arg(deb);
            output(copy.arg(format!("{}:{name}", self.container)))?;
            names.push(name);
        }
        Ok(names.join(" "))
    }

    /// Everything below the places where packages put things, dpkg's own books and what systemd
    /// keeps left out, and all users.
    pub(super) fn files(&self) -> Result<BTreeSet<String>> {
        let found = self.sh(
            "find /etc /usr /var /opt -xdev -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' \
                -not -path '/var/cache/*' -not -path '/etc/*-' -not -path '/etc/.pwd.lock' \
                -not -path '/var/lib/systemd/*' -not -path '/var/tmp/systemd-private-*'
            cut -d: -f1 /etc/passwd /etc/group",
        )?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    /// The files are those of `before`, but for those that are `allowed`.
    pub(super) fn expect_as(&self, before: &BTreeSet<String>, allowed: &[&str]) -> Result<()> {
        let after = self.files()?;
        let left: Vec<_> = after
            .difference(before)
            .filter(|name| !allowed.contains(&name.as_str()))
            .collect();
        ensure!(left.is_empty(), "purging leaves {left:?}");
        let gone: Vec<_> = before.difference(&after).collect();
        ensure!(gone.is_empty(), "purging takes away {gone:?}");
        Ok(())
    }
}

impl Drop for Debian<'_> {
    fn drop(&mut self) {
        let mut down = compose(self.engine);
        down.args(["down", "--volumes", "--timeout", "20"]);
        if let Err(error) = output(&mut down) {
            eprintln!("warning: the Debian of the packages' check is left: {error:#}");
        }
    }
}
