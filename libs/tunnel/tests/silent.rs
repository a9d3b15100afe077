//! Ten thousand peers of which nobody answers: what the node asks of the network, of its memory and
//! of its time (docs/limits.md).

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "figures are printed for docs/limits.md, and time starts somewhere"
)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_tunnel::{
    Batch, Device, DeviceConfig, Event, MOST_AT_ONCE, MOST_PER_SECOND, MOST_WAITING, Out, Source,
    disco_public_key, wg_public_key,
};
use mesh_types::key::SecretKey;
use mesh_types::{
    Cursor, Netmap, NetworkId, NodeId, NodeState, OverlayAddrs, PacketFilter, Peer, RelayId, Role,
    SelfNode,
};

/// An initiation is the only datagram that is this long here.
const INITIATION: usize = 148;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn id(n: u16) -> NodeId {
    NodeId::from_parts(u64::from(n), [0; 10])
}

fn key(n: u16) -> SecretKey {
    let mut bytes = [7; 32];
    bytes[1..3].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(bytes)
}

fn overlay(n: u16) -> OverlayAddrs {
    let [high, low] = n.to_be_bytes();
    OverlayAddrs {
        v4: Ipv4Addr::new(100, 64, high, low),
        v6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, n),
    }
}

fn underlay(n: u16) -> SocketAddr {
    let [high, low] = n.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 51820))
}

fn peer(n: u16) -> Peer {
    Peer {
        id: id(n),
        name: "peer".parse().expect("a name"),
        role: Role::Worker,
        addrs: overlay(n),
        routes: Vec::new(),
        wg_key: wg_public_key(&key(n)),
        disco_key: disco_public_key(&key(n)),
        services: Vec::new(),
        ssh_host_keys: Vec::new(),
        ssh_user: String::new(),
        endpoints: vec![underlay(n)],
        home_relay: None,
        state: NodeState::Online,
    }
}

fn netmap(own: u16, peers: impl Iterator<Item = u16>) -> Netmap {
    Netmap {
        cursor: Cursor::default(),
        node: SelfNode {
            id: id(own),
            network: NetworkId::from_bytes([1; 16]),
            network_name: "default".parse().expect("a name"),
            name: "self".parse().expect("a name"),
            role: Role::Worker,
            addrs: overlay(own),
            console_prefix: "/self/".into(),
            ssh_ca: String::new(),
        },
        peers: peers.map(|n| (id(n), peer(n))).collect(),
        filter: PacketFilter::default(),
        relays: Vec::new(),
    }
}

fn device(n: u16, netmap: &Netmap, now: Instant) -> Device {
    let config = DeviceConfig {
        wg_key: key(n),
        disco_key: key(n),
        mtu: 1280,
        seed: [1; 32],
    };
    let mut device = Device::new(config, now);
    device.apply_netmap(netmap, now);
    device
}

/// The node whose peers are silent, and one of them that can be there after all.
struct World {
    now: Instant,
    netmap: Netmap,
    device: Device,
    out: Out,
    live: Option<(u16, Device)>,
    /// When initiations were sent, and to whom.
    asked: Vec<(Instant, SocketAddr)>,
    /// How many initiations were given to a relay.
    asked_by_relay: usize,
    /// Since when there is a session with the live peer.
    met: Option<Instant>,
    most_sessions: usize,
    /// Times that the device wanted to be called.
    calls: u64,
}

impl World {
    fn new(peers: u16) -> Self {
        let now = Instant::now();
        let netmap = netmap(0, 1..=peers);
        Self {
            now,
            device: device(0, &netmap, now),
            netmap,
            out: Out::new(),
            live: None,
            asked: Vec::new(),
            asked_by_relay: 0,
            met: None,
            most_sessions: 0,
            calls: 0,
        }
    }

    /// This peer is there from now on.
    fn wake_peer(&mut self, n: u16) {
        let device = device(n, &netmap(n, 0..=0), self.now);
        self.live = Some((n, device));
        self.met = None;
    }

    /// One packet to each of these peers.
    fn send(&mut self, peers: impl Iterator<Item = u16>) {
        let mut batch = Batch::new();
        for n in peers {
            let mut packet = vec![0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0];
            packet.extend(overlay(0).v4.octets());
            packet.extend(overlay(n).v4.octets());
            packet.extend([0x0f, 0xa0, 0x23, 0x82, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
            batch.push(&packet);
            if batch.len() == 64 {
                self.device.seal(&mut batch, &mut self.out, self.now);
                self.deliver();
            }
        }
        self.device.seal(&mut batch, &mut self.out, self.now);
        self.deliver();
    }

    /// Counts what was sent; what is for the live peer arrives there, and its answers here.
    fn deliver(&mut self) {
        loop {
            let mut answers = Out::new();
            for transmit in self.out.transmits() {
                for datagram in transmit.datagrams() {
                    if datagram.len() == INITIATION && datagram[0] == 1 {
                        self.asked.push((self.now, transmit.to));
                    }
                    if let Some((n, live)) = &mut self.live
                        && transmit.to == underlay(*n)
                    {
                        let source = Source::Direct(underlay(0));
                        live.open(source, datagram, datagram.len(), &mut answers, self.now);
                    }
                }
            }
            let relayed = self.out.relayed();
            self.asked_by_relay += relayed
                .filter(|frame| frame.payload().len() == INITIATION)
                .count();
            self.out.clear();
            while let Some(event) = self.device.poll_event() {
                if matches!(event, Event::HandshakeDone { .. }) {
                    self.met = Some(self.now);
                }
            }
            self.most_sessions = self.most_sessions.max(self.device.sessions());
            if answers.is_empty() {
                break;
            }
            let from = Source::Direct(underlay(self.live.as_ref().map_or(0, |(n, _)| *n)));
            for transmit in answers.transmits() {
                for datagram in transmit.datagrams() {
                    self.device
                        .open(from, datagram, datagram.len(), &mut self.out, self.now);
                }
            }
        }
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.device.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.calls += 1;
            self.device.handle_timeout(&mut self.out, self.now);
            self.deliver();
        }
        self.now = until;
    }

    /// The most initiations in any second, which is at most what is promised.
    fn assert_bounded(&self) -> usize {
        let mut most = 0;
        let mut first = 0;
        for (last, (at, _)) in self.asked.iter().enumerate() {
            while self.asked[first].0 + secs(1) <= *at {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        assert!(most <= (MOST_AT_ONCE + MOST_PER_SECOND) as usize, "{most}");
        most
    }

    fn asked_times(&self) -> BTreeMap<SocketAddr, u32> {
        let mut times = BTreeMap::new();
        for (_, to) in &self.asked {
            *times.entry(*to).or_default() += 1;
        }
        times
    }
}

#[test]
fn silent_peers_are_greeted_twice_and_then_left_alone_at_no_cost() {
    let mut world = World::new(10_000);
    let everybody: Vec<NodeId> = (1..=10_000).map(id).collect();
    world.device.greet(&everybody, world.now);
    world.run_for(secs(50));
    assert_eq!(world.asked_times().len(), 10_000, "all once");
    world.run_for(secs(60));
    assert!(world.asked_times().values().all(|times| *times == 2));
    let most = world.assert_bounded();
    println!(
        "greeting 10 000: {most} initiations in a second, {} sessions at a time, {} calls",
        world.most_sessions, world.calls,
    );
    // 64 at once and 200 a second, each of which is waited for for 5 s.
    assert!(most <= 264 && world.most_sessions <= 64 + 5 * 200 + 2);
    assert!(world.calls <= 4 * 10_000, "{}", world.calls);
    assert_eq!(world.device.sessions(), 0);
    assert_eq!(world.device.poll_timeout(), None, "nothing is left to do");

    // News of one of them.
    world.asked.clear();
    let facts = world.netmap.peers.get_mut(&id(77)).expect("a peer");
    facts.endpoints = vec![underlay(20_077)];
    world.device.apply_netmap(&world.netmap, world.now);
    world.run_for(secs(60));
    let expected = BTreeMap::from([(underlay(77), 2), (underlay(20_077), 2)]);
    assert_eq!(world.asked_times(), expected);
}

#[test]
fn news_of_everybody_does_not_change_who_is_greeted_first() {
    let mut world = World::new(1000);
    let named: Vec<NodeId> = (1..=1000).rev().map(id).collect();
    world.device.greet(&named, world.now);
    world.run_for(secs(1));
    for (n, facts) in (1..).zip(world.netmap.peers.values_mut()) {
        facts.endpoints = vec![underlay(20_000 + n)];
    }
    world.device.apply_netmap(&world.netmap, world.now);
    world.asked.clear();
    world.run_for(secs(10));
    let mut first = Vec::new();
    for (_, to) in &world.asked {
        if !first.contains(to) {
            first.push(*to);
        }
    }
    first.retain(|to| *to >= underlay(20_000));
    let expected: Vec<SocketAddr> = (20_001..=21_000).rev().map(underlay).collect();
    assert_eq!(first, expected);
}

#[test]
fn peers_without_any_way_to_them_are_greeted_once_there_is_one() {
    let mut world = World::new(0);
    world.netmap = netmap(0, 1..=1000);
    for facts in world.netmap.peers.values_mut() {
        facts.endpoints.clear();
    }
    world.device.apply_netmap(&world.netmap, world.now);
    let everybody: Vec<NodeId> = (1..=1000).map(id).collect();
    world.device.greet(&everybody, world.now);
    world.run_for(secs(20));
    assert_eq!(world.most_sessions, 0);
    assert_eq!(world.device.poll_timeout(), None, "nothing is left to do");

    let relay = RelayId::from_bytes([9; 16]);
    world.device.set_home_relay(Some(relay), world.now);
    world.device.handle_relay_up(relay, world.now);
    world.run_for(secs(20));
    assert_eq!(world.asked_by_relay, 2 * 1000);
}

#[test]
fn what_waits_for_a_silent_peer_is_bounded_and_sent_when_it_answers() {
    let mut world = World::new(2);
    let waiting = |world: &World, n| world.device.peer_stats(id(n)).map(|stats| stats.waiting);
    world.send(std::iter::repeat_n(1, 3));
    assert_eq!(waiting(&world, 1), Some(3));
    world.send(std::iter::repeat_n(1, 300));
    assert_eq!(waiting(&world, 1), Some(MOST_WAITING));
    assert_eq!(waiting(&world, 2), Some(0));
    world.wake_peer(1);
    world.run_for(secs(6));
    assert!(world.met.is_some());
    assert_eq!(waiting(&world, 1), Some(0));
}

#[test]
fn traffic_is_not_delayed_by_greetings() {
    let mut world = World::new(2000);
    let everybody: Vec<NodeId> = (1..=2000).map(id).collect();
    world.device.greet(&everybody, world.now);
    world.run_for(secs(1));
    // The last in the queue: its turn would come in 9 s.
    world.wake_peer(2000);
    world.send([2000].into_iter());
    assert_eq!(world.met, Some(world.now));
    world.run_for(secs(10));
    world.assert_bounded();
}

#[test]
fn traffic_for_silent_peers_is_bounded_and_whoever_comes_back_is_met_at_once() {
    let mut world = World::new(4002);
    for _ in 0..30 {
        world.send(1..=4000);
        world.run_for(secs(1));
    }
    let most = world.assert_bounded();
    println!("traffic for 4000: {most} initiations in a second");
    assert!(world.asked_times().len() == 4000, "each was asked");
    let times = world.asked_times();
    let (least, often) = (times.values().min(), times.values().max());
    assert!(
        least.is_some_and(|times| *times >= 3) && often.is_some_and(|times| *times <= 5),
        "in turn: {least:?} to {often:?}"
    );

    // Nobody waits for greetings either.
    world.device.greet(&[id(4001)], world.now);
    world.run_for(Duration::from_millis(10));
    assert!(world.asked_times().contains_key(&underlay(4001)));

    // Somebody that there was no traffic for yet.
    world.wake_peer(4002);
    world.send([4002].into_iter());
    world.run_for(Duration::from_millis(10));
    assert!(world.met.is_some(), "before all who were asked already");

    // One of those who are waited for, as soon as there is news of it.
    world.wake_peer(2500);
    let facts = world.netmap.peers.get_mut(&id(2500)).expect("a peer");
    facts.state = NodeState::Offline;
    world.device.apply_netmap(&world.netmap, world.now);
    let facts = world.netmap.peers.get_mut(&id(2500)).expect("a peer");
    facts.state = NodeState::Online;
    world.device.apply_netmap(&world.netmap, world.now);
    world.run_for(Duration::from_millis(10));
    assert!(world.met.is_some(), "before all who were asked already");

    // And one that speaks first, as everybody does after a restart.
    world.wake_peer(3500);
    let (n, live) = world.live.as_mut().expect("it was woken");
    let mut asks = Out::new();
    live.greet(&[id(0)], world.now);
    live.handle_timeout(&mut asks, world.now);
    let source = Source::Direct(underlay(*n));
    for transmit in asks.transmits() {
        world.device.open(
            source,
            transmit.bytes,
            transmit.stride,
            &mut world.out,
            world.now,
        );
    }
    assert!(!world.out.is_empty(), "it is answered at once");
    world.assert_bounded();
}
