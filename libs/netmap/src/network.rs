//! One network as the engine holds it.

use std::collections::{BTreeMap, BTreeSet};

use mesh_types::route::{Route, console_prefix};
use mesh_types::{Cursor, NodeId, NodeName, NodeState, Role, SelfNode};

use crate::class::{Class, Classes};
use crate::node::{Change, Node};
use crate::row::NetworkRow;
use crate::update::{PeerEncoder, SessionId};

/// How many nodes of a network are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Nodes with a heartbeat within the time to live.
    pub online: usize,
    /// Nodes whose last heartbeat is a little too old.
    pub stale: usize,
    /// All others.
    pub offline: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, state: NodeState) {
        *self.of(state) += 1;
    }

    pub(crate) fn sub(&mut self, state: NodeState) {
        *self.of(state) = self.of(state).saturating_sub(1);
    }

    fn of(&mut self, state: NodeState) -> &mut usize {
        match state {
            NodeState::Online => &mut self.online,
            NodeState::Stale => &mut self.stale,
            NodeState::Offline => &mut self.offline,
        }
    }
}

/// A network: its nodes, and what changed when.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) row: NetworkRow,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) names: BTreeMap<NodeName, NodeId>,
    /// Names set aside for nodes that are being committed.
    pub(crate) reserved: BTreeSet<NodeName>,
    pub(crate) classes: Classes,
    pub(crate) counts: Counts,
    /// Sequence of volatile facts in this epoch.
    pub(crate) sequence: u64,
    /// Cursors below this version are answered with a full map.
    resumable: u64,
    /// Every node by the version at which its identity facts last changed.
    changes: BTreeSet<(u64, NodeId)>,
    /// Nodes by the sequence at which their volatile facts last changed.
    moves: BTreeSet<(u64, NodeId)>,
    tombstones: BTreeSet<(u64, NodeId)>,
    pub(crate) route_watches: BTreeSet<SessionId>,
}

/// What a peer is to a session now.
pub(crate) enum Told {
    Peer(bytes::Bytes),
    Patch(bytes::Bytes),
    Removed,
}

impl Network {
    pub(crate) fn new(row: NetworkRow) -> Self {
        Self {
            resumable: row.trimmed,
            row,
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            reserved: BTreeSet::new(),
            classes: Classes::default(),
            counts: Counts::default(),
            sequence: 0,
            changes: BTreeSet::new(),
            moves: BTreeSet::new(),
            tombstones: BTreeSet::new(),
            route_watches: BTreeSet::new(),
        }
    }

    pub(crate) fn cursor(&self, epoch: u64) -> Cursor {
        Cursor {
            version: self.row.version,
            epoch,
            volatile: self.sequence,
        }
    }

    pub(crate) fn class_of(&self, node: &Node) -> &Class {
        self.classes.at(node.class)
    }

    pub(crate) fn sees(&self, viewer: &Node, other: &Node) -> bool {
        viewer.row.id != other.row.id && self.class_of(viewer).sees(other.class)
    }

    /// Takes over a version that a transaction raised.
    ///
    /// One that comes late could hide behind the cursor of somebody who was told the newer one
    /// already and then went away: such cursors are not resumed.
    pub(crate) fn raise(&mut self, version: u64) {
        if version < self.row.version {
            self.resumable = self.resumable.max(self.row.version.saturating_add(1));
        }
        self.row.version = self.row.version.max(version);
    }

    pub(crate) fn note_change(&mut self, node: NodeId, before: Option<u64>, version: u64) {
        if let Some(before) = before {
            self.changes.remove(&(before, node));
        }
        self.changes.insert((version, node));
    }

    /// Counts one more change of a node's volatile facts.
    pub(crate) fn note_move(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            self.moves.remove(&(node.sequence, id));
            self.sequence += 1;
            node.sequence = self.sequence;
            node.invalidate();
            self.moves.insert((self.sequence, id));
        }
    }

    pub(crate) fn forget(&mut self, node: &Node) {
        self.changes
            .remove(&(node.row.changed_version, node.row.id));
        self.moves.remove(&(node.sequence, node.row.id));
        self.names.remove(&node.row.name);
        self.counts.sub(node.presence.state);
        self.classes.at_mut(node.class).members.remove(&node.row.id);
    }

    /// Remembers a removal; of more than `keep`, the oldest are forgotten, with the cursors that
    /// would need them.
    pub(crate) fn bury(&mut self, node: NodeId, version: u64, keep: usize) {
        if version > self.row.trimmed {
            self.tombstones.insert((version, node));
        }
        while self.tombstones.len() > keep {
            if let Some((version, _)) = self.tombstones.pop_first() {
                self.resumable = self.resumable.max(version);
            }
        }
    }

    /// What a node that knows all up to `cursor` must be told; `None` when only a full map helps.
    ///
    /// Cost: proportional to what changed, or to the viewer's peers when the epoch is a foreign one.
    pub(crate) fn since(
        &self,
        viewer: &Node,
        cursor: Cursor,
        epoch: u64,
    ) -> Option<BTreeMap<NodeId, Change>> {
        if cursor.version < self.resumable
            || cursor.version > self.row.version
            || viewer.class_since > cursor.version
        {
            return None;
        }
        let mut told: BTreeMap<NodeId, Change> = BTreeMap::new();
        if cursor.epoch == epoch && cursor.volatile <= self.sequence {
            for (_, id) in self
                .moves
                .range((cursor.volatile.saturating_add(1), FIRST)..)
            {
                if let Some(node) = self.nodes.get(id).filter(|node| self.sees(viewer, node)) {
                    told.insert(*id, node.told());
                }
            }
        } else {
            for class in &self.class_of(viewer).neighbours {
                for id in self
                    .classes
                    .at(*class)
                    .members
                    .keys()
                    .filter(|id| **id != viewer.id())
                {
                    told.extend(self.nodes.get(id).map(|node| (*id, node.told())));
                }
            }
        }
        let newer = (cursor.version.saturating_add(1), FIRST)..;
        for (_, id) in self.changes.range(newer.clone()) {
            let news = self
                .nodes
                .get(id)
                .is_some_and(|node| self.sees(viewer, node) || node.class_since > cursor.version);
            if news && *id != viewer.id() {
                told.insert(*id, Change::WHOLE);
            }
        }
        told.extend(
            self.tombstones
                .range(newer)
                .map(|(_, id)| (*id, Change::WHOLE)),
        );
        Some(told)
    }

    /// How to tell a session of a change, by what is true now.
    pub(crate) fn tell(
        &mut self,
        viewer: NodeId,
        id: NodeId,
        change: Change,
        encoder: &dyn PeerEncoder,
    ) -> Told {
        let visible = match (self.nodes.get(&viewer), self.nodes.get(&id)) {
            (Some(viewer), Some(node)) => self.sees(viewer, node),
            _ => false,
        };
        match self.nodes.get_mut(&id) {
            Some(node) if visible && change.has(Change::WHOLE) => Told::Peer(node.encoded(encoder)),
            Some(node) if visible => Told::Patch(node.patch(change, encoder)),
            _ => Told::Removed,
        }
    }

    pub(crate) fn self_node(&self, node: &Node) -> SelfNode {
        SelfNode {
            id: node.row.id,
            network: self.row.id,
            network_name: self.row.name.clone(),
            name: node.row.name.clone(),
            role: node.row.role,
            addrs: node.row.addrs,
            console_prefix: console_prefix(&self.row.name, &node.row.name),
            ssh_ca: self.row.ssh_ca.clone(),
        }
    }

    /// The gateway's route to a node, when it is a worker.
    pub(crate) fn route(&self, id: NodeId) -> Option<Route> {
        let node = self
            .nodes
            .get(&id)
            .filter(|node| node.row.role == Role::Worker)?;
        Some(Route {
            node: id,
            network: self.row.name.clone(),
            name: node.row.name.clone(),
            addrs: node.row.addrs,
            services: node.row.services.clone(),
            state: node.presence.state,
        })
    }
}

/// The lowest node id, to start ranges with.
const FIRST: NodeId = NodeId::from_bytes([0; 16]);
