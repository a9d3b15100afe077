//! The gateway against nginx, haproxy and caddy: requests per second and latency, wrk with 64
//! keep-alive connections, bodies of 1 KiB and 64 KiB.
//!
//! All of them, the upstream and wrk share the machine, and rounds alternate, so only the ratios
//! within a round mean anything; the report has every figure and every ratio with their medians, and
//! the processor time that each proxy took for a request, which other work disturbs least. The
//! first part has its upstream on loopback and shows the proxy's own cost. In the second part ours
//! goes through the overlay (`mesh up`, a `worker-agent`, WireGuard and TCP in user space), where
//! the peers cannot follow: they have the same upstream on loopback.
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
            rounds: 5,
            seconds: 1,
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

/// Who is asked in a round, where, and whose processor time it takes.
type Asked = (&'static str, String, Whose);

fn on_loopback(files: &Path, plan: &Plan) -> Result<Value> {
    let upstream = peers::upstream(files)?;
    let ours = ours::Gateway::start(upstream.addr, PREFIX)?;
    let peers = peers::start_all(files, upstream.addr)?;
    let mut targets: Vec<Asked> = vec![(
        "gateway",
        format!("http://{}/{PREFIX}/", ours.addr()),
        Whose::Threads("gateway-"),
    )];
    targets.extend(others(&upstream, &peers));
    alternate(&targets, plan)
}

/// The peers have the upstream on loopback here too: what the overlay costs is all on our side.
fn through_the_overlay(files: &Path, plan: &Plan) -> Result<Value> {
    let upstream = peers::upstream(files)?;
    let mesh = overlay::Mesh::start(upstream.addr.port())?;
    let peers = peers::start_all(files, upstream.addr)?;
    let mut targets: Vec<Asked> = vec![("gateway", mesh.service_url(), Whose::Nobodys)];
    targets.extend(others(&upstream, &peers));
    alternate(&targets, plan)
}

fn others(upstream: &peers::Peer, peers: &[peers::Peer]) -> Vec<Asked> {
    let url = |addr| format!("http://{addr}/{PREFIX}/");
    let direct = ("direct", url(upstream.addr), Whose::Nobodys);
    let peers = peers
        .iter()
        .map(|peer| (peer.name, url(peer.addr), Whose::Process(peer.pid())));
    std::iter::once(direct).chain(peers).collect()
}

/// Asks all of them round by round, and compares.
fn alternate(targets: &[Asked], plan: &Plan) -> Result<Value> {
    let mut report = serde_json::Map::new();
    for (size, _) in SIZES {
        let mut samples: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
        for round in 0..plan.rounds {
            // Each round starts with another one, so that nobody always runs first.
            for at in 0..targets.len() {
                let (name, url, whose) = &targets[(at + round) % targets.len()];
                let url = format!("{url}{size}");
                let sample = wrk::run(&url, CONNECTIONS, plan.seconds, *whose)?;
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
    let figures: serde_json::Map<String, Value> = samples
        .iter()
        .map(|(name, all)| ((*name).to_owned(), wrk::summary(all)))
        .collect();
    let mut ratios = serde_json::Map::new();
    for name in samples.keys().filter(|name| **name != "gateway") {
        ratios.insert((*name).to_owned(), ratios_to(samples, name));
    }
    let speed = |name: &str| wrk::median_of(&samples[name], |sample| sample.requests_per_second);
    let better = if speed("nginx") >= speed("haproxy") {
        "nginx"
    } else {
        "haproxy"
    };
    println!("     the better of nginx and haproxy, by its median, is {better}");
    // Which of them is better changes from round to round: against the better one of each, too.
    let rounds = ratios_to_better(samples);
    let median = wrk::median(&rounds);
    println!("     gateway / the better of each round: requests_per_second {median:.2}");
    json!({
        "figures": figures,
        "ratio_to": ratios,
        "better_of_nginx_and_haproxy": better,
        "ratio_to_better_of_each_round": {
            "requests_per_second": { "median": median, "rounds": rounds },
        },
    })
}

/// Our speed against the faster of nginx and haproxy, round by round.
fn ratios_to_better(samples: &BTreeMap<&str, Vec<Sample>>) -> Vec<f64> {
    let speeds = |name: &str| {
        let all = samples[name].iter();
        all.map(|sample| sample.requests_per_second)
    };
    let better = speeds("nginx").zip(speeds("haproxy"));
    let better = better.map(|(nginx, haproxy)| nginx.max(haproxy));
    let rounds = speeds("gateway").zip(better);
    rounds.map(|(ours, theirs)| ours / theirs).collect()
}

/// Ours against one of the others: the ratios of each round, and the median of these.
fn ratios_to(samples: &BTreeMap<&str, Vec<Sample>>, name: &str) -> Value {
    let ratio = |figure: fn(&Sample) -> Option<f64>| {
        let rounds: Option<Vec<f64>> = samples["gateway"]
            .iter()
            .zip(&samples[name])
            .map(|(ours, theirs)| Some(figure(ours)? / figure(theirs)?))
            .collect();
        rounds.map(|rounds| (wrk::median(&rounds), rounds))
    };
    let mut all = serde_json::Map::new();
    let mut line = format!("     gateway / {name:<8}");
    let figures: [(&str, fn(&Sample) -> Option<f64>); 4] = [
        ("requests_per_second", |sample| {
            Some(sample.requests_per_second)
        }),
        ("p50", |sample| Some(sample.p50_us)),
        ("p99", |sample| Some(sample.p99_us)),
        ("cpu_per_request", |sample| sample.cpu_us),
    ];
    for (figure, of) in figures {
        if let Some((median, rounds)) = ratio(of) {
            line.push_str(&format!("  {figure} {median:.2}"));
            let value = json!({ "median": median, "rounds": rounds });
            all.insert(figure.to_owned(), value);
        }
    }
    println!("{line}");
    Value::Object(all)
}
