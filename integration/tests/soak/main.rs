//! The real programs under steady load for minutes: memory, descriptors and threads stay flat.
//!
//! `cargo xtask soak` builds the programs and runs this by its name; `cargo test` alone leaves it out
//! (`test = false`), since it takes minutes. The verdict is [`integration::soak`]'s, the report is
//! `target/soak/report.json`.

#![allow(clippy::print_stdout, reason = "figures are printed")]

mod load;
mod stage;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use integration::hostile::raise_open_files;
use integration::soak::{LEFT_OPEN, Process, Sample, Served};
use mesh_testkit::{artefact, rest};
use serde::Serialize;

use load::Loads;
use stage::Stage;

const SCHEMA: &str = "mesh.soak/1";
/// Between samples.
const EVERY: Duration = Duration::from_secs(5);
/// Between lines for whoever waits.
const TELL: u32 = 6;
/// What is kept open for the next request is closed by then.
const REST: Duration = Duration::from_secs(100);
const MIB: u64 = 1 << 20;

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    profile: &'static str,
    minutes: u32,
    every_seconds: u64,
    loads: Vec<Served>,
    processes: Vec<Process>,
    faults: Vec<String>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let at = args.iter().position(|arg| arg == "--minutes");
    let minutes = at
        .and_then(|at| args.get(at + 1))
        .and_then(|minutes| minutes.parse().ok());
    match soak(minutes.unwrap_or(10)) {
        Ok(report) if report.faults.is_empty() => {
            println!("flat: memory, descriptors and threads of all processes");
            ExitCode::SUCCESS
        }
        Ok(report) => {
            for fault in report.faults {
                println!("FAILED: {fault}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn soak(minutes: u32) -> anyhow::Result<Report> {
    raise_open_files(4096)?;
    let mut stage = Stage::set()?;
    // What is opened once, at the first use of anything, is no leak.
    let loads = Loads::start(&stage)?;
    loads.wait_until_each_is_done_once()?;
    loads.end();
    let before = at_rest(&stage, None)?;

    let loads = Loads::start(&stage)?;
    let samples = watch(&stage, minutes)?;
    let loads = loads.end();
    let after = at_rest(&stage, Some(&before))?;

    let ends = before.into_iter().zip(after);
    let processes = stage.processes().into_iter().zip(samples).zip(ends);
    let processes: Vec<Process> = processes
        .map(|((child, samples), ends)| {
            let mut process = Process::new(child.name(), samples, ends);
            process.alarms = child.log().alarms(&[]);
            process
        })
        .collect();
    let refused = loads.iter().filter(|load| !load.is_good());
    let refused = refused.map(|load| format!("{load:?}"));
    let report = Report {
        schema: SCHEMA,
        profile: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        minutes,
        every_seconds: EVERY.as_secs(),
        faults: processes
            .iter()
            .flat_map(Process::faults)
            .chain(refused)
            .collect(),
        loads,
        processes,
    };
    tell(&report);
    write(&report)?;
    stage.end()?;
    Ok(report)
}

/// A look at each process.
fn look(stage: &Stage) -> anyhow::Result<Vec<Sample>> {
    let look =
        |child: &mesh_testkit::Child| Sample::of(child.pid()).context(child.name().to_owned());
    stage.processes().into_iter().map(look).collect()
}

/// A look when nothing is going on: when nothing has been closed for a while, or, with a look at
/// them before, when as few descriptors are open.
fn at_rest(stage: &Stage, before: Option<&[Sample]>) -> anyhow::Result<Vec<Sample>> {
    let begun = Instant::now();
    loop {
        let now = look(stage)?;
        let is_closed = before.is_some_and(|before| {
            let mut pairs = before.iter().zip(&now);
            pairs.all(|(before, now)| now.descriptors <= before.descriptors + LEFT_OPEN)
        });
        if is_closed || begun.elapsed() >= REST {
            return Ok(now);
        }
        rest(EVERY);
    }
}

fn watch(stage: &Stage, minutes: u32) -> anyhow::Result<Vec<Vec<Sample>>> {
    let mut samples: Vec<Vec<Sample>> = stage.processes().iter().map(|_| Vec::new()).collect();
    let begun = Instant::now();
    for round in 1..=minutes * 12 {
        let due = EVERY * round;
        while let Some(left) = due
            .checked_sub(begun.elapsed())
            .filter(|left| !left.is_zero())
        {
            rest(left);
        }
        let now = look(stage)?;
        if round % TELL == 0 {
            let told: Vec<String> = stage
                .processes()
                .iter()
                .zip(&now)
                .map(|(child, now)| {
                    format!(
                        "{} {:.1} MiB {} files {} threads",
                        child.name(),
                        now.anonymous as f64 / MIB as f64,
                        now.descriptors,
                        now.threads
                    )
                })
                .collect();
            println!("{:>5} s: {}", begun.elapsed().as_secs(), told.join("; "));
        }
        for (of_process, sample) in samples.iter_mut().zip(now) {
            of_process.push(sample);
        }
    }
    Ok(samples)
}

fn tell(report: &Report) {
    println!("\n{:<24} {:>9} {:>7}", "load", "done", "failed");
    for load in &report.loads {
        let why = load.last_failure.as_deref().unwrap_or_default();
        println!(
            "{:<24} {:>9} {:>7} {why}",
            load.what, load.done, load.failed
        );
    }
    println!(
        "\n{:<12} {:<12} {:>10} {:>10} {:>10}  verdict",
        "process", "figure", "second 1/4", "last 1/4", "at most"
    );
    for process in &report.processes {
        for judged in &process.judged {
            let unit = if judged.figure == "anonymous" {
                1024
            } else {
                1
            };
            println!(
                "{:<12} {:<12} {:>10} {:>10} {:>10}  {}",
                process.name,
                if unit == 1 {
                    judged.figure
                } else {
                    "memory, KiB"
                },
                judged.early / unit,
                judged.late / unit,
                judged.most / unit,
                if judged.flat { "flat" } else { "GROWS" }
            );
        }
        println!(
            "{:<12} {:<12} {:>10} {:>10} {:>10}  before the work and after it",
            process.name,
            "at rest",
            process.before.descriptors,
            process.after.descriptors,
            process.before.descriptors + LEFT_OPEN,
        );
    }
}

fn write(report: &Report) -> anyhow::Result<()> {
    let dir = artefact::target_dir().join("soak");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(report)?)?;
    println!("written to {}", path.display());
    Ok(())
}
