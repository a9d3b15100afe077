//! A long life under ordinary load, ten times as fast, and what is held all along.
//!
//! Ordinarily something about a node changes every ten minutes (docs/scale.md counts by that), and
//! somebody opens a connection to it every twenty seconds. Here that is every minute and every two
//! seconds. The same cast is there at every sample, so that samples can be compared: half of it
//! stays from beginning to end, the rest leaves, joins anew, restarts and moves.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_netmap::NodeRow;
use mesh_types::{NetworkId, Role};

use super::coordinator::Issued;
use super::troubles::{Newcomer, services};
use super::{NETWORKS, World};
use crate::dice::Dice;
use crate::packet::{ACK, FIN_ACK, Segment};
use crate::planted::Bug;
use crate::trace::Trace;
use crate::underlay::Nat;

const MINUTE: Duration = Duration::from_secs(60);
/// Between samples.
const EVERY: Duration = Duration::from_secs(600);
/// Of those, this is left for what was under way to end, and for everybody to be back.
const CALM: Duration = Duration::from_secs(90);
/// Between a connection to somebody and the next one: every two seconds for each of the cast.
const CONNECTION: Duration = Duration::from_millis(250);
/// Connections until the next change: every minute for each of the cast.
const CHANGE: u32 = 30;
/// Segments of a transfer, and how long an answer may be on its way.
const SEGMENTS: usize = 8;
const LATE: Duration = Duration::from_secs(120);
/// A place is nobody's after this long: all have heard that its node is gone.
const VACANT: Duration = Duration::from_secs(120);
/// Nodes renew their certificates two thirds into this.
const CERTIFICATE: Duration = Duration::from_secs(20 * 60);
const RELAYS: usize = 2;
const SETTLE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(15);

/// One of the cast, whoever plays it now.
struct Part {
    network: usize,
    role: Role,
    owner: &'static str,
    nat: Nat,
    /// A bit for each service.
    services: usize,
    /// Whether its process lives from beginning to end.
    stays: bool,
}

const fn part(
    network: usize,
    role: Role,
    owner: &'static str,
    nat: Nat,
    services: usize,
    stays: bool,
) -> Part {
    Part {
        network,
        role,
        owner,
        nat,
        services,
        stays,
    }
}

const CAST: [Part; 8] = [
    part(0, Role::Worker, "anna", Nat::None, 0b1111, true),
    part(0, Role::Worker, "anna", Nat::Restricted, 0b0111, false),
    part(0, Role::Worker, "anna", Nat::Symmetric, 0b0011, false),
    part(0, Role::Worker, "ben", Nat::Open, 0b0011, false),
    part(0, Role::Gateway, "", Nat::Restricted, 0b0001, true),
    part(0, Role::Deployer, "", Nat::NoUdp, 0b0010, true),
    part(1, Role::Worker, "anna", Nat::Symmetric, 0b1001, true),
    part(1, Role::Worker, "anna", Nat::Open, 0b1010, false),
];

/// Who plays, and where nobody is any more.
#[derive(Default)]
struct Stage {
    /// The place of each of the cast.
    places: Vec<usize>,
    vacant_since: BTreeMap<usize, Duration>,
    /// Versions of the networks at the last sample.
    versions: BTreeMap<NetworkId, u64>,
}

/// How much there is of what could grow, over all nodes and relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// Nodes that run.
    pub nodes: u64,
    /// What there is, and how much of it.
    pub sizes: Vec<(&'static str, u64)>,
}

impl World {
    /// Two relays, and nodes with certificates that they have to renew all the time.
    pub fn for_soak(
        seed: u64,
        bug: Option<Bug>,
        trace: Trace,
        start: std::time::Instant,
        identities: Vec<std::sync::Arc<mesh_api::identity::Identity>>,
    ) -> Self {
        let dice = Dice::new(seed);
        let mut world = Self::with_relays(RELAYS, dice, bug, trace, start, identities);
        world.transfers = true;
        world.issued = Issued {
            before: MINUTE,
            after: CERTIFICATE,
        };
        world
    }

    /// Lives for `span` and has a sample taken every ten minutes, with everybody there.
    ///
    /// # Panics
    /// Something is not as it must be; the message says what.
    pub fn soak(&mut self, span: Duration, mut sample: impl FnMut(Duration, Census)) {
        let mut stage = Stage::default();
        for part in &CAST {
            let n = self.play(part, &stage);
            stage.places.push(n);
        }
        // Coordinators are lost too, but not all the time: what one leaks must have time to show.
        self.run_until(self.now + MINUTE);
        self.stop_coordinator(false);
        self.run_until(self.now + MINUTE / 6);
        self.start_coordinator();
        while self.now < span {
            let next =
                EVERY * (1 + u32::try_from(self.now.as_secs() / EVERY.as_secs()).unwrap_or(0));
            self.act(&mut stage, next - CALM);
            self.assemble(&stage);
            self.run_until(next);
            self.forget_old(&mut stage);
            sample(self.now, self.census());
        }
    }

    /// Ordinary load until then.
    fn act(&mut self, stage: &mut Stage, until: Duration) {
        let mut connections = 0;
        while self.now < until {
            let minute = self.now.as_secs() / 60;
            self.connect_some();
            connections += 1;
            if connections % CHANGE == 0 {
                self.change(stage);
                self.check_bounds();
            }
            self.run_until(self.now + CONNECTION);
            if self.now.as_secs() / 60 != minute {
                // Nothing is away for longer.
                self.underlay.calm();
                self.start_relay(RELAYS - 1);
                self.forget_flows();
            }
        }
    }

    fn connect_some(&mut self) {
        let pairs = self.connectable();
        if let Some((n, to, port)) = self.dice.pick(&pairs) {
            let v6 = self.dice.chance(300);
            self.open_flow(n, to, port, v6);
        }
    }

    fn change(&mut self, stage: &mut Stage) {
        let moving: Vec<usize> = (0..CAST.len()).filter(|at| !CAST[*at].stays).collect();
        let at = moving[self.dice.below(moving.len())];
        let (polite, moves) = (self.dice.chance(500), self.dice.chance(500));
        match self.dice.below(100) {
            0..20 => self.replace(stage, at),
            20..35 => self.restart_node(stage.places[at], polite, moves),
            35..55 => self.rebind(),
            55..65 => self.rename(false),
            65..70 => self.change_owner(false),
            70..85 => self.publish(),
            85..92 => self.partition(),
            92..95 => self.stop_relay(RELAYS - 1, polite),
            _ => self.weather_of_every_day(),
        }
    }

    fn weather_of_every_day(&mut self) {
        self.underlay.loss = [0, 5, 20][self.dice.below(3)];
        self.underlay.duplicates = [0, 10][self.dice.below(2)];
        self.underlay.jitter = [0, 20][self.dice.below(2)];
    }

    /// One leaves for good, and another machine takes its part.
    fn replace(&mut self, stage: &mut Stage, at: usize) {
        let n = stage.places[at];
        self.note("leave", format_args!("{n}"));
        self.commit_removal(self.nodes[n].id, false);
        stage.vacant_since.insert(n, self.now);
        stage.places[at] = self.play(&CAST[at], stage);
        stage.vacant_since.remove(&stage.places[at]);
    }

    /// A new machine for a part; answers its place.
    fn play(&mut self, part: &Part, stage: &Stage) -> usize {
        let is_vacant = |(n, since): (&usize, &Duration)| {
            let gone = self.nodes[*n].process.is_none() && self.now - *since >= VACANT;
            gone.then_some(*n)
        };
        let n = stage.vacant_since.iter().find_map(is_vacant);
        let n = n.unwrap_or(self.nodes.len());
        if let Some(former) = self.nodes.get(n) {
            let (id, wg) = (former.id, mesh_tunnel::wg_public_key(&former.wg));
            let addrs = former.addrs;
            let is_taken = |ip| {
                (0..)
                    .zip(&self.nodes)
                    .any(|(m, node)| m != n && node.addrs.contains(ip))
            };
            for ip in addrs.iter().filter(|ip| !is_taken(*ip)).collect::<Vec<_>>() {
                self.opened.remove(&ip);
            }
            self.by_id.remove(&id);
            self.by_wg.remove(&wg);
            self.model.forget(id);
        }
        let newcomer = Newcomer {
            network: NetworkId::from_bytes(NETWORKS[part.network].1),
            role: part.role,
            owner: part.owner,
            wished: "node".to_owned(),
            wg: self.dice.bytes(),
            disco: self.dice.bytes(),
            services: services(part.services),
            nat: part.nat,
        };
        self.enrol(n, newcomer, false);
        n
    }

    /// Everybody is there as the cast has them, and talks with everybody.
    fn assemble(&mut self, stage: &Stage) {
        self.underlay.calm();
        self.start_relay(RELAYS - 1);
        for (part, n) in CAST.iter().zip(&stage.places) {
            self.start_node(*n);
            self.nodes[*n].services = services(part.services);
            self.report_node(*n);
            let id = self.nodes[*n].id;
            let row = &self.coordinator.store.nodes[&id];
            if row.owner != part.owner {
                let row = NodeRow {
                    owner: part.owner.to_owned(),
                    ..row.clone()
                };
                self.commit_row(row, false);
            }
        }
        self.settle(SETTLE);
        self.forget_flows();
        let pairs = self.connectable();
        self.connect_all(pairs, CONNECT);
        self.check_bounds();
    }

    /// The node that opened a flow has its answer: it sends something, and closes.
    pub(super) fn transfer(&mut self, n: usize, answer: Segment) {
        for _ in 0..SEGMENTS {
            self.seal(n, answer.answer(ACK));
        }
        self.seal(n, answer.answer(FIN_ACK));
    }

    /// What the simulation itself keeps of flows.
    fn forget_flows(&mut self) {
        let now = self.now;
        for node in &mut self.nodes {
            node.access.forget_idle(now);
            if let Some(process) = &mut node.process {
                process.answered.clear();
                process.opened.retain(|_, at| now - *at < LATE);
            }
        }
    }

    /// What the simulation itself keeps of the past.
    fn forget_old(&mut self, stage: &mut Stage) {
        self.forget_flows();
        self.coordinator.store.prune();
        for (_, id) in NETWORKS {
            let id = NetworkId::from_bytes(id);
            let version = self.model.version(id);
            if let Some(version) = stage.versions.insert(id, version) {
                self.model.trim(id, version);
            }
        }
    }

    fn census(&self) -> Census {
        let running = || self.nodes.iter().filter_map(|node| node.process.as_ref());
        let relays = || {
            self.relays
                .iter()
                .filter_map(|relay| relay.process.as_ref())
        };
        let coordinator = self.running();
        let sizes = [
            (
                "sessions",
                coordinator.map_or(0, |p| p.engine.open_sessions()),
            ),
            ("streams", coordinator.map_or(0, |p| p.streams.len())),
            ("connections", self.conns.len()),
            ("relay clients", relays().map(|p| p.held()).sum()),
            (
                "relay list",
                relays().map(|p| p.registry.allowed().len()).sum(),
            ),
            ("tunnels", running().map(|p| p.device.stats().count()).sum()),
            ("timers", running().map(|p| p.device.pending_timers()).sum()),
            ("flows", running().map(|p| p.device.flows()).sum()),
            (
                "stored",
                self.nodes
                    .iter()
                    .map(|node| node.disk.as_ref().map_or(0, Vec::len))
                    .sum(),
            ),
        ];
        Census {
            nodes: running().count() as u64,
            sizes: sizes.map(|(name, size)| (name, size as u64)).into(),
        }
    }
}
