//! Who belongs to the mesh, in memory: what every call is checked against.
//!
//! INVARIANT: only use-cases write here, after their commit and while they hold the turn to
//! change things; so this is always a state that the store has had. Whoever is a member no more by a
//! change has been told so when the change returns ([`Known`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use mesh_types::{NetworkId, NetworkName, NodeId, OperatorId, RelayId};

use crate::known::{Known, Touched};
use crate::record::{NetworkRecord, NodeRecord, OperatorRecord, RelayRecord};

/// A network and the public half of its SSH authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkInfo {
    pub(crate) record: NetworkRecord,
    /// OpenSSH public key line.
    pub(crate) ssh_ca: String,
    /// Its private half as it is stored: needed also while the store is down.
    pub(crate) ssh_ca_sealed: Vec<u8>,
}

#[derive(Debug, Default)]
struct Tables {
    networks: BTreeMap<NetworkId, Arc<NetworkInfo>>,
    nodes: HashMap<NodeId, Arc<NodeRecord>>,
    relays: BTreeMap<RelayId, Arc<RelayRecord>>,
    operators: BTreeMap<OperatorId, Arc<OperatorRecord>>,
    /// Nodes and relays that were removed.
    removed: HashSet<[u8; 16]>,
}

/// Who an id stands for.
#[derive(Debug, Clone)]
pub(crate) enum Member {
    Node(Arc<NodeRecord>),
    Relay(Arc<RelayRecord>),
    Operator(Arc<OperatorRecord>),
    Removed,
}

/// The tables; cheap to read from any task.
#[derive(Debug, Default)]
pub(crate) struct Members {
    tables: RwLock<Tables>,
    known: Known,
}

impl Members {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        // Each change is one insert or remove, so a panicked writer leaves whole tables behind.
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every change comes through here, and says whose membership it may end.
    fn change(&self, change: impl FnOnce(&mut Tables) -> Touched) {
        let touched = change(&mut self.tables.write().unwrap_or_else(PoisonError::into_inner));
        self.known.tell(self, touched);
    }

    /// Those who are connected and have shown a certificate.
    pub(crate) fn known(&self) -> &Known {
        &self.known
    }

    pub(crate) fn network(&self, id: NetworkId) -> Option<Arc<NetworkInfo>> {
        self.read().networks.get(&id).cloned()
    }

    pub(crate) fn network_by_name(&self, name: &NetworkName) -> Option<Arc<NetworkInfo>> {
        self.read()
            .networks
            .values()
            .find(|info| info.record.name == *name)
            .cloned()
    }

    /// All networks, by name.
    pub(crate) fn networks(&self) -> Vec<Arc<NetworkInfo>> {
        let mut all: Vec<_> = self.read().networks.values().cloned().collect();
        all.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        all
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<Arc<NodeRecord>> {
        self.read().nodes.get(&id).cloned()
    }

    /// The nodes of a network, or of all, by id.
    pub(crate) fn nodes(&self, network: Option<NetworkId>) -> Vec<Arc<NodeRecord>> {
        let tables = self.read();
        let of_network = |node: &&Arc<NodeRecord>| network.is_none_or(|id| node.network == id);
        let mut nodes: Vec<_> = tables.nodes.values().filter(of_network).cloned().collect();
        drop(tables);
        nodes.sort_by_key(|node| node.id);
        nodes
    }

    pub(crate) fn relay(&self, id: RelayId) -> Option<Arc<RelayRecord>> {
        self.read().relays.get(&id).cloned()
    }

    pub(crate) fn relays(&self) -> Vec<Arc<RelayRecord>> {
        self.read().relays.values().cloned().collect()
    }

    pub(crate) fn operator(&self, id: OperatorId) -> Option<Arc<OperatorRecord>> {
        self.read().operators.get(&id).cloned()
    }

    pub(crate) fn operators(&self) -> Vec<Arc<OperatorRecord>> {
        self.read().operators.values().cloned().collect()
    }

    /// Whoever has, or had, this id.
    pub(crate) fn by_id(&self, id: &[u8; 16]) -> Option<Member> {
        let tables = self.read();
        if let Some(node) = tables.nodes.get(&NodeId::from_bytes(*id)) {
            return Some(Member::Node(Arc::clone(node)));
        }
        if let Some(relay) = tables.relays.get(&RelayId::from_bytes(*id)) {
            return Some(Member::Relay(Arc::clone(relay)));
        }
        if let Some(operator) = tables.operators.get(&OperatorId::from_bytes(*id)) {
            return Some(Member::Operator(Arc::clone(operator)));
        }
        tables.removed.contains(id).then_some(Member::Removed)
    }

    pub(crate) fn put_network(&self, info: NetworkInfo) {
        self.change(
            |tables| match tables.networks.insert(info.record.id, Arc::new(info)) {
                None => Touched::Nobodys,
                Some(_) => Touched::Anybodys,
            },
        );
    }

    /// Forgets the network; its nodes must have been removed before.
    pub(crate) fn remove_network(&self, id: NetworkId) {
        self.change(|tables| {
            tables.networks.remove(&id);
            Touched::Anybodys
        });
    }

    pub(crate) fn put_node(&self, record: NodeRecord) -> Arc<NodeRecord> {
        let record = Arc::new(record);
        self.change(|tables| {
            tables.nodes.insert(record.id, Arc::clone(&record));
            Touched::One(record.id.to_bytes())
        });
        record
    }

    pub(crate) fn remove_node(&self, id: NodeId) {
        self.change(|tables| {
            tables.nodes.remove(&id);
            tables.removed.insert(id.to_bytes());
            Touched::One(id.to_bytes())
        });
    }

    pub(crate) fn put_relay(&self, record: RelayRecord) -> Arc<RelayRecord> {
        let record = Arc::new(record);
        self.change(|tables| {
            tables.relays.insert(record.id, Arc::clone(&record));
            Touched::One(record.id.to_bytes())
        });
        record
    }

    pub(crate) fn remove_relay(&self, id: RelayId) {
        self.change(|tables| {
            tables.relays.remove(&id);
            tables.removed.insert(id.to_bytes());
            Touched::One(id.to_bytes())
        });
    }

    pub(crate) fn put_operator(&self, record: OperatorRecord) {
        self.change(|tables| {
            let id = record.id.to_bytes();
            tables.operators.insert(record.id, Arc::new(record));
            Touched::One(id)
        });
    }

    pub(crate) fn put_removed(&self, id: [u8; 16]) {
        self.change(|tables| {
            tables.removed.insert(id);
            Touched::One(id)
        });
    }
}
