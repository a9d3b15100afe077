//! `soak`: the real programs under steady load, and a verdict on what they hold.
//! docs/soak.md says what is judged and how.

use anyhow::{Context as _, Result};

use crate::process;

/// Arguments of `cargo xtask soak`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How long they are under load.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Two minutes: enough to see that it works, not to see a slow leak.
    #[arg(long, conflicts_with = "minutes")]
    quick: bool,
    /// Release builds; those of the tests otherwise.
    #[arg(long)]
    release: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let minutes = if args.quick { 2 } else { args.minutes };
    let profile: &[&str] = if args.release { &["--release"] } else { &[] };
    let mut build = process::cargo();
    build.args(["build", "--workspace", "--bins"]).args(profile);
    process::run(&mut build).context("build the programs")?;
    let mut soak = process::cargo();
    // Of the workspace, so that what the tests have built is not built again with other features.
    soak.args(["test", "--workspace", "--test", "soak"])
        .args(profile);
    soak.args(["--", "--minutes"]).arg(minutes.to_string());
    process::run(&mut soak).context("the soak")
}
