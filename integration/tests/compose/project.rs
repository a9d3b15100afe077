//! The running project, and what people ask of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_testkit::{Curl, CurlReply, Finished, Line, Spec, Stream, eventually};

use crate::{GATEWAY, HEALED, OURS};

/// The running project.
pub(crate) struct Project {
    file: PathBuf,
    begun: Instant,
}

impl Project {
    pub(crate) fn open() -> Self {
        let file = std::env::var_os("MESH_COMPOSE_FILE")
            .expect("MESH_COMPOSE_FILE names the file: run `cargo xtask compose`");
        Self {
            file: file.into(),
            begun: Instant::now(),
        }
    }

    /// The compose file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Prints how long it took since the last call.
    pub(crate) fn lap(&mut self, step: &str) {
        println!("{step:<60} {:>6.1} s", self.begun.elapsed().as_secs_f64());
        self.begun = Instant::now();
    }

    pub(crate) fn compose<const N: usize>(&self, args: [&str; N]) -> anyhow::Result<Finished> {
        Spec::new("docker")
            .args(["compose", "--file"])
            .arg(&self.file)
            .args(args)
            .run(Duration::from_secs(300))
    }

    pub(crate) fn ok<const N: usize>(&self, args: [&str; N]) -> anyhow::Result<String> {
        let ran = self.compose(args)?;
        ensure!(
            ran.code == Some(0),
            "docker compose {}: {:?}: {}{}",
            args.join(" "),
            ran.code,
            ran.stdout,
            ran.stderr
        );
        Ok(ran.stdout)
    }

    /// What the one-shots made, read as docs/docker.md says; not through [`Spec`], which keeps what
    /// programs print for people to look at.
    pub(crate) fn secret(&self, path: &str) -> String {
        let output = std::process::Command::new("docker")
            .args(["compose", "--file"])
            .arg(&self.file)
            .args(["run", "--rm", "--no-deps", "-T", "--entrypoint", "cat"])
            .args(["secrets", &format!("/run/mesh/{path}")])
            .output()
            .expect("docker runs");
        assert!(output.status.success(), "{path} cannot be read");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.trim().len() >= 32, "{path} is too short");
        text.trim().to_owned()
    }

    /// `deploy-cli status all` with nothing else said; all of `workers` are good.
    pub(crate) fn status_all(&self, workers: &[&str]) -> anyhow::Result<()> {
        let args = [
            "exec",
            "-T",
            "deploy-manager",
            "deploy-cli",
            "status",
            "all",
        ];
        let answer = self.ok(args)?;
        for worker in workers {
            let line = format!("[OK] {worker} -> ");
            ensure!(answer.contains(&line), "no {line:?} in: {answer}");
        }
        ensure!(!answer.contains("[FAIL]"), "{answer}");
        ensure!(answer.lines().count() == workers.len(), "{answer}");
        Ok(())
    }

    /// Every worker's page at the gateway is Cockpit's.
    pub(crate) fn consoles(&self, workers: &[&str]) -> anyhow::Result<()> {
        for worker in workers {
            let page = Curl::new()
                .get(format!("{GATEWAY}/{worker}/"))
                .and_then(CurlReply::ok)?;
            ensure!(page.contains("login-user-input"), "not Cockpit: {page}");
        }
        Ok(())
    }

    /// A change that goes through coordinator and database.
    pub(crate) fn change(&self) -> anyhow::Result<()> {
        let token = ["exec", "-T", "deploy-manager", "mesh", "token", "create"];
        self.ok(token).map(drop)
    }

    pub(crate) fn container(&self, service: &str) -> anyhow::Result<String> {
        let id = self.ok(["ps", "--all", "--quiet", service])?;
        let id = id.lines().next().context("no container")?;
        Ok(id.to_owned())
    }

    pub(crate) fn inspect(&self, service: &str, form: &str) -> anyhow::Result<String> {
        let id = self.container(service)?;
        let ran = Spec::new("docker")
            .args(["inspect", "--format", form, &id])
            .run(Duration::from_secs(30))?;
        ensure!(ran.code == Some(0), "{}", ran.stderr);
        Ok(ran.stdout.trim().to_owned())
    }

    pub(crate) fn is_healthy(&self, service: &str) -> anyhow::Result<()> {
        let health = self.inspect(service, "{{.State.Health.Status}}")?;
        ensure!(health == "healthy", "{service} is {health}");
        Ok(())
    }

    /// Kills the container's first process, as a fault would; the engine is to start it again.
    pub(crate) fn kill(&self, service: &str) {
        let restarts = |form| -> u32 {
            let count = self.inspect(service, form).expect("inspected");
            count.parse().expect("a number")
        };
        let before = restarts("{{.RestartCount}}");
        let pid = self.inspect(service, "{{.State.Pid}}").expect("inspected");
        let killed = Spec::new("kill")
            .args(["-KILL", &pid])
            .run(Duration::from_secs(5))
            .expect("kill runs");
        assert_eq!(killed.code, Some(0), "{}", killed.stderr);
        eventually("it is started again", HEALED, || {
            ensure!(restarts("{{.RestartCount}}") > before, "not yet");
            Ok(())
        });
    }

    pub(crate) fn logs(&self, service: &str) -> String {
        self.ok(["logs", "--no-color", "--no-log-prefix", service])
            .expect("logs")
    }

    /// No WARN, ERROR or panic but those `expected`.
    pub(crate) fn expect_clean_logs(&self, expected: &[&str]) {
        let mut alarms = Vec::new();
        for service in OURS {
            for text in self.logs(service).lines() {
                let line = Line {
                    at: Instant::now(),
                    stream: Stream::Stdout,
                    text: text.to_owned(),
                };
                if line.alarm().is_some() && !expected.iter().any(|part| text.contains(part)) {
                    alarms.push(format!("{service}: {text}"));
                }
            }
        }
        assert!(alarms.is_empty(), "in the logs:\n{}", alarms.join("\n"));
    }
}
