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
mod meta;
mod migration;
mod network;
mod node;
mod operator;
mod postgres;
mod prune;
mod relay;
mod row;
mod secret;
mod snapshot;
mod sqlite;
#[cfg(test)]
mod tests;
mod timed;
mod token;
mod trial;
mod txn;
mod url;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sea_orm::DatabaseConnection;
use tokio::sync::Mutex;
use tokio::time::timeout;

pub(crate) use self::copy::TableSum;
pub(crate) use self::error::StoreError;
use self::health::Health;
pub(crate) use self::health::Watch;
use self::meta::{change_number, check_begun, check_version, is_up_to_date, migrate};
use self::postgres::Postgres;
pub(crate) use self::prune::{Cutoffs, Pruned};
pub(crate) use self::secret::SealedSecret;
use self::snapshot::Reader;
use self::timed::Timed;
use self::txn::Last;
pub(crate) use self::txn::Txn;
pub(crate) use self::url::StoreUrl;
use crate::config::StoreConfig;

/// How long SQLite may take for a statement: its own wait for a lock is 5 s.
const SQLITE_LIMIT: Duration = Duration::from_secs(15);
/// What an answer may take beyond the server's own limit, before we stop waiting for it.
const MARGIN: Duration = Duration::from_secs(1);

/// The open store; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: String,
    engine: Engine,
    pools: RwLock<Pools>,
    /// Held by whoever tries the store: two at once would close each other's pools.
    trial: Mutex<()>,
    /// How often the pools were made anew.
    renewals: AtomicU32,
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
    reader: Reader,
}

/// What the database is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A coordinator serves from it, alone.
    Serve,
    /// To add to it, beside a coordinator if need be (Postgres only).
    Beside,
    /// To look at it while nobody serves; its schema stays as it is, and nothing can be written.
    Inspect,
    /// To copy into it, by somebody who holds the state directory already.
    Target,
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
        let Connected {
            engine,
            pools,
            place,
            limit,
            beside,
        } = match url {
            StoreUrl::Sqlite(path) => {
                let path = sqlite_path(path.as_deref(), dir);
                open_sqlite(path, dir, purpose, &mut locks).await?
            }
            StoreUrl::Postgres(ref options) => {
                let tls = config.tls_for(url.is_remote());
                let postgres = Postgres::new((**options).clone(), tls, config);
                open_postgres(postgres, config, dir, purpose).await?
            }
        };
        let number = match purpose {
            Purpose::Inspect => 0,
            _ => change_number(&pools.writer).await?,
        };
        tracing::info!(database = place, change = number, "the store is open");
        let store = Self(Arc::new(Inner {
            place,
            engine,
            pools: RwLock::new(pools),
            trial: Mutex::new(()),
            renewals: AtomicU32::new(0),
            last: Arc::new(Mutex::new(Last {
                number,
                slack: false,
            })),
            health: Arc::new(Health::default()),
            limit,
            beside,
            _locks: locks,
        }));
        if purpose == Purpose::Inspect {
            store.freeze().await?;
        }
        Ok(store)
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
    fn reader(&self) -> Timed<Reader> {
        Timed {
            fail_fast: true,
            ..self.timed(self.pools().reader)
        }
    }

    /// Holds all changes back (`Some`: why) or lets them through again.
    pub(crate) fn guard_writes(&self, reason: Option<String>) {
        self.0.health.hold(reason);
    }

    /// Where it is, without a secret.
    pub(crate) fn place(&self) -> &str {
        &self.0.place
    }

    /// That it is without authorities, although a coordinator has worked from `dir`.
    pub(crate) fn emptied(&self, dir: &Path) -> StoreError {
        let (place, dir) = (self.0.place.clone(), dir.to_path_buf());
        match self.0.engine {
            Engine::Sqlite => StoreError::Vanished {
                path: place.into(),
                dir,
            },
            Engine::Postgres(_) => StoreError::Emptied { place, dir },
        }
    }

    /// Follows whether the store takes changes.
    pub(crate) fn watch(&self) -> Watch {
        self.0.health.watch()
    }

    /// Why changes are refused now, if they are.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.0.health.refusal()
    }

    /// Why this process must end, if it must: memory and database have gone different ways, or
    /// the database is another coordinator's now.
    pub(crate) fn end_reason(&self) -> Option<String> {
        self.0.health.end_reason()
    }

    /// Whether what is in memory may still be acted upon while the store is down: not for ever, and
    /// not beside another coordinator.
    pub(crate) fn is_memory_trusted(&self) -> bool {
        self.0.health.is_memory_trusted(Instant::now())
    }

    /// Waits until all that was written outlasts a power cut too. With SQLite it is in the database
    /// file then, whatever becomes of its log.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        match self.0.engine {
            Engine::Sqlite => sqlite::flush(&self.pools().writer).await,
            // It answers a commit when that is on disk.
            Engine::Postgres(_) => Ok(()),
        }
    }

    /// Closes all connections, so that the last pages are in the database file.
    pub(crate) async fn close(&self) {
        let reader = self.thaw();
        let writer = self.pools().writer;
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

/// What was opened of one engine or the other.
struct Connected {
    engine: Engine,
    pools: Pools,
    place: String,
    limit: Duration,
    beside: bool,
}

async fn open_sqlite(
    path: PathBuf,
    dir: &Path,
    purpose: Purpose,
    locks: &mut Vec<File>,
) -> Result<Connected, StoreError> {
    if purpose == Purpose::Inspect && !path.is_file() {
        return Err(StoreError::NoFile { path });
    }
    if !path.starts_with(dir) {
        let lock = path.with_added_extension("lock");
        locks.push(sqlite::lock(&lock, &path)?);
    }
    if purpose != Purpose::Target {
        sqlite::check_present(&path, dir)?;
    }
    let place = path.display().to_string();
    let pools = if purpose == Purpose::Inspect {
        let reader = sqlite::connect_to_look(&path).await?;
        check_version(&reader, &place).await?;
        Pools {
            writer: reader.clone(),
            reader: Reader::Pool(reader),
        }
    } else {
        sqlite::create_private(&path)?;
        sqlite::check_sound(&path).await?;
        let writer = sqlite::connect(&path, 1).await?;
        if matches!(purpose, Purpose::Serve | Purpose::Beside) {
            sqlite::check_filled(&writer, &path, dir).await?;
        }
        check_version(&writer, &place).await?;
        migrate(&writer).await?;
        let reader = Reader::Pool(sqlite::connect(&path, 2).await?);
        Pools { writer, reader }
    };
    Ok(Connected {
        engine: Engine::Sqlite,
        pools,
        place,
        limit: SQLITE_LIMIT,
        beside: false,
    })
}

async fn open_postgres(
    postgres: Postgres,
    config: &StoreConfig,
    dir: &Path,
    purpose: Purpose,
) -> Result<Connected, StoreError> {
    let postgres = match purpose {
        Purpose::Inspect => postgres.read_only(),
        _ => postgres,
    };
    let may_be_beside = purpose == Purpose::Beside;
    let taken = postgres.hold_at_start(config.wait, may_be_beside).await?;
    let place = postgres.place().to_owned();
    let unlimited = postgres.unlimited();
    check_version(&unlimited, &place).await?;
    if matches!(purpose, Purpose::Serve | Purpose::Beside) {
        check_begun(&unlimited, &place, dir).await?;
    }
    let mut beside = false;
    match taken {
        None if purpose == Purpose::Inspect => {}
        None => migrate(&unlimited).await?,
        Some(_) if is_up_to_date(&unlimited).await? => beside = true,
        Some(holder) => return Err(StoreError::Taken { place, holder }),
    }
    close(&unlimited).await;
    let pools = Pools {
        writer: postgres.writer(),
        reader: Reader::Pool(postgres.reader()),
    };
    Ok(Connected {
        engine: Engine::Postgres(postgres),
        pools,
        place,
        limit: config.statement_timeout + MARGIN,
        beside,
    })
}

/// Whether a coordinator has worked from this state directory: `operator/` is what a first start
/// makes last, after the authorities are in the database for good.
pub(crate) fn had_database(dir: &Path) -> bool {
    dir.join("operator").exists()
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
