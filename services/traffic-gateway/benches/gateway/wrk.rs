//! Runs wrk and reads what it prints.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// One run of wrk.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Of the proxy alone; `None` when it is not known whose time that is.
    pub(crate) cpu_us: Option<f64>,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            requests_per_second,
            p50_us,
            p99_us,
            cpu_us,
        } = self;
        write!(
            f,
            "{requests_per_second:>9.0} req/s  p50 {p50_us:>7.0} us  p99 {p99_us:>7.0} us"
        )?;
        match cpu_us {
            Some(cpu) => write!(f, "  cpu {cpu:>5.1} us/req"),
            None => Ok(()),
        }
    }
}

/// Whose processor time is counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose {
    /// Nobody's.
    Nobodys,
    /// That of this process and its children.
    Process(u32),
    /// That of our own threads of this name.
    Threads(&'static str),
}

impl Whose {
    /// Microseconds so far, user and system, in the kernel's clock ticks of 10 ms.
    fn used(self) -> Option<f64> {
        let stats: Vec<String> = match self {
            Self::Nobodys => return None,
            Self::Process(pid) => {
                let children = format!("/proc/{pid}/task/{pid}/children");
                let children = std::fs::read_to_string(children).unwrap_or_default();
                std::iter::once(pid.to_string())
                    .chain(children.split_whitespace().map(str::to_owned))
                    .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())
                    .collect()
            }
            Self::Threads(name) => std::fs::read_dir("/proc/self/task")
                .ok()?
                .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
                .filter(|stat| stat.contains(&format!("({name}")))
                .collect(),
        };
        let ticks: f64 = stats.iter().filter_map(|stat| ticks_of(stat)).sum();
        Some(ticks * 10_000.0)
    }
}

/// Fields 14 and 15 of proc_pid_stat(5), counted from behind the name, which may hold anything.
fn ticks_of(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Asks for `url` for some seconds. Any answer but 200 is an error: a fast error is no figure.
pub(crate) fn run(url: &str, connections: usize, seconds: u64, whose: Whose) -> Result<Sample> {
    let before = whose.used();
    let output = Command::new("wrk")
        .args(["-t1", "--latency"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{seconds}s"))
        .arg(url)
        .output()
        .context("run wrk (cargo xtask setup installs it)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk {url} failed: {text}");
    if text.contains("Non-2xx") {
        bail!("wrk {url} was answered with errors: {text}");
    }
    let figure = |label: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(label))
            .map(|rest| rest.trim_start_matches(':').trim().to_owned())
            .with_context(|| format!("wrk printed no {label}: {text}"))
    };
    let requests: Option<f64> = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    let used = before.and_then(|before| Some((whose.used()? - before) / requests?));
    Ok(Sample {
        cpu_us: used,
        requests_per_second: figure("Requests/sec")?.parse()?,
        p50_us: micros(&figure("50%")?)?,
        p99_us: micros(&figure("99%")?)?,
    })
}

fn micros(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("m", 6e7), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("wrk printed a latency without a unit: {text}")
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The middle one of a figure.
pub(crate) fn median_of(samples: &[Sample], figure: fn(&Sample) -> f64) -> f64 {
    median(&samples.iter().map(figure).collect::<Vec<f64>>())
}

/// Every figure and the medians.
pub(crate) fn summary(samples: &[Sample]) -> Value {
    let all = |figure: fn(&Sample) -> f64| samples.iter().map(figure).collect::<Vec<f64>>();
    let requests = all(|sample| sample.requests_per_second);
    let cpu: Vec<f64> = samples.iter().filter_map(|sample| sample.cpu_us).collect();
    let (p50, p99) = (all(|sample| sample.p50_us), all(|sample| sample.p99_us));
    json!({
        "requests_per_second": { "median": median(&requests), "rounds": requests },
        "p50_us": { "median": median(&p50), "rounds": p50 },
        "p99_us": { "median": median(&p99), "rounds": p99 },
        "cpu_us_per_request": { "median": median(&cpu), "rounds": cpu },
    })
}
