//! The engine: all networks, and all who must be told of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_types::addr::{DEFAULT_OVERLAY_V4, DEFAULT_OVERLAY_V6};
use mesh_types::heartbeat::{HEARTBEAT_TTL_SECS, STALE_SECS};
use mesh_types::{
    DiscoPublicKey, NetworkId, NetworkName, NodeId, NodeState, Relay, RelayId, WgPublicKey,
};

use crate::addresses::{AddressChoice, Addresses, InvalidRange};
use crate::admission::{Admission, Gate};
use crate::class::ClassIx;
use crate::error::Rejected;
use crate::network::Network;
use crate::node::Change;
use crate::outbox::Outbox;
use crate::presence::{Deadlines, Presence, Subject};
use crate::row::{RelayRow, Snapshot};
use crate::rules::{FixedRules, Rules};
use crate::session::Header;
use crate::update::{Event, PeerEncoder};

mod delivery;
mod identity;
mod part;
mod questions;
mod volatile;

pub use questions::{NodeRef, RelayRef};

/// How an [`Engine`] is to work.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Marks the volatile sequence numbers of this process; another one for every start.
    pub epoch: u64,
    /// Where [`AddressChoice::Random`] takes its choices from.
    pub seed: [u8; 32],
    /// Overlay IPv4 addresses come from here.
    pub overlay_v4: Ipv4Net,
    /// Overlay IPv6 addresses come from here.
    pub overlay_v6: Ipv6Net,
    /// Which free address a new node gets.
    pub addresses: AddressChoice,
    /// How long a heartbeat counts.
    pub ttl: Duration,
    /// How long past that a node is stale before it is offline.
    pub stale: Duration,
    /// How sessions are let in when many come at once.
    pub admission: Admission,
    /// So many removals of each network are remembered for nodes that were away.
    pub keep_tombstones: usize,
    /// The most that the encoded contents of one [`Update`](crate::Update) take.
    pub chunk_bytes: usize,
}

impl Settings {
    /// Everything as the design says.
    pub fn new(epoch: u64, seed: [u8; 32]) -> Self {
        let (v4, v4_len) = DEFAULT_OVERLAY_V4;
        let (v6, v6_len) = DEFAULT_OVERLAY_V6;
        Self {
            epoch,
            seed,
            overlay_v4: Ipv4Net::new_assert(v4, v4_len),
            overlay_v6: Ipv6Net::new_assert(v6, v6_len),
            addresses: AddressChoice::default(),
            ttl: Duration::from_secs(HEARTBEAT_TTL_SECS),
            stale: Duration::from_secs(STALE_SECS),
            admission: Admission::default(),
            keep_tombstones: 10_000,
            // One TLS record. A stream keeps a buffer as large as the largest part it wrote, and
            // what waits for a slow reader waits as marks, not as parts.
            chunk_bytes: 16 * 1024,
        }
    }
}

/// What the coordinator knows, and whom it must tell. See the [crate documentation](crate).
pub struct Engine {
    settings: Settings,
    encoder: Box<dyn PeerEncoder>,
    rules: Box<dyn Rules>,
    networks: BTreeMap<NetworkId, Network>,
    network_names: BTreeMap<NetworkName, NetworkId>,
    /// Which network each node is in.
    homes: BTreeMap<NodeId, NetworkId>,
    wg_keys: BTreeMap<WgPublicKey, NodeId>,
    disco_keys: BTreeMap<DiscoPublicKey, NodeId>,
    overlay: BTreeMap<IpAddr, NodeId>,
    addresses: Addresses,
    relays: BTreeMap<RelayId, RelayEntry>,
    /// The relays as netmaps show them.
    relay_list: Arc<[Relay]>,
    deadlines: Deadlines,
    gate: Gate,
    outbox: Outbox,
    /// Classes whose filters may have changed.
    dirty: BTreeSet<(NetworkId, ClassIx)>,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct RelayEntry {
    row: RelayRow,
    presence: Presence,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("epoch", &self.settings.epoch)
            .field("networks", &self.networks.len())
            .field("nodes", &self.homes.len())
            .field("relays", &self.relays.len())
            .field("sessions", &self.outbox.sessions.len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that knows nothing yet, with the fixed rule set.
    pub fn new(settings: Settings, encoder: Box<dyn PeerEncoder>) -> Result<Self, InvalidRange> {
        Self::with_rules(settings, encoder, Box::new(FixedRules))
    }

    /// An engine that knows nothing yet, with other rules.
    pub fn with_rules(
        settings: Settings,
        encoder: Box<dyn PeerEncoder>,
        rules: Box<dyn Rules>,
    ) -> Result<Self, InvalidRange> {
        let addresses = Addresses::new(
            settings.overlay_v4,
            settings.overlay_v6,
            settings.addresses,
            settings.seed,
        )?;
        Ok(Self {
            encoder,
            rules,
            networks: BTreeMap::new(),
            network_names: BTreeMap::new(),
            homes: BTreeMap::new(),
            wg_keys: BTreeMap::new(),
            disco_keys: BTreeMap::new(),
            overlay: BTreeMap::new(),
            addresses,
            relays: BTreeMap::new(),
            relay_list: Arc::new([]),
            deadlines: Deadlines::new(settings.ttl, settings.stale),
            gate: Gate::new(settings.admission),
            outbox: Outbox::default(),
            dirty: BTreeSet::new(),
            events: VecDeque::new(),
            settings,
        })
    }

    /// Takes over what the database holds. To be called once, before anything else.
    ///
    /// # Errors
    ///
    /// The rows contradict each other; the engine is not to be used then.
    pub fn load(&mut self, snapshot: Snapshot, now: Instant) -> Result<(), Rejected> {
        for row in snapshot.networks {
            self.network_added(row)?;
        }
        for row in snapshot.relays {
            self.relay_insert(row, Some(now))?;
        }
        for row in snapshot.nodes {
            self.node_insert(row, Some(now))?;
        }
        for tombstone in snapshot.tombstones {
            if let Some(network) = self.networks.get_mut(&tombstone.network) {
                network.bury(
                    tombstone.node,
                    tombstone.version,
                    self.settings.keep_tombstones,
                );
            }
        }
        Ok(())
    }

    /// When [`Engine::handle_timeout`] is due. Ask again after every input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// What happened of itself. Call until `None` after every input.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Lets time pass: whoever sent no heartbeat turns stale, then offline.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(subject) = self.deadlines.due(now) {
            match subject {
                Subject::Node(id) => {
                    let node = self
                        .homes
                        .get(&id)
                        .and_then(|home| self.networks.get_mut(home)?.nodes.get_mut(&id));
                    let Some(node) = node else {
                        self.deadlines.drop_first();
                        continue;
                    };
                    let from = self.deadlines.expire(subject, &mut node.presence);
                    self.node_state_changed(id, from);
                }
                Subject::Relay(id) => {
                    let Some(relay) = self.relays.get_mut(&id) else {
                        self.deadlines.drop_first();
                        continue;
                    };
                    let from = self.deadlines.expire(subject, &mut relay.presence);
                    self.relay_state_changed(id, from);
                }
            }
        }
    }

    /// Tells everybody who sees the node of its new state, when it is a new one.
    fn node_state_changed(&mut self, id: NodeId, from: NodeState) {
        let Some(network) = self
            .homes
            .get(&id)
            .and_then(|home| self.networks.get_mut(home))
        else {
            return;
        };
        let Some(node) = network.nodes.get(&id) else {
            return;
        };
        let (class, to) = (node.class, node.presence.state);
        if from == to {
            return;
        }
        network.counts.sub(from);
        network.counts.add(to);
        network.note_move(id);
        self.outbox.peer(network, class, id, Change::STATE);
        self.outbox.route(network, id);
        let network = network.row.id;
        self.events.push_back(Event::NodeState {
            node: id,
            network,
            from,
            to,
        });
    }

    fn relay_state_changed(&mut self, id: RelayId, from: NodeState) {
        if let Some(relay) = self.relays.get(&id)
            && relay.presence.state != from
        {
            let to = relay.presence.state;
            self.events.push_back(Event::RelayState {
                relay: id,
                from,
                to,
            });
        }
    }

    /// Computes the filters of classes that may have new ones. Put off until somebody asks, so
    /// that a burst of changes costs one computation.
    fn settle(&mut self) {
        while let Some((home, class)) = self.dirty.pop_first() {
            let Some(network) = self.networks.get_mut(&home) else {
                continue;
            };
            if network.classes.compile(class, self.rules.as_ref()) {
                for session in &network.classes.at(class).sessions {
                    self.outbox.header(*session, Header::FILTER);
                }
            }
        }
    }
}
