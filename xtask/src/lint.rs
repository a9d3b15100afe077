//! `lint`: formatting, clippy, rustdoc; a warning is an error.

use anyhow::{Result, bail};

use crate::process;

/// Runs the verb; all of it, although one failed.
pub(crate) fn run() -> Result<()> {
    let mut failures = Vec::new();
    let format = process::run(process::cargo().args(["fmt", "--all", "--check"]));
    failures.extend(format.err());
    let clippy = process::run(process::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]));
    failures.extend(clippy.err());
    // Not among all targets: what wants running containers is called by its name only.
    let containers = process::run(process::cargo().args([
        "clippy",
        "-p",
        "integration",
        "--test",
        "compose",
        "--",
        "-D",
        "warnings",
    ]));
    failures.extend(containers.err());
    let mut doc = process::cargo();
    doc.args([
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--keep-going",
    ]);
    failures.extend(process::run(doc.env("RUSTDOCFLAGS", "-D warnings")).err());
    if failures.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
    bail!("lints failed:\n  {}", lines.join("\n  "))
}
