//! Two devices, a network between them with knobs, and a relay; time is simulated.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_tunnel::{
    Batch, Device, DeviceConfig, Event, Out, PathKind, Source, disco_public_key, wg_public_key,
};
use mesh_types::key::SecretKey;
use mesh_types::{
    Cursor, FilterRule, Netmap, NetworkId, NodeId, NodeState, OverlayAddrs, PacketFilter, Peer,
    PortRange, Protocol, RelayId, Role, SelfNode,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub(crate) const RELAY: RelayId = RelayId::from_bytes([0xee; 16]);
pub(crate) const PORT: u16 = 9090;

/// What happens to a datagram between the two underlay addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Knobs {
    pub(crate) latency: Duration,
    /// Up to this much more, at random: datagrams overtake each other.
    pub(crate) jitter: Duration,
    /// Of a thousand datagrams this many vanish.
    pub(crate) loss: u32,
    /// Of a thousand datagrams this many arrive twice.
    pub(crate) duplicates: u32,
    /// Longer datagrams vanish.
    pub(crate) mtu: usize,
    /// Nothing arrives.
    pub(crate) blocked: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(5),
            jitter: Duration::ZERO,
            loss: 0,
            duplicates: 0,
            mtu: 1500,
            blocked: false,
        }
    }
}

pub(crate) struct Side {
    pub(crate) device: Device,
    pub(crate) addr: SocketAddr,
    pub(crate) id: NodeId,
    pub(crate) overlay: OverlayAddrs,
    pub(crate) wg: SecretKey,
    pub(crate) disco: SecretKey,
    /// The netmap does not say where it is.
    pub(crate) hidden: bool,
    pub(crate) events: Vec<Event>,
    /// Sequence numbers of the packets that arrived, with how often.
    pub(crate) arrived: BTreeMap<u64, u32>,
    pub(crate) raw: Vec<Vec<u8>>,
    pub(crate) sent_datagrams: u64,
}

impl Side {
    fn new(n: u8, seed: u64, now: Instant) -> Self {
        let wg = SecretKey::from_bytes([n; 32]);
        let disco = SecretKey::from_bytes([n + 100; 32]);
        Self {
            device: device(&wg, &disco, seed, now),
            addr: format!("192.0.2.{n}:51820").parse().expect("an address"),
            id: NodeId::from_bytes([n; 16]),
            overlay: OverlayAddrs {
                v4: Ipv4Addr::new(100, 64, 0, n),
                v6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(n)),
            },
            wg,
            disco,
            hidden: false,
            events: Vec::new(),
            arrived: BTreeMap::new(),
            raw: Vec::new(),
            sent_datagrams: 0,
        }
    }

    fn as_peer(&self) -> Peer {
        Peer {
            id: self.id,
            name: "peer".parse().expect("a name"),
            role: Role::Worker,
            addrs: self.overlay,
            routes: Vec::new(),
            wg_key: wg_public_key(&self.wg),
            disco_key: disco_public_key(&self.disco),
            services: Vec::new(),
            ssh_host_keys: Vec::new(),
            ssh_user: String::new(),
            endpoints: (!self.hidden).then_some(self.addr).into_iter().collect(),
            home_relay: Some(RELAY),
            state: NodeState::Online,
        }
    }

    pub(crate) fn handshakes(&self) -> usize {
        self.events
            .iter()
            .filter(|event| matches!(event, Event::HandshakeDone { .. }))
            .count()
    }
}

fn device(wg: &SecretKey, disco: &SecretKey, seed: u64, now: Instant) -> Device {
    let mut bytes = [0; 32];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    let config = DeviceConfig {
        wg_key: wg.clone(),
        disco_key: disco.clone(),
        mtu: 1280,
        seed: bytes,
    };
    Device::new(config, now)
}

pub(crate) fn allow_everything_from(source: &str) -> PacketFilter {
    PacketFilter {
        rules: vec![FilterRule {
            sources: vec![source.parse().expect("a prefix")],
            protocols: vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp],
            ports: vec![PortRange::ALL],
        }],
    }
}

enum Travelling {
    Udp {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    Relayed {
        from: usize,
        to: usize,
        bytes: Vec<u8>,
    },
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) sides: [Side; 2],
    /// From A to B, and from B to A.
    pub(crate) udp: [Knobs; 2],
    pub(crate) relay_up: bool,
    pub(crate) filter: PacketFilter,
    /// Every datagram is changed at these places (modulo its length) by these bits.
    pub(crate) change_datagrams: Vec<(u16, u8)>,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    travelling: BTreeMap<u64, Travelling>,
    next_id: u64,
    rng: StdRng,
    next_sequence: u64,
    seed: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        println!("seed {seed}");
        let now = Instant::now();
        let mut world = Self {
            now,
            sides: [Side::new(1, seed, now), Side::new(2, seed + 1, now)],
            udp: [Knobs::default(); 2],
            relay_up: false,
            filter: allow_everything_from("100.64.0.0/10"),
            change_datagrams: Vec::new(),
            queue: BinaryHeap::new(),
            travelling: BTreeMap::new(),
            next_id: 0,
            rng: StdRng::seed_from_u64(seed),
            next_sequence: 0,
            seed,
        };
        for side in 0..2 {
            world.apply_netmap(side);
            let addr = world.sides[side].addr;
            world.sides[side].device.set_local_endpoints(&[addr], now);
        }
        world
    }

    pub(crate) fn netmap(&self, side: usize) -> Netmap {
        let peer = self.sides[1 - side].as_peer();
        Netmap {
            cursor: Cursor::default(),
            node: SelfNode {
                id: self.sides[side].id,
                network: NetworkId::from_bytes([1; 16]),
                network_name: "default".parse().expect("a name"),
                name: "self".parse().expect("a name"),
                role: Role::Worker,
                addrs: self.sides[side].overlay,
                console_prefix: "/self/".into(),
                ssh_ca: String::new(),
            },
            peers: [(peer.id, peer)].into(),
            filter: self.filter.clone(),
            relays: Vec::new(),
        }
    }

    pub(crate) fn apply_netmap(&mut self, side: usize) {
        let netmap = self.netmap(side);
        self.sides[side].device.apply_netmap(&netmap, self.now);
    }

    pub(crate) fn set_relay(&mut self, up: bool) {
        self.relay_up = up;
        for side in &mut self.sides {
            if up {
                side.device.set_home_relay(Some(RELAY), self.now);
                side.device.handle_relay_up(RELAY, self.now);
            } else {
                side.device.handle_relay_down(RELAY, self.now);
            }
        }
    }

    /// The device forgets everything but its keys and its netmap.
    pub(crate) fn restart(&mut self, side: usize, start: bool) {
        self.seed += 1000;
        let Side { wg, disco, .. } = &self.sides[side];
        self.sides[side].device = device(wg, disco, self.seed, self.now);
        self.apply_netmap(side);
        let addr = self.sides[side].addr;
        self.sides[side]
            .device
            .set_local_endpoints(&[addr], self.now);
        if self.relay_up {
            self.sides[side]
                .device
                .set_home_relay(Some(RELAY), self.now);
            self.sides[side].device.handle_relay_up(RELAY, self.now);
        }
        if start {
            let peer = self.sides[1 - side].id;
            let mut out = Out::new();
            let device = &mut self.sides[side].device;
            device.greet(&[peer], self.now);
            device.handle_timeout(&mut out, self.now);
            self.dispatch(side, &out);
        }
    }

    /// Sends one UDP packet with the next sequence number; returns that number.
    pub(crate) fn send(&mut self, side: usize, payload: usize) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let packet = udp_packet(
            self.sides[side].overlay.v4,
            self.sides[1 - side].overlay.v4,
            (4000, PORT),
            sequence,
            payload,
        );
        self.send_raw(side, &packet);
        sequence
    }

    pub(crate) fn send_raw(&mut self, side: usize, packet: &[u8]) {
        let mut batch = Batch::new();
        let mut out = Out::new();
        batch.push(packet);
        self.sides[side].device.seal(&mut batch, &mut out, self.now);
        self.dispatch(side, &out);
    }

    fn dispatch(&mut self, side: usize, out: &Out) {
        let from = self.sides[side].addr;
        for transmit in out.transmits() {
            for datagram in transmit.datagrams() {
                self.sides[side].sent_datagrams += 1;
                self.launch_udp(side, from, transmit.to, datagram);
            }
        }
        for relayed in out.relayed() {
            self.sides[side].sent_datagrams += 1;
            if self.relay_up && relayed.relay == RELAY {
                let to = 1 - side;
                assert_eq!(relayed.to, wg_public_key(&self.sides[to].wg));
                let bytes = relayed.payload().to_vec();
                self.launch(
                    Duration::from_millis(20),
                    Travelling::Relayed {
                        from: side,
                        to,
                        bytes,
                    },
                );
            }
        }
        for received in out.packets() {
            let packet = received.packet.to_vec();
            if let Some(sequence) = sequence_of(&packet) {
                *self.sides[side].arrived.entry(sequence).or_default() += 1;
            }
            self.sides[side].raw.push(packet);
        }
        while let Some(event) = self.sides[side].device.poll_event() {
            self.sides[side].events.push(event);
        }
    }

    fn launch_udp(&mut self, side: usize, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let knobs = self.udp[side];
        if knobs.blocked
            || datagram.len() + 28 > knobs.mtu
            || self.rng.next_u32() % 1000 < knobs.loss
        {
            return;
        }
        let copies = 1 + usize::from(self.rng.next_u32() % 1000 < knobs.duplicates);
        for _ in 0..copies {
            let spread = u32::try_from(knobs.jitter.as_micros()).expect("short") + 1;
            let extra = Duration::from_micros(u64::from(self.rng.next_u32() % spread));
            let bytes = datagram.to_vec();
            self.launch(knobs.latency + extra, Travelling::Udp { from, to, bytes });
        }
    }

    fn launch(&mut self, after: Duration, what: Travelling) {
        self.next_id += 1;
        self.queue.push(Reverse((self.now + after, self.next_id)));
        self.travelling.insert(self.next_id, what);
    }

    fn arrive(&mut self, what: Travelling) {
        let (side, source, mut bytes) = match what {
            Travelling::Udp { from, to, bytes } => {
                let Some(side) = self.sides.iter().position(|side| side.addr == to) else {
                    return;
                };
                (side, Source::Direct(from), bytes)
            }
            Travelling::Relayed { from, to, bytes } => {
                if !self.relay_up {
                    return;
                }
                let from = wg_public_key(&self.sides[from].wg);
                (to, Source::Relay { relay: RELAY, from }, bytes)
            }
        };
        for &(at, bits) in &self.change_datagrams {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= bits;
        }
        let mut out = Out::new();
        self.sides[side]
            .device
            .open(source, &bytes, bytes.len(), &mut out, self.now);
        self.dispatch(side, &out);
    }

    /// Runs whatever is due, up to and including `until`.
    pub(crate) fn run_until(&mut self, until: Instant) {
        loop {
            let timeout = |side: usize, world: &Self| world.sides[side].device.poll_timeout();
            let arrival = self.queue.peek().map(|Reverse((at, _))| *at);
            let soonest = [arrival, timeout(0, self), timeout(1, self)]
                .into_iter()
                .flatten()
                .min();
            let Some(at) = soonest.filter(|at| *at <= until) else {
                break;
            };
            self.now = self.now.max(at);
            while let Some(Reverse((at, id))) = self.queue.peek().copied() {
                if at > self.now {
                    break;
                }
                self.queue.pop();
                if let Some(what) = self.travelling.remove(&id) {
                    self.arrive(what);
                }
            }
            for side in 0..2 {
                if timeout(side, self).is_some_and(|at| at <= self.now) {
                    let mut out = Out::new();
                    self.sides[side].device.handle_timeout(&mut out, self.now);
                    self.dispatch(side, &out);
                    let next = timeout(side, self);
                    assert!(
                        next.is_none_or(|next| next > self.now),
                        "a device that was just served is due again at once: {next:?}"
                    );
                }
            }
        }
        self.now = self.now.max(until);
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Sends from A to B every `every` for `time`; the sequence numbers that were sent.
    pub(crate) fn stream(&mut self, time: Duration, every: Duration) -> Vec<u64> {
        let end = self.now + time;
        let mut sent = Vec::new();
        while self.now < end {
            sent.push(self.send(0, 200));
            self.run_for(every);
        }
        sent
    }

    pub(crate) fn path(&self, side: usize) -> PathKind {
        let peer = self.sides[1 - side].id;
        self.sides[side]
            .device
            .peer_stats(peer)
            .expect("a peer of the netmap")
            .path
    }

    pub(crate) fn relayed_bytes(&self, side: usize) -> u64 {
        let peer = self.sides[1 - side].id;
        self.sides[side]
            .device
            .peer_stats(peer)
            .expect("a peer of the netmap")
            .tx_relay_bytes
    }

    /// Of these numbers, how many did not arrive at `side`.
    pub(crate) fn missing(&self, side: usize, sent: &[u64]) -> usize {
        sent.iter()
            .filter(|sequence| !self.sides[side].arrived.contains_key(sequence))
            .count()
    }

    pub(crate) fn assert_no_duplicates(&self) {
        for side in &self.sides {
            assert!(
                side.arrived.values().all(|&times| times == 1),
                "a packet was delivered twice"
            );
        }
    }
}

pub(crate) fn udp_packet(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    (src_port, dst_port): (u16, u16),
    sequence: u64,
    payload: usize,
) -> Vec<u8> {
    let payload = payload.max(8);
    let total = u16::try_from(28 + payload).expect("short");
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(src_port.to_be_bytes());
    packet.extend(dst_port.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(sequence.to_be_bytes());
    packet.resize(usize::from(total), 0xab);
    packet
}

fn sequence_of(packet: &[u8]) -> Option<u64> {
    let (head, rest) = packet.split_first_chunk::<28>()?;
    assert!(rest[8..].iter().all(|&byte| byte == 0xab), "changed bytes");
    (head[9] == 17).then(|| rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)))?
}
