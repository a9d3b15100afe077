//! What the netmap engine and the encoding of what it tells cost with ten thousand nodes in one
//! network.
//!
//! `cargo bench -p coordinator --bench netmap -- [--quick]`; the report is
//! `target/bench/netmap.json`. Times are processor time of the one thread, from the change to the
//! bytes of each viewer's message as the control stream sends them, without gRPC's 5-byte prefix
//! and TLS.
#![allow(clippy::print_stdout, reason = "a benchmark's answer")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coordinator::grpc_message::{ProtoEncoder, Response};
use mesh_netmap::{
    Admission, Engine, NetworkRow, NodeRow, Opened, Output, SessionId, Settings, Snapshot,
};
use mesh_testkit::heap;
use mesh_types::{
    Cursor, DiscoPublicKey, Endpoint, NetworkId, NodeId, RelayId, Role, Service, ServiceKind,
    UptimeClass, WgPublicKey,
};
use nix::time::{ClockId, clock_gettime};
use prost::Message as _;
use serde_json::{Value, json};

/// Nodes besides the one that everybody sees.
const NODES: u32 = 10_000;
const NETWORK: NetworkId = NetworkId::from_bytes([1; 16]);
const RELAY: RelayId = RelayId::from_bytes([2; 16]);

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

/// Bytes in use.
fn live() -> usize {
    usize::try_from(heap::of_this_thread().bytes).expect("nothing is freed here alone")
}

/// Processor time of this thread since it began.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock");
    time.into()
}

fn node(n: u32, role: Role, owner: String) -> NodeRow {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    let [a, b, c] = [(n >> 16), (n >> 8), n].map(|part| u8::try_from(part & 255).expect("a byte"));
    let service = |name: &str, kind, port| Service {
        name: name.parse().expect("a label"),
        kind,
        port,
    };
    NodeRow {
        id: NodeId::from_parts(u64::from(n), [7; 10]),
        network: NETWORK,
        name: format!("worker-node-{n}").parse().expect("a label"),
        role,
        owner,
        addrs: mesh_types::OverlayAddrs {
            v4: [100, 64 + a, b, c].into(),
            v6: [
                0xfd7a,
                0x115c,
                0xa1e0,
                0,
                0,
                0,
                u16::from(a),
                u16::from_be_bytes([b, c]),
            ]
            .into(),
        },
        wg_key: WgPublicKey::from_bytes(key),
        disco_key: DiscoPublicKey::from_bytes(key),
        services: vec![
            service("console", ServiceKind::Console, 9090),
            service("ssh", ServiceKind::Ssh, 22),
        ],
        routes: Vec::new(),
        ssh_host_keys: vec![format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{:040}", n)],
        ssh_user: "admin".into(),
        uptime: UptimeClass::AlwaysOn,
        changed_version: u64::from(n),
        last_seen: None,
        seen_ago: None,
    }
}

/// An engine with its nodes, all of them reported and connected, and nothing left to tell.
struct World {
    engine: Engine,
    nodes: Vec<NodeId>,
    memory: Memory,
    /// Where the last update left its reader.
    cursor: Cursor,
    /// What messages are encoded into, as a stream does: kept from one to the next.
    wire: Vec<u8>,
}

/// Live heap bytes per node after each step.
struct Memory {
    rows: usize,
    encoded: usize,
    sessions: usize,
}

/// What one drain gave out.
#[derive(Default)]
struct Told {
    updates: usize,
    bytes: usize,
    largest: usize,
    filters: usize,
}

impl World {
    /// Ten thousand workers and one deployer; `owner` says whose each worker is.
    fn new(owner: impl Fn(u32) -> String) -> Self {
        let count = usize::try_from(NODES).expect("fits") + 1;
        let network = NetworkRow {
            id: NETWORK,
            name: "default".parse().expect("a label"),
            version: u64::from(NODES) + 1,
            trimmed: 0,
            ssh_ca: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI".into(),
        };
        let mut rows: Vec<NodeRow> = (1..=NODES)
            .map(|n| node(n, Role::Worker, owner(n)))
            .collect();
        rows.push(node(NODES + 1, Role::Deployer, "ops".into()));
        let nodes: Vec<NodeId> = rows.iter().map(|row| row.id).collect();
        let settings = Settings {
            admission: Admission {
                burst: u32::MAX,
                per_second: 1_000_000,
            },
            ..Settings::new(1, [1; 32])
        };
        let snapshot = Snapshot {
            networks: vec![network],
            nodes: rows,
            ..Snapshot::default()
        };
        let before = live();
        let mut engine = Engine::new(settings, Box::new(ProtoEncoder)).expect("usable ranges");
        engine.load(snapshot, Instant::now()).expect("consistent");
        for (n, id) in (0..).zip(&nodes) {
            engine.report(*id, reach(n), Some(RELAY)).expect("known");
        }
        assert!(engine.poll_ready().is_none());
        let rows = (live() - before) / count;
        let memory = Memory {
            rows,
            encoded: 0,
            sessions: 0,
        };
        let mut world = Self {
            engine,
            nodes,
            memory,
            cursor: Cursor::default(),
            wire: Vec::with_capacity(1 << 20),
        };
        // The deployer sees everybody: its map encodes every peer.
        world.open(world.nodes.len() - 1, None);
        world.drain();
        world.memory.encoded = (live() - before) / count;
        for n in 0..world.nodes.len() - 1 {
            world.open(n, Some(world.cursor));
        }
        world.drain();
        world.memory.sessions = (live() - before) / count;
        world
    }

    fn open(&mut self, n: usize, cursor: Option<Cursor>) {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let session = SessionId(NEXT.fetch_add(1, Ordering::Relaxed) as u64);
        let opened = self
            .engine
            .session_open(session, self.nodes[n], cursor, Instant::now());
        assert_eq!(opened, Ok(Opened::Admitted));
    }

    /// Delivers everything to everybody.
    fn drain(&mut self) -> Told {
        let mut told = Told::default();
        while let Some(session) = self.engine.poll_ready() {
            while let Some(output) = self.engine.poll_session(session) {
                let Output::Netmap(update) = output else {
                    continue;
                };
                self.cursor = update.cursor;
                told.filters += usize::from(update.filter.is_some());
                self.wire.clear();
                Response::netmap(update)
                    .encode(&mut self.wire)
                    .expect("a vector grows");
                let bytes = self.wire.len();
                told.updates += 1;
                told.bytes += bytes;
                told.largest = told.largest.max(bytes);
            }
        }
        told
    }
}

/// Another set of endpoints for each `n`.
fn reach(n: u32) -> Vec<Endpoint> {
    let [_, a, b, c] = n.to_be_bytes();
    vec![
        ([192, 168, a, b], 51820).into(),
        ([203, 0, b, c], 40_000).into(),
    ]
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The median processor time of some rounds, and what the last one told.
fn median(rounds: u32, mut round: impl FnMut(u32) -> Told) -> (Duration, Told) {
    let mut times = Vec::new();
    let mut last = Told::default();
    for n in 0..rounds {
        let start = processor_time();
        last = round(n);
        times.push(processor_time() - start);
    }
    times.sort_unstable();
    (times[times.len() / 2], last)
}

/// One node changes its endpoints, and 10, 100 or 10 000 others are told.
fn one_change(rounds: u32) -> (Value, Value) {
    // Node 1 is one of 10 of its owner, node 11 one of 100, and the deployer sees all of them.
    let mut world = World::new(|n| match n {
        1..=10 => "ten".into(),
        11..=110 => "hundred".into(),
        n => format!("team-{}", n / 20),
    });
    let all = world.nodes.len() - 1;
    let mut figures = Vec::new();
    for (who, viewers) in [(0, 10), (10, 100), (all, 10_000)] {
        assert_eq!(world.engine.peers(world.nodes[who]).count(), viewers);
        let id = world.nodes[who];
        let (time, told) = median(rounds, |round| {
            let endpoints = reach(1_000_000 + round);
            world
                .engine
                .report(id, endpoints, Some(RELAY))
                .expect("known");
            world.drain()
        });
        assert_eq!(told.updates, viewers);
        let per_viewer = micros(time) / viewers as f64;
        println!(
            "one endpoint change to {viewers:>6} viewers: {:>9.1} µs, {:>7} bytes ({:.3} µs, {} bytes each)",
            micros(time),
            told.bytes,
            per_viewer,
            told.bytes / viewers
        );
        figures.push(json!({
            "viewers": viewers,
            "micros": micros(time),
            "micros_per_viewer": per_viewer,
            "bytes": told.bytes,
            "bytes_per_viewer": told.bytes / viewers,
        }));
    }
    // Everybody is away for a moment, and comes back with what they know.
    let (storm, told) = median(3, |_| {
        let cursor = world.cursor;
        for n in 0..world.nodes.len() {
            world.open(n, Some(cursor));
        }
        world.drain()
    });
    println!(
        "10 001 sessions resumed:              {:>9.1} ms, {} bytes",
        micros(storm) / 1e3,
        told.bytes
    );
    let resume = json!({ "sessions": world.nodes.len(), "millis": micros(storm) / 1e3, "bytes": told.bytes });
    (Value::Array(figures), resume)
}

/// Ten thousand nodes of one owner: everybody sees everybody.
fn full_map(rounds: u32) -> (Value, Value, Value) {
    let mut world = World::new(|_| "one".into());
    let memory = json!({
        "bytes_per_node": world.memory.rows,
        "bytes_per_node_encoded": world.memory.encoded,
        "bytes_per_node_connected": world.memory.sessions,
    });
    println!(
        "memory per node:                      {} bytes, {} with its encoding, {} with its session",
        world.memory.rows, world.memory.encoded, world.memory.sessions
    );
    let (time, told) = median(rounds, |_| {
        world.open(0, None);
        world.drain()
    });
    println!(
        "full map of {NODES} peers:              {:>9.1} µs, {} bytes in {} parts (largest {})",
        micros(time),
        told.bytes,
        told.updates,
        told.largest
    );
    assert!(told.largest <= 512 * 1024);
    let full = json!({
        "peers": NODES,
        "micros": micros(time),
        "bytes": told.bytes,
        "parts": told.updates,
        "largest_part_bytes": told.largest,
    });
    let mut next = NODES + 2;
    let (time, told) = median(rounds, |_| {
        let mut row = node(next, Role::Worker, "one".into());
        row.changed_version = u64::from(next);
        next += 1;
        world.engine.node_added(row).expect("new");
        world.drain()
    });
    println!(
        "one join among {NODES} of one owner:    {:>9.1} µs, {} bytes to {} sessions",
        micros(time),
        told.bytes,
        told.updates
    );
    let join = json!({ "micros": micros(time), "bytes": told.bytes, "sessions": told.updates, "filters_told": told.filters });
    (full, memory, join)
}

fn report_path() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target =
        target.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    target.join("bench/netmap.json")
}

fn main() {
    // `cargo test --benches` runs this too, where nobody wants figures.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let quick = std::env::args().any(|arg| arg == "--quick");
    let rounds = if quick { 20 } else { 200 };
    let (changes, resume) = one_change(rounds);
    let (full, memory, join) = full_map(rounds.min(50));
    let per_viewer = |n: usize| changes[n]["micros_per_viewer"].as_f64().unwrap_or(f64::NAN);
    let report = json!({
        "schema": "mesh.bench/1",
        "bench": "netmap",
        "quick": quick,
        "nodes": NODES + 1,
        "one_endpoint_change": changes,
        "ratio_per_viewer_10000_to_100": per_viewer(2) / per_viewer(1),
        "resume_storm": resume,
        "full_map": full,
        "join": join,
        "memory": memory,
    });
    let path = report_path();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).expect("the report's directory");
    }
    std::fs::write(&path, format!("{report:#}\n")).expect("the report");
    println!("report: {}", path.display());
}
