//! What may happen while the store is down, and must be in its audit all the same.
//!
//! SSH certificates are needed most when something is broken. They are issued without the store;
//! what is to be noted of them waits in memory, and stands in the log in the meantime. Not for ever:
//! another coordinator may have taken over and revoked somebody ([`Store::is_memory_trusted`]).
//!
//! [`Store::is_memory_trusted`]: crate::store::Store::is_memory_trusted

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Core;
use crate::error::Error;
use crate::record::{AuditEntry, EventRecord};

/// The most notes that wait; beyond them nothing more is done that would need one.
const MOST: usize = 10_000;
/// How many notes share a transaction.
const CHUNK: usize = 200;

/// An event and its entry in the audit chain.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    pub(super) event: EventRecord,
    pub(super) entry: AuditEntry,
}

/// The notes that wait, oldest first.
///
/// INVARIANT: a note leaves when it is stored, not before: whoever writes them may be ended at any
/// moment.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    waiting: Mutex<VecDeque<Note>>,
    /// Held by the one who writes them.
    writing: tokio::sync::Mutex<()>,
}

impl Deferred {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Note>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Stores the note, or keeps it until the store takes changes again.
    pub(super) async fn note_now_or_later(&self, note: Note) -> Result<(), Error> {
        let reason = match self.store_notes(std::slice::from_ref(&note)).await {
            Err(Error::StoreUnavailable(reason)) if self.store.is_memory_trusted() => reason,
            outcome => return outcome,
        };
        let mut waiting = self.deferred.waiting();
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
        waiting.push_back(note);
        Ok(())
    }

    /// Writes down what waits, if anything does and the store takes changes. Runs to its end also
    /// when the caller is ended.
    pub(crate) async fn write_deferred(self: &Arc<Self>) {
        if self.deferred.waiting().is_empty() {
            return;
        }
        let core = Arc::clone(self);
        let written = self
            .finish("deferred", async move { core.write_waiting().await })
            .await;
        match written {
            Ok(entries) => tracing::info!(entries, "wrote what the audit was owed"),
            Err(error) => {
                let error = mesh_daemon::report::chain(&error);
                let entries = self.deferred.waiting().len();
                tracing::info!(entries, error, "the audit is still owed entries");
            }
        }
    }

    /// Stores what waits, some at a time; answers how many.
    pub(super) async fn write_waiting(&self) -> Result<usize, Error> {
        let _alone = self.deferred.writing.lock().await;
        let mut written = 0;
        loop {
            let notes: Vec<Note> = self
                .deferred
                .waiting()
                .iter()
                .take(CHUNK)
                .cloned()
                .collect();
            if notes.is_empty() {
                return Ok(written);
            }
            self.again(|| self.store_notes(&notes)).await?;
            self.deferred.waiting().drain(..notes.len());
            written += notes.len();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::app::tests as testing;
    use crate::record::EventKind;

    fn note(n: usize) -> Note {
        Note {
            event: EventRecord {
                id: 0,
                time: testing::NOW,
                network: None,
                kind: EventKind::SshCertificateIssued,
                subject: n.to_string(),
                detail: String::new(),
            },
            entry: AuditEntry {
                time: testing::NOW,
                actor: "deployer".to_owned(),
                action: "ssh-certificate".to_owned(),
                subject: format!("serial:{n}"),
                ..AuditEntry::default()
            },
        }
    }

    #[tokio::test]
    async fn what_waits_is_written_some_at_a_time_and_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let core = testing::core(&dir).await;
        let links = core
            .store
            .audit_verify()
            .await
            .expect("reads")
            .expect("holds");
        core.guard_writes(Some("away".to_owned()));
        for n in 0..2 * CHUNK + 1 {
            core.note_now_or_later(note(n)).await.expect("waits");
        }
        core.guard_writes(None);
        let before = core.store.change_number().await;
        core.write_deferred().await;
        assert_eq!(core.store.change_number().await, before + 3, "transactions");
        let all = i64::try_from(2 * CHUNK + 1).expect("small");
        let now = core.store.audit_verify().await.expect("reads");
        assert_eq!(now, Ok(links + all));
        let events = core.store.event_list(None, 0, 2).await.expect("reads");
        assert_eq!(
            events.last().expect("events").subject,
            (2 * CHUNK).to_string()
        );
    }

    #[tokio::test]
    async fn nothing_that_waits_is_lost_when_the_writer_is_ended_half_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let core = testing::core(&dir).await;
        let links = core
            .store
            .audit_verify()
            .await
            .expect("reads")
            .expect("holds");
        core.guard_writes(Some("away".to_owned()));
        core.note_now_or_later(note(1)).await.expect("waits");
        core.guard_writes(None);

        // Somebody else's turn lasts, so the writer waits when it is ended.
        let turn = core.turn.lock().await;
        let writer = {
            let core = Arc::clone(&core);
            tokio::spawn(async move { core.write_deferred().await })
        };
        while core.deferred.writing.try_lock().is_ok() && !writer.is_finished() {
            tokio::task::yield_now().await;
        }
        writer.abort();
        drop(turn);
        core.close(Duration::from_secs(3)).await;
        drop(core);

        let core = testing::core(&dir).await;
        let now = core.store.audit_verify().await.expect("reads");
        assert_eq!(now, Ok(links + 1));
    }
}
