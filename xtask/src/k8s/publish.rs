//! What the bootstrap publishes: the kustomization inside of its pod, rendered with the files that the
//! program really writes, makes the Secrets that pods mount and that its Role lets it make.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::manifest::{self, Manifest, list, text};
use super::tools::Tools;
use super::{VERSIONS, schemas};
use crate::workspace;

/// Join tokens begin with this, in base64: `mesh1.`
const TOKEN: &str = "bWVzaDEu";

pub(super) fn check(tools: &Tools, manifest: &Manifest) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut published = BTreeSet::new();
    for workload in manifest.workloads() {
        let key = workload.object.key();
        for container in workload.containers() {
            let Some((_, volume, _)) = container.mount_of("/publish/kustomization.yaml") else {
                continue;
            };
            let volume = list(workload.pod, "/volumes").find(|it| text(it, "/name") == volume);
            let map = volume.map_or("", |volume| text(volume, "/configMap/name"));
            let Some(recipe) = manifest.setting(container.namespace(), map, "kustomization.yaml")
            else {
                faults.push(format!("{key}: it publishes by no kustomization"));
                continue;
            };
            match rendered(tools, recipe)? {
                Ok(secrets) => published.extend(secrets),
                Err(fault) => faults.push(format!("{key}: publish: {fault}")),
            }
        }
    }
    let values: Vec<Value> = published
        .iter()
        .map(|text| serde_json::from_str(text))
        .collect::<Result<_, _>>()?;
    let secrets = Manifest::new(values, BTreeSet::new());
    faults.extend(schemas::check(tools, &secrets, VERSIONS)?);
    contents(&secrets, &mut faults);
    wanted(manifest, &secrets, &mut faults);
    allowed(manifest, &secrets, &mut faults);
    Ok(faults)
}

/// Each is a Secret with something of the right form in it.
fn contents(secrets: &Manifest, faults: &mut Vec<String>) {
    for object in secrets.objects() {
        let data = manifest::labels(object.value(), "/data");
        let is_good = |(key, value): (&String, &String)| match key.as_str() {
            "token" => value.starts_with(TOKEN),
            _ => !value.is_empty(),
        };
        if object.kind() != "Secret" || data.is_empty() || !data.iter().all(is_good) {
            faults.push(format!(
                "{}: publish: it holds nothing of use",
                object.key()
            ));
        }
    }
}

/// What pods wait for is published, and what is published somebody waits for.
fn wanted(manifest: &Manifest, secrets: &Manifest, faults: &mut Vec<String>) {
    let mut waited_for = BTreeSet::new();
    for workload in manifest.workloads() {
        let namespace = workload.object.namespace();
        for volume in list(workload.pod, "/volumes") {
            let name = text(volume, "/secret/secretName");
            if !name.starts_with("mesh-token-") {
                continue;
            }
            waited_for.insert((namespace, name));
            for item in list(volume, "/secret/items") {
                let key = text(item, "/key");
                let found = secrets.find("Secret", namespace, name);
                if found.is_none_or(|found| found.value()["data"].get(key).is_none()) {
                    faults.push(format!(
                        "{}: publish: nobody makes the Secret {namespace}/{name} with the key {key}",
                        workload.object.key()
                    ));
                }
            }
        }
    }
    for object in secrets.objects() {
        let is_for_people = object.name() == "mesh-operator";
        if !is_for_people && !waited_for.contains(&(object.namespace(), object.name())) {
            faults.push(format!("{}: publish: no pod reads it", object.key()));
        }
    }
}

/// The Role of its namespace lets the bootstrap make exactly these.
fn allowed(manifest: &Manifest, secrets: &Manifest, faults: &mut Vec<String>) {
    let mut made: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for object in secrets.objects() {
        made.entry(object.namespace())
            .or_default()
            .insert(object.name());
    }
    for role in manifest.of_kind("Role") {
        let names: BTreeSet<&str> = list(role.value(), "/rules")
            .flat_map(|rule| list(rule, "/resourceNames"))
            .filter_map(Value::as_str)
            .collect();
        let made = made.remove(role.namespace()).unwrap_or_default();
        if names != made {
            faults.push(format!(
                "{}: publish: it names {names:?}, and {made:?} are made",
                role.key()
            ));
        }
    }
    for namespace in made.keys() {
        faults.push(format!("publish: no Role for Secrets in {namespace}"));
    }
}

/// What a kustomization makes of the bootstrap's files: objects as JSON, or why it makes nothing.
/// The same one is rendered once.
fn rendered(tools: &Tools, recipe: &str) -> Result<Result<Vec<String>, String>> {
    type Known = BTreeMap<String, Result<Vec<String>, String>>;
    static KNOWN: Mutex<Known> = Mutex::new(BTreeMap::new());
    if let Some(known) = KNOWN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(recipe)
    {
        return Ok(known.clone());
    }
    let dir = bootstrapped()?;
    fs::write(dir.join("kustomization.yaml"), recipe)?;
    let made = match tools.render(&dir) {
        Ok(text) => Ok(manifest::parse(&text)?
            .iter()
            .map(Value::to_string)
            .collect()),
        Err(error) => Err(format!("{error:#}")),
    };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.insert(recipe.to_owned(), made.clone());
    Ok(made)
}

/// A directory in which `files` is what `coordinator bootstrap` wrote, made once.
fn bootstrapped() -> Result<PathBuf> {
    static DONE: OnceLock<()> = OnceLock::new();
    let dir = workspace::target_dir().join("k8s/publish");
    if DONE.get().is_none() {
        bootstrap(&dir)?;
        DONE.get_or_init(|| ());
    }
    Ok(dir)
}

fn bootstrap(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    let program = workspace::target_dir().join("debug/coordinator");
    let output = Command::new(program)
        .args(["bootstrap", "--config", "/dev/null", "--tokens-dir"])
        .arg(dir.join("files"))
        .args(["--reusable", "worker,relay,gateway"])
        .args(["--advertise", "coordinator.example.org:8080", "--state-dir"])
        .arg(dir.join("state"))
        .env_clear()
        .output()
        .context("run coordinator bootstrap")?;
    ensure!(
        output.status.success(),
        "coordinator bootstrap: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
