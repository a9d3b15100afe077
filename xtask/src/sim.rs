//! `sim`: the whole system under one virtual clock; docs/simulation.md says what that means.

use anyhow::{Context as _, Result};

use crate::{process, virtual_time};

/// Arguments of `cargo xtask sim`.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// For the simulation, such as `--seeds 1000`, `--seed 17 --trace`, `--planted`, `--month`, `--help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

impl Args {
    fn of(rest: &[&str]) -> Self {
        Self {
            rest: rest.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = process::cargo();
    command.args(["run", "--quiet", "-p", "mesh-sim"]);
    command.args(["--features", "virtual-time"]);
    virtual_time::build_in(&mut command);
    command.arg("--").args(&args.rest);
    process::run(&mut command).context("the simulation")
}

/// As CI runs it: a thousand seeds, every planted fault found within as many; months in which
/// certificates end, and the fault planted there found; two hours of one world in which nothing
/// grows, and the leaks planted there found.
pub(crate) fn ci() -> Result<()> {
    run(&Args::of(&["--seeds", "1000"]))?;
    run(&Args::of(&["--planted"]))?;
    run(&Args::of(&["--month"]))?;
    run(&Args::of(&["--month", "--planted"]))?;
    run(&Args::of(&["--soak"]))?;
    run(&Args::of(&["--soak", "--planted"]))
}
