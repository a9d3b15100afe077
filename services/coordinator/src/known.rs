//! Who has shown a certificate on a connection that is open, and hears when it is a member's no
//! more.
//!
//! Nobody asks again and again whether it still belongs here: whoever changes the members looks at
//! once at those whom the change is of, and tells them. So a removal, a key that takes the place of
//! another, and a revocation end the streams of one member, and nobody else is woken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::app::Core;
use crate::caller::{Caller, PeerCertificate};
use crate::members::Members;

/// How often all are looked at besides, in case that somebody was not told.
const LOOK: Duration = Duration::from_secs(15);
/// How many of them between two other things.
const PART: usize = 256;

/// The certificates that were shown on open connections. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// By the subject's id and a number that no other connection has.
    shown: BTreeMap<([u8; 16], u64), Arc<Shown>>,
    next: u64,
}

/// A certificate that was shown on a connection.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) certificate: PeerCertificate,
    /// Once it is set it stays.
    is_over: AtomicBool,
    over: Notify,
}

/// One of the connections, until this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    known: Known,
    key: ([u8; 16], u64),
    shown: Arc<Shown>,
}

/// Whose membership a change may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touched {
    Nobodys,
    /// That of the one with this id.
    One([u8; 16]),
    Anybodys,
}

impl Known {
    /// Takes down what was shown on a connection.
    ///
    /// It may be nobody's any more; then each call is refused. INVARIANT: calls are looked at after
    /// this, so what changes after such a look is told.
    pub(crate) fn enter(&self, certificate: PeerCertificate) -> Entry {
        let id = certificate.id();
        let shown = Arc::new(Shown {
            certificate,
            is_over: AtomicBool::new(false),
            over: Notify::new(),
        });
        let mut table = self.lock();
        let key = (id, table.next);
        table.next += 1;
        table.shown.insert(key, Arc::clone(&shown));
        drop(table);
        Entry {
            known: self.clone(),
            key,
            shown,
        }
    }

    /// Tells those whom the change is of and who are members no more. To be called after the
    /// change.
    pub(crate) fn tell(&self, members: &Members, touched: Touched) {
        // Nobody waits for the table while they are looked at.
        for shown in self.of(touched) {
            shown.look(members);
        }
    }

    /// Looks at all now and then, for as long as it runs.
    pub(crate) async fn watch(self, core: Arc<Core>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            for part in self.of(Touched::Anybodys).chunks(PART) {
                for shown in part {
                    shown.look(&core.members);
                }
                tokio::task::yield_now().await;
            }
        }
    }

    fn of(&self, touched: Touched) -> Vec<Arc<Shown>> {
        match touched {
            Touched::Nobodys => Vec::new(),
            Touched::One(id) => {
                let table = self.lock();
                let all = table.shown.range((id, 0)..=(id, u64::MAX));
                all.map(|(_, shown)| Arc::clone(shown)).collect()
            }
            Touched::Anybodys => self.lock().shown.values().cloned().collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    /// Ends when the certificate is a member's no more. Cancel-safe.
    pub(crate) async fn over(&self) {
        // Before the look: from now on it is woken.
        let told = self.over.notified();
        if !self.is_over.load(Ordering::Acquire) {
            told.await;
        }
    }

    fn look(&self, members: &Members) {
        if Caller::enrolled(members, &self.certificate).is_err() {
            self.is_over.store(true, Ordering::Release);
            self.over.notify_waiters();
        }
    }
}

impl Entry {
    /// What was shown.
    pub(crate) fn shown(&self) -> &Arc<Shown> {
        &self.shown
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.known.lock().shown.remove(&self.key);
    }
}

#[cfg(test)]
mod tests;
