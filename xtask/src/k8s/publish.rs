//! What the bootstrap publishes: its containers are run as the manifest says, the second before a
//! stand-in of Kubernetes' API, and the Secrets that arrive there are those that pods mount and that
//! the Roles let it make.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::api::Api;
use super::manifest::{self, Container, Manifest, list, text};
use super::tools::Tools;
use super::{VERSIONS, schemas};
use crate::workspace;

/// How the Secrets are called that pods join by.
pub(super) const TOKENS: &str = "mesh-token-";
/// Join tokens begin with this, in base64: `mesh1.`
const TOKEN: &str = "bWVzaDEu";
/// What the bootstrap is told by this to write to.
const WRITES: &str = "--tokens-dir";
/// What is published is read from where this says.
const READS: &str = "--from";

pub(super) fn check(tools: &Tools, manifest: &Manifest) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut is_published = false;
    for container in manifest.containers().filter(|it| it.publishes()) {
        is_published = true;
        let key = container.workload.object.key();
        let (arrived, mut found) = match same_files(manifest, container) {
            Ok(()) => published(tools, manifest, container)?,
            Err(says) => (Vec::new(), vec![says]),
        };
        let secrets = Manifest::new(arrived, BTreeSet::new());
        contents(&secrets, &mut found);
        wanted(manifest, &secrets, &mut found);
        allowed(manifest, &secrets, &mut found);
        faults.extend(
            found
                .into_iter()
                .map(|text| format!("{key}: publish: {text}")),
        );
    }
    if !is_published {
        faults.push("publish: no container publishes what the bootstrap writes".to_owned());
    }
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
            faults.push(format!("{}: it holds nothing of use", object.key()));
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
            if !name.starts_with(TOKENS) {
                continue;
            }
            waited_for.insert((namespace, name));
            for item in list(volume, "/secret/items") {
                let key = text(item, "/key");
                let found = secrets.find("Secret", namespace, name);
                if found.is_none_or(|found| found.value()["data"].get(key).is_none()) {
                    faults.push(format!(
                        "nobody makes the Secret {namespace}/{name} with the key {key} for {}",
                        workload.object.key()
                    ));
                }
            }
        }
    }
    for object in secrets.objects() {
        let is_for_people = object.name() == "mesh-operator";
        if !is_for_people && !waited_for.contains(&(object.namespace(), object.name())) {
            faults.push(format!("{}: no pod reads it", object.key()));
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
                "{}: it names {names:?}, and {made:?} are made",
                role.key()
            ));
        }
    }
    for namespace in made.keys() {
        faults.push(format!("no Role for Secrets in {namespace}"));
    }
}

/// What is published lies where the container before it writes.
fn same_files(manifest: &Manifest, container: Container<'_>) -> Result<(), String> {
    let from = value_of(&container.arguments(manifest)?, READS)?;
    let writers = container.workload.containers();
    let writer = writers.iter().find(|it| {
        let arguments = it.arguments(manifest).unwrap_or_default();
        it.is_init && arguments.iter().any(|word| word == WRITES)
    });
    let writer = writer.ok_or("no container before it writes anything")?;
    let to = value_of(&writer.arguments(manifest)?, WRITES)?;
    let place = |container: Container<'_>, path: &str| {
        let (at, volume, _) = container.mount_of(path)?;
        Some((volume.to_owned(), path.strip_prefix(at)?.to_owned()))
    };
    match (place(*writer, &to), place(container, &from)) {
        (Some(written), Some(read)) if written == read => Ok(()),
        _ => Err(format!(
            "the bootstrap writes to {to}, and {from} is published"
        )),
    }
}

fn value_of(arguments: &[String], flag: &str) -> Result<String, String> {
    let at = arguments.iter().position(|word| word == flag);
    let value = at.and_then(|at| arguments.get(at + 1));
    value.cloned().ok_or_else(|| format!("{flag} is missing"))
}

/// The Secrets that arrive when a container publishes, and what is wrong with them.
type Outcome = (Vec<Value>, Vec<String>);

/// Runs a container that publishes. The same one, with the same rights, is run once.
fn published(tools: &Tools, manifest: &Manifest, container: Container<'_>) -> Result<Outcome> {
    static KNOWN: Mutex<BTreeMap<String, Outcome>> = Mutex::new(BTreeMap::new());
    let (Ok(arguments), environment) = (
        container.arguments(manifest),
        container.environment(manifest),
    ) else {
        // What cannot be found is told by the references.
        return Ok(Outcome::default());
    };
    let environment: BTreeMap<String, String> = environment.into_iter().flatten().collect();
    let workload = container.workload;
    let has_token = container.reaches_api();
    let given: Vec<&Value> = ["Namespace", "ServiceAccount", "Role", "RoleBinding"]
        .iter()
        .flat_map(|kind| manifest.of_kind(kind))
        .map(|object| object.value())
        .collect();
    let namespace = workload.object.namespace();
    let name = text(workload.pod, "/serviceAccountName");
    let same = format!("{arguments:?} {environment:?} {namespace} {name} {has_token} {given:?}");
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(outcome) = known().get(&same) {
        return Ok(outcome.clone());
    }
    let dir = bootstrapped()?;
    let api = Api::serve(IpAddr::V4(Ipv4Addr::LOCALHOST), manifest)?;
    let account = dir.join("account");
    if account.exists() {
        fs::remove_dir_all(&account)?;
    }
    if has_token {
        api.account(&account, namespace, name)?;
    }
    let mut arguments = arguments;
    if let Some(from) = arguments.iter().position(|word| word == READS) {
        arguments[from + 1] = dir.join("files").display().to_string();
    }
    let output = Command::new(workspace::target_dir().join("debug/coordinator"))
        .args(arguments)
        .args(["--config", "/dev/null", "--account-dir"])
        .arg(&account)
        .env_clear()
        .envs(environment)
        .envs(api.environment())
        .output()
        .context("run coordinator publish-secrets")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let secrets = Manifest::new(api.secrets(), BTreeSet::new());
    let mut faults = schemas::check(tools, &secrets, VERSIONS)?;
    if !output.status.success() {
        faults.push(format!("coordinator says: {said}"));
    }
    let outcome = (secrets.values, faults);
    known().insert(same, outcome.clone());
    Ok(outcome)
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
