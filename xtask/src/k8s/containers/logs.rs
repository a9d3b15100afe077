//! What containers logged is searched for the secrets of their pods before the containers go.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::compose::Engine;
use crate::k8s::manifest::{labels, text};
use crate::secrets::Secrets;
use crate::workspace;

/// The search through everything that one overlay's containers logged.
#[derive(Default)]
pub(super) struct Search {
    secrets: Secrets,
    /// What was found and not told yet.
    found: Vec<String>,
    logs: usize,
    lines: usize,
}

impl Search {
    /// From now on looks for the token of a pod's account, too.
    pub(super) fn know_account(&mut self, token: &str) -> Result<()> {
        self.secrets.add("a token for Kubernetes' API", token)
    }

    /// From now on looks for what a file of a Secret holds, too.
    pub(super) fn know_file(
        &mut self,
        namespace: &str,
        secret: &str,
        key: &str,
        content: &[u8],
    ) -> Result<()> {
        let what = format!("the Secret {namespace}/{secret}");
        let content = String::from_utf8_lossy(content);
        match key.rsplit_once('.') {
            // Everybody may see a certificate.
            Some((_, "crt")) => Ok(()),
            Some((_, "json")) => self.secrets.add_context(&what, &content),
            _ => self.secrets.add(&what, &content),
        }
    }

    /// From now on looks for what these Secrets hold, too, also as Kubernetes' API writes it.
    pub(super) fn know_published(&mut self, secrets: &[Value]) -> Result<()> {
        for secret in secrets {
            let namespace = text(secret, "/metadata/namespace");
            let name = text(secret, "/metadata/name");
            for (key, value) in labels(secret, "/data") {
                let content = STANDARD.decode(&value)?;
                self.know_file(namespace, name, &key, &content)?;
                let what = format!("the Secret {namespace}/{name} in base64");
                self.secrets.add(&what, &value)?;
            }
        }
        Ok(())
    }

    /// Searches the whole log of a container, which is `of` something; a log with a find in it is
    /// kept.
    pub(super) fn search(&mut self, engine: &Engine, container: &str, of: &str) -> Result<()> {
        let mut docker = engine.docker();
        docker.args(["logs", container]).stdin(Stdio::null());
        let output = docker.output()?;
        ensure!(output.status.success(), "docker logs: {}", output.status);
        let log = [output.stdout, output.stderr].concat();
        let log = String::from_utf8_lossy(&log);
        self.logs += 1;
        self.lines += log.lines().count();
        if let Some(told) = self.secrets.told(&log) {
            let kept = dir().join(format!("{container}.log"));
            fs::create_dir_all(dir())?;
            fs::write(&kept, log.as_bytes())?;
            self.found
                .push(format!("{of}: {told}, in {}", kept.display()));
        }
        Ok(())
    }

    /// Fails when something was found since this was asked last.
    pub(super) fn verdict(&mut self) -> Result<()> {
        let found = std::mem::take(&mut self.found).join("; ");
        ensure!(found.is_empty(), "containers logged secrets: {found}");
        Ok(())
    }

    /// What was searched.
    pub(super) fn sum(&self) -> Result<String> {
        let (logs, lines) = (self.logs, self.lines);
        ensure!(lines > logs, "hardly any log: {lines} lines of {logs}");
        Ok(format!("{lines} lines of {logs} containers' logs"))
    }
}

/// Where logs are kept that have secrets in them.
fn dir() -> PathBuf {
    workspace::target_dir().join("ci/k8s")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_pods_were_given_is_looked_for_as_it_is_and_in_base64() {
        let context = br#"{"coordinators": ["coordinator.svc:8080"], "key": "MIGHAgEAMBMGByqGSM"}"#;
        let secret = json!({
            "metadata": { "namespace": "mesh", "name": "operator" },
            "data": { "default.json": STANDARD.encode(context) },
        });
        let mut search = Search::default();
        search.know_published(&[secret]).expect("known");
        search.know_account("token-of-an-account").expect("known");
        search
            .know_file("mesh", "postgres", "password", b"k7Qm2vXz9RtLp4WsY6hN\n")
            .expect("known");
        search
            .know_file("mesh", "postgres", "ca.crt", b"MIIBszCCAWWgAwIBAg")
            .expect("no secret");
        for (line, what) in [
            ("key=MIGHAgEAMBMGByqGSM", "the Secret mesh/operator"),
            (
                &format!("{{\"default.json\":\"{}\"}}", STANDARD.encode(context)),
                "the Secret mesh/operator in base64",
            ),
            ("Bearer token-of-an-account", "a token for Kubernetes' API"),
            ("k7Qm2vXz9RtLp4WsY6hN", "the Secret mesh/postgres"),
        ] {
            let told = search.secrets.told(line);
            assert_eq!(told, Some(format!("line 1 tells {what}")));
        }
        for fine in ["coordinator.svc:8080", "MIIBszCCAWWgAwIBAg"] {
            assert_eq!(search.secrets.told(fine), None);
        }
    }

    #[test]
    fn a_find_is_told_once() {
        let mut search = Search::default();
        assert!(search.verdict().is_ok());
        search.found.push("a: line 1 tells b".to_owned());
        let told = search.verdict().expect_err("found").to_string();
        assert_eq!(told, "containers logged secrets: a: line 1 tells b");
        assert!(search.verdict().is_ok());
        // Nothing was searched.
        assert!(search.sum().is_err());
    }
}
