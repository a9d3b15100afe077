//! Connections end with the membership of who is on them.
//!
//! A node that is removed loses its streams at once, each by itself. Its connection would outlive
//! them, in a place that makes room for nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::app::Core;
use crate::caller::{Caller, PeerCertificate};

/// How often it is looked who is no member any more, while anything changes about members.
const LOOK: Duration = Duration::from_millis(500);

/// The connections whose clients have shown a certificate. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    shown: HashMap<u64, Arc<Shown>>,
    next: u64,
}

#[derive(Debug)]
struct Shown {
    certificate: Arc<PeerCertificate>,
    over: Notify,
}

/// One of the connections, until this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    known: Known,
    number: u64,
    shown: Arc<Shown>,
}

impl Known {
    /// Takes down whose certificate was shown on a connection.
    pub(super) fn enter(&self, certificate: Arc<PeerCertificate>) -> Entry {
        let shown = Arc::new(Shown {
            certificate,
            over: Notify::new(),
        });
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.shown.insert(number, Arc::clone(&shown));
        drop(table);
        Entry {
            known: self.clone(),
            number,
            shown,
        }
    }

    /// Ends the connections of those who are members no more, for as long as it runs.
    pub(super) async fn watch(self, core: Arc<Core>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = None;
        loop {
            look.tick().await;
            let changes = core.members.changes();
            if seen.replace(changes) == Some(changes) {
                continue;
            }
            // Nobody waits for the table meanwhile.
            let all: Vec<_> = self.lock().shown.values().cloned().collect();
            for shown in all {
                if Caller::enrolled(&core.members, &shown.certificate).is_err() {
                    shown.over.notify_one();
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Ends when its client is a member no more. Cancel-safe.
    pub(super) async fn over(&self) {
        self.shown.over.notified().await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.known.lock().shown.remove(&self.number);
    }
}
