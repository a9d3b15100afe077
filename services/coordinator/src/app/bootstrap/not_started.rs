//! That the coordinator does not start although its database opens: noted there, to be read once it
//! has started again.

use std::path::Path;

use mesh_types::Timestamp;

use super::credential::authority_on_file;
use super::{BootstrapError, CA_SECRET};
use crate::ca::CaError;
use crate::record::{EventKind, EventRecord};
use crate::seal::SealError;
use crate::store::Store;

/// Among so many of the newest events it is looked whether the reason was noted before. While no
/// coordinator runs nothing else happens of itself.
const LOOKED_AT: u64 = 50;

/// Notes that the coordinator does not start because its master key, an authority or what it
/// remembers is not what it should be; once for each reason since it started last, however often
/// it is tried.
///
/// Nothing is written where the database may be another mesh's: its authority has to be the one
/// that a coordinator of this state directory had.
pub(super) async fn note(store: &Store, dir: &Path, error: &BootstrapError, now: Timestamp) {
    if !is_told(error) {
        return;
    }
    match note_once(store, dir, mesh_daemon::report::chain(error), now).await {
        Ok(()) => {
            // So that it is in the database file, whatever becomes of the log.
            store.close().await;
        }
        Err(error) => {
            let error = mesh_daemon::report::chain(&error);
            tracing::debug!(error, "that the coordinator does not start is not noted");
        }
    }
}

/// Others are of this machine, of the moment, or of the database itself, which has events of its
/// own.
fn is_told(error: &BootstrapError) -> bool {
    match error {
        BootstrapError::Seal(error) => !matches!(error, SealError::Random),
        BootstrapError::Ca(error) => matches!(error, CaError::Damaged),
        BootstrapError::SshCa(_) | BootstrapError::OperatorKey | BootstrapError::Load(_) => true,
        _ => false,
    }
}

async fn note_once(
    store: &Store,
    dir: &Path,
    detail: String,
    now: Timestamp,
) -> Result<(), BootstrapError> {
    let stored = store.secret_show(CA_SECRET).await?;
    let on_file = authority_on_file(dir)?;
    if on_file.is_none() || on_file != stored.map(|secret| secret.public) {
        return Ok(());
    }
    let latest = store.event_list(None, 0, LOOKED_AT).await?;
    let mut since = latest
        .iter()
        .rev()
        .take_while(|event| event.kind != EventKind::CoordinatorStarted);
    if since.any(|event| event.kind == EventKind::CoordinatorNotStarted && event.detail == detail) {
        return Ok(());
    }
    let event = EventRecord {
        id: 0,
        time: now,
        network: None,
        kind: EventKind::CoordinatorNotStarted,
        subject: "coordinator".to_owned(),
        detail,
    };
    let txn = store.write().await?;
    txn.event_create(&event).await?;
    txn.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::app::bootstrap::{Foundation, MASTER_KEY_FILE, Opening, found};
    use crate::config::Config;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    /// A state directory in which a coordinator has worked.
    struct Home {
        _home: TempDir,
        config: Config,
        key: PathBuf,
    }

    impl Home {
        async fn new() -> Self {
            let home = tempfile::tempdir().expect("a directory");
            let dir = home.path().join("state");
            let home = Self {
                _home: home,
                key: dir.join(MASTER_KEY_FILE),
                config: Config {
                    state_dir: dir,
                    ..Config::default()
                },
            };
            home.opened().await.store.close().await;
            home
        }

        async fn opened(&self) -> Foundation {
            let opened = found(&self.config, Opening::Serving, NOW).await;
            opened.expect("opens")
        }

        async fn refused(&self, opening: Opening) -> String {
            let refused = found(&self.config, opening, NOW).await;
            mesh_daemon::report::chain(&refused.expect_err("refused"))
        }

        /// A key that is one, and another one.
        fn spoil(&self) {
            mesh_daemon::write_private(&self.key, "ab".repeat(32).as_bytes()).expect("writes");
        }

        /// What is noted, once it opens again with its own key.
        async fn noted(&self, key: &[u8]) -> Vec<String> {
            mesh_daemon::write_private(&self.key, key).expect("puts it back");
            let store = self.opened().await.store;
            let events = store.event_list(None, 0, 100).await.expect("reads");
            store.close().await;
            let mut noted = events;
            noted.retain(|event| event.kind == EventKind::CoordinatorNotStarted);
            noted.into_iter().map(|event| event.detail).collect()
        }
    }

    #[tokio::test]
    async fn a_master_key_that_is_wrong_or_gone_is_noted_once_each() {
        let home = Home::new().await;
        let right = std::fs::read(&home.key).expect("a key");
        home.spoil();
        let wrong = home.refused(Opening::Serving).await;
        std::fs::remove_file(&home.key).expect("removes");
        let missing = home.refused(Opening::Serving).await;
        home.spoil();
        assert_eq!(home.refused(Opening::Serving).await, wrong, "once more");
        assert!(wrong.contains("belongs to another database"), "{wrong}");
        assert!(missing.contains("is missing"), "{missing}");
        assert_eq!(home.noted(&right).await, [wrong, missing]);
    }

    #[tokio::test]
    async fn it_is_noted_anew_after_a_start() {
        let home = Home::new().await;
        let right = std::fs::read(&home.key).expect("a key");
        home.spoil();
        let wrong = home.refused(Opening::Serving).await;
        assert_eq!(home.noted(&right).await.len(), 1);
        let store = home.opened().await.store;
        let started = EventRecord {
            id: 0,
            time: NOW,
            network: None,
            kind: EventKind::CoordinatorStarted,
            subject: "coordinator".to_owned(),
            detail: String::new(),
        };
        let txn = store.write().await.expect("begins");
        txn.event_create(&started).await.expect("notes");
        txn.commit().await.expect("commits");
        store.close().await;
        drop(store);
        home.spoil();
        home.refused(Opening::Serving).await;
        assert_eq!(home.noted(&right).await, [wrong.clone(), wrong]);
    }

    #[tokio::test]
    async fn nothing_is_written_to_a_database_that_may_be_anothers() {
        let (home, other) = (Home::new().await, Home::new().await);
        let right = std::fs::read(&home.key).expect("a key");
        home.spoil();
        home.refused(Opening::Beside).await;
        assert!(home.noted(&right).await.is_empty(), "it was not to serve");
        let pinned = home.config.state_dir.join("operator/ca.crt");
        let own = std::fs::read(&pinned).expect("ours");
        let others = std::fs::read(other.config.state_dir.join("operator/ca.crt"));
        mesh_daemon::write_private(&pinned, &others.expect("the other's")).expect("writes");
        home.spoil();
        home.refused(Opening::Serving).await;
        std::fs::remove_file(&pinned).expect("removes");
        home.refused(Opening::Serving).await;
        mesh_daemon::write_private(&pinned, &own).expect("puts it back");
        assert!(home.noted(&right).await.is_empty());
    }
}
