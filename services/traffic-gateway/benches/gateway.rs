//! The gateway against nginx, haproxy and caddy: requests per second and latency, wrk with 64
//! keep-alive connections, bodies of 1 KiB and 64 KiB.
//!
//! All of them, the upstream and wrk share the machine, and rounds alternate, so only the ratios
//! within a round mean anything; the report has every figure and the median of the ratios, and the
//! processor time that each proxy took for a request, which other work disturbs least. The
//! first part has its upstream on loopback and shows the proxy's own cost. The second part goes
//! through the overlay (`mesh up`, a `worker-agent`, WireGuard and TCP in user space), where the
//! peers cannot follow; its figures stand for themselves.
//!
//! `--quick`: fewer and shorter rounds, under two minutes. `--only loopback|overlay`: one part.

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "gateway/ours.rs"]
mod ours;
#[path = "gateway/overlay.rs"]
mod overlay;
#[path = "gateway/peers.rs"]
mod peers;
#[path = "gateway/wrk.rs"]
mod wrk;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use mesh_testkit::artefact;
use serde_json::{Value, json};
use wrk::{Sample, Whose};

/// Connections that wrk keeps open.
const CONNECTIONS: usize = 64;
const SIZES: [(&str, usize); 2] = [("1k", 1024), ("64k", 64 * 1024)];
/// The path prefix of everything, so that our gateway routes and all others just pass on.
const PREFIX: &str = "bench-worker";

struct Plan {
    rounds: usize,
    seconds: u64,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let quick = args.iter().any(|arg| arg == "--quick");
    let only = args
        .iter()
        .position(|arg| arg == "--only")
        .and_then(|at| args.get(at + 1))
        .map(String::as_str);
    let plan = if quick {
        Plan {
            rounds: 3,
            seconds: 2,
        }
    } else {
        Plan {
            rounds: 7,
            seconds: 8,
        }
    };
    let files = tempfile::tempdir().context("make a directory for the files")?;
    lay_out(files.path())?;
    let loopback = match only {
        Some("overlay") => Value::Null,
        _ => on_loopback(files.path(), &plan)?,
    };
    let overlay = match only {
        Some("loopback") => Value::Null,
        _ => through_the_overlay(files.path(), &plan)?,
    };
    let report = json!({
        "schema": "mesh.bench/1",
        "bench": "gateway",
        "quick": quick,
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "wrk": { "threads": 1, "connections": CONNECTIONS, "seconds": plan.seconds },
        "rounds": plan.rounds,
        "loopback": loopback,
        "overlay": overlay,
    });
    let dir = artefact::target_dir().join("bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join("gateway.json");
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("written to {}", path.display());
    Ok(())
}

/// The files that the upstream serves. Readable for the user that nginx turns into.
fn lay_out(dir: &Path) -> Result<()> {
    let www = dir.join("www").join(PREFIX);
    fs::create_dir_all(&www)?;
    for path in [dir, &dir.join("www"), &www] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    for (name, size) in SIZES {
        fs::write(www.join(name), vec![b'a'; size])?;
    }
    // The same below the root, for a gateway that strips its prefix.
    for (name, size) in SIZES {
        fs::write(dir.join("www").join(name), vec![b'a'; size])?;
    }
    Ok(())
}

fn on_loopback(files: &Path, plan: &Plan) -> Result<Value> {
    let upstream = peers::upstream(files)?;
    let ours = ours::Gateway::start(upstream.addr, PREFIX)?;
    let mut targets = vec![
        ("direct", upstream.addr, Whose::Nobodys),
        ("gateway", ours.addr(), Whose::Threads("gateway-")),
    ];
    let peers = peers::start_all(files, upstream.addr)?;
    targets.extend(
        peers
            .iter()
            .map(|peer| (peer.name, peer.addr, Whose::Process(peer.pid()))),
    );
    let mut report = serde_json::Map::new();
    for (size, _) in SIZES {
        let mut samples: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
        for round in 0..plan.rounds {
            // Each round starts with another one, so that nobody always runs first.
            for at in 0..targets.len() {
                let (name, addr, whose) = targets[(at + round) % targets.len()];
                let url = format!("http://{addr}/{PREFIX}/{size}");
                let sample = wrk::run(&url, CONNECTIONS, plan.seconds, whose)?;
                println!("{size:>4} round {} {name:<8} {sample}", round + 1);
                samples.entry(name).or_default().push(sample);
            }
        }
        report.insert(size.to_owned(), compared(&samples));
    }
    Ok(Value::Object(report))
}

/// Every figure, and ours against each of the others round by round.
fn compared(samples: &BTreeMap<&str, Vec<Sample>>) -> Value {
    let ours = &samples["gateway"];
    let figures: serde_json::Map<String, Value> = samples
        .iter()
        .map(|(name, all)| ((*name).to_owned(), wrk::summary(all)))
        .collect();
    let ratio = |theirs: &[Sample], figure: fn(&Sample) -> f64| {
        let each: Vec<f64> = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| figure(ours) / figure(theirs))
            .collect();
        wrk::median(&each)
    };
    let mut ratios = serde_json::Map::new();
    for (name, theirs) in samples.iter().filter(|(name, _)| **name != "gateway") {
        let requests = ratio(theirs, |sample| sample.requests_per_second);
        let p50 = ratio(theirs, |sample| sample.p50_us);
        let p99 = ratio(theirs, |sample| sample.p99_us);
        println!("     gateway / {name:<8} requests/s {requests:.2}  p50 {p50:.2}  p99 {p99:.2}");
        let mut all = json!({ "requests_per_second": requests, "p50": p50, "p99": p99 });
        if theirs.iter().all(|sample| sample.cpu_us.is_some()) {
            let cpu = ratio(theirs, |sample| sample.cpu_us.unwrap_or(f64::NAN));
            println!("     gateway / {name:<8} processor time for a request {cpu:.2}");
            all["cpu_per_request"] = json!(cpu);
        }
        ratios.insert((*name).to_owned(), all);
    }
    let better: Vec<f64> = (0..ours.len())
        .map(|round| {
            let of = |name: &str| samples[name][round].requests_per_second;
            ours[round].requests_per_second / of("nginx").max(of("haproxy"))
        })
        .collect();
    let tail: Vec<f64> = (0..ours.len())
        .map(|round| {
            let (nginx, haproxy) = (&samples["nginx"][round], &samples["haproxy"][round]);
            let better = if nginx.requests_per_second >= haproxy.requests_per_second {
                nginx
            } else {
                haproxy
            };
            ours[round].p99_us / better.p99_us
        })
        .collect();
    let (better, tail) = (wrk::median(&better), wrk::median(&tail));
    println!("     gateway / better of nginx and haproxy: requests/s {better:.2}  p99 {tail:.2}");
    json!({
        "figures": figures,
        "ratio_to": ratios,
        "ratio_to_better_of_nginx_and_haproxy": { "requests_per_second": better, "p99": tail },
    })
}

fn through_the_overlay(files: &Path, plan: &Plan) -> Result<Value> {
    let upstream = peers::upstream(files)?;
    let mesh = overlay::Mesh::start(upstream.addr.port())?;
    let mut report = serde_json::Map::new();
    for (size, _) in SIZES {
        let mut through = Vec::new();
        let mut direct = Vec::new();
        for round in 0..plan.rounds {
            let url = format!("{}{size}", mesh.service_url());
            let sample = wrk::run(&url, CONNECTIONS, plan.seconds, Whose::Nobodys)?;
            println!("{size:>4} round {} overlay  {sample}", round + 1);
            through.push(sample);
            let url = format!("http://{}/{size}", upstream.addr);
            let sample = wrk::run(&url, CONNECTIONS, plan.seconds, Whose::Nobodys)?;
            println!("{size:>4} round {} direct   {sample}", round + 1);
            direct.push(sample);
        }
        let ratios: Vec<f64> = through
            .iter()
            .zip(&direct)
            .map(|(ours, theirs)| ours.requests_per_second / theirs.requests_per_second)
            .collect();
        let figures = json!({
            "figures": { "overlay": wrk::summary(&through), "direct": wrk::summary(&direct) },
            "ratio_to": { "direct": { "requests_per_second": wrk::median(&ratios) } },
        });
        report.insert(size.to_owned(), figures);
    }
    Ok(Value::Object(report))
}
