//! What the processes of all journeys printed tells no secret, nor does what the tests did.
//!
//! One journey plants a secret in every place that takes one and searches its own outputs; this
//! searches everybody's for what the tests use as secrets, for join tokens and for private keys.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::secrets::{SHORTEST, Secrets};
use crate::workspace;

/// Where the tests' secrets stand, as constants.
const SOURCES: [&str; 3] = [
    "libs/testkit/src/postgres.rs",
    "libs/testkit/src/redis.rs",
    "integration/tests/secrets/stage.rs",
];
/// Logs of calls that show a token because they were asked to, or another's output.
const SHOWN: [&str; 2] = ["mesh-shown", "docker"];

/// Searches the logs of the journeys, and `output`: what the test programs themselves printed.
pub(super) fn check(output: &Path) -> Result<()> {
    let mut known = Secrets::default();
    for secret in secrets()? {
        known.add("a secret of the tests", &secret)?;
    }
    let mut found = Vec::new();
    let mut searched = 0;
    let mut paths = logs(&workspace::target_dir().join("ci/logs"))?;
    ensure!(
        !paths.is_empty(),
        "no logs in target/ci/logs: nothing was searched"
    );
    paths.push(output.to_owned());
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        // `007-relay`: a number, and whose it is.
        let of = name.split_once('-').map_or(&*name, |(_, of)| of);
        if SHOWN.contains(&of) {
            continue;
        }
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        searched += 1;
        if let Some(what) = known.told(&String::from_utf8_lossy(&text)) {
            found.push(format!("{}: {what}", path.display()));
        }
    }
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
        let is_secret = value.len() >= SHORTEST && !value.contains([' ', '/']);
        is_secret.then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_the_long_constants_without_a_sentence() {
        let source = "const A: &str = \"Vexing7Ostrich4Lantern9\";\nconst B: &str = \"mesh\";\n\
                      const C: &str = \"a sentence that is no secret\";\n";
        let secrets: Vec<String> = constants(source).map(str::to_owned).collect();
        assert_eq!(secrets, ["Vexing7Ostrich4Lantern9"]);
    }

    #[test]
    fn the_tests_have_secrets() {
        assert!(secrets().expect("readable").len() >= 8);
    }
}
