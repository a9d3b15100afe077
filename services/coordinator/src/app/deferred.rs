//! What may happen while the store is down, and must be in its audit all the same.
//!
//! SSH certificates are needed most when something is broken. They are issued without the store;
//! what is to be noted of them waits in memory, and stands in the log in the meantime. Not for ever:
//! another coordinator may have taken over and revoked somebody ([`Store::is_memory_trusted`]).
//!
//! [`Store::is_memory_trusted`]: crate::store::Store::is_memory_trusted

use std::sync::PoisonError;

use super::Core;
use crate::error::Error;
use crate::record::{AuditEntry, EventRecord};

/// The most notes that wait; beyond them nothing more is done that would need one.
const MOST: usize = 10_000;

/// An event and its entry in the audit chain.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    pub(super) event: EventRecord,
    pub(super) entry: AuditEntry,
}

impl Core {
    /// Stores the note, or keeps it until the store takes changes again.
    pub(super) async fn note_now_or_later(&self, note: Note) -> Result<(), Error> {
        let reason = match self.store_notes(std::slice::from_ref(&note)).await {
            Err(Error::StoreUnavailable(reason)) if self.store.is_memory_trusted() => reason,
            outcome => return outcome,
        };
        let mut waiting = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST {
            return Err(Error::StoreUnavailable(reason));
        }
        let AuditEntry {
            actor,
            action,
            subject,
            after,
            ..
        } = &note.entry;
        tracing::info!(actor, action, subject, after, "written to the audit later");
        waiting.push(note);
        Ok(())
    }

    /// Writes down what waits, if anything does and the store takes changes.
    pub(crate) async fn write_deferred(&self) {
        let take = || {
            let mut waiting = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        let notes = take();
        if notes.is_empty() {
            return;
        }
        match self.again(|| self.store_notes(&notes)).await {
            Ok(()) => tracing::info!(entries = notes.len(), "wrote what the audit was owed"),
            Err(error) => {
                let error = mesh_daemon::report::chain(&error);
                tracing::info!(
                    entries = notes.len(),
                    error,
                    "the audit is still owed entries"
                );
                let mut waiting = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.splice(0..0, notes);
            }
        }
    }

    async fn store_notes(&self, notes: &[Note]) -> Result<(), Error> {
        let mut change = self.change("coordinator").await?;
        for Note { event, entry } in notes {
            change.events.push(event.clone());
            change.txn.audit_append(entry).await?;
        }
        change.commit().await.map(drop)
    }
}
