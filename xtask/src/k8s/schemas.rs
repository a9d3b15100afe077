//! The API's own schemas, in which every unknown field is a fault.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::crds;
use super::manifest::Manifest;
use super::tools::Tools;

const SCRIPT: &str = include_str!("validate.py");

pub(super) fn check(tools: &Tools, manifest: &Manifest, versions: &[&str]) -> Result<Vec<String>> {
    let objects: Vec<_> = manifest
        .objects()
        .filter(|object| !crds::knows(object))
        .collect();
    let values: Vec<&Value> = objects.iter().map(|object| object.value()).collect();
    let question = json!({ "versions": versions, "objects": values }).to_string();
    let mut child = tools
        .python()
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run Python")?;
    child
        .stdin
        .take()
        .context("Python has no standard input")?
        .write_all(question.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the schema check itself failed");
    let faults: Vec<(usize, String, String)> =
        serde_json::from_slice(&output.stdout).context("read what the schema check says")?;
    Ok(faults
        .into_iter()
        .map(|(number, version, text)| match objects.get(number) {
            Some(object) => format!("{}: Kubernetes {version}: {text}", object.key()),
            None => text,
        })
        .collect())
}
