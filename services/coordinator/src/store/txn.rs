//! Transactions that write, one at a time, each with the next change number.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::{
    ConnectionTrait as _, DatabaseTransaction, DbBackend, DbErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait as _,
};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::health::{is_in_doubt, no_answer};
use super::meta::{CHANGE_KEY, one_value, set_meta};
use super::timed::Timed;
use super::{Store, StoreError};

/// How often it is asked again whether a commit in doubt has happened.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// The change number as we know it.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) number: i64,
    /// A trial write, which nothing in memory hangs on, may have happened once more.
    pub(super) slack: bool,
}

/// One transaction that may write; dropped without [`Txn::commit`] it changes nothing.
#[derive(Debug)]
pub(crate) struct Txn {
    pub(super) inner: Timed<DatabaseTransaction>,
    pub(super) number: i64,
    pub(super) last: OwnedMutexGuard<Last>,
    pub(super) store: Store,
}

impl Store {
    /// The number of the last change.
    #[cfg(test)]
    pub(crate) async fn change_number(&self) -> i64 {
        self.0.last.lock().await.number
    }

    /// Begins a transaction that may write; others wait for it.
    pub(crate) async fn write(&self) -> Result<Txn, StoreError> {
        self.refuse()?;
        let last = Arc::clone(&self.0.last).lock_owned().await;
        self.refuse()?;
        self.begin(last).await
    }

    fn refuse(&self) -> Result<(), StoreError> {
        match self.0.health.refusal() {
            _ if self.0.health.is_stale() => Err(StoreError::Stale),
            Some(reason) => Err(StoreError::ReadOnly(reason)),
            None => Ok(()),
        }
    }

    pub(super) async fn begin(&self, last: OwnedMutexGuard<Last>) -> Result<Txn, StoreError> {
        let inner = self.begin_raw().await?;
        let lock = if self.0.beside {
            format!("SELECT value FROM meta WHERE name = '{CHANGE_KEY}' FOR UPDATE")
        } else {
            format!("UPDATE meta SET value = value + 1 WHERE name = '{CHANGE_KEY}' RETURNING value")
        };
        let number = one_value(&inner, lock).await.map_err(StoreError::writing)?;
        let next = last.number + 1;
        if !self.0.beside && number != next && !(last.slack && number == next + 1) {
            tracing::error!(
                expected = next,
                found = number,
                "another coordinator has changed the database"
            );
            self.0.health.set_stale();
            return Err(StoreError::Stale);
        }
        Ok(Txn {
            inner,
            number,
            last,
            store: self.clone(),
        })
    }

    pub(super) async fn begin_raw(&self) -> Result<Timed<DatabaseTransaction>, StoreError> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let writer = self.pools().writer;
        let limit = self.0.limit;
        let begun = match timeout(limit, writer.begin_with_options(options)).await {
            Ok(begun) => begun,
            Err(_) => Err(no_answer(limit)),
        };
        let inner = begun.map_err(|error| {
            self.0.health.failed(&error);
            StoreError::writing(error)
        })?;
        Ok(self.timed(inner))
    }

    pub(super) async fn commit_raw(&self, txn: Timed<DatabaseTransaction>) -> Result<(), DbErr> {
        let limit = txn.limit;
        let outcome = match timeout(limit, txn.inner.commit()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(no_answer(limit)),
        };
        if let Err(error) = &outcome {
            self.0.health.failed(error);
        }
        outcome
    }

    /// Waits until the database says whether the change with this number has happened.
    ///
    /// The row's lock is asked for: while the old connection still holds it, its commit may yet come.
    async fn settle(&self, number: i64) -> Result<bool, StoreError> {
        tracing::info!(number, "it is in doubt whether a change was stored; asking");
        loop {
            tokio::time::sleep(SETTLE_EVERY).await;
            let asked = async {
                let txn = self.begin_raw().await?;
                let lock = match txn.get_database_backend() {
                    DbBackend::Postgres => " FOR UPDATE",
                    _ => "",
                };
                let ask = format!("SELECT value FROM meta WHERE name = '{CHANGE_KEY}'{lock}");
                one_value(&txn, ask).await.map_err(StoreError::reading)
            };
            match asked.await {
                Ok(found) if found == number => return Ok(true),
                Ok(found) if found == number - 1 => return Ok(false),
                Ok(_) => {
                    self.0.health.set_stale();
                    return Err(StoreError::Stale);
                }
                Err(error) => {
                    let error = mesh_daemon::report::chain(&error);
                    tracing::debug!(error, "it is still in doubt");
                }
            }
        }
    }
}

impl Txn {
    /// Makes everything since the beginning durable.
    ///
    /// When the connection breaks at this very point, nobody knows whether it happened; then this
    /// waits until the database can be asked.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        let Self {
            inner,
            number,
            mut last,
            store,
        } = self;
        // In case this is dropped half way.
        *last = Last {
            number: number - 1,
            slack: true,
        };
        let happened = match store.commit_raw(inner).await {
            Ok(()) => true,
            Err(error) if store.0.beside || !is_in_doubt(&error) => {
                return Err(StoreError::writing(error));
            }
            Err(error) => {
                if !store.settle(number).await? {
                    return Err(StoreError::writing(error));
                }
                true
            }
        };
        if happened {
            *last = Last {
                number,
                slack: false,
            };
        }
        Ok(())
    }

    /// Undoes everything since the beginning.
    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        let limit = self.inner.limit;
        match timeout(limit, self.inner.inner.rollback()).await {
            Ok(outcome) => outcome.map_err(StoreError::writing),
            Err(_) => Err(StoreError::writing(no_answer(limit))),
        }
    }

    pub(super) async fn meta_set(&self, name: &str, value: i64) -> Result<(), StoreError> {
        set_meta(&self.inner, name, value).await
    }
}
