//! Secrets that a run made or saw, looked for in what was logged.
//!
//! Whoever runs our programs says here what was given to them; join tokens and private keys are known
//! by their form. What is told of a find is where it stands and what it is, never the secret.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Shorter words are names and not secrets.
pub(crate) const SHORTEST: usize = 16;
/// A join token is longer than anything that is said about join tokens.
const TOKEN: usize = 60;

/// What PKCS #8 in base64 has in front of a private key: Ed25519 (RFC 8410 section 7), P-256 (RFC 5958
/// section 2 with RFC 5915).
const KEYS: [&str; 2] = ["BQYDK2VwBCIEI", "BG0wawIBAQQg"];

/// What no log of a run may tell.
#[derive(Default)]
pub(crate) struct Secrets {
    /// What each is, by the secret.
    known: BTreeMap<String, String>,
}

impl Secrets {
    /// Adds what a file or a value holds, which is `what`: every word that is long enough to be a
    /// secret; one at least must be.
    pub(crate) fn add(&mut self, what: &str, content: &str) -> Result<()> {
        let words = || content.split_whitespace().filter(|it| it.len() >= SHORTEST);
        ensure!(
            words().next().is_some(),
            "{what} holds nothing that is long enough to be looked for"
        );
        for word in words() {
            let known = self.known.entry(word.to_owned());
            known.or_insert_with(|| what.to_owned());
        }
        Ok(())
    }

    /// Adds the private key in an operator's context; the rest of it is no secret.
    pub(crate) fn add_context(&mut self, what: &str, content: &str) -> Result<()> {
        let context: Value =
            serde_json::from_str(content).with_context(|| format!("{what} is no JSON"))?;
        let key = context["key"].as_str();
        self.add(what, key.with_context(|| format!("{what} has no key"))?)
    }

    /// The first line of a text that tells one of them, and which.
    pub(crate) fn told(&self, text: &str) -> Option<String> {
        text.lines().enumerate().find_map(|(number, line)| {
            let what = self.told_by(line)?;
            Some(format!("line {} tells {what}", number + 1))
        })
    }

    fn told_by(&self, line: &str) -> Option<&str> {
        let mut known = self.known.iter();
        if let Some((_, what)) = known.find(|(secret, _)| line.contains(secret.as_str())) {
            Some(what)
        } else if line.split("mesh1.").skip(1).any(is_token) {
            Some("a join token")
        } else if line.contains("-----BEGIN") && line.contains("PRIVATE KEY-----")
            || KEYS.iter().any(|key| line.contains(key))
        {
            Some("a private key")
        } else {
            None
        }
    }
}

fn is_token(after: &str) -> bool {
    let length = after.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')));
    length.unwrap_or(after.len()) >= TOKEN
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a text whose second line is this.
    fn told(secrets: &Secrets, line: &str) -> Option<String> {
        secrets.told(&format!("fine\n{line}\nfine"))
    }

    #[test]
    fn secrets_are_found_wherever_they_stand_and_not_repeated() {
        let mut secrets = Secrets::default();
        secrets
            .add("somebody's password", "Vexing7Ostrich4Lantern9\n")
            .expect("added");
        secrets
            .add("a node's keys", "keys 1\nidentity MC4CAQAwBQYDK2VwBCIE\n")
            .expect("added");
        secrets
            .add_context(
                "an operator",
                r#"{"ca": "MIIBszCCAWWgAwIBAg", "key": "MIGHAgEAMBMGByqGSM"}"#,
            )
            .expect("added");
        let token = format!("mesh1.{}", "aB3_".repeat(20));
        for (line, what) in [
            ("password=Vexing7Ostrich4Lantern9;", "somebody's password"),
            ("{\"id\":\"MC4CAQAwBQYDK2VwBCIE\"}", "a node's keys"),
            ("key: MIGHAgEAMBMGByqGSM", "an operator"),
            (&format!("token \"{token}\" was refused"), "a join token"),
            ("-----BEGIN EC PRIVATE KEY-----", "a private key"),
            ("identity MFECAQEwBQYDK2VwBCIEIH0d", "a private key"),
            ("key CCqGSM49AwEHBG0wawIBAQQgJ2", "a private key"),
        ] {
            assert_eq!(told(&secrets, line), Some(format!("line 2 tells {what}")));
        }
        for fine in [
            "join tokens start with \"mesh1.\", and mesh1.short is none",
            "identity, by the authority MIIBszCCAWWgAwIBAg",
            "-----BEGIN CERTIFICATE-----",
        ] {
            assert_eq!(told(&secrets, fine), None);
        }
    }

    #[test]
    fn what_cannot_be_looked_for_is_refused() {
        let mut secrets = Secrets::default();
        for short in ["", "short\nwords only\n"] {
            assert!(secrets.add("a password", short).is_err());
        }
        assert!(secrets.add_context("an operator", "{}").is_err());
        assert!(secrets.known.is_empty());
    }
}
