//! All networks that are served, and how others see them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use mesh_node::Node;
use mesh_types::{NetworkName, NodeId};
use tokio::sync::watch;

use crate::member::Member;

/// A network as others in this process see it.
#[derive(Debug, Clone)]
pub struct Opened {
    /// This deploy-manager's id there.
    pub node: NodeId,
    /// Where its SOCKS5 is served.
    pub socks: SocketAddr,
    /// Its node.
    pub overlay: Node,
}

/// The networks that are served now; changes when one comes or goes.
pub type Networks = watch::Receiver<BTreeMap<NetworkName, Opened>>;

/// The members, shared between the loop that opens and closes them and the gRPC service.
#[derive(Clone)]
pub(crate) struct Members {
    inner: Arc<RwLock<BTreeMap<NetworkName, Arc<Member>>>>,
    seen: watch::Sender<BTreeMap<NetworkName, Opened>>,
}

impl Members {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::default(),
            seen: watch::channel(BTreeMap::new()).0,
        }
    }

    pub(crate) fn networks(&self) -> Networks {
        self.seen.subscribe()
    }

    pub(crate) fn get(&self, network: &NetworkName) -> Option<Arc<Member>> {
        let members = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        members.get(network).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Member>> {
        let members = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        members.values().cloned().collect()
    }

    pub(crate) fn add(&self, member: Member) {
        let opened = Opened {
            node: member.enrolled.node,
            socks: member.socks,
            overlay: member.node.clone(),
        };
        let network = member.network.clone();
        let mut members = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        members.insert(network.clone(), Arc::new(member));
        drop(members);
        self.seen
            .send_modify(|seen| drop(seen.insert(network, opened)));
    }

    pub(crate) fn remove(&self, network: &NetworkName) -> Option<Arc<Member>> {
        self.seen.send_modify(|seen| drop(seen.remove(network)));
        let mut members = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        members.remove(network)
    }
}
