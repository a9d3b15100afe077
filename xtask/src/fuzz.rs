//! `fuzz`: libFuzzer targets of the `fuzz/` crate, built by the stable compiler.
//!
//! A target is `fuzz/fuzz_targets/<name>.rs`. What is committed in `fuzz/corpus/<name>` (seeds, and
//! inputs that once found something) is replayed first; new finds go to `fuzz/target/corpus/<name>`,
//! crashes and logs to `target/ci/fuzz`.

mod build;
mod target;

use std::fs;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace;
use target::{Target, Verdict};

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Which target, or `all`; they are listed when none is named.
    target: Option<String>,
    /// How long, for each target; as many run at once as there are cores.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Begin with this seed, so that a run looks where the last one with it did. Without it each
    /// run looks elsewhere.
    #[arg(long, conflicts_with = "planted")]
    seed: Option<u32>,
    /// Turn on the bug that is planted in each target (all when none is named), and fail unless it
    /// is found in that time.
    #[arg(long)]
    planted: bool,
    /// Run this input once and show what happens.
    #[arg(
        long,
        value_name = "FILE",
        requires = "target",
        conflicts_with = "planted"
    )]
    replay: Option<PathBuf>,
    /// Write the seeds that the product's own encoders make to fuzz/corpus.
    #[arg(long, conflicts_with_all = ["planted", "replay"])]
    write_seeds: bool,
}

/// How long a target may look for its planted bug in CI, in seconds. Most need a tenth of one; it ends
/// when it is found.
const PLANTED_LIMIT: u64 = 60;

/// The seed in CI: there a change is judged, so what it did not touch behaves as it did the last
/// time. New ground is for runs by hand.
const CI_SEED: u32 = 4;

/// In CI: every target finds its planted bug, then none finds another in `seconds`.
pub(crate) fn ci(seconds: u64) -> Result<()> {
    let all = |planted: bool, seconds| Args {
        target: Some("all".to_owned()),
        seconds,
        seed: (!planted).then_some(CI_SEED),
        planted,
        replay: None,
        write_seeds: false,
    };
    run(&all(true, PLANTED_LIMIT))?;
    run(&all(false, seconds))
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let known = names()?;
    let wanted = match args.target.as_deref() {
        None if !args.planted && !args.write_seeds => {
            for name in &known {
                println!("{name}");
            }
            return Ok(());
        }
        None | Some("all") => known.clone(),
        Some(name) if known.iter().any(|known| known == name) => vec![name.to_owned()],
        Some(name) => bail!(
            "there is no fuzz target {name}: it is one of {}",
            known.join(", ")
        ),
    };
    let programs = build::build((wanted.len() == 1).then(|| wanted[0].as_str()))?;
    let targets: Vec<Target> = wanted
        .into_iter()
        .map(|name| Target::new(name, &programs))
        .collect::<Result<_>>()?;
    if let Some(input) = &args.replay {
        let input = input
            .canonicalize()
            .with_context(|| format!("there is no {}", input.display()))?;
        ensure!(
            targets.len() == 1,
            "an input belongs to one target: name it"
        );
        return targets[0].replay(&[input]);
    }
    if args.write_seeds {
        return targets.iter().try_for_each(Target::write_seeds);
    }
    if args.planted {
        return report(each(targets, |target| target.find_planted(args.seconds)));
    }
    report(each(targets, |target| target.fuzz(args.seconds, args.seed)))
}

/// The targets, by their files.
fn names() -> Result<Vec<String>> {
    let dir = workspace::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).context("list fuzz/fuzz_targets")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

/// Does the work for each target, as many at once as there are cores; tells of each as it ends.
fn each(
    targets: Vec<Target>,
    work: impl Fn(&Target) -> Result<Verdict> + Sync,
) -> Vec<(String, Result<Verdict>)> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let waiting = Mutex::new(targets.into_iter());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let next = || waiting.lock().expect("no thread panics").next();
                while let Some(target) = next() {
                    let outcome = work(&target);
                    match &outcome {
                        Ok(verdict) => println!("{:<20} {verdict}", target.name()),
                        Err(_) => println!("{:<20} FAILED", target.name()),
                    }
                    let mut done = done.lock().expect("no thread panics");
                    done.push((target.name().to_owned(), outcome));
                }
            });
        }
    });
    done.into_inner().expect("no thread panics")
}

fn report(outcomes: Vec<(String, Result<Verdict>)>) -> Result<()> {
    let count = outcomes.len();
    let failed: Vec<String> = outcomes
        .into_iter()
        .filter_map(|(name, outcome)| Some(format!("{name}: {:#}", outcome.err()?)))
        .collect();
    if !failed.is_empty() {
        bail!(
            "{} of {count} targets failed\n{}",
            failed.len(),
            failed.join("\n")
        );
    }
    println!("{count} targets ok");
    Ok(())
}
