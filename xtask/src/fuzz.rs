//! `fuzz`: libFuzzer targets of the `fuzz/` crate, built by the stable compiler.
//!
//! A target is `fuzz/fuzz_targets/<name>.rs`; cargo finds it by itself. What it found before
//! is kept in `fuzz/corpus/<name>` when committed; new finds go to `fuzz/target/corpus/<name>` and
//! crashes to `target/ci/fuzz`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Which target, or `all`; they are listed when none is named.
    target: Option<String>,
    /// How long, for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

impl Args {
    /// Every target, each for this long.
    pub(crate) fn all(seconds: u64) -> Self {
        Self {
            target: Some("all".to_owned()),
            seconds,
        }
    }
}

/// What cargo-fuzz passes too, without the sanitizer that only nightly has: coverage of every edge
/// with counters and comparisons, so that libFuzzer sees where an input leads.
const FLAGS: &[&str] = &[
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let targets = targets()?;
    match args.target.as_deref() {
        None => {
            for target in &targets {
                println!("{target}");
            }
            Ok(())
        }
        Some("all") => targets
            .iter()
            .try_for_each(|target| fuzz(target, args.seconds)),
        Some(target) if targets.iter().any(|known| known == target) => fuzz(target, args.seconds),
        Some(target) => {
            bail!(
                "there is no fuzz target {target}: it is one of {}",
                targets.join(", ")
            )
        }
    }
}

fn targets() -> Result<Vec<String>> {
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

fn fuzz(target: &str, seconds: u64) -> Result<()> {
    let host = host()?;
    let fuzz = workspace::root().join("fuzz");
    let build_dir = fuzz.join("target");
    let mut build = process::cargo();
    build
        .current_dir(&fuzz)
        .args(["build", "--release", "--bin", target]);
    // Naming the target keeps the flags away from build scripts, which do not link libFuzzer.
    build
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(&build_dir);
    process::run(build.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}")))?;

    let grown = build_dir.join("corpus").join(target);
    let crashes = workspace::target_dir().join("ci/fuzz");
    for dir in [&grown, &crashes] {
        fs::create_dir_all(dir)?;
    }
    let mut command =
        std::process::Command::new(build_dir.join(&host).join("release").join(target));
    command.current_dir(&fuzz).arg(&grown);
    let committed: PathBuf = fuzz.join("corpus").join(target);
    if committed.is_dir() {
        command.arg(committed);
    }
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix={}/{target}-", crashes.display()));
    command.args([
        "-print_final_stats=1",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-verbosity=1",
    ]);
    process::run(&mut command).with_context(|| {
        format!(
            "fuzz target {target} failed; the input is in {}",
            crashes.display()
        )
    })
}

/// The machine's target triple, as rustc names it.
fn host() -> Result<String> {
    let output = std::process::Command::new("rustc")
        .arg("-vV")
        .current_dir(workspace::root())
        .output()
        .context("run rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
