//! What the core costs per packet: a pair of devices (route, flow table, encrypt; demultiplex,
//! decrypt, source check, filter) against a bare pair of boringtun tunnels, in one process and in
//! alternation, with every allocation counted.
//!
//! `cargo bench -p mesh-tunnel --bench tunnel-core -- [--quick]`; the report is
//! `target/bench/tunnel-core.json`.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench reads the clock and prints"
)]

#[allow(
    dead_code,
    unreachable_pub,
    reason = "public where it comes from, and counts more than is asked for here"
)]
#[path = "../../testkit/src/heap.rs"]
mod heap;

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use mesh_tunnel::{
    Batch, Device, DeviceConfig, Out, PathKind, Source, disco_public_key, wg_public_key,
};
use mesh_types::key::SecretKey;
use mesh_types::{
    Cursor, FilterRule, Netmap, NetworkId, NodeId, NodeState, OverlayAddrs, PacketFilter, Peer,
    PortRange, Protocol, Role, SelfNode,
};

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

const SIZES: [usize; 3] = [64, 1280, 1420];
const BATCH: usize = 64;
const FLOWS: usize = 16;
const MTU: u16 = 1440;

/// Time spent and packets moved in one direction's two halves.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    seal: Duration,
    open: Duration,
    packets: u64,
    allocations: u64,
}

impl Spent {
    /// Packets per second that were encrypted and decrypted, on one core.
    fn rate(&self) -> f64 {
        self.packets as f64 / (self.seal + self.open).as_secs_f64()
    }

    fn seal_rate(&self) -> f64 {
        self.packets as f64 / self.seal.as_secs_f64()
    }

    fn open_rate(&self) -> f64 {
        self.packets as f64 / self.open.as_secs_f64()
    }
}

trait Contender {
    /// Moves packets both ways until the time is up.
    fn run(&mut self, time: Duration) -> Spent;
}

fn packet(src: Ipv4Addr, dst: Ipv4Addr, flow: usize, size: usize) -> Vec<u8> {
    let total = u16::try_from(size).expect("short");
    let port = 40_000 + u16::try_from(flow).expect("few");
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(port.to_be_bytes());
    packet.extend(9090_u16.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    packet.resize(size, 0x5a);
    packet
}

fn packets(src: Ipv4Addr, dst: Ipv4Addr, size: usize) -> Vec<Vec<u8>> {
    (0..BATCH)
        .map(|n| packet(src, dst, n % FLOWS, size))
        .collect()
}

// ---- bare boringtun

struct Bare {
    ends: [Tunn; 2],
    packets: [Vec<Vec<u8>>; 2],
    sealed: Vec<u8>,
    lens: Vec<usize>,
    opened: Vec<u8>,
}

impl Bare {
    fn new(size: usize) -> Self {
        let secrets = [StaticSecret::from([1; 32]), StaticSecret::from([2; 32])];
        let publics = [PublicKey::from(&secrets[0]), PublicKey::from(&secrets[1])];
        let tunn = |own: usize, index| {
            let peer = publics[1 - own];
            Tunn::new(secrets[own].clone(), peer, None, None, index, None)
        };
        let mut ends = [tunn(0, 1), tunn(1, 2)];
        let mut bytes = vec![0; 2048];
        let mut answer = vec![0; 2048];
        let [a, b] = &mut ends;
        let TunnResult::WriteToNetwork(initiation) =
            a.format_handshake_initiation(&mut bytes, false)
        else {
            panic!("an initiation was expected");
        };
        let TunnResult::WriteToNetwork(response) = b.decapsulate(None, initiation, &mut answer)
        else {
            panic!("a response was expected");
        };
        let TunnResult::WriteToNetwork(keepalive) = a.decapsulate(None, response, &mut bytes)
        else {
            panic!("a keepalive was expected");
        };
        assert!(matches!(
            b.decapsulate(None, keepalive, &mut answer),
            TunnResult::Done
        ));
        let [a, b] = [Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(100, 64, 0, 2)];
        Self {
            ends,
            packets: [packets(a, b, size), packets(b, a, size)],
            sealed: vec![0; BATCH * 2048],
            lens: Vec::with_capacity(BATCH),
            opened: vec![0; BATCH * 2048],
        }
    }
}

impl Contender for Bare {
    fn run(&mut self, time: Duration) -> Spent {
        let mut scratch = [0; 2048];
        for end in &mut self.ends {
            let _timers = end.update_timers(&mut scratch);
        }
        let mut spent = Spent::default();
        let begin = Instant::now();
        let allocations = heap::of_this_thread().allocations;
        while begin.elapsed() < time {
            for from in 0..2 {
                self.lens.clear();
                let started = Instant::now();
                let mut at = 0;
                for packet in &self.packets[from] {
                    let result = self.ends[from].encapsulate(packet, &mut self.sealed[at..]);
                    let TunnResult::WriteToNetwork(datagram) = result else {
                        panic!("a datagram was expected");
                    };
                    self.lens.push(datagram.len());
                    at += datagram.len();
                }
                let sealed = Instant::now();
                let (mut at, mut to) = (0, 0);
                for &len in &self.lens {
                    let datagram = &self.sealed[at..at + len];
                    let result =
                        self.ends[1 - from].decapsulate(None, datagram, &mut self.opened[to..]);
                    let TunnResult::WriteToTunnelV4(packet, _) = result else {
                        panic!("a packet was expected");
                    };
                    to += black_box(packet).len();
                    at += len;
                }
                spent.open += sealed.elapsed();
                spent.seal += sealed - started;
                spent.packets += BATCH as u64;
            }
        }
        spent.allocations = heap::of_this_thread().allocations - allocations;
        spent
    }
}

// ---- our devices

struct Ours {
    ends: [Device; 2],
    addrs: [SocketAddr; 2],
    packets: [Vec<Vec<u8>>; 2],
    batch: Batch,
    sealed: Out,
    opened: Out,
}

const WG: [SecretKey; 2] = [
    SecretKey::from_bytes([1; 32]),
    SecretKey::from_bytes([2; 32]),
];
const DISCO: [SecretKey; 2] = [
    SecretKey::from_bytes([3; 32]),
    SecretKey::from_bytes([4; 32]),
];

fn overlay(n: usize) -> OverlayAddrs {
    let n = u8::try_from(n + 1).expect("two ends");
    OverlayAddrs {
        v4: Ipv4Addr::new(100, 64, 0, n),
        v6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(n)),
    }
}

fn node(n: usize) -> NodeId {
    NodeId::from_bytes([u8::try_from(n + 1).expect("two ends"); 16])
}

/// Besides the two ends there are a thousand idle peers, so that tables are no toys.
fn netmap(own: usize, addrs: &[SocketAddr; 2]) -> Netmap {
    let peer = 1 - own;
    let mut peers = vec![Peer {
        id: node(peer),
        name: "peer".parse().expect("a name"),
        role: Role::Worker,
        addrs: overlay(peer),
        routes: Vec::new(),
        wg_key: wg_public_key(&WG[peer]),
        disco_key: disco_public_key(&DISCO[peer]),
        services: Vec::new(),
        ssh_host_keys: Vec::new(),
        ssh_user: String::new(),
        endpoints: vec![addrs[peer]],
        home_relay: None,
        state: NodeState::Online,
    }];
    for n in 0..1000_u16 {
        let mut bytes = [0xaa; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        let mut node = [0xbb; 16];
        node[..2].copy_from_slice(&n.to_be_bytes());
        let [high, low] = n.to_be_bytes();
        peers.push(Peer {
            id: NodeId::from_bytes(node),
            addrs: OverlayAddrs {
                v4: Ipv4Addr::new(100, 70, high, low),
                v6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 1, 0, 0, 0, n),
            },
            wg_key: mesh_types::WgPublicKey::from_bytes(bytes),
            disco_key: mesh_types::DiscoPublicKey::from_bytes(bytes),
            endpoints: Vec::new(),
            ..peers[0].clone()
        });
    }
    Netmap {
        cursor: Cursor::default(),
        node: SelfNode {
            id: node(own),
            network: NetworkId::from_bytes([1; 16]),
            network_name: "default".parse().expect("a name"),
            name: "self".parse().expect("a name"),
            role: Role::Worker,
            addrs: overlay(own),
            console_prefix: "/self/".into(),
            ssh_ca: String::new(),
        },
        filter: PacketFilter {
            rules: vec![FilterRule {
                sources: peers
                    .iter()
                    .map(|peer| std::net::IpAddr::from(peer.addrs.v4).into())
                    .collect(),
                protocols: vec![Protocol::Tcp, Protocol::Udp],
                ports: vec![PortRange::ALL],
            }],
        },
        peers: peers.into_iter().map(|peer| (peer.id, peer)).collect(),
        relays: Vec::new(),
    }
}

impl Ours {
    fn new(size: usize) -> Self {
        let now = Instant::now();
        let addrs = ["192.0.2.1:51820", "192.0.2.2:51820"].map(|a| a.parse().expect("an address"));
        let end = |own: usize| {
            let mut device = Device::new(
                DeviceConfig {
                    wg_key: WG[own].clone(),
                    disco_key: DISCO[own].clone(),
                    mtu: MTU,
                    seed: [u8::try_from(own).expect("two ends"); 32],
                },
                now,
            );
            device.apply_netmap(&netmap(own, &addrs), now);
            device
        };
        let mut ours = Self {
            ends: [end(0), end(1)],
            addrs,
            packets: [0, 1].map(|from| packets(overlay(from).v4, overlay(1 - from).v4, size)),
            batch: Batch::new(),
            sealed: Out::new(),
            opened: Out::new(),
        };
        ours.establish();
        ours
    }

    /// Lets the two find each other, and waits for the direct path to be proven.
    fn establish(&mut self) {
        let limit = Instant::now() + Duration::from_secs(10);
        let peer = node(1);
        loop {
            let now = Instant::now();
            assert!(now < limit, "no session within 10 s");
            self.batch.push(&self.packets[0][0]);
            let mut out = Out::new();
            self.ends[0].seal(&mut self.batch, &mut out, now);
            self.carry(0, &out);
            self.tick();
            let stats = self.ends[0].peer_stats(peer).expect("a peer");
            if stats.last_handshake.is_some()
                && stats.rtt.is_some()
                && matches!(stats.path, PathKind::Direct(_))
            {
                return;
            }
        }
    }

    fn tick(&mut self) {
        for end in 0..2 {
            let mut out = Out::new();
            self.ends[end].handle_timeout(&mut out, Instant::now());
            self.carry(end, &out);
            while self.ends[end].poll_event().is_some() {}
        }
    }

    /// Carries datagrams back and forth until there are none.
    fn carry(&mut self, from: usize, out: &Out) {
        let now = Instant::now();
        for transmit in out.transmits() {
            let mut answers = Out::new();
            let source = Source::Direct(self.addrs[from]);
            self.ends[1 - from].open(source, transmit.bytes, transmit.stride, &mut answers, now);
            self.carry(1 - from, &answers);
        }
    }
}

impl Contender for Ours {
    fn run(&mut self, time: Duration) -> Spent {
        self.tick();
        let mut spent = Spent::default();
        let begin = Instant::now();
        let allocations = heap::of_this_thread().allocations;
        while begin.elapsed() < time {
            for from in 0..2 {
                for packet in &self.packets[from] {
                    self.batch.push(packet);
                }
                self.sealed.clear();
                self.opened.clear();
                let started = Instant::now();
                self.ends[from].seal(&mut self.batch, &mut self.sealed, started);
                let sealed = Instant::now();
                let source = Source::Direct(self.addrs[from]);
                for transmit in self.sealed.transmits() {
                    self.ends[1 - from].open(
                        source,
                        transmit.bytes,
                        transmit.stride,
                        &mut self.opened,
                        sealed,
                    );
                }
                spent.open += sealed.elapsed();
                spent.seal += sealed - started;
                let arrived = black_box(&self.opened).packets().count();
                assert_eq!(arrived, BATCH, "every packet arrives");
                spent.packets += BATCH as u64;
            }
        }
        spent.allocations = heap::of_this_thread().allocations - allocations;
        spent
    }
}

// ---- measuring

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(size: usize, rounds: usize, time: Duration) -> serde_json::Value {
    let mut bare = Bare::new(size);
    let mut ours = Ours::new(size);
    for _ in 0..10 {
        bare.run(time);
        ours.run(time);
    }
    let mut runs: [Vec<Spent>; 2] = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        // Who goes first alternates as well.
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let contender: &mut dyn Contender = if which == 0 { &mut bare } else { &mut ours };
            runs[which].push(contender.run(time));
        }
    }
    let of = |which: usize, what: fn(&Spent) -> f64| median(runs[which].iter().map(what).collect());
    let ratios: Vec<f64> = (0..rounds)
        .map(|round| runs[1][round].rate() / runs[0][round].rate())
        .collect();
    let total =
        |which: usize, what: fn(&Spent) -> u64| -> u64 { runs[which].iter().map(what).sum() };
    let per_packet = |which: usize| {
        total(which, |spent| spent.allocations) as f64 / total(which, |spent| spent.packets) as f64
    };
    let side = |which: usize| {
        serde_json::json!({
            "packets_per_second": of(which, Spent::rate),
            "gbit_per_second": of(which, Spent::rate) * size as f64 * 8.0 / 1e9,
            "seal_packets_per_second": of(which, Spent::seal_rate),
            "open_packets_per_second": of(which, Spent::open_rate),
            "packets": total(which, |spent| spent.packets),
            "allocations": total(which, |spent| spent.allocations),
            "allocations_per_packet": per_packet(which),
            "rounds_packets_per_second": runs[which].iter().map(Spent::rate).collect::<Vec<_>>(),
        })
    };
    let seal = of(1, Spent::seal_rate) / of(0, Spent::seal_rate);
    let open = of(1, Spent::open_rate) / of(0, Spent::open_rate);
    println!(
        "{size:>5} B  ours {:>10.0} pkt/s  bare {:>10.0} pkt/s  ratio {:.3} (seal {seal:.3}, open \
         {open:.3})  allocations per packet {}",
        of(1, Spent::rate),
        of(0, Spent::rate),
        median(ratios.clone()),
        per_packet(1),
    );
    serde_json::json!({
        "size": size,
        "mesh_tunnel": side(1),
        "boringtun": side(0),
        "ratio": median(ratios.clone()),
        "ratio_seal": seal,
        "ratio_open": open,
        "ratios_by_round": ratios,
    })
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    // Many short turns: whatever else the machine does hits both, and the median drops it.
    let time = Duration::from_millis(20);
    let rounds = if quick { 251 } else { 2001 };
    let sizes: Vec<_> = SIZES
        .into_iter()
        .map(|size| measure(size, rounds, time))
        .collect();
    let report = serde_json::json!({
        "bench": "tunnel-core",
        "quick": quick,
        "aim": "mesh_tunnel at least 0.85 of bare boringtun, 0 allocations per packet",
        "unit": "packets encrypted and decrypted per second on one core, both ends included",
        "batch": BATCH,
        "flows": FLOWS,
        "idle_peers": 1000,
        "sizes": sizes,
    });
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    std::fs::create_dir_all(&path).expect("target/bench can be made");
    let path = path.join("tunnel-core.json");
    let text = serde_json::to_string_pretty(&report).expect("plain values");
    std::fs::write(&path, text + "\n").expect("the report can be written");
    println!("report: target/bench/tunnel-core.json");
}
