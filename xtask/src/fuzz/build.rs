//! Building the targets: all of them at once, with coverage.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{process, workspace};

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

/// Builds one target, or all; the directory that the programs are in.
pub(super) fn build(only: Option<&str>) -> Result<PathBuf> {
    let host = host()?;
    let fuzz = workspace::root().join("fuzz");
    let build_dir = fuzz.join("target");
    let mut command = process::cargo();
    command.current_dir(&fuzz).args(["build", "--release"]);
    match only {
        Some(target) => command.args(["--bin", target]),
        None => command.arg("--bins"),
    };
    // Naming the target keeps the flags away from build scripts, which do not link libFuzzer.
    command
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(&build_dir);
    process::run(command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}")))?;
    Ok(build_dir.join(host).join("release"))
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
