//! `cargo xtask sim`: worlds by seeds.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks to people"
)]

use std::process::ExitCode;

use clap::Parser;
use mesh_sim::run::{self, Report};
use mesh_sim::{Bug, Options};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", about = "Simulate the whole system")]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this one only.
    #[arg(long, conflicts_with_all = ["seeds", "first", "planted"])]
    seed: Option<u64>,
    /// Print every event.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plant this fault.
    #[arg(long)]
    bug: Option<Bug>,
    /// Plant each fault in turn; each must be found within the seeds.
    #[arg(long, conflicts_with = "bug")]
    planted: bool,
    /// How many threads; all cores when not given.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(cores).max(1);
    let good = if let Some(seed) = args.seed {
        one(seed, &args)
    } else if args.planted {
        planted(&args, threads)
    } else {
        all(&args, threads)
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one(seed: u64, args: &Args) -> bool {
    let options = Options {
        bug: args.bug,
        print: args.trace,
    };
    let outcome = run::seed(seed, options);
    let events: u64 = outcome.trace.counts().values().sum();
    println!(
        "seed {seed}: {events} events in {:.0} simulated seconds, trace {:016x}",
        outcome.lived.as_secs_f64(),
        outcome.trace.hash()
    );
    match &outcome.failure {
        None => println!("all is as it must be"),
        Some(failure) => println!("FAILED: {failure}"),
    }
    outcome.failure.is_none()
}

fn all(args: &Args, threads: usize) -> bool {
    let options = Options {
        bug: args.bug,
        print: false,
    };
    let seeds = args.first..args.first.saturating_add(args.seeds);
    let report = run::many(seeds, options, threads, false);
    print_report(&report, threads);
    let bug = args
        .bug
        .map(|bug| format!(" --bug {bug}"))
        .unwrap_or_default();
    for (seed, failure) in report.failures.iter().take(10) {
        println!("FAILED seed {seed}: {failure}");
        println!("  again: cargo xtask sim --seed {seed}{bug}");
    }
    println!("{} of {} seeds failed", report.failures.len(), report.ran);
    report.failures.is_empty()
}

fn print_report(report: &Report, threads: usize) {
    let took = report.took.as_secs_f64();
    println!(
        "{} seeds in {took:.1} s on {threads} threads: {:.1} seeds/s, {:.0} simulated hours",
        report.ran,
        report.ran as f64 / took,
        report.lived.as_secs_f64() / 3600.0
    );
    for (kind, count) in &report.counts {
        println!("{kind:>20} {count}");
    }
}

fn planted(args: &Args, threads: usize) -> bool {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let options = Options {
            bug: Some(*bug),
            print: false,
        };
        let seeds = args.first..args.first.saturating_add(args.seeds);
        let report = run::many(seeds, options, threads, true);
        let took = report.took.as_secs_f64();
        match report.failures.first_key_value() {
            Some((seed, failure)) => {
                println!(
                    "{bug}: found by seed {seed} after {} seeds, {took:.1} s",
                    report.ran
                );
                println!("  {failure}");
            }
            None => {
                println!("{bug}: NOT FOUND in {} seeds, {took:.1} s", report.ran);
                missed.push(bug.as_str());
            }
        }
    }
    if !missed.is_empty() {
        println!("not found: {}", missed.join(", "));
    }
    missed.is_empty()
}
