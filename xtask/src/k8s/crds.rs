//! Kinds of other projects (Gateway API, Prometheus operator), by the schemas that are generated
//! from those projects' own API types, as their CRDs are; an unknown field or kind is a fault.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::manifest::{Manifest, Object};
use super::tools::Tools;

/// Goes beside the packages, which it looks for there.
pub(super) const SCRIPT: &str = include_str!("crds.mjs");

/// One API group with a version: the npm package that has its schemas (MIT).
struct Group {
    api: &'static str,
    package: &'static str,
    version: &'static str,
    /// How its files are called, ahead of the kind.
    prefix: &'static str,
}

const GROUPS: &[Group] = &[
    Group {
        api: "gateway.networking.k8s.io/v1",
        package: "@kubernetes-models/gateway-api",
        version: "2.0.0",
        prefix: "IoK8sSigsGatewayApiApisV1",
    },
    Group {
        api: "monitoring.coreos.com/v1",
        package: "@kubernetes-models/prometheus-operator",
        version: "6.0.0",
        prefix: "ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1",
    },
];

/// What npm is to install: `(name, version)`.
pub(super) fn packages() -> impl Iterator<Item = (&'static str, &'static str)> {
    GROUPS.iter().map(|group| (group.package, group.version))
}

/// Whether the object's API is one of those listed here.
pub(super) fn knows(object: &Object<'_>) -> bool {
    GROUPS.iter().any(|group| group.api == object.api_version())
}

pub(super) fn check(tools: &Tools, manifest: &Manifest) -> Result<Vec<String>> {
    let objects: Vec<_> = manifest.objects().filter(knows).collect();
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let packages: serde_json::Map<String, Value> = GROUPS
        .iter()
        .map(|group| (group.api.to_owned(), json!([group.package, group.prefix])))
        .collect();
    let values: Vec<&Value> = objects.iter().map(|object| object.value()).collect();
    let question = json!({ "packages": packages, "objects": values }).to_string();
    let mut child = tools
        .crds()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run node")?;
    child
        .stdin
        .take()
        .context("node has no standard input")?
        .write_all(question.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "the check of CRD kinds itself failed"
    );
    let faults: Vec<(usize, String)> =
        serde_json::from_slice(&output.stdout).context("read what the check says")?;
    Ok(faults
        .into_iter()
        .map(|(number, text)| match objects.get(number) {
            Some(object) => format!("{}: {text}", object.key()),
            None => text,
        })
        .collect())
}
