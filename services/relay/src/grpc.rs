//! Following the coordinator's list of clients.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::pb;
use mesh_api::pb::relay_service_client::RelayServiceClient;
use mesh_daemon::Latch;
use mesh_node::StateDir;
use mesh_types::{NetworkId, WgPublicKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use tonic::transport::Channel;

use crate::clients::Clients;
use crate::registry::ClientsUpdate;

const BACKOFF_START: Duration = Duration::from_millis(250);
const BACKOFF_CAP: Duration = Duration::from_secs(5);
/// How often a list that could not be stored is tried again.
const STORE_RETRY: Duration = Duration::from_secs(10);

/// Why following ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("{}", .0.message())]
    Status(#[from] Box<tonic::Status>),
    #[error("the coordinator ended the stream")]
    Ended,
    #[error("the coordinator sent a client with a malformed {0}")]
    Malformed(&'static str),
}

/// Follows the list for ever: applies each change, stores it, and connects again when it breaks.
/// The latch is ready from the first whole list on, a stored one too (`known`), and degraded while
/// that list is not followed.
pub(crate) async fn follow(
    channel: Channel,
    clients: Arc<Clients>,
    state: StateDir,
    latch: Latch,
    mut known: bool,
) {
    let mut failures = 0_u32;
    loop {
        let mut received = false;
        let error = match watch(channel.clone(), &clients, &state, &latch, &mut received).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if received {
            failures = 0;
            tracing::info!(%error, "the list of clients is not followed for now");
        } else {
            tracing::debug!(%error, "the list of clients cannot be had yet");
        }
        known |= received;
        if known {
            latch.degraded(&format!("{error}; the last list stays"));
        }
        let cap = BACKOFF_START
            .saturating_mul(1 << failures.min(10))
            .min(BACKOFF_CAP);
        failures = failures.saturating_add(1);
        tokio::time::sleep(jittered(cap)).await;
    }
}

/// Between half and the whole of `cap`, so that relays do not come back in step.
fn jittered(cap: Duration) -> Duration {
    let mut random = [0];
    if SystemRandom::new().fill(&mut random).is_err() {
        return cap;
    }
    cap / 2 + cap / 2 * u32::from(random[0]) / 255
}

async fn watch(
    channel: Channel,
    clients: &Arc<Clients>,
    state: &StateDir,
    latch: &Latch,
    received: &mut bool,
) -> Result<std::convert::Infallible, WatchError> {
    let mut stream = RelayServiceClient::new(channel)
        .watch_clients(pb::WatchClientsRequest {})
        .await
        .map_err(Box::new)?
        .into_inner();
    let mut pending = ClientsUpdate::default();
    loop {
        let part = stream
            .message()
            .await
            .map_err(Box::new)?
            .ok_or(WatchError::Ended)?;
        let pb::WatchClientsResponse {
            full,
            last,
            clients: named,
            removed,
        } = part;
        pending.full |= full;
        pending.clients.extend(convert(named)?);
        for key in removed {
            let key =
                WgPublicKey::try_from(key.as_slice()).map_err(|_| WatchError::Malformed("key"))?;
            pending.clients.remove(&key);
            pending.removed.push(key);
        }
        if !last {
            continue;
        }
        clients.update(std::mem::take(&mut pending));
        *received = true;
        latch.ready();
        let (clients, state) = (Arc::clone(clients), state.clone());
        let stored = tokio::task::spawn_blocking(move || clients.store(&state)).await;
        if let Ok(Err(error)) = stored {
            let error = mesh_daemon::report::chain(&error);
            tracing::warn!(error, "the list of clients could not be stored");
        }
    }
}

/// Stores what could not be stored, once the disk has room again; never returns. The list changes
/// seldom, and a relay that starts again without its coordinator must not go by an older one.
pub(crate) async fn store_again(clients: Arc<Clients>, state: StateDir) {
    loop {
        tokio::time::sleep(STORE_RETRY).await;
        if clients.list_state().unsaved.is_none() {
            continue;
        }
        let (clients, state) = (Arc::clone(&clients), state.clone());
        // What fails is told already, and kept for the status; success is logged where it stores.
        drop(tokio::task::spawn_blocking(move || clients.store(&state)).await);
    }
}

fn convert(clients: Vec<pb::RelayClient>) -> Result<HashMap<WgPublicKey, NetworkId>, WatchError> {
    clients
        .into_iter()
        .map(|client| {
            let pb::RelayClient { wg_key, network_id } = client;
            Ok((
                WgPublicKey::try_from(wg_key.as_slice())
                    .map_err(|_| WatchError::Malformed("key"))?,
                NetworkId::try_from(network_id.as_slice())
                    .map_err(|_| WatchError::Malformed("network"))?,
            ))
        })
        .collect()
}
