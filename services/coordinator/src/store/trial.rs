//! Trying the store: whether the lock is ours and changes go through.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::postgres::NotHeld;
use super::snapshot::Reader;
use super::txn::{Last, Txn};
use super::{Engine, MARGIN, Pools, Store, StoreError, close};

/// How long a trial waits for a writer under way.
const TRIAL_PATIENCE: Duration = Duration::from_secs(1);

/// How much a trial proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// Writes and takes it back.
    Undone,
    /// Writes for good: a full disk shows only then.
    Done,
}

impl Store {
    /// Looks whether the store takes changes: the lock, and a trial write. After an outage it
    /// connects anew, and changes go through again when the trial does. A damaged file is left as
    /// it is.
    pub(crate) async fn examine(&self) {
        let _alone = self.0.trial.lock().await;
        let health = &self.0.health;
        if health.is_damaged() {
            return;
        }
        let was_down = health.is_down();
        if let Engine::Postgres(postgres) = &self.0.engine {
            match postgres.hold().await {
                Ok(()) => {}
                Err(NotHeld::Taken(holder)) => {
                    let reason = format!("another coordinator has taken the database: {holder}");
                    return health.set_taken(reason, Instant::now());
                }
                Err(NotHeld::Unreachable(reason) | NotHeld::Refused(reason)) => {
                    return health.set_down(reason, true);
                }
                Err(NotHeld::Untrusted(reason)) => {
                    let reason = format!("the database cannot be trusted: {reason}");
                    return health.set_down(reason, true);
                }
            }
            if was_down {
                // Connections of before may hang for minutes in a network that drops packets.
                let fresh = Pools {
                    writer: postgres.writer(),
                    reader: Reader::Pool(postgres.reader()),
                };
                let renewals = self.0.renewals.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::debug!(renewals, "connecting to the database anew");
                let old = self.replace_pools(fresh);
                for pool in [old.reader.pool(), &old.writer] {
                    drop(timeout(MARGIN, close(pool)).await);
                }
            }
        }
        let trial = if was_down { Trial::Done } else { Trial::Undone };
        match self.try_write(trial).await {
            Ok(true) => health.healed(),
            // A writer is under way; what becomes of it will tell.
            Ok(false) => {}
            Err(error) => {
                let error = mesh_daemon::report::chain(&error);
                tracing::debug!(error, "a trial write failed");
            }
        }
    }

    /// `false`: a writer was under way.
    async fn try_write(&self, trial: Trial) -> Result<bool, StoreError> {
        let turn = Arc::clone(&self.0.last).lock_owned();
        let Ok(last) = timeout(TRIAL_PATIENCE, turn).await else {
            return Ok(false);
        };
        let txn = self.begin(last).await?;
        txn.meta_set("write_trial", 0).await?;
        match trial {
            Trial::Undone => txn.rollback().await?,
            Trial::Done => {
                let Txn {
                    inner,
                    number,
                    mut last,
                    store,
                } = txn;
                // What came before was ours: it has been found and raised.
                *last = Last {
                    number: number - 1,
                    slack: true,
                };
                match store.commit_raw(inner).await {
                    Ok(()) => {
                        *last = Last {
                            number,
                            slack: false,
                        };
                    }
                    Err(error) => return Err(StoreError::writing(error)),
                }
            }
        }
        Ok(true)
    }
}
