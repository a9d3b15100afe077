//! The names of test targets, by which cargo is told which of the workspace's tests to run.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process;

/// The package whose tests are the journeys.
const JOURNEYS: &str = "integration";

/// The workspace's test targets that are run unasked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tests {
    journeys: Vec<String>,
    others: Vec<String>,
}

impl Tests {
    /// Asks cargo.
    pub(super) fn read() -> Result<Self> {
        let output = process::cargo()
            .args(["metadata", "--no-deps", "--format-version=1"])
            .output()
            .context("start cargo metadata")?;
        if !output.status.success() {
            bail!(
                "cargo metadata: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Self::of(&serde_json::from_slice(&output.stdout)?)
    }

    fn of(metadata: &Value) -> Result<Self> {
        let list = |value: &Value, key: &str| -> Result<Vec<Value>> {
            let list = value[key].as_array();
            list.cloned()
                .with_context(|| format!("cargo metadata has no {key}"))
        };
        let mut tests = Self::default();
        for package in list(metadata, "packages")? {
            let names = match package["name"].as_str() {
                Some(JOURNEYS) => &mut tests.journeys,
                _ => &mut tests.others,
            };
            for target in list(&package, "targets")? {
                let is_test = list(&target, "kind")?.contains(&"test".into());
                // What needs features that are off is tested where they are on.
                let is_built = target["required-features"].is_null();
                if is_test && is_built && target["test"] == true {
                    let name = target["name"].as_str();
                    names.push(name.context("a target has no name")?.to_owned());
                }
            }
        }
        if tests.journeys.is_empty() || tests.others.is_empty() {
            bail!("cargo metadata names no test targets");
        }
        // Cargo takes a name for that of every package's.
        if let Some(both) = tests
            .journeys
            .iter()
            .find(|name| tests.others.contains(name))
        {
            bail!("a journey and another test are called {both}: rename one of the two");
        }
        Ok(tests)
    }

    /// Names the journeys to cargo.
    pub(super) fn name_journeys(&self, command: &mut Command) {
        name(&self.journeys, command);
    }

    /// Names all others to cargo.
    pub(super) fn name_others(&self, command: &mut Command) {
        name(&self.others, command);
    }
}

fn name(tests: &[String], command: &mut Command) {
    for test in tests {
        command.args(["--test", test]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workspace(other: &str) -> Value {
        let target = |kind: &str, name: &str, test: bool| json!({"kind": [kind], "name": name, "test": test});
        let mut featured = target("test", "simulation", true);
        featured["required-features"] = json!(["virtual-time"]);
        json!({"packages": [
            {"name": "integration", "targets": [
                target("lib", "integration", true),
                target("test", "console", true),
                target("test", "soak", false),
            ]},
            {"name": "relay", "targets": [
                target("bin", "relay", true),
                target("test", other, true),
                featured,
            ]},
        ]})
    }

    #[test]
    fn journeys_are_told_from_other_tests() {
        let tests = Tests::of(&workspace("app")).expect("read");
        assert_eq!(tests.journeys, ["console"]);
        assert_eq!(tests.others, ["app"]);
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused() {
        let error = Tests::of(&workspace("console")).expect_err("refused");
        assert!(error.to_string().contains("called console"), "{error}");
    }

    #[test]
    fn this_workspace_has_both() {
        let tests = Tests::read().expect("read");
        assert!(tests.journeys.contains(&"first_light".to_owned()));
        assert!(tests.others.contains(&"gateway".to_owned()));
    }
}
