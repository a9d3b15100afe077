//! The world: everything there is, and the one loop that lets time pass.

mod bounds;
mod check;
mod control;
mod coordinator;
mod data;
mod month;
mod paths;
mod plan;
mod relays;
mod soak;
mod troubles;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::identity::Identity;
use mesh_netmap::{ClientUpdate, NetworkRow, RelayRow, SessionId};
use mesh_types::{NetworkId, NodeId, RelayId};

use crate::coordinator::{Coordinator, Process};
use crate::dice::Dice;
use crate::model::Model;
use crate::node::Node;
use crate::pipe::{Arrival, Conn, ConnId, End, Item};
use crate::planted::Bug;
use crate::relay::Relay;
use crate::trace::Trace;
use crate::underlay::{Place, Underlay, stun_addr};
pub use soak::Census;

/// More steps than this without time passing are a timer that is due again at once.
const MOST_STEPS_AT_ONCE: u32 = 20_000;

/// What will happen at some moment.
#[derive(Debug)]
enum Event {
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// Something may arrive at this end.
    Arrival(ConnId, End),
    /// Nobody listens where this connection was to lead.
    Refused(ConnId),
    /// News for a relay, of this watch.
    Clients(usize, SessionId, ClientUpdate),
    /// The answer to a renewal, for this life of the node.
    Renewed(usize, u64),
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    bug: Option<Bug>,
    dice: Dice,
    trace: Trace,
    start: Instant,
    now: Duration,
    events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: ConnId,
    underlay: Underlay,
    coordinator: Coordinator,
    relays: Vec<Relay>,
    nodes: Vec<Node>,
    by_id: BTreeMap<NodeId, usize>,
    by_wg: BTreeMap<mesh_types::WgPublicKey, NodeId>,
    model: Model,
    identities: Vec<Arc<Identity>>,
    issued: coordinator::Issued,
    /// Whether flows carry something and are closed then.
    transfers: bool,
    next_node: u64,
    next_life: u64,
    next_port: u16,
    steps_at_once: u32,
    /// Flows that were opened from and to each address.
    opened: BTreeMap<IpAddr, usize>,
}

const NETWORKS: [(&str, [u8; 16]); 2] = [("default", [1; 16]), ("lab", [2; 16])];

fn relay_id(n: usize) -> RelayId {
    RelayId::from_bytes([0xe0 + u8::try_from(n).expect("few relays"); 16])
}

impl World {
    /// An empty world: two networks, so many relays, and a coordinator that runs. `start` is any
    /// instant; `identities` are keys that its nodes share with those of other worlds.
    pub fn new(
        seed: u64,
        bug: Option<Bug>,
        trace: Trace,
        start: Instant,
        identities: Vec<Arc<Identity>>,
    ) -> Self {
        let mut dice = Dice::new(seed);
        let relays = [0, 1, 1, 1, 2, 2][dice.below(6)];
        Self::with_relays(relays, dice, bug, trace, start, identities)
    }

    fn with_relays(
        relays: usize,
        dice: Dice,
        bug: Option<Bug>,
        trace: Trace,
        start: Instant,
        identities: Vec<Arc<Identity>>,
    ) -> Self {
        let mut world = Self {
            bug,
            dice,
            trace,
            start,
            now: Duration::ZERO,
            events: BTreeMap::new(),
            next_event: 0,
            conns: BTreeMap::new(),
            next_conn: 0,
            underlay: Underlay::default(),
            coordinator: Coordinator::default(),
            relays: (0..relays).map(|n| Relay::new(relay_id(n))).collect(),
            nodes: Vec::new(),
            by_id: BTreeMap::new(),
            by_wg: BTreeMap::new(),
            model: Model::default(),
            identities,
            issued: coordinator::Issued::default(),
            transfers: false,
            next_node: 0,
            next_life: 0,
            next_port: 0,
            steps_at_once: 0,
            opened: BTreeMap::new(),
        };
        let store = &mut world.coordinator.store;
        store.up = true;
        for (name, id) in NETWORKS {
            let id = NetworkId::from_bytes(id);
            let row = NetworkRow {
                id,
                name: name.parse().expect("a name"),
                version: 0,
                trimmed: 0,
                ssh_ca: String::new(),
            };
            store.networks.insert(id, row);
            world.model.network(id);
        }
        for n in 0..relays {
            let addr = stun_addr(n);
            store.relays.push(RelayRow {
                id: relay_id(n),
                derp: vec![format!("{}:8443", addr.ip())],
                stun: vec![addr.to_string()],
                last_seen: None,
                seen_ago: None,
            });
        }
        world.start_coordinator();
        for n in 0..relays {
            world.start_relay(n);
        }
        world
    }

    /// The trace so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// How long the world has lived.
    pub fn age(&self) -> Duration {
        self.now
    }

    fn at(&self) -> Instant {
        self.start + self.now
    }

    /// The node's clock for intervals.
    fn at_node(&self, n: usize) -> Instant {
        self.nodes[n].at(self.start, self.now)
    }

    fn note(&mut self, kind: &'static str, detail: std::fmt::Arguments<'_>) {
        self.trace.note(self.now, kind, detail);
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn plan(&mut self, at: Duration, event: Event) {
        self.next_event += 1;
        self.events
            .insert((at.max(self.now), self.next_event), event);
    }

    fn running(&self) -> Option<&Process> {
        self.coordinator.process.as_ref()
    }

    /// Lets everything happen that is due, up to and including `until`.
    fn run_until(&mut self, until: Duration) {
        // Whatever was just done to it.
        self.tick_coordinator();
        loop {
            let next = self.next_due();
            if next > until {
                break;
            }
            if next > self.now {
                self.steps_at_once = 0;
                self.now = next;
            }
            self.steps_at_once += 1;
            assert!(
                self.steps_at_once < MOST_STEPS_AT_ONCE,
                "something is due again at once, for ever"
            );
            self.step();
        }
        self.now = self.now.max(until);
    }

    fn next_due(&self) -> Duration {
        let event = self.events.keys().next().map(|(at, _)| *at);
        let start = self.start;
        let engine = self.running().and_then(|process| {
            let engine = process.engine.poll_timeout();
            let engine = engine.map(|at| at.saturating_duration_since(start));
            [engine, process.due()].into_iter().flatten().min()
        });
        // Relays look at their clients once a second, while there are any or may be.
        let is_busy = |relay: &Relay| {
            let clients = relay.process.as_ref().map(|process| process.held());
            clients.is_some_and(|held| held > 0 || self.nodes.iter().any(|n| n.awake().is_some()))
        };
        let busy = self.relays.iter().any(is_busy);
        let second = busy.then(|| Duration::from_secs(self.now.as_secs() + 1));
        self.nodes
            .iter()
            .filter_map(|node| node.due(start))
            .chain([event, engine, second].into_iter().flatten())
            .min()
            .unwrap_or(Duration::MAX)
    }

    fn step(&mut self) {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let event = entry.remove();
            self.happen(event);
        }
        if self.now.subsec_nanos() == 0 {
            for relay in 0..self.relays.len() {
                if let Some(process) = &mut self.relays[relay].process {
                    let work = process.tick(self.now);
                    self.relay_work(relay, work);
                }
            }
        }
        for n in 0..self.nodes.len() {
            let due = self.nodes[n].due(self.start);
            if due.is_some_and(|at| at <= self.now) {
                self.tick_node(n);
            }
        }
        self.tick_coordinator();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Datagram { from, to, bytes } => self.datagram(from, to, &bytes),
            Event::Arrival(conn, end) => self.arrival(conn, end),
            Event::Refused(conn) => self.refused(conn),
            Event::Clients(relay, watch, update) => self.relay_news(relay, watch, update),
            Event::Renewed(n, life) => self.renewed(n, life),
        }
    }

    /// A new connection of a node; nothing has arrived yet.
    fn connect(&mut self, node: usize, server: Place) -> ConnId {
        self.next_conn += 1;
        let conn = Conn::new(node, server, self.now);
        self.conns.insert(self.next_conn, conn);
        self.next_conn
    }

    fn send(&mut self, id: ConnId, to: End, item: Item) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if let Some(at) = conn.send(to, item, self.now) {
            self.plan(at, Event::Arrival(id, to));
        }
    }

    /// One end closes; the other one is told.
    fn close(&mut self, id: ConnId, end: End) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.is_open(end)
        {
            conn.close(end);
            self.send(id, end.other(), Item::Fin);
            self.forget_over(id);
        }
    }

    /// Nobody is at either end.
    fn forget_over(&mut self, id: ConnId) {
        if self.conns.get(&id).is_some_and(Conn::is_over) {
            self.conns.remove(&id);
        }
    }

    /// One end vanishes without a word.
    fn vanish(&mut self, id: ConnId, end: End) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.close(end);
            self.forget_over(id);
        }
    }

    fn arrival(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let (node, server) = (conn.node, conn.server);
        let asleep = end == End::Client && self.nodes[node].asleep.is_some();
        let cut = asleep || self.underlay.is_cut(Place::Node(node), server);
        match conn.arrive(end, cut, self.now) {
            Arrival::Later(at) => self.plan(at, Event::Arrival(id, end)),
            Arrival::Broken => {
                self.ended(id, end.other());
                if end == End::Server && !self.is_served(id, server) {
                    // It never learnt of the connection, so nobody will close that end.
                    self.vanish(id, end);
                }
            }
            Arrival::Items(items, next) => {
                if let Some(at) = next {
                    self.plan(at, Event::Arrival(id, end));
                }
                for item in items {
                    match item {
                        Item::Fin => self.ended(id, end),
                        Item::Bytes(bytes) => self.arrived(id, end, &bytes),
                    }
                }
            }
        }
    }

    fn is_served(&self, id: ConnId, server: Place) -> bool {
        match server {
            Place::Coordinator => self
                .running()
                .is_some_and(|process| process.streams.contains_key(&id)),
            Place::Relay(relay) => self.relays[relay]
                .process
                .as_ref()
                .is_some_and(|process| process.serves(id)),
            Place::Node(_) => false,
        }
    }

    /// This end of a connection learns that it is over.
    fn ended(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if !conn.is_open(end) {
            return;
        }
        let (node, server) = (conn.node, conn.server);
        self.vanish(id, end);
        match (end, server) {
            (End::Client, Place::Coordinator) => self.control_closed(node, id, "it broke"),
            (End::Client, Place::Relay(relay)) => self.link_closed(node, relay, id),
            (End::Server, Place::Coordinator) => self.stream_closed(id),
            (End::Server, Place::Relay(relay)) => {
                if let Some(process) = &mut self.relays[relay].process {
                    process.drop_client(id);
                }
            }
            (_, Place::Node(_)) => unreachable!("nodes serve nobody"),
        }
    }

    fn arrived(&mut self, id: ConnId, end: End, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if !conn.is_open(end) {
            return;
        }
        let (node, server) = (conn.node, conn.server);
        match (end, server) {
            (End::Client, Place::Coordinator) => self.node_hears(node, id, bytes),
            (End::Server, Place::Coordinator) => self.coordinator_hears(node, id, bytes),
            (End::Client, Place::Relay(relay)) => self.link_reads(node, relay, id, bytes),
            (End::Server, Place::Relay(relay)) => self.relay_reads(relay, id, bytes),
            (_, Place::Node(_)) => unreachable!("nodes serve nobody"),
        }
    }

    fn refused(&mut self, id: ConnId) {
        self.ended(id, End::Client);
        self.conns.remove(&id);
    }
}
