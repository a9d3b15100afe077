//! Keeps the stored netmap fresh, so that a restart without the coordinator finds its peers.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_types::{Netmap, NodeId, Timestamp};
use tokio::sync::watch;

use crate::control::ControlStatus;
use crate::counters::add;
use crate::node::{Shared, stopped};
use crate::state_dir::{StateDir, StoredNetmap};

/// Changes that come closer together than this are stored as one.
const SETTLE: Duration = Duration::from_millis(500);
/// Endpoints and the like change all the time; they alone are stored no more often than this.
const VOLATILE: Duration = Duration::from_secs(10);
/// How often it is stored without a change: it says when it was last known to be current.
const REFRESH: Duration = Duration::from_secs(300);
/// Peers to greet after a restart, at most.
const MAX_ACTIVE: usize = 256;

/// Runs until the node stops or is removed, and stores (or removes) once more then.
pub(crate) async fn run(
    shared: Arc<Shared>,
    state: StateDir,
    mut netmap: watch::Receiver<Option<Arc<Netmap>>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut stored: Option<(u64, Instant)> = None;
    let mut pending = false;
    loop {
        let wait = if pending { VOLATILE } else { REFRESH };
        let last = tokio::select! {
            () = stopped(&mut stop) => true,
            changed = netmap.changed() => changed.is_err(),
            () = tokio::time::sleep(wait) => false,
        };
        let last = last
            || tokio::time::timeout(SETTLE, stopped(&mut stop))
                .await
                .is_ok();
        let current = netmap.borrow_and_update().clone();
        if let Some(current) = current {
            let version = current.cursor.version;
            let soon = stored.is_some_and(|(_, at)| at.elapsed() < VOLATILE);
            pending = soon && !last && stored.is_some_and(|(known, _)| known == version);
            if !pending {
                let status = shared.control().status().borrow().clone();
                let failed = keep(status, active(&shared), &state, &current).await;
                // A disk that is full may have room again soon.
                pending = failed.is_some();
                note(&shared, failed);
                stored = Some((version, Instant::now()));
            }
        }
        if last {
            return;
        }
    }
}

/// Tells of a disk that takes nothing once, and once more when it does again.
fn note(shared: &Shared, failed: Option<String>) {
    if failed.is_some() {
        add(&shared.counters.netmap_store_failures, 1);
    }
    let before = shared.set_unsaved(failed.clone());
    match (before, failed) {
        (None, Some(error)) => {
            tracing::warn!(
                error,
                "the netmap was not stored; a restart needs the coordinator"
            );
        }
        (Some(_), None) => tracing::info!("the netmap is stored again"),
        (None, None) | (Some(_), Some(_)) => {}
    }
}

fn active(shared: &Shared) -> Vec<NodeId> {
    shared
        .snapshot()
        .peers
        .values()
        .filter(|stats| stats.active)
        .map(|stats| stats.node)
        .take(MAX_ACTIVE)
        .collect()
}

/// Stores the netmap, or removes the stored one when this node was removed: after a restart
/// without its coordinator it would otherwise greet peers that are its own no more. Gives what went
/// wrong, if anything.
pub(crate) async fn keep(
    status: ControlStatus,
    active: Vec<NodeId>,
    state: &StateDir,
    netmap: &Arc<Netmap>,
) -> Option<String> {
    let now = Timestamp::from(SystemTime::now());
    let (state, netmap) = (state.clone(), Arc::clone(netmap));
    let stored = tokio::task::spawn_blocking(move || {
        if status.is_removed() {
            return state.remove_netmap();
        }
        state.store_netmap(&StoredNetmap {
            saved: status.stale_since.unwrap_or(now),
            active,
            netmap: Netmap::clone(&netmap),
        })
    })
    .await;
    match stored {
        Ok(Err(error)) => {
            let source = std::error::Error::source(&error);
            Some(source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}")))
        }
        // The runtime is stopping when there is no answer.
        Ok(Ok(())) | Err(_) => None,
    }
}
