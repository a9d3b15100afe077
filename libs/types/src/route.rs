//! What the traffic-gateway serves: one route for each worker of its networks.

use serde::{Deserialize, Serialize};

use crate::addr::OverlayAddrs;
use crate::id::NodeId;
use crate::name::{NetworkName, NodeName};
use crate::node::NodeState;
use crate::service::Service;

/// One worker as the gateway sees it: where its console and services are, and how it is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The worker.
    pub node: NodeId,
    /// Its network.
    pub network: NetworkName,
    /// Its name in that network.
    pub name: NodeName,
    /// Where it is dialled, and nowhere else.
    pub addrs: OverlayAddrs,
    /// What it publishes, the console included.
    pub services: Vec<Service>,
    /// By its heartbeats.
    pub state: NodeState,
}

/// The path prefix under which the gateway serves a worker's console: `/<node>/` in the default
/// network, `/n/<network>/<node>/` in others. Starts and ends with `/`.
pub fn console_prefix(network: &NetworkName, node: &NodeName) -> String {
    if network.is_default() {
        format!("/{node}/")
    } else {
        format!("/n/{network}/{node}/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_network_has_the_short_prefix() {
        let node = "worker-node-1".parse().expect("a name");
        assert_eq!(
            console_prefix(&NetworkName::default_network(), &node),
            "/worker-node-1/"
        );
        let lab = "lab".parse().expect("a name");
        assert_eq!(console_prefix(&lab, &node), "/n/lab/worker-node-1/");
    }
}
