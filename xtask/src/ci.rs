//! `ci`: every check in order, each with its duration; `.ci/run` calls it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::statvfs::statvfs;

use crate::{
    codegen, compose, deb, docs, fuzz, k8s, lint, setup, sim, systemd, test, tidy, workspace,
};

/// What all stages together write, in GiB, with room to spare.
const DISK: u64 = 20;

/// Arguments of `cargo xtask ci`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Fail when all stages together take longer, in minutes.
    #[arg(long, default_value_t = 75)]
    limit: u64,
    /// How long each fuzz target runs, in seconds.
    #[arg(long, default_value_t = 60)]
    fuzz_seconds: u64,
    /// While you work: leave out fuzzing and what needs a container engine.
    #[arg(long)]
    fast: bool,
}

struct Stage {
    name: &'static str,
    took: Duration,
    /// GiB that are free after it.
    free: u64,
    error: Option<anyhow::Error>,
}

/// Runs the verb, cheap stages first. A stage runs although an earlier one failed, so that one run
/// tells all.
pub(crate) fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let free = free_disk()?;
    ensure!(
        args.fast || free >= DISK,
        "{free} GiB are free where {} is, the stages need {DISK}: remove other target directories",
        workspace::root().display()
    );
    println!("{free} GiB of disk are free");
    let artefacts = workspace::target_dir().join("ci");
    if artefacts.exists() {
        fs::remove_dir_all(&artefacts)?;
    }
    fs::create_dir_all(&artefacts)?;

    let mut stages = Vec::new();
    let mut stage = |name, work: &dyn Fn() -> Result<()>| {
        println!("\n== {name}");
        let begun = Instant::now();
        let error = work().err();
        let took = begun.elapsed();
        match &error {
            None => println!("== {name}: ok, {}", minutes(took)),
            Some(error) => println!("== {name}: FAILED, {}: {error:#}", minutes(took)),
        }
        stages.push(Stage {
            name,
            took,
            free: free_disk().unwrap_or(0),
            error,
        });
    };
    stage("setup", &|| {
        setup::run(&setup::Args {
            yes: true,
            check: false,
        })
    });
    stage("tidy", &tidy::run);
    stage("codegen --check", &|| {
        codegen::run(&codegen::Args { check: true })
    });
    stage("lint", &lint::run);
    stage("docs --check", &|| docs::run(&docs::Args { check: true }));
    stage("systemd", &|| systemd::run(&systemd::Args::default()));
    stage("k8s", &|| k8s::run(&k8s::Args::default()));
    if !args.fast {
        stage("fuzz", &|| fuzz::ci(args.fuzz_seconds));
        stage("deb --check", &|| deb::run(&deb::Args::ci()));
    }
    stage("sim", &sim::ci);
    stage("test", &|| test::run(&test::Args::default()));
    if !args.fast {
        stage("compose", &|| compose::run(&compose::Args::ci()));
        // With the images of the stage before.
        stage("k8s --run", &|| k8s::run(&k8s::Args::pods()));
    }
    finish(args, &stages, begun.elapsed())
}

fn finish(args: &Args, stages: &[Stage], total: Duration) -> Result<()> {
    println!("\n== stages");
    for stage in stages {
        let verdict = if stage.error.is_some() {
            "FAILED"
        } else {
            "ok"
        };
        println!(
            "{:<16} {:>9}  {:>4} GiB free  {verdict}",
            stage.name,
            minutes(stage.took),
            stage.free
        );
    }
    println!("{:<16} {:>9}", "total", minutes(total));
    let failed: Vec<&str> = stages
        .iter()
        .filter(|stage| stage.error.is_some())
        .map(|stage| stage.name)
        .collect();
    // The reasons once more, where whoever sees only the end finds them.
    for stage in stages {
        if let Some(error) = &stage.error {
            println!("\n== {} failed: {error:#}", stage.name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    if total > Duration::from_secs(args.limit * 60) {
        bail!("took {}, the limit is {} min", minutes(total), args.limit);
    }
    Ok(())
}

/// GiB that this user may still write where the repository is.
fn free_disk() -> Result<u64> {
    let root = workspace::root();
    let disk = statvfs(root).with_context(|| format!("ask how full {} is", root.display()))?;
    Ok(disk.blocks_available() * disk.fragment_size() / (1 << 30))
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}
