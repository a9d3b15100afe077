//! One node as the engine holds it.

use bytes::Bytes;
use mesh_types::{Endpoint, NodeId, Peer, PeerPatch, RelayId};

use crate::class::ClassIx;
use crate::presence::Presence;
use crate::row::NodeRow;
use crate::update::{PeerEncoder, SessionId};

/// What changed about a peer: a set of flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Change(u8);

impl Change {
    /// The peer is new, gone, or its identity facts changed.
    pub(crate) const WHOLE: Self = Self(1);
    pub(crate) const ENDPOINTS: Self = Self(2);
    pub(crate) const HOME_RELAY: Self = Self(4);
    pub(crate) const STATE: Self = Self(8);
    /// Every volatile fact.
    pub(crate) const VOLATILE: Self = Self(2 | 4 | 8);

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) const fn is_nothing(self) -> bool {
        self.0 == 0
    }
}

/// A node: its row, its volatile facts, and the bytes its viewers share.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) row: NodeRow,
    pub(crate) class: ClassIx,
    /// The network's version at which it came into this class; at a start, when its row changed.
    pub(crate) class_since: u64,
    pub(crate) session: Option<SessionId>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) home_relay: Option<RelayId>,
    /// Whether it told endpoints and home relay in this epoch. Until then, what other nodes
    /// remember of it is better than what the engine knows.
    pub(crate) reported: bool,
    /// The network's volatile sequence at which one of its volatile facts last changed.
    pub(crate) sequence: u64,
    pub(crate) presence: Presence,
    encoded: Option<Bytes>,
    patch: Option<(Change, Bytes)>,
}

impl Node {
    pub(crate) fn new(row: NodeRow, class: ClassIx, presence: Presence) -> Self {
        Self {
            class,
            class_since: row.changed_version,
            row,
            session: None,
            endpoints: Vec::new(),
            home_relay: None,
            reported: false,
            sequence: 0,
            presence,
            encoded: None,
            patch: None,
        }
    }

    /// The node as its peers see it.
    pub(crate) fn peer(&self) -> Peer {
        let row = &self.row;
        Peer {
            id: row.id,
            name: row.name.clone(),
            role: row.role,
            addrs: row.addrs,
            routes: row.routes.clone(),
            wg_key: row.wg_key,
            disco_key: row.disco_key,
            services: row.services.clone(),
            ssh_host_keys: row.ssh_host_keys.clone(),
            ssh_user: row.ssh_user.clone(),
            endpoints: self.endpoints.clone(),
            home_relay: self.home_relay,
            state: self.presence.state,
        }
    }

    /// Must follow every change of something that [`Node::peer`] shows.
    pub(crate) fn invalidate(&mut self) {
        self.encoded = None;
        self.patch = None;
    }

    /// The whole peer, encoded once.
    pub(crate) fn encoded(&mut self, encoder: &dyn PeerEncoder) -> Bytes {
        if let Some(bytes) = &self.encoded {
            return bytes.clone();
        }
        let bytes = match self.reported {
            true => encoder.peer(&self.peer()),
            false => encoder.unreported_peer(&self.peer()),
        };
        self.encoded = Some(bytes.clone());
        bytes
    }

    /// These volatile facts, encoded once for all who need the same ones.
    pub(crate) fn patch(&mut self, change: Change, encoder: &dyn PeerEncoder) -> Bytes {
        if let Some((of, bytes)) = &self.patch
            && *of == change
        {
            return bytes.clone();
        }
        let bytes = encoder.patch(&PeerPatch {
            id: self.row.id,
            endpoints: change
                .has(Change::ENDPOINTS)
                .then(|| self.endpoints.clone()),
            home_relay: change.has(Change::HOME_RELAY).then_some(self.home_relay),
            state: change.has(Change::STATE).then_some(self.presence.state),
        });
        self.patch = Some((change, bytes.clone()));
        bytes
    }

    /// What of the volatile facts is worth telling somebody who may remember older ones.
    pub(crate) fn told(&self) -> Change {
        if self.reported {
            Change::VOLATILE
        } else {
            Change::STATE
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.row.id
    }
}

/// Whether peers must be told of the step from one row to the other.
pub(crate) fn peers_see(before: &NodeRow, after: &NodeRow) -> bool {
    before.name != after.name
        || before.role != after.role
        || before.addrs != after.addrs
        || before.routes != after.routes
        || before.wg_key != after.wg_key
        || before.disco_key != after.disco_key
        || before.services != after.services
        || before.ssh_host_keys != after.ssh_host_keys
        || before.ssh_user != after.ssh_user
}
