//! The clients as all connections share them, and their list on disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_node::{StateDir, StateDirError};
use mesh_types::{NetworkId, WgPublicKey};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::mailbox::Mailbox;
use crate::metrics::RelayMetrics;
use crate::registry::{ClientsUpdate, Registry};

/// The list's file in the state directory.
const FILE: &str = "clients.json";

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    clients: HashMap<WgPublicKey, NetworkId>,
}

/// Everything about clients that outlives a connection.
#[derive(Debug)]
pub(crate) struct Clients {
    registry: Mutex<Registry<Arc<Mailbox>>>,
    /// Counts the changes of who is allowed.
    changes: watch::Sender<u64>,
    list: Mutex<ListState>,
    /// Held while the list is written, so that the newest is what stays.
    storing: Mutex<()>,
    metrics: RelayMetrics,
}

/// How it stands with the coordinator's list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ListState {
    /// Whether there is one: nobody is let in without.
    pub(crate) known: bool,
    /// Why the newest is not on disk, if it is not.
    pub(crate) unsaved: Option<String>,
}

impl Clients {
    pub(crate) fn new(metrics: RelayMetrics) -> Self {
        Self {
            registry: Mutex::new(Registry::new()),
            changes: watch::Sender::new(0),
            list: Mutex::default(),
            storing: Mutex::default(),
            metrics,
        }
    }

    /// The registry, to be held for a moment and never across an await.
    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry<Arc<Mailbox>>> {
        // Its methods finish what they begin.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what the coordinator says and cuts who is out.
    pub(crate) fn update(&self, update: ClientsUpdate) {
        let cut = {
            let mut registry = self.registry();
            let cut = registry.update(update);
            self.metrics.allowed.set(count(registry.allowed().len()));
            self.metrics.clients.set(count(registry.len()));
            cut
        };
        self.list_state().known = true;
        for mailbox in &cut {
            mailbox.cut();
        }
        if !cut.is_empty() {
            tracing::info!(cut = cut.len(), "connections of removed clients ended");
        }
        self.changes
            .send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// Tells when the list changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ends every connection, after a last frame.
    pub(crate) fn close_all(&self, last_frame: &[u8]) {
        for mailbox in self.registry().handles() {
            mailbox.close_with(last_frame.to_vec());
        }
    }

    pub(crate) fn metrics(&self) -> &RelayMetrics {
        &self.metrics
    }

    /// Updates the gauge after somebody came or went.
    pub(crate) fn recount(&self) {
        self.metrics.clients.set(count(self.registry().len()));
    }

    /// How it stands with the list, to be held for a moment.
    pub(crate) fn list_state(&self) -> MutexGuard<'_, ListState> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the list to disk; blocks on it.
    pub(crate) fn store(&self, state: &StateDir) -> Result<(), StateDirError> {
        let _alone = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = Stored {
            version: 1,
            clients: self.registry().allowed().clone(),
        };
        let bytes = serde_json::to_vec(&stored).unwrap_or_default();
        let written = state.write(FILE, &bytes);
        let why = written.as_ref().err();
        let why = why.map(|error| mesh_daemon::report::chain(error));
        let is_stored = why.is_none();
        let before = std::mem::replace(&mut self.list_state().unsaved, why);
        if is_stored && before.is_some() {
            tracing::info!("the list of clients is stored again");
        }
        written
    }

    /// Takes the list from disk. A damaged one counts as absent: the coordinator has it.
    pub(crate) fn load(&self, state: &StateDir) -> Result<bool, StateDirError> {
        let Some(bytes) = state.read(FILE)? else {
            return Ok(false);
        };
        match serde_json::from_slice::<Stored>(&bytes) {
            Ok(Stored {
                version: 1,
                clients,
            }) => {
                self.update(ClientsUpdate {
                    full: true,
                    clients,
                    removed: Vec::new(),
                });
                Ok(true)
            }
            Ok(_) | Err(_) => {
                tracing::info!("the stored list of clients cannot be read and is ignored");
                Ok(false)
            }
        }
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
