//! `test`: units, then the real binaries, then the journeys, then the build with virtual time. What
//! needs a container engine is a stage of its own: `compose`, `deb --check`, `k8s --run`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{process, setup, virtual_time, workspace};

mod logs;
mod targets;

/// Lines of what a failed test said that are repeated at the end.
const SHOWN: usize = 40;

/// Arguments of `cargo xtask test`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Args {
    /// Run only these parts; all of them when none is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Install missing packages without asking.
    #[arg(long)]
    yes: bool,
    /// Passed on to the test binaries, such as a filter.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Unit, property and service tests of every crate.
    Unit,
    /// Black-box journeys with the real binaries.
    Journeys,
    /// The tests of data plane and simulation under virtual time, in a target directory of their own.
    VirtualTime,
}

/// Where the output of this run's test binaries is kept.
pub(crate) fn log_path() -> PathBuf {
    workspace::target_dir().join("ci/test.log")
}

/// Runs the verb. Later parts run although an earlier one failed, so that one run tells all.
pub(crate) fn run(args: &Args) -> Result<()> {
    prepare(args)?;
    let log = log_path();
    if log.exists() {
        std::fs::remove_file(&log)?;
    }
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut failures = Vec::new();
    let mut times = Vec::new();
    let parts: [(Part, &str, fn(&Args) -> Result<()>); 3] = [
        (Part::Unit, "unit", unit),
        (Part::Journeys, "journeys", journeys),
        (Part::VirtualTime, "virtual-time", virtual_time),
    ];
    for (_, name, work) in parts.into_iter().filter(|(part, ..)| wanted(*part)) {
        let begun = Instant::now();
        failures.extend(work(args).err());
        times.push(format!("{name} {:.0} s", begun.elapsed().as_secs_f64()));
    }
    if wanted(Part::Journeys) {
        failures.extend(logs::check(&log).err());
    }
    println!("\n== time: {}", times.join(", "));
    println!("== apart from these: the journey over containers, by `cargo xtask compose`");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    summarise(&text);
    if failures.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
    bail!(
        "tests failed:\n  {}\n{}",
        lines.join("\n  "),
        said(&text).join("\n")
    )
}

/// In CI everything must be there. On a desk a person may decline root: journeys then say
/// SKIPPED themselves.
fn prepare(args: &Args) -> Result<()> {
    let prepared = setup::run(&setup::Args {
        yes: args.yes,
        check: false,
    });
    if let Err(error) = &prepared
        && !process::is_ci()
    {
        eprintln!("warning: {error:#}");
        eprintln!("warning: tests that need them say SKIPPED");
        return Ok(());
    }
    prepared
}

fn unit(args: &Args) -> Result<()> {
    let tests = targets::Tests::read()?;
    // Programs that tests start; cargo builds them unasked only where no test is named.
    process::run(process::cargo().args(["build", "--workspace", "--examples"]))
        .context("build the examples")?;
    let mut command = of_workspace();
    command.args(["--lib", "--bins"]);
    tests.name_others(&mut command);
    command.arg("--").args(&args.rest);
    let tested = process::run_logged(&mut command, &log_path()).context("unit tests");
    let mut command = of_workspace();
    command.args(["--doc", "--"]).args(&args.rest);
    let examples = process::run_logged(&mut command, &log_path()).context("tests in documentation");
    tested.and(examples)
}

/// Tests of the whole workspace, of which the caller names some: named by package they would be built
/// with other features, and with them half of what they depend on.
fn of_workspace() -> Command {
    let mut command = process::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    require_all(&mut command);
    command
}

fn journeys(args: &Args) -> Result<()> {
    process::run(process::cargo().args(["build", "--workspace", "--bins"]))
        .context("build the binaries for the journeys")?;
    if !process::is_root() {
        eprintln!("warning: SKIPPED: journeys in network namespaces, because this is not root");
    }
    let mut command = of_workspace();
    targets::Tests::read()?.name_journeys(&mut command);
    // One at a time: they count processes, namespaces, ports and bytes.
    command.args(["--", "--test-threads=1"]).args(&args.rest);
    process::run_logged(&mut command, &log_path()).context("journeys")
}

/// boringtun's mock clock stands still for a whole build, so these tests have a build of their own.
fn virtual_time(args: &Args) -> Result<()> {
    let manifest = workspace::root().join("libs/tunnel/Cargo.toml");
    let manifest: toml::Table = std::fs::read_to_string(manifest)?.parse()?;
    let features = manifest.get("features").and_then(toml::Value::as_table);
    if !features.is_some_and(|features| features.contains_key("virtual-time")) {
        bail!("mesh-tunnel has no feature virtual-time: the tests under virtual time did not run");
    }
    let mut command = process::cargo();
    command.args(["test", "-p", "mesh-tunnel", "-p", "mesh-sim"]);
    command.args([
        "--features",
        "mesh-tunnel/virtual-time,mesh-sim/virtual-time",
    ]);
    command.arg("--no-fail-fast");
    virtual_time::build_in(&mut command);
    command.arg("--").args(&args.rest);
    require_all(&mut command);
    process::run_logged(&mut command, &log_path()).context("tests under virtual time")
}

/// In CI, and as root, where setup has put everything there, a test that skips itself fails.
fn require_all(command: &mut Command) {
    if process::is_ci() || process::is_root() {
        command.env("MESH_TEST_REQUIRE_ALL", "1");
    }
}

/// Repeats every result line at the end, where people and machines look for them.
fn summarise(log: &str) {
    println!("\n== results");
    for line in log.lines().filter(|line| line.starts_with("test result:")) {
        // A crate without tests of a kind says nothing.
        if !line.contains(" 0 passed; 0 failed; 0 ignored;") {
            println!("{line}");
        }
    }
    for line in log.lines().filter(|line| is_failure(line)) {
        println!("{line}");
    }
}

fn is_failure(line: &str) -> bool {
    line.starts_with("test ") && line.ends_with("... FAILED")
}

/// The first lines of what each failed test said, under its name.
fn said(log: &str) -> Vec<&str> {
    let mut said = Vec::new();
    let mut left = 0;
    for line in log.lines() {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            left = SHOWN;
        } else if line == "failures:" {
            left = 0;
        }
        if left > 0 {
            left -= 1;
            said.push(line);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_test_said_is_told_and_no_more() {
        let log = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\npanicked at x\n\n\
                   failures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed\ntest c ... ok\n";
        assert_eq!(said(log), ["---- b stdout ----", "panicked at x", ""]);
        assert_eq!(log.lines().filter(|line| is_failure(line)).count(), 1);
        let long = format!("---- b stdout ----\n{}", "line\n".repeat(2 * SHOWN));
        assert_eq!(said(&long).len(), SHOWN);
    }
}
