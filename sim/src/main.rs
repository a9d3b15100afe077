//! `cargo xtask sim`: worlds by seeds.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks to people"
)]

#[allow(
    dead_code,
    unreachable_pub,
    reason = "public where it comes from, and counts more than is asked for here"
)]
#[path = "../../libs/testkit/src/heap.rs"]
mod heap;

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mesh_sim::run::{self, Report};
use mesh_sim::{Bug, Life, Options, soak};

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", about = "Simulate the whole system")]
struct Args {
    /// How many seeds to run: 1000 when not given, or 40 with --month.
    #[arg(long)]
    seeds: Option<u64>,
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
    /// One long life under load instead, with a look at memory every ten minutes; with --planted,
    /// the leaks that are planted must be found by it.
    #[arg(long, conflicts_with_all = ["seeds", "first", "trace"])]
    soak: bool,
    /// Lives of 35 days, longer than certificates last, which the nodes sleep through for the most
    /// part; with --planted, the faults that show there only must be found by them.
    #[arg(long, conflicts_with = "soak")]
    month: bool,
    /// How long it lives.
    #[arg(long, requires = "soak", default_value_t = 120)]
    minutes: u64,
    /// How many threads; all cores when not given.
    #[arg(long)]
    threads: Option<usize>,
}

impl Args {
    fn seeds(&self) -> Range<u64> {
        let seeds = self.seeds.unwrap_or(if self.month { 40 } else { 1000 });
        self.first..self.first.saturating_add(seeds)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(cores).max(1);
    let good = if args.soak {
        soaks(&args)
    } else if let Some(seed) = args.seed {
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

/// Bytes in use, and in how many pieces.
fn in_use() -> (i64, i64) {
    let heap = heap::of_this_thread();
    (heap.bytes, heap.blocks)
}

fn soaks(args: &Args) -> bool {
    let bugs: Vec<Option<Bug>> = match args.planted {
        false => vec![args.bug],
        true => Bug::ALL
            .iter()
            .filter(|bug| bug.life() == Life::Soak)
            .map(|bug| Some(*bug))
            .collect(),
    };
    bugs.iter().all(|bug| soak_with(args, *bug))
}

fn soak_with(args: &Args, bug: Option<Bug>) -> bool {
    let options = soak::Options {
        seed: args.seed.unwrap_or(1),
        bug,
        span: Duration::from_secs(args.minutes * 60),
    };
    let outcome = soak::run(options, in_use);
    print!("{outcome}");
    println!(
        "seed {}: {} simulated minutes with {} events in {:.1} s",
        options.seed,
        args.minutes,
        outcome.events,
        outcome.took.as_secs_f64()
    );
    if let Some(failure) = &outcome.failure {
        println!("FAILED: {failure}");
    }
    if outcome.verdicts.is_empty() {
        println!("FAILED: too few samples for a verdict: --minutes 80 at least");
    }
    for (name, verdict) in outcome.growing() {
        println!("GROWS: {name}, from {} to {}", verdict.early, verdict.late);
    }
    if !args.planted {
        return outcome.is_good();
    }
    let name = bug.map_or("", Bug::as_str);
    let found = outcome.failure.is_none() && outcome.growing().next().is_some();
    println!("{name}: {}", if found { "found" } else { "NOT FOUND" });
    found
}

fn one(seed: u64, args: &Args) -> bool {
    let options = Options {
        bug: args.bug,
        print: args.trace,
        month: args.month,
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
        month: args.month,
    };
    let seeds = args.seeds();
    let report = run::many(seeds, options, threads, false);
    print_report(&report, threads);
    let bug = args
        .bug
        .map(|bug| format!(" --bug {bug}"))
        .unwrap_or_default();
    let month = if args.month { " --month" } else { "" };
    for (seed, failure) in report.failures.iter().take(10) {
        println!("FAILED seed {seed}: {failure}");
        println!("  again: cargo xtask sim --seed {seed}{month}{bug}");
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
    let life = if args.month { Life::Month } else { Life::Short };
    for bug in Bug::ALL.iter().filter(|bug| bug.life() == life) {
        let options = Options {
            bug: Some(*bug),
            print: false,
            month: args.month,
        };
        let seeds = args.seeds();
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
