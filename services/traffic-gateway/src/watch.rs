//! Follows the coordinator's routes, one stream for each network.
//!
//! Until the first answer the stored netmap serves, so that a gateway that starts while the
//! coordinator is down still finds its workers. After that the last table stays whatever happens,
//! unless the gateway is removed from the network.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_daemon::Latch;
use mesh_node::Node;
use mesh_types::route::Route;
use mesh_types::{Netmap, NetworkName, Role};
use tokio::sync::watch;

use crate::grpc;
use crate::route_table::RouteTable;

const FIRST_WAIT: Duration = Duration::from_millis(200);
/// A running node comes back within this time.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The table that all watchers write and all cores read.
#[derive(Debug, Clone)]
pub struct Table(Arc<watch::Sender<Arc<RouteTable>>>);

impl Default for Table {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::default())))
    }
}

impl Table {
    /// A reader.
    pub fn subscribe(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.0.subscribe()
    }

    /// The table as it is.
    pub fn current(&self) -> Arc<RouteTable> {
        Arc::clone(&self.0.borrow())
    }

    /// Changes it for all readers at once.
    pub fn change(&self, change: impl FnOnce(&mut RouteTable)) {
        self.0.send_modify(|table| change(Arc::make_mut(table)));
    }
}

/// Follows the routes of `network` for ever.
pub async fn follow(node: Node, network: NetworkName, table: Table, latch: Latch) {
    let mut netmap = node.netmap();
    let mut wait = FIRST_WAIT;
    // Both run side by side until the first answer, and look at it before each change.
    let followed = AtomicBool::new(false);
    loop {
        tokio::select! {
            end = grpc::routes(&node, &network, &table, &followed, &latch) => {
                tracing::debug!(%network, reason = %end, "route stream ended");
                if followed.load(Ordering::Relaxed) {
                    latch.degraded(&format!("{end}; the last routes stay"));
                }
            }
            () = stored_routes(&mut netmap, &network, &table, &followed, &latch) => {}
        }
        if node.control().borrow().is_removed() {
            tracing::info!(%network, "the gateway was removed from the network");
            table.change(|table| table.apply(&network, true, Vec::new(), &[]));
            latch.not_ready("removed from the network");
            return;
        }
        if followed.load(Ordering::Relaxed) {
            wait = FIRST_WAIT;
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Somewhere between half the time and all of it, so that gateways do not come back in step.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(0u8) % 512;
    wait / 2 + (wait / 2) * u32::try_from(random).unwrap_or(0) / 511
}

/// Takes the routes from the stored netmap, again whenever it changes, until they are followed.
/// Never ends by itself.
async fn stored_routes(
    netmap: &mut watch::Receiver<Option<Arc<Netmap>>>,
    network: &NetworkName,
    table: &Table,
    followed: &AtomicBool,
    latch: &Latch,
) {
    loop {
        if followed.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        let routes = netmap.borrow_and_update().as_deref().map(routes_of);
        if let Some(routes) = routes {
            table.change(|table| table.apply(network, true, routes, &[]));
            latch.ready();
        }
        if netmap.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn routes_of(netmap: &Netmap) -> Vec<Route> {
    netmap
        .peers
        .values()
        .filter(|peer| peer.role == Role::Worker)
        .map(|peer| Route {
            node: peer.id,
            network: netmap.node.network_name.clone(),
            name: peer.name.clone(),
            addrs: peer.addrs,
            services: peer.services.clone(),
            state: peer.state,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesh_types::{Cursor, NetworkId, NodeId, NodeState, OverlayAddrs, PacketFilter, SelfNode};

    use super::*;
    use crate::route_table::NetworkSlot;

    /// With nobody else in the network.
    fn netmap() -> Option<Arc<Netmap>> {
        Some(Arc::new(Netmap {
            cursor: Cursor::default(),
            node: SelfNode {
                id: NodeId::from_bytes([9; 16]),
                network: NetworkId::from_bytes([1; 16]),
                network_name: NetworkName::default_network(),
                name: "gateway".parse().expect("a name"),
                role: Role::Gateway,
                addrs: OverlayAddrs {
                    v4: [100, 64, 0, 9].into(),
                    v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 9].into(),
                },
                console_prefix: String::new(),
                ssh_ca: String::new(),
            },
            peers: BTreeMap::new(),
            filter: PacketFilter::default(),
            relays: Vec::new(),
        }))
    }

    fn route() -> Route {
        Route {
            node: NodeId::from_bytes([1; 16]),
            network: NetworkName::default_network(),
            name: "worker-node-1".parse().expect("a name"),
            addrs: OverlayAddrs {
                v4: [100, 64, 0, 1].into(),
                v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1].into(),
            },
            services: Vec::new(),
            state: NodeState::Online,
        }
    }

    #[tokio::test]
    async fn netmaps_change_no_route_once_routes_are_followed() {
        let network = NetworkName::default_network();
        let table = Table::default();
        table.change(|table| table.add_network(&network, NetworkSlot(0)));
        let (sender, mut netmaps) = watch::channel(netmap());
        let followed = AtomicBool::new(false);
        let latch = mesh_daemon::Handles::default()
            .readiness
            .latch("routes", "not received yet");
        let stored = stored_routes(&mut netmaps, &network, &table, &followed, &latch);
        let told = async {
            let apply = || {
                table.change(|table| table.apply(&network, false, vec![route()], &[]));
            };
            apply();
            sender.send_replace(netmap());
            tokio::task::yield_now().await;
            assert_eq!(table.current().entries().len(), 0, "by the netmap so far");
            apply();
            followed.store(true, Ordering::Relaxed);
            sender.send_replace(netmap());
            tokio::task::yield_now().await;
            assert_eq!(table.current().entries().len(), 1, "it is of the past");
        };
        tokio::select! {
            biased;
            () = stored => panic!("it ended"),
            () = told => {}
        }
    }
}
