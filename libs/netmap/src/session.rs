//! What each session must still be told.

use std::collections::{BTreeMap, BTreeSet};

use mesh_types::{Cursor, NetworkId, NodeId, RelayId, WgPublicKey};

use crate::class::ClassIx;
use crate::node::Change;
use crate::update::EndReason;

/// The parts of a netmap besides its peers: a set of flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Header(u8);

impl Header {
    pub(crate) const NODE: Self = Self(1);
    pub(crate) const FILTER: Self = Self(2);
    pub(crate) const RELAYS: Self = Self(4);
    pub(crate) const ALL: Self = Self(7);

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A session or watch.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) kind: Kind,
    /// Whether news is still to be announced: not since the last announcement that was followed up.
    pub(crate) armed: bool,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Node(NodeSession),
    Routes(RouteWatch),
    Clients(ClientWatch),
    Relay(RelayId),
    Ended(EndReason),
}

impl Kind {
    /// How much is noted that it has not been told of yet.
    pub(crate) fn pending(&self) -> usize {
        match self {
            Self::Node(session) => {
                let unsent = match &session.outgoing {
                    Some(Outgoing {
                        content: Content::Delta(peers),
                        ..
                    }) => peers.len(),
                    _ => 0,
                };
                unsent + session.pending.peers.len()
            }
            Self::Routes(watch) => watch.pending.len(),
            Self::Clients(watch) => watch.pending.len(),
            Self::Relay(_) | Self::Ended(_) => 0,
        }
    }
}

/// A node's session.
#[derive(Debug)]
pub(crate) struct NodeSession {
    pub(crate) node: NodeId,
    pub(crate) network: NetworkId,
    /// The update that is being cut into parts.
    pub(crate) outgoing: Option<Outgoing>,
    /// What the next update will tell.
    pub(crate) pending: Pending,
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) full: bool,
    /// An answer is owed, be it an empty one.
    pub(crate) answer: bool,
    pub(crate) header: Header,
    pub(crate) peers: BTreeMap<NodeId, Change>,
}

impl Pending {
    pub(crate) fn is_nothing(&self) -> bool {
        !self.full && !self.answer && self.header == Header::default() && self.peers.is_empty()
    }
}

/// An update that is being cut into parts. It tells what is true when a part is cut, and its
/// header goes last, so that a filter is never older than the peers it is for.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Where the network stood when the update began.
    pub(crate) cursor: Cursor,
    pub(crate) header: Header,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// All peers of the node's class, from the position on.
    Full(Position),
    Delta(BTreeMap<NodeId, Change>),
}

/// How far a full map has come: no list of peers is kept for it.
#[derive(Debug)]
pub(crate) struct Position {
    pub(crate) class: ClassIx,
    /// Index into the class's neighbours.
    pub(crate) neighbour: usize,
    /// The last member of that neighbour that was sent.
    pub(crate) after: Option<NodeId>,
}

impl NodeSession {
    /// Notes that a peer changed.
    pub(crate) fn mark_peer(&mut self, id: NodeId, change: Change) {
        if let Some(Outgoing {
            content: Content::Delta(peers),
            ..
        }) = &mut self.outgoing
            && let Some(unsent) = peers.get_mut(&id)
        {
            *unsent = unsent.with(change);
            return;
        }
        let pending = self.pending.peers.entry(id).or_default();
        *pending = pending.with(change);
    }

    /// Notes that a part of the header changed. An update under way takes it along: its peers
    /// may be newer than its beginning.
    pub(crate) fn mark_header(&mut self, header: Header) {
        let of = match &mut self.outgoing {
            Some(outgoing) => &mut outgoing.header,
            None => &mut self.pending.header,
        };
        *of = of.with(header);
    }
}

/// A gateway's watch of a network's routes.
#[derive(Debug)]
pub(crate) struct RouteWatch {
    pub(crate) network: NetworkId,
    pub(crate) by: Option<NodeId>,
    pub(crate) full: FullWalk<NodeId>,
    pub(crate) pending: BTreeSet<NodeId>,
}

/// A relay's watch of who may use it.
#[derive(Debug)]
pub(crate) struct ClientWatch {
    pub(crate) relay: RelayId,
    pub(crate) full: FullWalk<WgPublicKey>,
    pub(crate) pending: BTreeSet<WgPublicKey>,
}

/// How far the first, full answer of a watch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FullWalk<K> {
    Start,
    After(K),
    Done,
}
