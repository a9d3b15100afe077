//! The coordinator: its database, and the process over it. Identity facts are committed first and
//! applied to the engine then, as in the product.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use mesh_api::model::node::NodeReport;
use mesh_netmap::{
    Admission, Engine, NetworkRow, NodeRow, RelayRow, SessionId, Settings, Snapshot, Tombstone,
};
use mesh_types::{NetworkId, NodeId, Timestamp};

use crate::cores::grpc_message::ProtoEncoder;
use crate::cores::heartbeat::HeartbeatCheck;
use crate::pipe::ConnId;

/// So many removals of a network are remembered: few, so that cursors get too old.
const TOMBSTONES: usize = 3;
/// Parts are small, so that updates come in several.
const CHUNK: usize = 600;
/// `last_seen` is written at most this often.
const LAST_SEEN_EVERY: Duration = Duration::from_secs(60);

/// What survives the process.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) networks: BTreeMap<NetworkId, NetworkRow>,
    pub(crate) nodes: BTreeMap<NodeId, NodeRow>,
    tombstones: Vec<Tombstone>,
    pub(crate) relays: Vec<RelayRow>,
    seen: BTreeMap<NodeId, Duration>,
    /// Whether it takes changes.
    pub(crate) up: bool,
}

impl Store {
    /// The version of a change that is being committed.
    pub(crate) fn raise(&mut self, network: NetworkId) -> u64 {
        let row = self.networks.get_mut(&network).expect("a network");
        row.version += 1;
        row.version
    }

    pub(crate) fn bury(&mut self, network: NetworkId, node: NodeId, version: u64) {
        self.nodes.remove(&node);
        self.seen.remove(&node);
        self.tombstones.push(Tombstone {
            network,
            node,
            version,
        });
    }

    pub(crate) fn note_seen(&mut self, node: NodeId, now: Duration) {
        if !self.nodes.contains_key(&node) {
            return;
        }
        let seen = self.seen.entry(node).or_insert(now);
        if self.up && now.saturating_sub(*seen) >= LAST_SEEN_EVERY {
            *seen = now;
        }
    }

    /// Forgets all but the newest removals of each network, as the coordinator's pruning does.
    pub(crate) fn prune(&mut self) {
        for row in self.networks.values_mut() {
            let of = |tombstone: &Tombstone| tombstone.network == row.id;
            let count = self.tombstones.iter().filter(|t| of(t)).count();
            let mut surplus = count.saturating_sub(TOMBSTONES);
            self.tombstones.retain(|tombstone| {
                let goes = tombstone.network == row.id && surplus > 0;
                if goes {
                    surplus -= 1;
                    row.trimmed = row.trimmed.max(tombstone.version);
                }
                !goes
            });
        }
    }

    fn snapshot(&self, now: Duration) -> Snapshot {
        let nodes = self.nodes.values().map(|row| NodeRow {
            seen_ago: self.seen.get(&row.id).map(|at| now.saturating_sub(*at)),
            ..row.clone()
        });
        Snapshot {
            networks: self.networks.values().cloned().collect(),
            nodes: nodes.collect(),
            tombstones: self.tombstones.clone(),
            relays: self.relays.clone(),
        }
    }
}

/// Who reads a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Stream(ConnId),
    Relay(usize),
}

/// One node's control stream.
pub(crate) struct Stream {
    pub(crate) node: NodeId,
    pub(crate) check: HeartbeatCheck,
    pub(crate) session: Option<SessionId>,
    pub(crate) cursor: Option<mesh_types::Cursor>,
    /// When to ask to be admitted again.
    pub(crate) turn: Option<Duration>,
    /// Parts on their way.
    pub(crate) in_flight: u32,
    /// A report whose identity facts could not be committed yet, and when to try again.
    pub(crate) report: Option<(Duration, NodeReport)>,
}

/// A running coordinator.
pub(crate) struct Process {
    pub(crate) engine: Engine,
    pub(crate) streams: BTreeMap<ConnId, Stream>,
    pub(crate) readers: BTreeMap<SessionId, Reader>,
    /// Sessions with news.
    pub(crate) ready: BTreeSet<SessionId>,
    next_session: u64,
    /// For a planted fault: all that was ever sent.
    pub(crate) sent: Vec<Vec<u8>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

impl Process {
    /// Starts over what the database holds.
    pub(crate) fn start(
        store: &mut Store,
        epoch: u64,
        seed: [u8; 32],
        start: std::time::Instant,
        now: Duration,
    ) -> Self {
        store.prune();
        let settings = Settings {
            chunk_bytes: CHUNK,
            keep_tombstones: TOMBSTONES,
            // Few, so that some must wait for their turn.
            admission: Admission {
                burst: 2,
                per_second: 2,
            },
            ..Settings::new(epoch, seed)
        };
        let mut engine = Engine::new(settings, Box::new(ProtoEncoder)).expect("usable ranges");
        engine
            .load(store.snapshot(now), start + now)
            .expect("a database without contradictions");
        Self {
            engine,
            streams: BTreeMap::new(),
            readers: BTreeMap::new(),
            ready: BTreeSet::new(),
            next_session: 0,
            sent: Vec::new(),
        }
    }

    pub(crate) fn next_session(&mut self) -> SessionId {
        self.next_session += 1;
        SessionId(self.next_session)
    }

    pub(crate) fn due(&self) -> Option<Duration> {
        let turns = self.streams.values().filter_map(|stream| stream.turn);
        let reports = self
            .streams
            .values()
            .filter_map(|stream| stream.report.as_ref());
        turns.chain(reports.map(|(at, _)| *at)).min()
    }
}

/// The coordinator.
#[derive(Debug, Default)]
pub(crate) struct Coordinator {
    pub(crate) store: Store,
    pub(crate) process: Option<Process>,
    pub(crate) epoch: u64,
}

/// The coordinator's clock.
pub(crate) fn wall(now: Duration) -> Timestamp {
    Timestamp::from_secs(1_800_000_000).plus(now)
}
