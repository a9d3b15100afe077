//! The coordinator's memory on disk: the only module that speaks SQL.
//!
//! Stored are networks, tokens (a hash of each secret), nodes and their host keys, tombstones,
//! relays, operators, sealed secrets (CA, SSH CAs), events and the audit chain. Not stored is what
//! passes by itself: endpoints, home relays, online or not; of presence only `last_seen`.
//!
//! INVARIANT: each change of a network's identity facts raises that network's version in the same
//! transaction ([`Txn::network_bump`]), so a version names exactly one state.
//!
//! INVARIANT: each writing transaction begins by raising the change number, one row that all
//! writers lock. So there is one writer at a time on both engines, and a number other than the next
//! one shows that somebody else has written: then this process refuses every change and ends.
//!
//! SQLite: one process by a file lock, one writer connection, IMMEDIATE transactions, WAL,
//! synchronous NORMAL; readers have connections of their own, so a read never waits for a writer.
//! Postgres: a pool, READ COMMITTED under the lock of the change number, one process by an advisory
//! lock.

mod audit;
mod check;
mod copy;
mod entity;
mod error;
mod event;
mod health;
mod migration;
mod network;
mod node;
mod operator;
mod postgres;
mod prune;
mod relay;
mod row;
mod secret;
mod sqlite;
#[cfg(test)]
mod tests;
mod timed;
mod token;
mod url;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait as _,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _,
};
use sea_orm_migration::{MigratorTrait as _, SchemaManager};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

pub(crate) use self::copy::TableSum;
use self::entity::meta;
pub(crate) use self::error::StoreError;
pub(crate) use self::health::Watch;
use self::health::{Health, is_in_doubt, no_answer};
use self::migration::Migrator;
use self::postgres::{NotHeld, Postgres};
pub(crate) use self::prune::{Cutoffs, Pruned};
pub(crate) use self::secret::SealedSecret;
use self::timed::Timed;
pub(crate) use self::url::StoreUrl;
use crate::config::StoreConfig;

/// The version of everything in the state directory that this program knows.
const STATE_VERSION: i64 = 1;
const STATE_VERSION_KEY: &str = "state_version";
/// The row that counts writing transactions.
const CHANGE_KEY: &str = "change";
/// How long SQLite may take for a statement: its own wait for a lock is 5 s.
const SQLITE_LIMIT: Duration = Duration::from_secs(15);
/// What an answer may take beyond the server's own limit, before we stop waiting for it.
const MARGIN: Duration = Duration::from_secs(1);
/// How often it is asked again whether a commit in doubt has happened.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// How long a trial waits for a writer under way.
const TRIAL_PATIENCE: Duration = Duration::from_secs(1);

/// The open store; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: String,
    engine: Engine,
    pools: RwLock<Pools>,
    /// Whose turn it is to write, and the number of the last change.
    last: Arc<Mutex<Last>>,
    health: Arc<Health>,
    limit: Duration,
    /// Another process serves; we add what it keeps nothing of in memory.
    beside: bool,
    _locks: Vec<File>,
}

#[derive(Debug)]
enum Engine {
    Sqlite,
    Postgres(Postgres),
}

#[derive(Debug, Clone)]
struct Pools {
    writer: DatabaseConnection,
    reader: DatabaseConnection,
}

#[derive(Debug)]
struct Last {
    number: i64,
    /// A trial write, which nothing in memory hangs on, may have happened once more.
    slack: bool,
}

/// One transaction that may write; dropped without [`Txn::commit`] it changes nothing.
#[derive(Debug)]
pub(crate) struct Txn {
    inner: Timed<DatabaseTransaction>,
    number: i64,
    last: OwnedMutexGuard<Last>,
    store: Store,
}

/// What the database is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A coordinator serves from it, alone.
    Serve,
    /// To add to it, beside a coordinator if need be (Postgres only).
    Beside,
    /// To look at it while nobody serves; its schema stays as it is, and nothing is written.
    Inspect,
    /// To copy into it, by somebody who holds the state directory already.
    Target,
}

/// How much a trial proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// Writes and takes it back.
    Undone,
    /// Writes for good: a full disk shows only then.
    Done,
}

impl Store {
    /// Opens the database, waits for it if need be, and brings its schema up to date. `dir`: the
    /// state directory, which must exist.
    pub(crate) async fn open(config: &StoreConfig, dir: &Path) -> Result<Self, StoreError> {
        Self::open_as(config, dir, Purpose::Serve).await
    }

    /// Like [`Self::open`], but a coordinator that serves on the same Postgres is no hindrance when
    /// the schema is up to date. Only what a coordinator keeps nothing of in memory may be written
    /// then: tokens, events, audit, dates of certificates.
    pub(crate) async fn open_beside(config: &StoreConfig, dir: &Path) -> Result<Self, StoreError> {
        Self::open_as(config, dir, Purpose::Beside).await
    }

    /// Opens the database for a purpose of its own.
    pub(crate) async fn open_as(
        config: &StoreConfig,
        dir: &Path,
        purpose: Purpose,
    ) -> Result<Self, StoreError> {
        let url: StoreUrl = config.url.parse()?;
        let mut locks = Vec::new();
        let own_dir = match (purpose, &url) {
            // The directory is the other's too; what is written there is written atomically.
            (Purpose::Beside, StoreUrl::Postgres(_)) | (Purpose::Target, _) => false,
            _ => true,
        };
        if own_dir {
            locks.push(sqlite::lock(&dir.join("coordinator.lock"), dir)?);
        }
        let tls = config.tls_for(url.is_remote());
        let mut beside = false;
        let (engine, pools, place, limit) = match url {
            StoreUrl::Sqlite(path) => {
                let path = sqlite_path(path.as_deref(), dir);
                if purpose == Purpose::Inspect && !path.is_file() {
                    return Err(StoreError::NoFile { path });
                }
                if !path.starts_with(dir) {
                    let lock = path.with_added_extension("lock");
                    locks.push(sqlite::lock(&lock, &path)?);
                }
                sqlite::create_private(&path)?;
                let writer = sqlite::connect(&path, 1).await?;
                let place = path.display().to_string();
                check_version(&writer, &place).await?;
                if purpose != Purpose::Inspect {
                    migrate(&writer).await?;
                }
                let reader = sqlite::connect(&path, 2).await?;
                let pools = Pools { writer, reader };
                (Engine::Sqlite, pools, place, SQLITE_LIMIT)
            }
            StoreUrl::Postgres(options) => {
                let postgres = Postgres::new(*options, tls, config);
                let may_be_beside = purpose == Purpose::Beside;
                let taken = postgres.hold_at_start(config.wait, may_be_beside).await?;
                let place = postgres.place().to_owned();
                let unlimited = postgres.unlimited();
                check_version(&unlimited, &place).await?;
                match taken {
                    None if purpose == Purpose::Inspect => {}
                    None => migrate(&unlimited).await?,
                    Some(_) if is_up_to_date(&unlimited).await? => beside = true,
                    Some(holder) => return Err(StoreError::Taken { place, holder }),
                }
                close(&unlimited).await;
                let pools = Pools {
                    writer: postgres.writer(),
                    reader: postgres.reader(),
                };
                let limit = config.statement_timeout + MARGIN;
                (Engine::Postgres(postgres), pools, place, limit)
            }
        };
        let number = match purpose {
            Purpose::Inspect => 0,
            _ => change_number(&pools.writer).await?,
        };
        tracing::info!(database = place, change = number, "the store is open");
        Ok(Self(Arc::new(Inner {
            place,
            engine,
            pools: RwLock::new(pools),
            last: Arc::new(Mutex::new(Last {
                number,
                slack: false,
            })),
            health: Arc::new(Health::default()),
            limit,
            beside,
            _locks: locks,
        })))
    }

    fn pools(&self) -> Pools {
        self.0
            .pools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn replace_pools(&self, fresh: Pools) -> Pools {
        let mut pools = self.0.pools.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *pools, fresh)
    }

    fn timed<C>(&self, inner: C) -> Timed<C> {
        Timed {
            inner,
            limit: self.0.limit,
            health: Arc::clone(&self.0.health),
            fail_fast: false,
        }
    }

    /// A connection to read by. Waits for no writer, and fails at once while the database is known
    /// not to answer.
    fn reader(&self) -> Timed<DatabaseConnection> {
        Timed {
            fail_fast: true,
            ..self.timed(self.pools().reader)
        }
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

    async fn begin(&self, last: OwnedMutexGuard<Last>) -> Result<Txn, StoreError> {
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

    async fn begin_raw(&self) -> Result<Timed<DatabaseTransaction>, StoreError> {
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

    /// Holds all changes back (`Some`: why) or lets them through again.
    pub(crate) fn guard_writes(&self, reason: Option<String>) {
        self.0.health.hold(reason);
    }

    /// Where it is, without a secret.
    pub(crate) fn place(&self) -> &str {
        &self.0.place
    }

    /// Follows whether the store takes changes.
    pub(crate) fn watch(&self) -> Watch {
        self.0.health.watch()
    }

    /// Why changes are refused now, if they are.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.0.health.refusal()
    }

    /// Whether this process must end, since memory and database have gone different ways.
    pub(crate) fn is_stale(&self) -> bool {
        self.0.health.is_stale()
    }

    /// Whether what is in memory may still be acted upon while the store is down: not for ever, and
    /// not beside another coordinator.
    pub(crate) fn is_memory_trusted(&self) -> bool {
        self.0.health.is_memory_trusted(Instant::now())
    }

    /// Looks whether the store takes changes: the lock, and a trial write. After an outage it
    /// connects anew, and changes go through again when the trial does.
    pub(crate) async fn examine(&self) {
        let health = &self.0.health;
        let was_down = health.is_down();
        if let Engine::Postgres(postgres) = &self.0.engine {
            match postgres.hold().await {
                Ok(()) => {}
                Err(NotHeld::Taken(holder)) => {
                    let reason = format!("another coordinator has taken the database: {holder}");
                    return health.set_taken(reason);
                }
                Err(NotHeld::Unreachable(reason) | NotHeld::Refused(reason)) => {
                    return health.set_down(reason, true);
                }
            }
            if was_down {
                // Connections of before may hang for minutes in a network that drops packets.
                let fresh = Pools {
                    writer: postgres.writer(),
                    reader: postgres.reader(),
                };
                let old = self.replace_pools(fresh);
                for pool in [&old.reader, &old.writer] {
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

    async fn commit_raw(&self, txn: Timed<DatabaseTransaction>) -> Result<(), DbErr> {
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

    /// Closes all connections, so that the last pages are in the database file.
    pub(crate) async fn close(&self) {
        let Pools { writer, reader } = self.pools();
        for connection in [&reader, &writer] {
            if timeout(self.0.limit, close(connection)).await.is_err() {
                tracing::info!("the database did not answer the goodbye");
            }
        }
        if let Engine::Postgres(postgres) = &self.0.engine {
            postgres.release().await;
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

    async fn meta_set(&self, name: &str, value: i64) -> Result<(), StoreError> {
        set_meta(&self.inner, name, value).await
    }
}

async fn one_value(on: &impl ConnectionTrait, sql: String) -> Result<i64, DbErr> {
    let statement = Statement::from_string(on.get_database_backend(), sql);
    on.query_one_raw(statement)
        .await?
        .ok_or(DbErr::RecordNotUpdated)?
        .try_get_by_index(0)
}

async fn set_meta(on: &impl ConnectionTrait, name: &str, value: i64) -> Result<(), StoreError> {
    use sea_orm::ActiveValue::Set;
    use sea_orm::sea_query::OnConflict;

    let row = meta::ActiveModel {
        name: Set(name.to_owned()),
        value: Set(value),
    };
    let replace = OnConflict::column(meta::Column::Name)
        .update_column(meta::Column::Value)
        .to_owned();
    meta::Entity::insert(row)
        .on_conflict(replace)
        .exec_without_returning(on)
        .await
        .map_err(StoreError::writing)?;
    Ok(())
}

async fn read_meta(on: &impl ConnectionTrait, name: &str) -> Result<Option<i64>, StoreError> {
    let row = meta::Entity::find_by_id(name)
        .one(on)
        .await
        .map_err(StoreError::reading)?;
    Ok(row.map(|row| row.value))
}

async fn check_version(on: &DatabaseConnection, place: &str) -> Result<(), StoreError> {
    let manager = SchemaManager::new(on);
    if !manager
        .has_table("meta")
        .await
        .map_err(StoreError::reading)?
    {
        return Ok(());
    }
    match read_meta(on, STATE_VERSION_KEY).await? {
        Some(found) if found > STATE_VERSION => Err(StoreError::Newer {
            place: place.to_owned(),
            found,
        }),
        _ => Ok(()),
    }
}

async fn migrate(on: &DatabaseConnection) -> Result<(), StoreError> {
    Migrator::up(on, None).await.map_err(StoreError::writing)?;
    set_meta(on, STATE_VERSION_KEY, STATE_VERSION).await
}

/// Whether no migration waits to be run.
async fn is_up_to_date(on: &DatabaseConnection) -> Result<bool, StoreError> {
    let manager = SchemaManager::new(on);
    let known = manager
        .has_table("meta")
        .await
        .map_err(StoreError::reading)?;
    if !known {
        return Ok(false);
    }
    let waiting = Migrator::get_pending_migrations(on).await;
    Ok(waiting.map_err(StoreError::reading)?.is_empty())
}

/// The number of the last change; the row is made when it is not there yet.
async fn change_number(on: &DatabaseConnection) -> Result<i64, StoreError> {
    if let Some(number) = read_meta(on, CHANGE_KEY).await? {
        return Ok(number);
    }
    set_meta(on, CHANGE_KEY, 0).await?;
    Ok(0)
}

fn sqlite_path(path: Option<&str>, dir: &Path) -> PathBuf {
    dir.join(path.unwrap_or("coordinator.db"))
}

async fn close(connection: &DatabaseConnection) {
    if let Err(error) = connection.close_by_ref().await {
        let error = mesh_daemon::report::chain(&error);
        tracing::info!(error, "closing the database failed");
    }
}
