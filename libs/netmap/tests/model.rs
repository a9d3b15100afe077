//! The engine against a naive model: whatever happens in whatever order, every session ends up
//! with exactly the netmap that looking at all pairs of nodes gives.

#![allow(
    clippy::disallowed_methods,
    reason = "a test needs one real instant to count virtual time from"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_netmap::{
    Admission, EndReason, Engine, Event, NetworkRow, NodeRow, Opened, Output, PeerEncoder,
    RelayRow, SessionId, Settings, Snapshot, Tombstone,
};
use mesh_types::route::{Route, console_prefix};
use mesh_types::{
    DiscoPublicKey, Endpoint, Netmap, NetmapUpdate, NetworkId, NodeId, NodeState, Peer, PeerPatch,
    Protocol, Relay, RelayId, Role, Service, ServiceKind, Timestamp, UptimeClass, WgPublicKey,
};
use proptest::prelude::*;

const NETWORKS: u8 = 2;
/// Room for one or two peers.
const CHUNK: usize = 1_000;
const RELAY: RelayId = RelayId::from_bytes([200; 16]);

#[derive(Debug, Clone)]
enum Op {
    Join {
        network: u8,
        role: Role,
        owner: u8,
        name: u8,
    },
    Leave(usize),
    Rename(usize, u8),
    Owner(usize, u8),
    Services(usize, u8),
    Rekey(usize),
    Report(usize, u16, bool),
    Beat(usize),
    Advance(u64),
    Authority(u8, u8),
    RelayMoves(u8),
    Open {
        node: usize,
        fresh: bool,
    },
    Close(usize),
    Read {
        node: usize,
        parts: usize,
    },
    Settle,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let role = prop_oneof![
        4 => Just(Role::Worker),
        1 => Just(Role::Gateway),
        1 => Just(Role::Deployer),
        1 => Just(Role::Client),
    ];
    let node = 0usize..8;
    prop_oneof![
        6 => (0..NETWORKS, role, 0u8..3, 0u8..3)
            .prop_map(|(network, role, owner, name)| Op::Join { network, role, owner, name }),
        3 => node.clone().prop_map(Op::Leave),
        1 => (node.clone(), 0u8..6).prop_map(|(n, name)| Op::Rename(n, name)),
        3 => (node.clone(), 0u8..3).prop_map(|(n, owner)| Op::Owner(n, owner)),
        2 => (node.clone(), 0u8..16).prop_map(|(n, set)| Op::Services(n, set)),
        1 => node.clone().prop_map(Op::Rekey),
        4 => (node.clone(), 1u16..4, any::<bool>()).prop_map(|(n, p, r)| Op::Report(n, p, r)),
        4 => node.clone().prop_map(Op::Beat),
        2 => (1u64..80).prop_map(Op::Advance),
        1 => (0..NETWORKS, 0u8..3).prop_map(|(n, ca)| Op::Authority(n, ca)),
        1 => (0u8..3).prop_map(Op::RelayMoves),
        6 => (node.clone(), prop::bool::weighted(0.2))
            .prop_map(|(node, fresh)| Op::Open { node, fresh }),
        2 => node.clone().prop_map(Op::Close),
        6 => (node, 1usize..4).prop_map(|(node, parts)| Op::Read { node, parts }),
        2 => Just(Op::Settle),
        1 => Just(Op::Restart),
    ]
}

/// Peers and patches as JSON: anything that can be read back will do.
struct Json;

#[derive(serde::Serialize, serde::Deserialize)]
struct WirePatch {
    id: NodeId,
    endpoints: Option<Vec<Endpoint>>,
    moves: bool,
    home_relay: Option<RelayId>,
    state: Option<NodeState>,
}

impl PeerEncoder for Json {
    fn peer(&self, peer: &Peer) -> Bytes {
        serde_json::to_vec(peer)
            .expect("a peer is plain data")
            .into()
    }

    fn patch(&self, patch: &PeerPatch) -> Bytes {
        let patch = patch.clone();
        let wire = WirePatch {
            id: patch.id,
            endpoints: patch.endpoints,
            moves: patch.home_relay.is_some(),
            home_relay: patch.home_relay.flatten(),
            state: patch.state,
        };
        serde_json::to_vec(&wire)
            .expect("a patch is plain data")
            .into()
    }
}

/// A node as the model knows it, and the machine behind it.
struct Machine {
    row: NodeRow,
    endpoints: Vec<Endpoint>,
    home_relay: Option<RelayId>,
    /// Whether the running engine was told endpoints and relay.
    reported: bool,
    beat: Option<Duration>,
    session: Option<SessionId>,
    /// What the machine made of the updates it read, kept across sessions.
    map: Option<Netmap>,
    partial: NetmapUpdate,
}

struct World {
    engine: Engine,
    start: Instant,
    elapsed: Duration,
    epoch: u64,
    next: u64,
    networks: BTreeMap<NetworkId, NetworkRow>,
    tombstones: Vec<Tombstone>,
    relay: RelayRow,
    machines: BTreeMap<NodeId, Machine>,
    gone: BTreeSet<SessionId>,
    /// Sessions the engine has named and that have not said that they are done.
    named: BTreeSet<SessionId>,
    routes: BTreeMap<NetworkId, (SessionId, BTreeMap<NodeId, Route>)>,
    clients: (SessionId, BTreeMap<WgPublicKey, NetworkId>, bool),
}

fn settings(epoch: u64) -> Settings {
    Settings {
        chunk_bytes: CHUNK,
        keep_tombstones: 1,
        admission: Admission {
            burst: 1_000_000,
            per_second: 1_000_000,
        },
        ..Settings::new(epoch, [7; 32])
    }
}

fn network_id(n: u8) -> NetworkId {
    NetworkId::from_bytes([n + 1; 16])
}

/// The rules once more, by hand: does `from` reach a service of this kind on `to`?
fn may_reach(from: &NodeRow, to: &NodeRow, kind: ServiceKind) -> bool {
    let is_plain = |node: &NodeRow| node.role != Role::Gateway && node.role != Role::Deployer;
    let same_owner = from.owner == to.owner && !from.owner.is_empty();
    let web = kind == ServiceKind::Console || kind == ServiceKind::Http;
    from.network == to.network
        && from.id != to.id
        && match from.role {
            Role::Deployer => true,
            Role::Gateway => web,
            _ => same_owner && is_plain(from) && is_plain(to),
        }
}

fn are_peers(a: &NodeRow, b: &NodeRow) -> bool {
    may_reach(a, b, ServiceKind::Console) || may_reach(b, a, ServiceKind::Console)
}

impl World {
    fn new() -> Self {
        let networks: BTreeMap<NetworkId, NetworkRow> = (0..NETWORKS)
            .map(|n| NetworkRow {
                id: network_id(n),
                name: if n == 0 { "default" } else { "lab" }
                    .parse()
                    .expect("a name"),
                version: 0,
                trimmed: 0,
                ssh_ca: String::new(),
            })
            .map(|row| (row.id, row))
            .collect();
        let relay = RelayRow {
            id: RELAY,
            derp: vec!["relay:0".into()],
            stun: vec![],
            last_seen: None,
            seen_ago: None,
        };
        let engine = Engine::new(settings(1), Box::new(Json)).expect("usable ranges");
        let mut world = Self {
            engine,
            start: Instant::now(),
            elapsed: Duration::ZERO,
            epoch: 1,
            next: 0,
            networks,
            tombstones: Vec::new(),
            relay,
            machines: BTreeMap::new(),
            gone: BTreeSet::new(),
            named: BTreeSet::new(),
            routes: BTreeMap::new(),
            clients: (SessionId(0), BTreeMap::new(), false),
        };
        world.load();
        world
    }

    fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A new engine process over the same database.
    fn load(&mut self) {
        self.engine = Engine::new(settings(self.epoch), Box::new(Json)).expect("usable ranges");
        let elapsed = self.elapsed;
        let nodes = self.machines.values_mut().map(|machine| {
            machine.session = None;
            machine.partial = NetmapUpdate::default();
            machine.reported = false;
            NodeRow {
                seen_ago: machine.beat.map(|at| elapsed - at),
                ..machine.row.clone()
            }
        });
        let snapshot = Snapshot {
            nodes: nodes.collect(),
            networks: self.networks.values().cloned().collect(),
            tombstones: self.tombstones.clone(),
            relays: vec![self.relay.clone()],
        };
        self.engine
            .load(snapshot, self.now())
            .expect("consistent rows");
        self.named.clear();
        self.gone.clear();
        for network in self.networks.keys().copied().collect::<Vec<_>>() {
            let watch = SessionId(self.number());
            self.engine
                .watch_routes(watch, network, None)
                .expect("a network");
            self.routes.insert(network, (watch, BTreeMap::new()));
        }
        let watch = SessionId(self.number());
        self.engine.watch_clients(watch, RELAY).expect("a relay");
        self.clients = (watch, BTreeMap::new(), false);
    }

    fn pick(&self, n: usize) -> Option<NodeId> {
        let len = self.machines.len();
        (len > 0).then(|| *self.machines.keys().nth(n % len).expect("inside"))
    }

    fn raise(&mut self, network: NetworkId) -> u64 {
        let row = self.networks.get_mut(&network).expect("known");
        row.version += 1;
        row.version
    }

    /// Changes a node's row in the model's database, then in the engine.
    fn change(&mut self, n: usize, change: impl FnOnce(&mut NodeRow)) {
        let Some(id) = self.pick(n) else { return };
        let version = self.raise(self.machines[&id].row.network);
        let machine = self.machines.get_mut(&id).expect("picked");
        change(&mut machine.row);
        machine.row.changed_version = version;
        self.engine
            .node_changed(machine.row.clone())
            .expect("a known node");
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Join {
                network,
                role,
                owner,
                name,
            } => self.join(network_id(network), role, owner, name),
            Op::Leave(n) => self.leave(n),
            Op::Rename(n, name) => {
                let Some(id) = self.pick(n) else { return };
                let name = format!("renamed-{name}").parse().expect("a name");
                if self.engine.name_free(self.machines[&id].row.network, &name) {
                    self.change(n, |row| row.name = name);
                }
            }
            Op::Owner(n, owner) => self.change(n, |row| row.owner = owner_name(owner)),
            Op::Services(n, set) => self.change(n, |row| row.services = services(set)),
            Op::Rekey(n) => {
                let key = self.number();
                self.change(n, |row| row.wg_key = wg_key(key));
            }
            Op::Report(n, port, relay) => {
                let Some(id) = self.pick(n) else { return };
                let machine = self.machines.get_mut(&id).expect("picked");
                machine.endpoints = vec![([192, 0, 2, 1], port).into()];
                machine.home_relay = relay.then_some(RELAY);
                self.report(id);
            }
            Op::Beat(n) => {
                let Some(id) = self.pick(n) else { return };
                let now = self.now();
                self.engine
                    .heartbeat(id, Timestamp::from_secs(1), now)
                    .expect("known");
                self.machines.get_mut(&id).expect("picked").beat = Some(self.elapsed);
            }
            Op::Advance(secs) => {
                self.elapsed += Duration::from_secs(secs);
                let now = self.now();
                self.engine.handle_timeout(now);
                assert!(self.engine.poll_timeout().is_none_or(|at| at > now));
            }
            Op::Authority(network, ca) => {
                self.raise(network_id(network));
                let row = self.networks.get_mut(&network_id(network)).expect("known");
                row.ssh_ca = format!("ssh-ed25519 {ca}");
                self.engine.network_changed(row.clone()).expect("known");
            }
            Op::RelayMoves(n) => {
                self.relay.derp = (0..n).map(|n| format!("relay:{n}")).collect();
                self.engine
                    .relay_changed(self.relay.clone())
                    .expect("known");
            }
            Op::Open { node, fresh } => self.open(node, fresh),
            Op::Close(n) => {
                let Some(id) = self.pick(n) else { return };
                let machine = self.machines.get_mut(&id).expect("picked");
                machine.partial = NetmapUpdate::default();
                if let Some(session) = machine.session.take() {
                    self.engine.session_close(session);
                    self.named.remove(&session);
                }
            }
            Op::Read { node, parts } => {
                let session = self.pick(node).and_then(|id| self.machines[&id].session);
                if let Some(session) = session {
                    self.read(session, parts);
                }
            }
            Op::Settle => self.settle(),
            Op::Restart => {
                self.epoch += 1;
                self.load();
            }
        }
        while let Some(event) = self.engine.poll_event() {
            if let Event::NodeState { from, to, .. } = event {
                assert_ne!(from, to);
            }
        }
        while let Some(session) = self.engine.poll_ready() {
            assert!(self.named.insert(session), "{session:?} was named twice");
        }
    }

    fn join(&mut self, network: NetworkId, role: Role, owner: u8, name: u8) {
        if self.machines.len() >= 8 {
            return;
        }
        let wished = format!("node-{name}").parse().expect("a name");
        let reservation = self.engine.reserve(network, &wished).expect("room");
        for other in self.machines.values() {
            assert_ne!(other.row.addrs, reservation.addrs);
            assert!(other.row.network != network || other.row.name != reservation.name);
        }
        let number = self.number();
        let row = NodeRow {
            id: NodeId::from_parts(number, [0; 10]),
            network,
            name: reservation.name,
            role,
            owner: owner_name(owner),
            addrs: reservation.addrs,
            wg_key: wg_key(number),
            disco_key: DiscoPublicKey::try_from(wg_key(number).as_bytes().as_slice())
                .expect("a key"),
            services: services(0b11),
            routes: Vec::new(),
            ssh_host_keys: vec![format!("ssh-ed25519 {number}")],
            ssh_user: String::new(),
            uptime: UptimeClass::AlwaysOn,
            changed_version: self.raise(network),
            last_seen: None,
            seen_ago: None,
        };
        self.engine.node_added(row.clone()).expect("a new node");
        let machine = Machine {
            row,
            endpoints: Vec::new(),
            home_relay: None,
            reported: true,
            beat: None,
            session: None,
            map: None,
            partial: NetmapUpdate::default(),
        };
        self.machines.insert(machine.row.id, machine);
    }

    fn leave(&mut self, n: usize) {
        let Some(id) = self.pick(n) else { return };
        let machine = self.machines.remove(&id).expect("picked");
        let network = machine.row.network;
        let version = self.raise(network);
        self.tombstones.push(Tombstone {
            network,
            node: id,
            version,
        });
        self.engine.node_removed(id, version).expect("a known node");
        self.gone.extend(machine.session);
    }

    fn report(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).expect("known");
        machine.reported = true;
        self.engine
            .report(id, machine.endpoints.clone(), machine.home_relay)
            .expect("known");
    }

    fn open(&mut self, n: usize, fresh: bool) {
        let Some(id) = self.pick(n) else { return };
        let session = SessionId(self.number());
        let now = self.now();
        let machine = self.machines.get_mut(&id).expect("picked");
        if fresh {
            machine.map = None;
        }
        machine.partial = NetmapUpdate::default();
        let cursor = machine.map.as_ref().map(|map| map.cursor);
        let opened = self.engine.session_open(session, id, cursor, now);
        assert_eq!(opened, Ok(Opened::Admitted));
        self.gone.extend(machine.session.replace(session));
    }

    /// Reads some parts of what a named session has to say.
    fn read(&mut self, session: SessionId, parts: usize) {
        for _ in 0..parts {
            if !self.named.contains(&session) {
                return;
            }
            match self.engine.poll_session(session) {
                None => {
                    self.named.remove(&session);
                }
                Some(Output::End(reason)) => {
                    assert!(self.gone.remove(&session), "{session:?} ended: {reason:?}");
                    assert!(matches!(reason, EndReason::Removed | EndReason::Replaced));
                    self.named.remove(&session);
                }
                Some(Output::Netmap(part)) => {
                    let bytes: usize = part.peers.iter().chain(&part.patches).map(Bytes::len).sum();
                    assert!(bytes <= CHUNK || part.peers.len() + part.patches.len() == 1);
                    self.take_part(session, part);
                }
                Some(Output::Routes(update)) => {
                    let watch = self.routes.values_mut().find(|(id, _)| *id == session);
                    let routes = &mut watch.expect("a watch").1;
                    if update.full {
                        routes.clear();
                    }
                    routes.retain(|id, _| !update.removed.contains(id));
                    routes.extend(update.changed.into_iter().map(|route| (route.node, route)));
                }
                Some(Output::Clients(update)) => {
                    let (_, clients, started) = &mut self.clients;
                    assert_eq!(update.full, !*started);
                    *started = update.last;
                    clients.retain(|key, _| !update.removed.contains(key));
                    clients.extend(update.clients);
                }
            }
        }
    }

    fn take_part(&mut self, session: SessionId, part: mesh_netmap::Update) {
        let machine = self
            .machines
            .values_mut()
            .find(|m| m.session == Some(session));
        let Some(machine) = machine else {
            // It was replaced or removed, and nothing but the end may follow.
            panic!("{session:?} is over, but was told {part:?}");
        };
        let whole = &mut machine.partial;
        whole.cursor = part.cursor;
        whole.full = part.full;
        let peers = part
            .peers
            .iter()
            .map(|b| serde_json::from_slice(b).expect("a peer"));
        whole.peers.extend(peers);
        whole.removed.extend(part.removed);
        whole.patches.extend(part.patches.iter().map(|bytes| {
            let wire: WirePatch = serde_json::from_slice(bytes).expect("a patch");
            PeerPatch {
                id: wire.id,
                endpoints: wire.endpoints,
                home_relay: wire.moves.then_some(wire.home_relay),
                state: wire.state,
            }
        }));
        if !part.last {
            return;
        }
        whole.node = part.node;
        whole.filter = part.filter;
        whole.relays = part.relays.map(|relays| relays.to_vec());
        let update = std::mem::take(whole);
        for peer in &update.patches {
            let known = machine
                .map
                .as_ref()
                .is_some_and(|map| map.peers.contains_key(&peer.id));
            assert!(known, "a patch for a peer that was never told");
        }
        let map = Netmap::apply(machine.map.take(), update).expect("a whole update");
        machine.map = Some(map);
    }

    /// Everybody reads all there is; then every open session must be right.
    fn settle(&mut self) {
        while let Some(session) = self.engine.poll_ready() {
            assert!(self.named.insert(session), "{session:?} was named twice");
        }
        for session in self.named.clone() {
            self.read(session, usize::MAX);
        }
        assert_eq!(self.engine.poll_ready(), None);
        assert!(
            self.gone.is_empty(),
            "sessions that should have ended: {:?}",
            self.gone
        );
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            if self.machines[&id].session.is_some() {
                self.check(id);
            }
        }
        self.check_watches();
    }

    fn state(&self, machine: &Machine) -> NodeState {
        match machine.beat.map(|at| (self.elapsed - at).as_secs()) {
            Some(0..45) => NodeState::Online,
            Some(45..105) => NodeState::Stale,
            _ => NodeState::Offline,
        }
    }

    fn check(&mut self, id: NodeId) {
        let machine = &self.machines[&id];
        let row = &machine.row;
        let network = &self.networks[&row.network];
        let map = machine
            .map
            .as_ref()
            .expect("an open session was told a map");
        let mut wanted = BTreeMap::new();
        for other in self
            .machines
            .values()
            .filter(|other| are_peers(row, &other.row))
        {
            let mut peer = Peer {
                id: other.row.id,
                name: other.row.name.clone(),
                role: other.row.role,
                addrs: other.row.addrs,
                routes: Vec::new(),
                wg_key: other.row.wg_key,
                disco_key: other.row.disco_key,
                services: other.row.services.clone(),
                ssh_host_keys: other.row.ssh_host_keys.clone(),
                ssh_user: String::new(),
                endpoints: other.endpoints.clone(),
                home_relay: other.home_relay,
                state: self.state(other),
            };
            if let Some(seen) = map.peers.get(&peer.id).filter(|_| !other.reported) {
                // After a restart nobody knows better than what the machine remembers.
                peer.endpoints = seen.endpoints.clone();
                peer.home_relay = seen.home_relay;
            }
            wanted.insert(peer.id, peer);
        }
        assert_eq!(map.peers, wanted);
        assert_eq!(map.node.name, row.name);
        assert_eq!(map.node.ssh_ca, network.ssh_ca);
        assert_eq!(
            map.node.console_prefix,
            console_prefix(&network.name, &row.name)
        );
        let relays: Vec<Relay> = std::iter::once(&self.relay)
            .filter(|relay| !relay.derp.is_empty())
            .map(|relay| Relay {
                id: relay.id,
                derp: relay.derp.clone(),
                stun: vec![],
            })
            .collect();
        assert_eq!(map.relays, relays);
        for other in self.machines.values() {
            for service in &row.services {
                let allowed = may_reach(&other.row, row, service.kind);
                for ip in other.row.addrs.iter().filter(|_| other.row.id != id) {
                    let passes = map.filter.rules.iter().any(|rule| {
                        rule.protocols == [Protocol::Tcp]
                            && rule.sources.iter().any(|net| net.contains(&ip))
                            && rule.ports.iter().any(|ports| ports.contains(service.port))
                    });
                    assert_eq!(passes, allowed, "{ip} to {service:?} of {}", row.name);
                }
            }
        }
        let filter = map.filter.clone();
        assert_eq!(self.engine.filter(id), Some(filter));
    }

    fn check_watches(&self) {
        for (network, (_, routes)) in &self.routes {
            let wanted: BTreeMap<NodeId, Route> = self
                .machines
                .values()
                .filter(|m| m.row.network == *network && m.row.role == Role::Worker)
                .map(|m| Route {
                    node: m.row.id,
                    network: self.networks[network].name.clone(),
                    name: m.row.name.clone(),
                    addrs: m.row.addrs,
                    services: m.row.services.clone(),
                    state: self.state(m),
                })
                .map(|route| (route.node, route))
                .collect();
            assert_eq!(routes, &wanted);
        }
        let clients: BTreeMap<WgPublicKey, NetworkId> = self
            .machines
            .values()
            .map(|m| (m.row.wg_key, m.row.network))
            .collect();
        assert_eq!(self.clients.1, clients);
    }

    /// Every machine comes back with what it remembers, and tells where it is.
    fn everybody_comes_back(&mut self) {
        for n in 0..self.machines.len() {
            let id = self.pick(n).expect("inside");
            self.report(id);
            if self.machines[&id].session.is_none() {
                self.open(n, false);
            }
        }
        self.settle();
    }
}

fn owner_name(n: u8) -> String {
    ["", "anna", "ben"][usize::from(n)].into()
}

fn wg_key(n: u64) -> WgPublicKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    WgPublicKey::from_bytes(bytes)
}

fn services(set: u8) -> Vec<Service> {
    let all = [
        ("console", ServiceKind::Console, 9090),
        ("ssh", ServiceKind::Ssh, 22),
        ("web", ServiceKind::Http, 8000),
        ("db", ServiceKind::Tcp, 5432),
    ];
    (0..4)
        .filter(|bit| set & (1 << bit) != 0)
        .map(|bit| all[bit])
        .map(|(name, kind, port)| Service {
            name: name.parse().expect("a name"),
            kind,
            port,
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn every_session_ends_with_the_map_of_the_model(ops in prop::collection::vec(op(), 1..160)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        world.everybody_comes_back();
    }
}
