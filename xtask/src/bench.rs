//! `bench`: runs a benchmark in release mode and checks that it left its report.
//!
//! A benchmark is `benches/<name>.rs` of a crate with `harness = false`. It runs our code and its
//! peers in alternation and writes every figure and ratio to `target/bench/<name>.json`. It gates
//! nothing by time.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process, setup, workspace};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Which one; all of them are listed when none is named.
    name: Option<String>,
    /// Fewer and shorter rounds: under two minutes.
    #[arg(long)]
    quick: bool,
    /// Passed on to the benchmark.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// What `--quick` promises, building aside.
const QUICK: Duration = Duration::from_secs(120);

struct Bench {
    name: &'static str,
    /// The product's programs that it starts; with any of them it also needs those of other
    /// people.
    programs: &'static [&'static str],
    purpose: &'static str,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "gateway",
        programs: &["traffic-gateway", "mesh", "worker-agent"],
        purpose: "requests per second and p99 against nginx, haproxy and caddy",
    },
    Bench {
        name: "tunnel-core",
        programs: &[],
        purpose: "packets per second and core, against bare boringtun",
    },
    Bench {
        name: "netmap",
        programs: &[],
        purpose: "10 000 nodes: cost of a full map and of one change",
    },
    Bench {
        name: "control",
        programs: &["coordinator", "mesh"],
        purpose: "1 000 agents: a change to its viewers, joins, reconnect, memory",
    },
    Bench {
        name: "join",
        programs: &["mesh", "worker-agent"],
        purpose: "join to first 200 through the gateway; joins per second",
    },
    Bench {
        name: "tun",
        programs: &[
            "coordinator",
            "relay",
            "traffic-gateway",
            "deploy-manager",
            "mesh",
            "worker-agent",
        ],
        purpose: "two machines with a TUN device against wireguard-go and no tunnel at all",
    },
];

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(name) = &args.name else {
        for bench in BENCHES {
            println!("{:<12} {}", bench.name, bench.purpose);
        }
        return Ok(());
    };
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        let names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        bail!(
            "there is no benchmark {name}: it is one of {}",
            names.join(", ")
        );
    };
    // The whole workspace is named each time: with the same packages chosen, cargo resolves the
    // same features and compiles nothing twice.
    if !bench.programs.is_empty() {
        setup::run(&setup::Args {
            yes: false,
            check: false,
        })?;
        let mut build = process::cargo();
        build.args(["build", "--release", "--workspace"]);
        for program in bench.programs {
            build.args(["--bin", program]);
        }
        process::run(&mut build)?;
    }
    let mut build = process::cargo();
    process::run(build.args(["bench", "--workspace", "--bench", bench.name, "--no-run"]))?;

    let begun = (Instant::now(), SystemTime::now());
    let mut command = process::cargo();
    command.args(["bench", "--workspace", "--bench", bench.name, "--"]);
    if args.quick {
        command.arg("--quick");
    }
    process::run(command.args(&args.rest))?;
    let took = begun.0.elapsed();

    let report = workspace::target_dir().join(format!("bench/{}.json", bench.name));
    let metadata = fs::metadata(&report)
        .with_context(|| format!("bench {} left no {}", bench.name, report.display()))?;
    ensure!(
        metadata.modified()? >= begun.1,
        "{} is older than this run: the benchmark did not write it",
        report.display()
    );
    let text = fs::read_to_string(&report)?;
    serde_json::from_str::<serde_json::Value>(&text)
        .with_context(|| format!("{} is no JSON", report.display()))?;
    println!(
        "bench {}: {:.1} s, report in {}",
        bench.name,
        took.as_secs_f64(),
        report.display()
    );
    if args.quick {
        check_quick(bench.name, took)?;
    }
    Ok(())
}

fn check_quick(name: &str, took: Duration) -> Result<()> {
    ensure!(
        took < QUICK,
        "bench {name} --quick took {:.0} s and must take less than {} s: give it fewer or shorter \
         rounds, or free the machine of what else runs on it",
        took.as_secs_f64(),
        QUICK.as_secs()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_that_is_not_quick_fails_with_its_time() {
        check_quick("join", Duration::from_millis(119_999)).expect("quick");
        let slow = check_quick("join", QUICK).expect_err("slow");
        let text = slow.to_string();
        assert!(text.contains("bench join --quick took 120 s"), "{text}");
    }
}
