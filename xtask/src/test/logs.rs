//! What the processes of all journeys printed tells no secret.
//!
//! One journey plants a secret in every place that takes one and searches its own outputs; this
//! searches everybody's for what the tests use as secrets, for join tokens and for private keys.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace;

/// Where the tests' secrets stand, as constants.
const SOURCES: [&str; 3] = [
    "libs/testkit/src/postgres.rs",
    "libs/testkit/src/redis.rs",
    "integration/tests/secrets/stage.rs",
];
/// Programs that show a token because they were asked to, or another's output.
const SHOWN: [&str; 2] = ["mesh", "docker"];
/// A join token is longer than anything that is said about join tokens.
const TOKEN: usize = 60;
/// Shorter constants are names and not secrets.
const SECRET: usize = 16;

/// Searches the logs of the journeys.
pub(super) fn check() -> Result<()> {
    let secrets = secrets()?;
    let mut found = Vec::new();
    let mut searched = 0;
    for path in logs(&workspace::target_dir().join("ci/logs"))? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        // `007-relay`: a number, and whose it is.
        let of = name.split_once('-').map_or(&*name, |(_, of)| of);
        if SHOWN.contains(&of) {
            continue;
        }
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        searched += 1;
        if let Some(what) = told(&String::from_utf8_lossy(&text), &secrets) {
            found.push(format!("{}: {what}", path.display()));
        }
    }
    ensure!(
        searched > 0,
        "no logs in target/ci/logs: nothing was searched"
    );
    if !found.is_empty() {
        bail!("{} logs tell a secret:\n{}", found.len(), found.join("\n"));
    }
    println!("\n== no secret in {searched} logs");
    Ok(())
}

fn logs(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !dir.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(logs(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// The constants of the tests that are used as secrets.
fn secrets() -> Result<Vec<String>> {
    let mut secrets = Vec::new();
    for source in SOURCES {
        let text = fs::read_to_string(workspace::root().join(source))
            .with_context(|| format!("read {source}"))?;
        let before = secrets.len();
        secrets.extend(constants(&text).map(str::to_owned));
        if secrets.len() == before {
            bail!("{source} has no secrets any more: say in xtask's logs.rs where they are");
        }
    }
    Ok(secrets)
}

fn constants(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (_, value) = line.split_once(": &str = \"")?;
        let (value, _) = value.split_once('"')?;
        let is_secret = value.len() >= SECRET && !value.contains([' ', '/']);
        is_secret.then_some(value)
    })
}

/// What a text tells that it must not.
fn told(text: &str, secrets: &[String]) -> Option<String> {
    for (number, line) in text.lines().enumerate() {
        let secret = secrets.iter().any(|secret| line.contains(secret.as_str()));
        let what = if secret {
            "a secret of the tests"
        } else if line.split("mesh1.").skip(1).any(is_token) {
            "a join token"
        } else if line.contains("-----BEGIN") && line.contains("PRIVATE KEY-----") {
            "a private key"
        } else {
            continue;
        };
        return Some(format!("line {} is {what}", number + 1));
    }
    None
}

fn is_token(after: &str) -> bool {
    let length = after.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')));
    length.unwrap_or(after.len()) >= TOKEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_wherever_they_stand() {
        let source = "const A: &str = \"Vexing7Ostrich4Lantern9\";\nconst B: &str = \"mesh\";\n\
                      const C: &str = \"a sentence that is no secret\";\n";
        let secrets: Vec<String> = constants(source).map(str::to_owned).collect();
        assert_eq!(secrets, ["Vexing7Ostrich4Lantern9"]);
        let token = format!("mesh1.{}", "aB3_".repeat(20));
        for (line, what) in [
            ("password=Vexing7Ostrich4Lantern9;", "a secret of the tests"),
            (&format!("token \"{token}\" was refused"), "a join token"),
            ("-----BEGIN PRIVATE KEY-----", "a private key"),
        ] {
            let text = format!("fine\n{line}\nfine");
            assert_eq!(told(&text, &secrets), Some(format!("line 2 is {what}")));
        }
        let fine = "join tokens start with \"mesh1.\", and mesh1.short is none";
        assert_eq!(told(fine, &secrets), None);
    }

    #[test]
    fn the_tests_have_secrets() {
        assert!(secrets().expect("readable").len() >= 8);
    }
}
