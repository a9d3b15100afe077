//! `k8s`: the manifests in deploy/k8s are what Kubernetes takes, fit together, and give the programs
//! what they ask for.
//!
//! Five looks at every overlay, as kubectl renders it: the API's own schemas, strictly, for the
//! oldest and the newest supported Kubernetes ([`schemas`]); kinds of other projects against
//! schemas made from those projects' own types ([`crds`]); who names whom ([`references`]); and the programs themselves,
//! which get each container's arguments and environment ([`settings`]); what the bootstrap's pod
//! publishes, asked of the programs before a stand-in of Kubernetes' API ([`publish`], [`api`]). Then
//! faults are planted, and each must be found ([`planted`]). With `--run` the pods of every overlay
//! run in a container engine ([`containers`]).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process, workspace};

mod api;
mod containers;
mod crds;
mod manifest;
mod planted;
mod pods;
mod publish;
mod references;
mod schemas;
mod settings;
mod tools;

use manifest::Manifest;

/// What is applied as it is; the rest is parts of these.
const OVERLAYS: &[&str] = &["dev", "production", "production-gateway-api"];

/// Parts that must render by themselves.
const PARTS: &[&str] = &["base", "nodes"];

/// The oldest and the newest Kubernetes that docs/kubernetes.md promises.
const VERSIONS: &[&str] = &["1.30", "1.37"];

/// Arguments of `cargo xtask k8s`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Args {
    /// Ask the programs of the debug build as it is, without building.
    #[arg(long)]
    no_build: bool,
    /// Only run the pods of every overlay in a container engine, until their probes pass (root; the
    /// images must be there).
    #[arg(long)]
    run: bool,
}

impl Args {
    /// The second half in CI, when the images have been made.
    pub(crate) fn pods() -> Self {
        Self {
            run: true,
            ..Self::default()
        }
    }
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.run {
        let tools = tools::Tools::ready()?;
        let dir = workspace::root().join("deploy/k8s/overlays");
        let mut overlays = Vec::new();
        for overlay in OVERLAYS {
            let values = manifest::parse(&tools.render(&dir.join(overlay))?)?;
            overlays.push((*overlay, Manifest::new(values, BTreeSet::new())));
        }
        return containers::run(&overlays);
    }
    if !args.no_build {
        process::run(process::cargo().args(["build", "--workspace", "--bins"]))?;
    }
    let tools = tools::Tools::ready()?;
    let dir = workspace::root().join("deploy/k8s");
    every_kustomization_is_known(&dir)?;
    for part in PARTS {
        manifest::parse(&tools.render(&dir.join(part))?)
            .with_context(|| format!("read what {part} renders to"))?;
    }
    let documented = documented_secrets()?;
    let mut faults = Vec::new();
    let mut clean = Vec::new();
    for overlay in OVERLAYS {
        let text = tools.render(&dir.join("overlays").join(overlay))?;
        let manifest = Manifest::new(manifest::parse(&text)?, documented.clone());
        let found = look(&tools, &manifest)?;
        println!(
            "k8s: {overlay}: {} objects, {} containers, {} faults",
            manifest.objects().count(),
            manifest.containers().count(),
            found.len()
        );
        faults.extend(found.into_iter().map(|fault| format!("{overlay}: {fault}")));
        clean.push((*overlay, manifest));
    }
    for fault in &faults {
        println!("fault: {fault}");
    }
    ensure!(faults.is_empty(), "{} faults in deploy/k8s", faults.len());
    plant(&tools, &clean)
}

/// Everything that is wrong with one overlay.
fn look(tools: &tools::Tools, manifest: &Manifest) -> Result<Vec<String>> {
    let mut faults = schemas::check(tools, manifest, VERSIONS)?;
    faults.extend(crds::check(tools, manifest)?);
    faults.extend(references::check(manifest));
    faults.extend(pods::check(manifest));
    faults.extend(settings::check(manifest)?);
    faults.extend(publish::check(tools, manifest)?);
    Ok(faults)
}

/// A check that finds nothing wrong in wrong manifests is worth nothing.
fn plant(tools: &tools::Tools, clean: &[(&str, Manifest)]) -> Result<()> {
    let mut missed = Vec::new();
    for fault in planted::FAULTS {
        let (_, manifest) = clean
            .iter()
            .find(|(overlay, _)| *overlay == fault.overlay)
            .context("a planted fault names no overlay")?;
        let mut wrong = manifest.clone();
        (fault.plant)(&mut wrong).with_context(|| format!("plant: {}", fault.what))?;
        let found = look(tools, &wrong)?;
        match found.iter().find(|found| found.contains(fault.found_by)) {
            Some(found) => println!("k8s: planted: {}: {found}", fault.what),
            None => missed.push(format!("{}: found only {found:?}", fault.what)),
        }
    }
    ensure!(missed.is_empty(), "not found: {}", missed.join("; "));
    println!(
        "k8s: {} of {} planted faults found",
        planted::FAULTS.len(),
        planted::FAULTS.len()
    );
    Ok(())
}

/// A kustomization that nothing renders is checked by nobody.
fn every_kustomization_is_known(dir: &Path) -> Result<()> {
    let known: BTreeSet<String> = OVERLAYS
        .iter()
        .map(|overlay| format!("overlays/{overlay}"))
        .chain(PARTS.iter().map(|part| (*part).to_owned()))
        .collect();
    let mut used = String::new();
    for name in &known {
        used.push_str(&fs::read_to_string(
            dir.join(name).join("kustomization.yaml"),
        )?);
    }
    for group in ["overlays", "components"] {
        for entry in fs::read_dir(dir.join(group))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let path = format!("{group}/{name}");
            if !known.contains(&path) && !used.contains(&format!("../../{path}\n")) {
                bail!("deploy/k8s/{path} is rendered by nothing: see xtask's k8s.rs");
            }
        }
    }
    Ok(())
}

/// `(secret, key)` of every row "| `secret` | `key`, `key` | …" in docs/kubernetes.md.
fn documented_secrets() -> Result<BTreeSet<(String, String)>> {
    let path = workspace::root().join("docs/kubernetes.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(secrets_in(&text))
}

fn secrets_in(text: &str) -> BTreeSet<(String, String)> {
    let mut secrets = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| `mesh-")) {
        let mut cells = line.trim_matches('|').split('|').map(ticked);
        let names = cells.next().unwrap_or_default();
        let keys = cells.next().unwrap_or_default();
        for name in names {
            secrets.extend(keys.iter().map(|key| (name.clone(), key.clone())));
        }
    }
    secrets
}

/// What stands between backticks.
fn ticked(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_from_the_guide_s_tables() {
        let text =
            "| secret | keys |\n|---|---|\n| `mesh-a` | `x`, `y` | for `z` |\n| other | `q` |\n";
        let found: Vec<_> = secrets_in(text).into_iter().collect();
        let pair = |key: &str| ("mesh-a".to_owned(), key.to_owned());
        assert_eq!(found, [pair("x"), pair("y")]);
    }
}
