//! Two machines on the mesh with a TUN device each: ping and iperf3 between them, beside wireguard-go
//! and no tunnel at all between the same two. Writes `target/bench/tun.json`; `--quick` takes fewer
//! and shorter rounds.
//!
//! The machines are network namespaces of this one, joined by virtual Ethernet: both ends, both
//! programs and iperf3 share its processors. So what a way costs is told as well: the processor time
//! of its programs, both ends together, for each gigabyte. The kernel's own share, where no tunnel
//! is all there is, is in no such figure.

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]
#![allow(
    clippy::cast_precision_loss,
    reason = "figures are shown with three digits"
)]

#[path = "tun/ways.rs"]
mod ways;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Field, Layout};
use mesh_testkit::{Child, Host, artefact};
use serde_json::{Value, json};

use ways::Way;

const LIMIT: Duration = Duration::from_secs(60);
const IPERF_PORT: &str = "5201";
const STREAMS: [&str; 2] = ["1", "4"];

struct Size {
    rounds: usize,
    /// Of each run of iperf3, one more to warm up aside.
    seconds: u32,
    pings: u32,
}

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let size = if quick {
        Size {
            rounds: 2,
            seconds: 2,
            pings: 100,
        }
    } else {
        Size {
            rounds: 5,
            seconds: 5,
            pings: 500,
        }
    };
    let mut field = Field::start(Layout::Spread, None);
    for name in ["one", "two"] {
        field.add_worker(name, "default", &["net=tun"]);
    }
    let server = serve(&field)?;
    let ways = ways::all(&field)?;
    let one = field.worker("one").host().clone();

    let mut pings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut rates: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    // The first of all finds paths and makes sessions.
    for way in &ways {
        for to in way.to {
            ping(&one, &to.to_string(), 10)?;
        }
    }
    for round in 0..size.rounds {
        for (family, at) in [("ipv4", 0), ("ipv6", 1)] {
            // In turns, and not always the same one first.
            for way in in_turn(&ways, round) {
                let to = way.to[at].to_string();
                let name = format!("{family} {}", way.name);
                let figures = ping(&one, &to, size.pings)?;
                println!("ping {name}: {figures}");
                pings.entry(name).or_default().push(figures);
            }
            for streams in STREAMS {
                for way in in_turn(&ways, round) {
                    let to = way.to[at].to_string();
                    let name = format!("{family} {streams} {}", way.name);
                    let figures = iperf(&one, way, &to, streams, size.seconds)?;
                    println!("iperf3 {name}: {figures}");
                    rates.entry(name).or_default().push(figures);
                }
            }
        }
    }
    drop(server);
    let report = json!({
        "schema": "mesh.bench/1",
        "bench": "tun",
        "quick": quick,
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "processors": std::thread::available_parallelism()?.get(),
        "ways": ways.iter().map(|way| json!({ "name": way.name, "what": way.what })).collect::<Vec<_>>(),
        "ping_ms": pings,
        "iperf3": rates,
        "summary": summary(&ways, &rates),
    });
    let dir = artefact::target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("tun.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("{}", serde_json::to_string_pretty(&report["summary"])?);
    println!("written to {}", path.display());
    Ok(())
}

/// iperf3 on the second machine, at all of its addresses; the mesh leaves its port to the machine.
fn serve(field: &Field) -> anyhow::Result<Child> {
    let two = field.worker("two");
    let server = two
        .host()
        .spec("iperf3")
        .args(["--server", "--forceflush", "--port", IPERF_PORT])
        .spawn()?;
    server.wait_for_line("Server listening", LIMIT);
    two.run("publish", &["iperf", IPERF_PORT, "--tcp", "--direct"])
        .success()?;
    Ok(server)
}

fn in_turn(ways: &[Way], round: usize) -> impl Iterator<Item = &Way> {
    let first = round % ways.len();
    ways[first..].iter().chain(&ways[..first])
}

/// Round-trip times in milliseconds.
fn ping(from: &Host, to: &str, count: u32) -> anyhow::Result<Value> {
    let count = count.to_string();
    let ran = from
        .spec("ping")
        .args(["-n", "-q", "-i", "0.005", "-c", &count, to])
        .run(LIMIT)?
        .success()?;
    // rtt min/avg/max/mdev = 0.321/0.456/0.789/0.012 ms, pipe 2
    let line = ran.stdout.lines().find(|line| line.starts_with("rtt "));
    let times = line.and_then(|line| line.split(" = ").nth(1));
    let times = times.and_then(|times| times.split_whitespace().next());
    let times = times.context("no times")?;
    let times: Vec<f64> = times.split('/').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(times.len() == 4, "{times:?}");
    Ok(json!({ "min": times[0], "avg": times[1], "max": times[2], "mdev": times[3] }))
}

/// Megabits per second that arrived, and seconds of processor time a gigabyte.
fn iperf(from: &Host, way: &Way, to: &str, streams: &str, seconds: u32) -> anyhow::Result<Value> {
    let before = way.processor_time()?;
    let ran = from
        .spec("iperf3")
        .args(["--client", to, "--port", IPERF_PORT, "--parallel", streams])
        .args(["--omit", "1", "--time", &seconds.to_string(), "--json"])
        .run(LIMIT)?
        .success()?;
    let used = way.processor_time()? - before;
    let report: Value = serde_json::from_str(&ran.stdout)?;
    let number = |at: &str| {
        let value = report.pointer(at).and_then(Value::as_f64);
        value.with_context(|| format!("no {at}: {report}"))
    };
    let rate = number("/end/sum_received/bits_per_second")?;
    // What was sent before the count began used the processor as well.
    let gigabytes = rate / 8.0 * f64::from(seconds + 1) / 1e9;
    Ok(json!({
        "mbit_per_s": (rate / 1e6).round(),
        "retransmits": number("/end/sum_sent/retransmits")?,
        "processor_s_per_gb": (way.is_measured()).then(|| used / gigabytes),
    }))
}

/// The medians, and ours beside each of the others, from the rounds.
fn summary(ways: &[Way], rates: &BTreeMap<String, Vec<Value>>) -> Value {
    let median = |name: &str, of: &str| -> Option<f64> {
        let values = rates.get(name)?;
        let mut values: Vec<f64> = values.iter().filter_map(|one| one[of].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let mut all = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        for streams in STREAMS {
            let of = |way: &Way| format!("{family} {streams} {}", way.name);
            let mut each = BTreeMap::new();
            let own = median(&of(&ways[0]), "mbit_per_s");
            for way in ways {
                let rate = median(&of(way), "mbit_per_s");
                each.insert(
                    way.name,
                    json!({
                        "mbit_per_s": rate,
                        "processor_s_per_gb": median(&of(way), "processor_s_per_gb"),
                        "mesh_to_this": own.zip(rate).map(|(own, rate)| own / rate),
                    }),
                );
            }
            all.insert(format!("{family}, {streams} streams"), each);
        }
    }
    json!(all)
}
