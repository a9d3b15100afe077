//! The coordinator's `GatewayService`, as its client.

use std::sync::atomic::{AtomicBool, Ordering};

use mesh_api::pb;
use mesh_api::pb::gateway_service_client::GatewayServiceClient;
use mesh_daemon::Latch;
use mesh_node::Node;
use mesh_types::route::Route;
use mesh_types::{NetworkName, NodeId};

use crate::watch::Table;

/// One stream, from its opening to its end; gives the reason.
pub(crate) async fn routes(
    node: &Node,
    network: &NetworkName,
    table: &Table,
    followed: &AtomicBool,
    latch: &Latch,
) -> String {
    let mut client = GatewayServiceClient::new(node.channel());
    let mut routes = match client.watch_routes(pb::WatchRoutesRequest {}).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    loop {
        match routes.message().await {
            Ok(Some(change)) => {
                let pb::WatchRoutesResponse {
                    full,
                    changed,
                    removed,
                } = change;
                let changed: Vec<Route> = changed
                    .into_iter()
                    .filter_map(|route| match Route::try_from(route) {
                        Ok(route) => Some(route),
                        Err(err) => {
                            tracing::debug!(%network, error = %err, "route left out");
                            None
                        }
                    })
                    .collect();
                let removed: Vec<NodeId> = removed
                    .iter()
                    .filter_map(|id| NodeId::try_from(id.as_slice()).ok())
                    .collect();
                tracing::debug!(
                    %network, full, changed = changed.len(), removed = removed.len(), "routes",
                );
                followed.store(true, Ordering::Relaxed);
                table.change(|table| table.apply(network, full, changed, &removed));
                latch.ready();
            }
            Ok(None) => return "closed by the coordinator".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}
