//! What observes an installation: the parts of `deploy/observability` and the compose file's profile
//! name each other rightly. CI starts no collector, trace store or Grafana (nobody hands out their
//! images there), so that names are all it can check.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};
use yaml_rust2::{Yaml, YamlLoader};

use super::Findings;
use crate::workspace;

/// The files, as text.
struct Files {
    compose: String,
    collector: String,
    prometheus: String,
    datasources: String,
    dashboards: String,
    /// The dashboards themselves.
    shown: Vec<String>,
}

/// Where each is, from `deploy`.
const COLLECTOR: &str = "observability/otel-collector.yaml";
const PROMETHEUS: &str = "observability/prometheus.yml";
const PROVISIONING: &str = "observability/grafana/provisioning";
const DASHBOARDS: &str = "observability/grafana/dashboards";

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let deploy = workspace::root().join("deploy");
    let read = |path: &str| {
        let path = deploy.join(path);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let mut shown = Vec::new();
    for entry in fs::read_dir(deploy.join(DASHBOARDS))? {
        shown.push(fs::read_to_string(entry?.path())?);
    }
    let files = Files {
        compose: read("docker-compose.yml")?,
        collector: read(COLLECTOR)?,
        prometheus: read(PROMETHEUS)?,
        datasources: read(&format!("{PROVISIONING}/datasources/mesh.yaml"))?,
        dashboards: read(&format!("{PROVISIONING}/dashboards/mesh.yaml"))?,
        shown,
    };
    for fault in faults(&files)? {
        findings.fault(format!("deploy: {fault}"));
    }
    let mounts = mounts(&document(&files.compose)?);
    for (source, _) in mounts
        .iter()
        .filter(|(source, _)| source.starts_with("observability/"))
    {
        if !deploy.join(source).exists() {
            findings.fault(format!(
                "deploy/docker-compose.yml mounts {source}, which is not there"
            ));
        }
    }
    Ok(())
}

fn faults(files: &Files) -> Result<Vec<String>> {
    let compose = document(&files.compose)?;
    let services: BTreeSet<&str> = keys(&compose["services"]).collect();
    let mounts = mounts(&compose);
    let mut faults = Vec::new();
    collector(&document(&files.collector)?, &services, &mut faults);
    prometheus(
        &document(&files.prometheus)?,
        &services,
        &mounts,
        &mut faults,
    );
    grafana(files, &services, &mounts, &mut faults)?;
    Ok(faults)
}

fn document(text: &str) -> Result<Yaml> {
    let mut documents = YamlLoader::load_from_str(text)?;
    anyhow::ensure!(
        documents.len() == 1,
        "one document, not {}",
        documents.len()
    );
    Ok(documents.remove(0))
}

fn keys(map: &Yaml) -> impl Iterator<Item = &str> {
    map.as_hash()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.as_str())
}

fn texts(list: &Yaml) -> impl Iterator<Item = &str> {
    list.as_vec().into_iter().flatten().filter_map(Yaml::as_str)
}

/// The files of ours that containers see: from `deploy`, and in the container.
fn mounts(compose: &Yaml) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (_, service) in compose["services"].as_hash().into_iter().flatten() {
        for volume in texts(&service["volumes"]) {
            let mut parts = volume.split(':');
            if let (Some(source), Some(target)) = (parts.next(), parts.next())
                && let Some(source) = source.strip_prefix("./")
            {
                found.push((source.to_owned(), target.to_owned()));
            }
        }
    }
    found
}

/// Where a file or folder of ours is in the container, when it is mounted.
fn mounted<'a>(mounts: &'a [(String, String)], source: &str) -> Option<&'a str> {
    let found = mounts.iter().find(|(known, _)| known == source);
    found.map(|(_, target)| target.as_str())
}

/// The host of `http://host:port/…` or `host:port`.
fn host(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    address.split([':', '/']).next().unwrap_or_default()
}

/// Every component of a pipeline is declared, and every declared one is used.
fn collector(config: &Yaml, services: &BTreeSet<&str>, faults: &mut Vec<String>) {
    let service = &config["service"];
    for kind in ["receivers", "processors", "exporters", "extensions"] {
        let declared: BTreeSet<&str> = keys(&config[kind]).collect();
        let mut used: BTreeSet<&str> = BTreeSet::new();
        if kind == "extensions" {
            used.extend(texts(&service["extensions"]));
        }
        for (_, pipeline) in service["pipelines"].as_hash().into_iter().flatten() {
            used.extend(texts(&pipeline[kind]));
        }
        for name in used.difference(&declared) {
            faults.push(format!("{COLLECTOR}: {kind} has no {name}, which is used"));
        }
        for name in declared.difference(&used) {
            faults.push(format!("{COLLECTOR}: {name} of {kind} is not used"));
        }
    }
    if service["pipelines"]["traces"].is_badvalue() {
        faults.push(format!("{COLLECTOR}: there is no pipeline for traces"));
    }
    for (name, exporter) in config["exporters"].as_hash().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        let to = host(exporter["endpoint"].as_str().unwrap_or_default());
        if !services.contains(to) {
            faults.push(format!(
                "{COLLECTOR}: {name} sends to {to:?}, which is no service"
            ));
        }
    }
}

/// Prometheus finds its rules, and asks services that there are.
fn prometheus(
    config: &Yaml,
    services: &BTreeSet<&str>,
    mounts: &[(String, String)],
    faults: &mut Vec<String>,
) {
    let own = mounted(mounts, PROMETHEUS).unwrap_or_default();
    let folder = own.rsplit_once('/').map_or("", |(folder, _)| folder);
    for rules in texts(&config["rule_files"]) {
        let wanted = rules.rsplit_once('/').map_or("", |(folder, _)| folder);
        let at = mounted(mounts, &format!("observability/{wanted}"));
        if at != Some(&format!("{folder}/{wanted}")) {
            faults.push(format!(
                "{PROMETHEUS}: {rules} is mounted at {at:?}, not beside it"
            ));
        }
    }
    for job in config["scrape_configs"].as_vec().into_iter().flatten() {
        let static_targets = job["static_configs"].as_vec().into_iter().flatten();
        let by_name = job["dns_sd_configs"].as_vec().into_iter().flatten();
        let targets = static_targets.flat_map(|of| texts(&of["targets"]));
        for target in targets.chain(by_name.flat_map(|of| texts(&of["names"]))) {
            if !services.contains(host(target)) {
                faults.push(format!("{PROMETHEUS}: {target} is no service"));
            }
        }
    }
}

/// Grafana finds the dashboards, and has a datasource of each type that they ask for.
fn grafana(
    files: &Files,
    services: &BTreeSet<&str>,
    mounts: &[(String, String)],
    faults: &mut Vec<String>,
) -> Result<()> {
    if mounted(mounts, PROVISIONING) != Some("/etc/grafana/provisioning") {
        faults.push(format!("{PROVISIONING} is not where Grafana looks"));
    }
    let at = mounted(mounts, DASHBOARDS);
    for provider in document(&files.dashboards)?["providers"]
        .as_vec()
        .into_iter()
        .flatten()
    {
        let path = provider["options"]["path"].as_str();
        if path != at {
            faults.push(format!(
                "{DASHBOARDS} is mounted at {at:?} and looked for at {path:?}"
            ));
        }
    }
    let mut types = BTreeSet::new();
    for source in document(&files.datasources)?["datasources"]
        .as_vec()
        .into_iter()
        .flatten()
    {
        types.insert(source["type"].as_str().unwrap_or_default().to_owned());
        let to = host(source["url"].as_str().unwrap_or_default());
        if !services.contains(to) {
            faults.push(format!("{PROVISIONING}: {to:?} is no service"));
        }
    }
    for dashboard in &files.shown {
        let dashboard: serde_json::Value = serde_json::from_str(dashboard)?;
        let mut asked = BTreeSet::new();
        datasources(&dashboard, &mut asked);
        let title = dashboard["title"].as_str().unwrap_or_default();
        if asked.is_empty() {
            faults.push(format!("{DASHBOARDS}: {title} asks nobody"));
        }
        for kind in asked.difference(&types) {
            faults.push(format!(
                "{DASHBOARDS}: {title} asks a {kind}, which is not provisioned"
            ));
        }
    }
    Ok(())
}

/// The types of the datasources that a dashboard names, its variables included.
fn datasources(value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            if let Some(kind) = value
                .pointer("/datasource/type")
                .and_then(|kind| kind.as_str())
            {
                found.insert(kind.to_owned());
            }
            if value["type"] == "datasource" {
                found.extend(value["query"].as_str().map(str::to_owned));
            }
            for value in fields.values() {
                datasources(value, found);
            }
        }
        serde_json::Value::Array(values) => {
            for value in values {
                datasources(value, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPOSE: &str = "services:\n  collector: {}\n  traces: {}\n  relay: {}\n  prometheus:\n    volumes: ['./observability/prometheus.yml:/etc/p/prometheus.yml:ro', './observability/rules:/etc/p/rules:ro']\n  grafana:\n    volumes: ['./observability/grafana/provisioning:/etc/grafana/provisioning:ro', './observability/grafana/dashboards:/etc/boards:ro']\n";

    fn good() -> Files {
        Files {
            compose: COMPOSE.to_owned(),
            collector: "receivers: {otlp: {}}\nprocessors: {batch: {}}\nexporters: {otlp/t: {endpoint: 'traces:4317'}}\nextensions: {health: {}}\nservice:\n  extensions: [health]\n  pipelines: {traces: {receivers: [otlp], processors: [batch], exporters: [otlp/t]}}\n".to_owned(),
            prometheus: "rule_files: [rules/*.yml]\nscrape_configs:\n  - static_configs: [{targets: ['relay:1']}]\n  - dns_sd_configs: [{names: [relay]}]\n".to_owned(),
            datasources: "datasources: [{type: prometheus, url: 'http://prometheus:9090'}]\n".to_owned(),
            dashboards: "providers: [{options: {path: /etc/boards}}]\n".to_owned(),
            shown: vec![r#"{"title":"t","panels":[{"datasource":{"type":"prometheus"}}]}"#.to_owned()],
        }
    }

    #[test]
    fn names_that_lead_nowhere_are_found() {
        assert_eq!(faults(&good()).expect("readable"), Vec::<String>::new());
        type Plant = (
            fn(&mut Files) -> &mut String,
            &'static str,
            &'static str,
            &'static str,
        );
        let planted: [Plant; 9] = [
            (
                |f| &mut f.collector,
                "receivers: [otlp]",
                "receivers: [otpl]",
                "no otpl",
            ),
            (
                |f| &mut f.collector,
                "extensions: [health]",
                "extensions: []",
                "health of extensions is not used",
            ),
            (
                |f| &mut f.collector,
                "traces:4317",
                "tarces:4317",
                "\"tarces\", which is no service",
            ),
            (
                |f| &mut f.prometheus,
                "rules/*.yml",
                "alerts/*.yml",
                "not beside it",
            ),
            (
                |f| &mut f.prometheus,
                "'relay:1'",
                "'realy:1'",
                "realy:1 is no service",
            ),
            (
                |f| &mut f.prometheus,
                "names: [relay]",
                "names: [realy]",
                "realy is no service",
            ),
            (
                |f| &mut f.datasources,
                "http://prometheus",
                "http://prom",
                "\"prom\" is no service",
            ),
            (
                |f| &mut f.dashboards,
                "/etc/boards",
                "/etc/panels",
                "looked for at Some(\"/etc/panels\")",
            ),
            (|f| &mut f.shown[0], "prometheus", "loki", "asks a loki"),
        ];
        for (file, from, to, found_by) in planted {
            let mut files = good();
            let text = file(&mut files);
            assert!(text.contains(from), "{from}");
            *text = text.replace(from, to);
            let found = faults(&files).expect("readable").join("\n");
            assert!(found.contains(found_by), "{from} as {to}: {found}");
        }
    }
}
