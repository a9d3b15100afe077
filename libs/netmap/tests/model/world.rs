//! The engine, its coordinator and its machines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_netmap::{
    Admission, EndReason, Engine, Event, NetworkRow, NodeRow, Opened, Output, RelayRow, SessionId,
    Settings, Snapshot, Tombstone,
};
use mesh_types::route::Route;
use mesh_types::{
    DiscoPublicKey, Endpoint, Netmap, NetmapUpdate, NetworkId, NodeId, RelayId, Role, Service,
    ServiceKind, Timestamp, UptimeClass, WgPublicKey,
};

use super::json::{Json, read_patch, read_peer};
use super::ops::Op;

/// A node as the model knows it, and the machine behind it.
pub(super) struct Machine {
    pub(super) row: NodeRow,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) home_relay: Option<RelayId>,
    /// Whether the running engine was told endpoints and relay.
    pub(super) reported: bool,
    pub(super) beat: Option<Duration>,
    pub(super) session: Option<SessionId>,
    /// What the machine made of the updates it read, kept across sessions.
    pub(super) map: Option<Netmap>,
    pub(super) partial: NetmapUpdate,
}

pub(crate) struct World {
    pub(super) engine: Engine,
    pub(super) start: Instant,
    pub(super) elapsed: Duration,
    pub(super) epoch: u64,
    pub(super) next: u64,
    pub(super) networks: BTreeMap<NetworkId, NetworkRow>,
    pub(super) tombstones: Vec<Tombstone>,
    pub(super) relay: RelayRow,
    pub(super) machines: BTreeMap<NodeId, Machine>,
    pub(super) gone: BTreeSet<SessionId>,
    /// Sessions the engine has named and that have not said that they are done.
    pub(super) named: BTreeSet<SessionId>,
    pub(super) routes: BTreeMap<NetworkId, (SessionId, BTreeMap<NodeId, Route>)>,
    pub(super) clients: (SessionId, BTreeMap<WgPublicKey, NetworkId>, bool),
}

pub(super) const NETWORKS: u8 = 2;
/// Room for one or two peers.
const CHUNK: usize = 1_000;
const RELAY: RelayId = RelayId::from_bytes([200; 16]);

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

impl World {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn apply(&mut self, op: Op) {
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
    pub(super) fn read(&mut self, session: SessionId, parts: usize) {
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
        let unheard: BTreeSet<NodeId> = self
            .machines
            .iter()
            .filter(|(_, machine)| !machine.reported)
            .map(|(id, _)| *id)
            .collect();
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
        for (peer, unreported) in part.peers.iter().map(|bytes| read_peer(bytes)) {
            if unreported {
                whole.unreported.insert(peer.id);
            }
            whole.peers.push(peer);
        }
        whole.removed.extend(part.removed);
        whole
            .patches
            .extend(part.patches.iter().map(|bytes| read_patch(bytes)));
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
        let before = machine.map.take();
        let map = Netmap::apply(before.clone(), update).expect("a whole update");
        // After a restart nobody knows better than what the machine remembers.
        for known in before.iter().flat_map(|before| before.peers.values()) {
            if let Some(peer) = map
                .peers
                .get(&known.id)
                .filter(|_| unheard.contains(&known.id))
            {
                let was = (&known.endpoints, known.home_relay);
                assert_eq!((&peer.endpoints, peer.home_relay), was, "{}", known.id);
            }
        }
        machine.map = Some(map);
    }

    /// Every machine comes back with what it remembers, and tells where it is.
    pub(crate) fn everybody_comes_back(&mut self) {
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
