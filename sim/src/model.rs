//! What must be so: every committed fact by version, and by hand what follows from them.
//!
//! Nothing here looks at how the product works. The rules are those that its documents promise.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use mesh_types::{
    DiscoPublicKey, Endpoint, NetworkId, NodeId, NodeName, NodeState, OverlayAddrs, RelayId, Role,
    Service, ServiceKind, WgPublicKey,
};

/// What everybody must come to know of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// Its owner; empty for nobody.
    pub owner: String,
    /// Its overlay addresses.
    pub addrs: OverlayAddrs,
    /// What it publishes.
    pub services: Vec<Service>,
    /// Its WireGuard key.
    pub wg: WgPublicKey,
    /// Its disco key.
    pub disco: DiscoPublicKey,
}

/// All nodes of a network at one version.
pub type Roll = BTreeMap<NodeId, Facts>;

/// What was last heard of a node by the coordinator.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// When a heartbeat last had to be accepted.
    pub beat: Option<Duration>,
    /// What it last reported of itself.
    pub report: Option<(Vec<Endpoint>, Option<RelayId>)>,
}

/// Everything that was committed.
#[derive(Debug, Default)]
pub struct Model {
    networks: BTreeMap<NetworkId, BTreeMap<u64, Roll>>,
    homes: BTreeMap<NodeId, NetworkId>,
    /// By node.
    pub heard: BTreeMap<NodeId, Heard>,
    /// When the coordinator last started.
    pub started: Duration,
}

const TTL: Duration = Duration::from_secs(45);
const STALE: Duration = Duration::from_secs(60);

impl Model {
    /// A network was made.
    pub fn network(&mut self, id: NetworkId) {
        self.networks.insert(id, BTreeMap::from([(0, Roll::new())]));
    }

    /// A node joined or changed.
    pub fn put(&mut self, network: NetworkId, version: u64, id: NodeId, facts: Facts) {
        self.homes.insert(id, network);
        self.next(network, version).insert(id, facts);
    }

    /// A node is gone.
    pub fn remove(&mut self, network: NetworkId, version: u64, id: NodeId) {
        self.next(network, version).remove(&id);
    }

    /// Nobody has followed the network at versions before this one for long.
    pub fn trim(&mut self, network: NetworkId, version: u64) {
        let versions = self.networks.entry(network).or_default();
        let kept = versions.range(..=version).next_back().map(|(at, _)| *at);
        versions.retain(|at, _| kept.is_none_or(|kept| *at >= kept));
    }

    /// Nobody can have heard of this node any more.
    pub fn forget(&mut self, id: NodeId) {
        self.homes.remove(&id);
        self.heard.remove(&id);
    }

    /// The newest version of a network.
    pub fn version(&self, network: NetworkId) -> u64 {
        let newest = self.networks[&network].last_key_value();
        *newest.expect("every network has a roll").0
    }

    fn next(&mut self, network: NetworkId, version: u64) -> &mut Roll {
        let versions = self.networks.entry(network).or_default();
        let (last, newest) = versions.last_key_value().expect("every network has a roll");
        assert!(*last < version, "versions of a network rise");
        let newest = newest.clone();
        versions.entry(version).or_insert(newest)
    }

    /// The network a node belongs to, also when it is gone from it.
    pub fn home(&self, id: NodeId) -> Option<NetworkId> {
        self.homes.get(&id).copied()
    }

    /// The network's nodes now.
    pub fn roll(&self, network: NetworkId) -> &Roll {
        let versions = &self.networks[&network];
        versions
            .last_key_value()
            .expect("every network has a roll")
            .1
    }

    /// All nodes now.
    pub fn all(&self) -> impl Iterator<Item = (NetworkId, NodeId, &Facts)> {
        self.networks.keys().flat_map(|network| {
            self.roll(*network)
                .iter()
                .map(|(id, facts)| (*network, *id, facts))
        })
    }

    /// A node now.
    pub fn facts(&self, id: NodeId) -> Option<&Facts> {
        self.roll(self.home(id)?).get(&id)
    }

    /// Whether the question has a yes at this version or any later one: what somebody who follows
    /// up to `version` may still believe, or know already.
    pub fn ever_since(
        &self,
        network: NetworkId,
        version: u64,
        question: impl Fn(&Roll) -> bool,
    ) -> bool {
        let versions = &self.networks[&network];
        let at = versions.range(..=version).next_back();
        let later = versions.range(version.saturating_add(1)..);
        at.into_iter().chain(later).any(|(_, roll)| question(roll))
    }

    /// How a node is doing by its heartbeats.
    pub fn state(&self, id: NodeId, now: Duration) -> NodeState {
        let beat = self.heard.get(&id).and_then(|heard| heard.beat);
        match beat.map(|at| now.saturating_sub(at)) {
            Some(ago) if ago < TTL => NodeState::Online,
            Some(ago) if ago < TTL + STALE => NodeState::Stale,
            _ => NodeState::Offline,
        }
    }

    /// Whether [`Model::state`] is to be taken at its word: a restarted coordinator knows when a
    /// node was last seen only to the minute.
    pub fn state_is_certain(&self, id: NodeId, now: Duration) -> bool {
        let beat = self.heard.get(&id).and_then(|heard| heard.beat);
        beat.is_none_or(|at| at >= self.started) || now.saturating_sub(self.started) > TTL + STALE
    }
}

/// Whether a node may open a service of this kind on another of its network: the fixed rule set.
pub fn may_use(from: &Facts, to: &Facts, kind: ServiceKind) -> bool {
    let serves = |facts: &Facts| matches!(facts.role, Role::Gateway | Role::Deployer);
    match from.role {
        Role::Relay => false,
        Role::Deployer => true,
        Role::Gateway => matches!(kind, ServiceKind::Console | ServiceKind::Http),
        Role::Worker | Role::Router | Role::Client => {
            !from.owner.is_empty() && from.owner == to.owner && !serves(to)
        }
    }
}

/// Whether a node may open this port on another of its network.
pub fn may_open(from: &Facts, to: &Facts, port: u16) -> bool {
    to.services
        .iter()
        .any(|service| service.port == port && may_use(from, to, service.kind))
}

/// Whether two nodes of a network know each other.
pub fn are_peers(a: &Facts, b: &Facts) -> bool {
    may_use(a, b, ServiceKind::Console) || may_use(b, a, ServiceKind::Console)
}

/// Whether a compiled filter lets a TCP segment in.
pub fn lets_in(filter: &mesh_types::PacketFilter, from: IpAddr, port: u16) -> bool {
    filter.rules.iter().any(|rule| {
        rule.protocols.contains(&mesh_types::Protocol::Tcp)
            && rule.sources.iter().any(|net| net.contains(&from))
            && rule.ports.iter().any(|ports| ports.contains(port))
    })
}
