//! What the engine can be asked: for authorisation, lists and tables.

use std::net::IpAddr;

use mesh_types::{
    DiscoPublicKey, Endpoint, NetworkId, NetworkName, NodeId, NodeName, NodeState, PacketFilter,
    Peer, RelayId, SelfNode, Timestamp, WgPublicKey,
};

use super::{Engine, RelayEntry};
use crate::network::{Counts, Network};
use crate::node::Node;
use crate::row::{NetworkRow, NodeRow, RelayRow};
use crate::rules::{Party, ServiceKinds};
use crate::update::SessionId;

/// A node, to look at.
#[derive(Debug, Clone, Copy)]
pub struct NodeRef<'a> {
    network: &'a Network,
    node: &'a Node,
}

impl<'a> NodeRef<'a> {
    /// Its identity facts.
    pub fn row(&self) -> &'a NodeRow {
        &self.node.row
    }

    /// Its network.
    pub fn network(&self) -> &'a NetworkRow {
        &self.network.row
    }

    /// By its heartbeats.
    pub fn state(&self) -> NodeState {
        self.node.presence.state
    }

    /// When its last heartbeat was accepted, or it was last seen before this process started.
    pub fn last_seen(&self) -> Option<Timestamp> {
        self.node.presence.last_seen
    }

    /// Where it can be reached on the underlay.
    pub fn endpoints(&self) -> &'a [Endpoint] {
        &self.node.endpoints
    }

    /// The relay it listens on.
    pub fn home_relay(&self) -> Option<RelayId> {
        self.node.home_relay
    }

    /// Its open session.
    pub fn session(&self) -> Option<SessionId> {
        self.node.session
    }

    /// The node as its peers see it.
    pub fn peer(&self) -> Peer {
        self.node.peer()
    }

    fn party(&self) -> Party<'a> {
        self.network.class_of(self.node).party()
    }

    /// The node as its own netmap shows it.
    pub fn self_node(&self) -> SelfNode {
        self.network.self_node(self.node)
    }
}

/// A relay, to look at.
#[derive(Debug, Clone, Copy)]
pub struct RelayRef<'a>(&'a RelayEntry);

impl<'a> RelayRef<'a> {
    /// Its identity facts.
    pub fn row(&self) -> &'a RelayRow {
        &self.0.row
    }

    /// By its heartbeats.
    pub fn state(&self) -> NodeState {
        self.0.presence.state
    }

    /// When its last heartbeat was accepted, or it was last seen before this process started.
    pub fn last_seen(&self) -> Option<Timestamp> {
        self.0.presence.last_seen
    }
}

impl Engine {
    /// A node of any network.
    pub fn node(&self, id: NodeId) -> Option<NodeRef<'_>> {
        let network = self.networks.get(self.homes.get(&id)?)?;
        let node = network.nodes.get(&id)?;
        Some(NodeRef { network, node })
    }

    /// The nodes of a network, by id; none when there is no such network.
    pub fn nodes(&self, network: NetworkId) -> impl Iterator<Item = NodeRef<'_>> {
        let network = self.networks.get(&network);
        network.into_iter().flat_map(|network| {
            network
                .nodes
                .values()
                .map(move |node| NodeRef { network, node })
        })
    }

    /// The node that has this name in a network.
    pub fn node_by_name(&self, network: NetworkId, name: &NodeName) -> Option<NodeRef<'_>> {
        self.node(*self.networks.get(&network)?.names.get(name)?)
    }

    /// The node that has this overlay address.
    pub fn node_by_addr(&self, addr: IpAddr) -> Option<NodeRef<'_>> {
        self.node(*self.overlay.get(&addr)?)
    }

    /// The node that has this WireGuard key.
    pub fn node_by_wg_key(&self, key: &WgPublicKey) -> Option<NodeId> {
        self.wg_keys.get(key).copied()
    }

    /// The node that has this disco key.
    pub fn node_by_disco_key(&self, key: &DiscoPublicKey) -> Option<NodeId> {
        self.disco_keys.get(key).copied()
    }

    /// Whether a node of the network could be given exactly this name.
    pub fn name_free(&self, network: NetworkId, name: &NodeName) -> bool {
        self.networks.get(&network).is_some_and(|network| {
            !network.names.contains_key(name) && !network.reserved.contains(name)
        })
    }

    /// A network.
    pub fn network(&self, id: NetworkId) -> Option<&NetworkRow> {
        self.networks.get(&id).map(|network| &network.row)
    }

    /// The network of this name.
    pub fn network_by_name(&self, name: &NetworkName) -> Option<&NetworkRow> {
        self.network(*self.network_names.get(name)?)
    }

    /// All networks, by id.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkRow> {
        self.networks.values().map(|network| &network.row)
    }

    /// The version that a network is at.
    pub fn version(&self, network: NetworkId) -> Option<u64> {
        Some(self.networks.get(&network)?.row.version)
    }

    /// How the nodes of a network are doing; all zero when there is no such network.
    pub fn counts(&self, network: NetworkId) -> Counts {
        self.networks
            .get(&network)
            .map(|network| network.counts)
            .unwrap_or_default()
    }

    /// How many sessions and watches there are, ended ones included that were not read to their end.
    pub fn open_sessions(&self) -> usize {
        self.outbox.sessions.len()
    }

    /// Whether a newer session of the node has replaced this one, told so or not: what its stream
    /// still says is of the past.
    pub fn is_replaced(&self, node: NodeId, session: SessionId) -> bool {
        let home = self
            .homes
            .get(&node)
            .and_then(|home| self.networks.get(home));
        let current = home.and_then(|network| network.nodes.get(&node)?.session);
        current.is_some_and(|current| current != session)
    }

    /// How many peers, routes and keys are noted that sessions have not been told of yet: each once
    /// for each session at most, however often it changed.
    pub fn pending(&self) -> usize {
        let sessions = self.outbox.sessions.values();
        sessions.map(|session| session.kind.pending()).sum()
    }

    /// A relay.
    pub fn relay(&self, id: RelayId) -> Option<RelayRef<'_>> {
        self.relays.get(&id).map(RelayRef)
    }

    /// All relays, by id.
    pub fn relays(&self) -> impl Iterator<Item = RelayRef<'_>> {
        self.relays.values().map(RelayRef)
    }

    /// Which kinds of services of `to` the node `from` may open flows to. Nothing when either is
    /// unknown, or they are in different networks.
    pub fn reach(&self, from: NodeId, to: NodeId) -> ServiceKinds {
        let (Some(from), Some(to)) = (self.node(from), self.node(to)) else {
            return ServiceKinds::NONE;
        };
        if from.network.row.id != to.network.row.id {
            return ServiceKinds::NONE;
        }
        self.rules.reach(from.party(), to.party())
    }

    /// The peers of a node: whom it may reach, or be reached by.
    pub fn peers(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.node(id)
            .into_iter()
            .flat_map(|viewer| {
                let classes = &viewer.network.classes;
                let neighbours = &viewer.network.class_of(viewer.node).neighbours;
                neighbours
                    .iter()
                    .flat_map(|class| classes.at(*class).members.keys().copied())
            })
            .filter(move |peer| *peer != id)
    }

    /// What a node lets in.
    pub fn filter(&mut self, id: NodeId) -> Option<PacketFilter> {
        self.settle();
        let viewer = self.node(id)?;
        Some(
            viewer
                .network
                .class_of(viewer.node)
                .filter(&viewer.node.row.services),
        )
    }
}
