//! Dials workers over the mesh: each address inside the network whose route named it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper_reverse_proxy::{ConnectError, Connector};
use mesh_node::{Node, OverlayStream};

use crate::route_table::{NetworkSlot, Target};

/// A worker from which nothing comes for this long is gone, and requests to it fail.
const SILENCE: Duration = Duration::from_secs(15);

/// The nodes of all networks, one overlay each. Cheap to clone.
///
/// It dials only what it is given, and it is given only targets of the route table.
#[derive(Debug, Clone, Default)]
pub struct OverlayConnector {
    nodes: Arc<RwLock<Vec<Option<Node>>>>,
}

impl OverlayConnector {
    /// Adds a network's node; the slot names it in targets.
    pub fn add(&self, node: Node) -> NetworkSlot {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.push(Some(node));
        NetworkSlot(u32::try_from(nodes.len() - 1).unwrap_or(u32::MAX))
    }

    /// Forgets a network's node; nothing is dialled there any more.
    pub fn remove(&self, slot: NetworkSlot) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = usize::try_from(slot.0)
            .ok()
            .and_then(|at| nodes.get_mut(at))
        {
            *node = None;
        }
    }

    fn node(&self, slot: NetworkSlot) -> Option<Node> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(usize::try_from(slot.0).ok()?).cloned()?
    }
}

impl Connector for OverlayConnector {
    type Target = Target;
    type Stream = OverlayStream;

    async fn connect(&self, target: &Target) -> Result<OverlayStream, ConnectError> {
        let Some(node) = self.node(target.slot) else {
            return Err(ConnectError::Unreachable("this network is gone".into()));
        };
        let dialled = node.dial_watched(target.addr, SILENCE).await;
        dialled.map_err(|err| match err {
            err if err.is_refused() => ConnectError::Refused(err.into()),
            err if err.is_timeout() => ConnectError::TimedOut,
            err => ConnectError::Unreachable(err.into()),
        })
    }

    /// A terminal outlasts a worker that sleeps or roams.
    fn upgraded(&self, stream: &OverlayStream) {
        stream.outlast_silence();
    }
}
