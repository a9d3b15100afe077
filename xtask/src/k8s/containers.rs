//! The pods of every overlay, run by a container engine as the manifests say: the same image,
//! command, environment, user, groups, capabilities, limits, read-only root and volumes, until each
//! container's own probe passes. A pod that is the same as one before is not run again.
//!
//! What a cluster does besides is done by hand here: names of Services are aliases in the engine's
//! network, volumes are directories, and Secrets that people make are made up. What the bootstrap
//! publishes arrives at a stand-in of Kubernetes' API ([`super::api`]), and from there in the pods;
//! none of it may be in what the containers log ([`logs`]).
//! Databases that an overlay has outside of the cluster are real ones, by TLS only ([`databases`]).

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use self::cluster::Cluster;
use self::databases::Images;
use self::same::Known;
use super::manifest::{Manifest, Workload, text};
use crate::compose::Engine;
use crate::{process, workspace};

mod cluster;
mod databases;
mod logs;
mod names;
mod planted;
mod probe;
mod same;

/// In this order, since nobody restarts here what comes too early.
const ORDER: &[(&str, &str)] = &[
    POSTGRES,
    REDIS,
    ("Job", "mesh-bootstrap"),
    ("CronJob", "mesh-tokens"),
    ("Deployment", "coordinator"),
    ("StatefulSet", "relay"),
    ("StatefulSet", "traffic-gateway"),
    ("StatefulSet", "deploy-manager"),
    ("DaemonSet", "worker-agent"),
];

/// The databases of an overlay that has them in the cluster.
const POSTGRES: (&str, &str) = ("StatefulSet", "postgres");
const REDIS: (&str, &str) = ("Deployment", "redis");

/// One pod of a workload.
struct Pod<'a> {
    workload: Workload<'a>,
    /// What it is called; only a StatefulSet's pods have names that are known beforehand.
    name: String,
}

impl<'a> Pod<'a> {
    /// Every pod of a workload that differs from its others: copies in a Deployment do not.
    fn all(workload: Workload<'a>) -> Vec<Self> {
        let mut names = workload.pod_names();
        if names.is_empty() {
            names.push(workload.object.name().to_owned());
        }
        let pod = |name| Self { workload, name };
        names.into_iter().map(pod).collect()
    }
}

/// Runs the pods of every overlay, and then some that must not work.
pub(super) fn run(overlays: &[(&str, Manifest)]) -> Result<()> {
    ensure!(
        process::is_root(),
        "volumes get other owners here: run `cargo xtask k8s --run` as root"
    );
    let artefacts = workspace::target_dir().join("ci");
    fs::create_dir_all(&artefacts)?;
    let engine = Engine::open(&artefacts)?;
    let images = images(overlays)?;
    let mut known = Known::default();
    for (overlay, manifest) in overlays {
        let begun = Instant::now();
        let mut cluster = Cluster::new(&engine, overlay, manifest, &images)?;
        let (ran, same) = pods(&mut cluster, overlay, &mut known)
            .with_context(|| format!("the overlay {overlay}"))?;
        let planted = cluster
            .planted(overlay)
            .with_context(|| format!("faults planted into {overlay}"))?;
        let searched = cluster
            .end()
            .with_context(|| format!("the logs of {overlay}"))?;
        println!(
            "k8s: run: {overlay}: {ran} pods run, {same} the same as one before, {planted} planted \
             faults found, no secret in {searched}, in {:.1} s",
            begun.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// Runs an overlay's pods; how many, and how many were the same as one before.
fn pods(cluster: &mut Cluster<'_>, overlay: &str, known: &mut Known) -> Result<(usize, usize)> {
    let (mut ran, mut same) = (0, 0);
    for (kind, name) in ORDER {
        let Some(workload) = cluster.workload(kind, name) else {
            let is_outside = [POSTGRES, REDIS].contains(&(*kind, *name));
            ensure!(
                is_outside && cluster.databases.is_some(),
                "there is no {kind} {name}"
            );
            continue;
        };
        for pod in Pod::all(workload) {
            let label = format!("{overlay}: {}", pod.name);
            if let Some(before) = known.meet(cluster.manifest, &pod, &label)? {
                println!(
                    "k8s: run: {}: {} is the same as {before}",
                    pod.workload.object.key(),
                    pod.name
                );
                same += 1;
                continue;
            }
            cluster.run(&pod)?;
            ran += 1;
        }
    }
    for workload in cluster.manifest.workloads() {
        ensure!(
            ORDER.contains(&(workload.object.kind(), workload.object.name())),
            "{} is new: say in xtask's k8s/containers.rs when it starts",
            workload.object.key()
        );
    }
    Ok((ran, same))
}

/// The databases' images, as the overlay names them that has databases.
fn images(overlays: &[(&str, Manifest)]) -> Result<Images> {
    let of = |(kind, name)| {
        overlays
            .iter()
            .flat_map(|(_, manifest)| manifest.workloads())
            .find(|it| (it.object.kind(), it.object.name()) == (kind, name))
            .and_then(|it| it.containers().first().map(|it| text(it.value, "/image")))
            .map(str::to_owned)
            .with_context(|| format!("no overlay has the {kind} {name}"))
    };
    Ok(Images {
        postgres: of(POSTGRES)?,
        redis: of(REDIS)?,
    })
}

/// What a command prints, trimmed; what it complains of is the error.
fn quiet(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{}: {}",
        process::describe(command),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
