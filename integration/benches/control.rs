//! The control plane with many agents: simulated agents over real gRPC and TLS against the real
//! coordinator. Writes `target/bench/control.json`; `--quick` takes fewer agents and changes.
//!
//! All agents are workers of one owner in one network, so each sees all others: the most viewers a
//! change can have. Agents and coordinator share this machine's processors.
//!
//! `--setup NAME` runs one of the set-ups only; `--agents N` changes their number.

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "control/agent.rs"]
mod agent;
#[path = "control/coordinator.rs"]
mod coordinator;
#[path = "control/fleet.rs"]
mod fleet;
#[path = "control/setup.rs"]
mod setup;
#[path = "control/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use integration::raw::{Applicant, RawNode};
use mesh_testkit::artefact;
use mesh_types::JoinToken;
use serde_json::{Value, json};

use coordinator::{Coordinator, Memory};
use fleet::Fleet;
use setup::{Asked, Setup};

/// What is aimed at.
const AIM_CHANGE: Duration = Duration::from_millis(250);
const AIM_RECONNECT: Duration = Duration::from_secs(10);
const AIM_KIB_PER_AGENT: f64 = 60.0;
/// How many machines join at the same time.
const JOINING: usize = 16;
/// How long nothing may arrive at anybody before the network counts as quiet.
const QUIET: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(180);
/// How long agents do nothing but send their heartbeats: four each, and what is kept of them is
/// stored once.
const REST: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
struct Size {
    agents: usize,
    /// Changes of each kind.
    changes: usize,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).map(String::as_str)
    };
    let quick = args.iter().any(|arg| arg == "--quick");
    let mut size = if quick {
        Size {
            agents: 200,
            changes: 20,
        }
    } else {
        Size {
            agents: 1000,
            changes: 100,
        }
    };
    if let Some(agents) = value("--agents") {
        size.agents = agents.parse().context("--agents takes a number")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut setups = Vec::new();
    for setup in Setup::all(value("--setup"))? {
        println!("{}: {} agents", setup.name(), size.agents);
        let figures = runtime.block_on(measure(&setup, size))?;
        println!("{}", serde_json::to_string_pretty(&figures)?);
        setups.push(figures);
    }
    let report = json!({
        "schema": "mesh.bench/1",
        "bench": "control",
        "quick": quick,
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "processors": std::thread::available_parallelism()?.get(),
        "agents": size.agents,
        "setups": setups,
    });
    let dir = artefact::target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("control.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("written to {}", path.display());
    Ok(())
}

async fn measure(setup: &Setup, size: Size) -> anyhow::Result<Value> {
    let mut coordinator = Coordinator::start(setup.settings())?;
    let empty = coordinator.memory().await?;
    let token: JoinToken = coordinator.token().parse()?;
    let (nodes, joins) = join_all(&coordinator, &token, size.agents).await?;
    let joined = coordinator.memory().await?;

    let cpu = coordinator.cpu_seconds()?;
    let begun = Instant::now();
    let mut fleet = Fleet::start(vec![coordinator.addr()], &nodes)?;
    fleet.wait_whole(LIMIT).await?;
    let maps = begun.elapsed();
    let settled = fleet.wait_quiet(QUIET, 0, LIMIT).await? - begun;
    let first = json!({
        "netmaps_whole_seconds": maps.as_secs_f64(),
        "reports_spread_seconds": settled.as_secs_f64(),
        "coordinator_cpu_seconds": coordinator.cpu_seconds()? - cpu,
    });
    println!("  connected: {first}");
    let connected = coordinator.memory().await?;

    let cpu = coordinator.cpu_seconds()?;
    tokio::time::sleep(REST).await;
    let worked = coordinator.cpu_seconds()? - cpu;
    let rest = worked * 1e6 / REST.as_secs_f64() / count(size.agents);
    println!("  at rest: {rest:.1} us of a core for each agent and second");

    let moves = changes(&coordinator, setup, &mut fleet, size, Kind::Moves).await?;
    let publishes = changes(&coordinator, setup, &mut fleet, size, Kind::Publishes).await?;
    let joining = joins_with_viewers(&token, &mut fleet, size.changes).await?;
    fleet.wait_quiet(QUIET, size.changes, LIMIT).await?;

    let cut = reconnect(&mut coordinator, &fleet, size, false).await?;
    let restart = reconnect(&mut coordinator, &fleet, size, true).await?;
    let reconnected = coordinator.memory().await?;
    coordinator.stop()?;

    let of_agents = |memory: Memory| {
        json!({
            "own": memory.own,
            "resident": memory.resident,
            "own_per_agent": (memory.own - empty.own) / count(size.agents),
            "resident_per_agent": (memory.resident - empty.resident) / count(size.agents),
        })
    };
    let p99 = [&moves, &publishes, &joining]
        .iter()
        .filter_map(|kind| kind["ms"]["p99"].as_f64())
        .fold(0.0, f64::max);
    let slowest = [&cut, &restart]
        .iter()
        .filter_map(|way| way["seconds"].as_f64())
        .fold(0.0, f64::max);
    let most = connected.own.max(reconnected.own);
    let kib = (most - empty.own) / count(size.agents);
    Ok(json!({
        "setup": setup.name(),
        "joins": joins,
        "first_connect": first,
        "at_rest": { "coordinator_cpu_us_per_agent_and_second": rest },
        "changes_to_viewers": { "moves": moves, "publishes": publishes, "joins": joining },
        "reconnect": { "all_cut": cut, "coordinator_killed": restart },
        "memory": {
            "unit": "KiB",
            "empty": { "own": empty.own, "resident": empty.resident },
            "joined": of_agents(joined),
            "connected": of_agents(connected),
            "after_restart": of_agents(reconnected),
        },
        "aims": {
            "change_p99_ms": { "aim": millis(AIM_CHANGE), "is": p99, "met": p99 < millis(AIM_CHANGE) },
            "reconnect_seconds": {
                "aim": AIM_RECONNECT.as_secs_f64(),
                "is": slowest,
                "met": slowest < AIM_RECONNECT.as_secs_f64(),
            },
            "kib_per_agent": { "aim": AIM_KIB_PER_AGENT, "is": kib, "met": kib < AIM_KIB_PER_AGENT },
        },
    }))
}

/// Lets all machines join, before anybody watches.
async fn join_all(
    coordinator: &Coordinator,
    token: &JoinToken,
    agents: usize,
) -> anyhow::Result<(Vec<RawNode>, Value)> {
    let applicants: Vec<Applicant> = (0..agents)
        .map(|n| Applicant::new(&format!("agent-{n}")))
        .collect::<anyhow::Result<_>>()?;
    let cpu = coordinator.cpu_seconds()?;
    let begun = Instant::now();
    let nodes: Vec<RawNode> = stream::iter(applicants)
        .map(|applicant| applicant.join(token))
        .buffer_unordered(JOINING)
        .try_collect()
        .await?;
    let elapsed = begun.elapsed().as_secs_f64();
    let joins = json!({
        "at_once": JOINING,
        "seconds": elapsed,
        "joins_per_second": count(agents) / elapsed,
        "coordinator_cpu_ms_each": (coordinator.cpu_seconds()? - cpu) * 1000.0 / count(agents),
    });
    println!("  joined: {joins}");
    Ok((nodes, joins))
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A new endpoint: memory only.
    Moves,
    /// A new service: stored.
    Publishes,
}

/// Changes one after the other; each counts until its last viewer has it.
async fn changes(
    coordinator: &Coordinator,
    setup: &Setup,
    fleet: &mut Fleet,
    size: Size,
    kind: Kind,
) -> anyhow::Result<Value> {
    let (before, cpu) = (fleet.counts(), coordinator.cpu_seconds()?);
    let asked = setup.asked()?;
    let mut latencies = Vec::with_capacity(size.changes * size.agents);
    for change in 0..size.changes {
        // Another agent each time: reports of one node are taken over five times a second.
        let n = change * 7 % fleet.len();
        latencies.extend(match kind {
            Kind::Moves => fleet.moves(n).await?,
            Kind::Publishes => fleet.publishes(n).await?,
        });
    }
    let after = fleet.counts();
    let asked = Asked::per_change(asked, setup.asked()?, size.changes);
    let (made, viewers) = (count(size.changes), count(size.agents - 1));
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    let per_viewer = |after: u64, before: u64| (after - before) as f64 / made / viewers;
    #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
    let sent = (after.sent - before.sent) as f64 / made;
    let cpu = coordinator.cpu_seconds()? - cpu;
    let figures = json!({
        "count": size.changes,
        "viewers": size.agents - 1,
        "ms": figures(&mut latencies),
        "messages_sent_by_agents_per_change": sent,
        "messages_per_viewer": per_viewer(after.parts, before.parts),
        "bytes_per_viewer": per_viewer(after.payload, before.payload),
        "coordinator_cpu_us_per_viewer": cpu * 1e6 / made / viewers,
        "servers_asked_per_change": asked,
    });
    println!("  {kind:?}: {figures}");
    Ok(figures)
}

/// Further machines join one by one, while all agents watch: from the first call of the join.
async fn joins_with_viewers(
    token: &JoinToken,
    fleet: &mut Fleet,
    number: usize,
) -> anyhow::Result<Value> {
    let mut latencies = Vec::new();
    for n in 0..number {
        let applicant = Applicant::new(&format!("later-{n}"))?;
        let probe = fleet.begin(applicant.wg_public().to_vec());
        applicant.join(token).await?;
        latencies.extend(fleet.everybody(&probe, fleet.len()).await?);
    }
    let figures = json!({
        "count": number,
        "viewers": fleet.len(),
        "ms": figures(&mut latencies),
    });
    println!("  joins: {figures}");
    Ok(figures)
}

/// All connections end at once; until everybody has a stream again that told all.
async fn reconnect(
    coordinator: &mut Coordinator,
    fleet: &Fleet,
    size: Size,
    killed: bool,
) -> anyhow::Result<Value> {
    let before = fleet.counts();
    let begun = Instant::now();
    let (cpu, ready) = if killed {
        fleet.expect_new_streams();
        let ready = coordinator.crash_and_restart()?;
        (0.0, ready.as_secs_f64())
    } else {
        fleet.cut();
        (coordinator.cpu_seconds()?, 0.0)
    };
    fleet.wait_whole(LIMIT).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let settled = fleet.wait_quiet(QUIET, size.changes, LIMIT).await? - begun;
    let after = fleet.counts();
    let figures = json!({
        "seconds": seconds,
        "of_which_start": ready,
        "reports_spread_seconds": settled.as_secs_f64(),
        "coordinator_cpu_seconds": coordinator.cpu_seconds()? - cpu,
        "messages": after.parts - before.parts,
        "payload_bytes": after.payload - before.payload,
    });
    println!("  reconnected: {figures}");
    Ok(figures)
}

fn figures(values: &mut [Duration]) -> Value {
    values.sort_unstable();
    let at = |percent: usize| {
        let last = values.len().saturating_sub(1);
        let value = values.get(last * percent / 100).copied();
        millis(value.unwrap_or_default())
    };
    json!({ "min": at(0), "p50": at(50), "p99": at(99), "max": at(100) })
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn count(n: usize) -> f64 {
    n as f64
}
