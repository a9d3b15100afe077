//! What the engine gives out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_types::route::Route;
use mesh_types::{
    Cursor, NetworkId, NodeId, NodeState, PacketFilter, Peer, PeerPatch, Relay, RelayId, SelfNode,
    WgPublicKey,
};

/// Turns peers and patches into the bytes that travel. Each is called once per version of a peer;
/// the bytes are shared between all who see it.
pub trait PeerEncoder: Send {
    /// A whole peer, without any framing.
    fn peer(&self, peer: &Peer) -> Bytes;
    /// The same of a node that has told nothing since the engine started: whoever remembers its
    /// endpoints and home relay keeps them.
    fn unreported_peer(&self, peer: &Peer) -> Bytes;
    /// New volatile facts of a peer, without any framing.
    fn patch(&self, patch: &PeerPatch) -> Bytes;
}

/// A session or watch. The caller's numbers, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What became of a request to open a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It is open, and will have an update to deliver, be it an empty one.
    Admitted,
    /// It is not open: too many come at once. Ask again after this time; the turn is kept.
    Wait(Duration),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The node, relay or network it belonged to is gone.
    Removed,
    /// A newer session of the same node took over.
    Replaced,
}

/// What a session must be told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A part of an update of the node's netmap.
    Netmap(Update),
    /// A change of a network's routes.
    Routes(RouteUpdate),
    /// A change of the relays' clients.
    Clients(ClientUpdate),
    /// The session is over; nothing follows, and the engine has forgotten it.
    End(EndReason),
}

/// One part of an update; the parts are joined until `last`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Where the network stands after this update. The last part's counts.
    pub cursor: Cursor,
    /// Every peer that is in no part of this update is gone. The same in all parts.
    pub full: bool,
    /// The update ends here.
    pub last: bool,
    /// The node's own entry. In the last part, if at all.
    pub node: Option<SelfNode>,
    /// New and changed peers, encoded.
    pub peers: Vec<Bytes>,
    /// Peers that are gone.
    pub removed: Vec<NodeId>,
    /// New volatile facts of known peers, encoded.
    pub patches: Vec<Bytes>,
    /// What the node lets in. In the last part, if at all, so that it is never older than a peer.
    pub filter: Option<PacketFilter>,
    /// The relays. In the last part, if at all.
    pub relays: Option<Arc<[Relay]>>,
}

/// A change of a network's routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteUpdate {
    /// Forget what is held before taking the rest; on the first of several parts only.
    pub full: bool,
    /// New and changed routes.
    pub changed: Vec<Route>,
    /// Workers that are gone.
    pub removed: Vec<NodeId>,
}

/// A change of who may use a relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientUpdate {
    /// Every client that is in no part of this update is gone. The same in all parts.
    pub full: bool,
    /// The update ends here.
    pub last: bool,
    /// New and changed clients, and the network within which packets are forwarded for them.
    pub clients: Vec<(WgPublicKey, NetworkId)>,
    /// Clients that are gone.
    pub removed: Vec<WgPublicKey>,
}

/// What happened of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A node came, went quiet, or went away.
    NodeState {
        /// The node.
        node: NodeId,
        /// Its network.
        network: NetworkId,
        /// Its state until now.
        from: NodeState,
        /// Its state from now on.
        to: NodeState,
    },
    /// A relay came, went quiet, or went away.
    RelayState {
        /// The relay.
        relay: RelayId,
        /// Its state until now.
        from: NodeState,
        /// Its state from now on.
        to: NodeState,
    },
}
