//! The coordinator's memory on disk: the only module that speaks SQL.
//!
//! Stored are networks, tokens (a hash of each secret), nodes and their host keys, tombstones,
//! relays, operators, sealed secrets (CA, SSH CAs), events and the audit chain. Not stored is what
//! passes by itself: endpoints, home relays, online or not; of presence only `last_seen`.
//!
//! INVARIANT: each change of a network's identity facts raises that network's version in the same
//! transaction ([`Txn::network_bump`]), so a version names exactly one state.
//!
//! SQLite: one process by a file lock, one writer connection, IMMEDIATE transactions, WAL,
//! synchronous NORMAL. Readers have connections of their own, so a read never waits for a writer.

mod audit;
mod entity;
mod event;
mod migration;
mod network;
mod node;
mod operator;
mod relay;
mod row;
mod secret;
#[cfg(test)]
mod tests;
mod token;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbErr,
    EntityTrait as _, SqlErr, SqliteTransactionMode, TransactionOptions, TransactionTrait as _,
};
use sea_orm_migration::{MigratorTrait as _, SchemaManager};
use tokio::sync::watch;

use self::entity::meta;
use self::migration::Migrator;
pub(crate) use self::secret::SealedSecret;

/// The version of everything in the state directory that this program knows.
const STATE_VERSION: i64 = 1;
const STATE_VERSION_KEY: &str = "state_version";

/// Why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another process holds the state directory.
    #[error(
        "{} is in use by another coordinator (process {pid}): stop that one, or use another --state-dir",
        path.display()
    )]
    Locked { path: PathBuf, pid: String },
    /// The state directory comes from a newer program.
    #[error(
        "{} was written by a newer version (state {found}, this program knows {STATE_VERSION}): upgrade this program, or use another --state-dir",
        path.display()
    )]
    Newer { path: PathBuf, found: i64 },
    /// A file of the state directory cannot be used.
    #[error("use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The database cannot be used; nothing was changed.
    #[error("the coordinator's store cannot be {doing}")]
    Unavailable {
        doing: &'static str,
        #[source]
        source: DbErr,
    },
    /// Changes are held back on purpose; nothing was changed.
    #[error("the coordinator's store takes no changes: {0}")]
    ReadOnly(String),
    /// A value that must be unique exists already.
    #[error("it exists already")]
    Exists,
    /// The row named does not exist.
    #[error("it does not exist")]
    Missing,
    /// A row holds what cannot be.
    #[error("the database is damaged: table {table}, column {column}")]
    Corrupt {
        table: &'static str,
        column: &'static str,
    },
}

impl StoreError {
    fn reading(source: DbErr) -> Self {
        Self::Unavailable {
            doing: "read",
            source,
        }
    }

    fn writing(source: DbErr) -> Self {
        match source.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => Self::Exists,
            _ => match source {
                DbErr::RecordNotUpdated | DbErr::RecordNotFound(_) => Self::Missing,
                source => Self::Unavailable {
                    doing: "written",
                    source,
                },
            },
        }
    }
}

/// The open store; cheap to share behind an `Arc`.
#[derive(Debug)]
pub(crate) struct Store {
    writer: DatabaseConnection,
    reader: DatabaseConnection,
    /// `Some`: why changes are held back.
    guard: watch::Sender<Option<String>>,
    _lock: File,
}

/// One transaction that may write; dropped without [`Txn::commit`] it changes nothing.
#[derive(Debug)]
pub(crate) struct Txn {
    inner: DatabaseTransaction,
}

impl Store {
    /// Opens the database in this directory, which must exist, and brings its schema up to date.
    pub(crate) async fn open(dir: &Path) -> Result<Self, StoreError> {
        let lock = lock(&dir.join("coordinator.lock"))?;
        let path = dir.join("coordinator.db");
        create_private(&path)?;
        let writer = connect(&path, 1).await?;
        check_version(&writer, dir).await?;
        Migrator::up(&writer, None)
            .await
            .map_err(StoreError::writing)?;
        record_version(&writer).await?;
        let reader = connect(&path, 2).await?;
        Ok(Self {
            writer,
            reader,
            guard: watch::Sender::new(None),
            _lock: lock,
        })
    }

    /// Begins a transaction that may write; others wait for it.
    pub(crate) async fn write(&self) -> Result<Txn, StoreError> {
        if let Some(reason) = self.guard.borrow().as_ref() {
            return Err(StoreError::ReadOnly(reason.clone()));
        }
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let inner = self
            .writer
            .begin_with_options(options)
            .await
            .map_err(StoreError::writing)?;
        Ok(Txn { inner })
    }

    /// Holds all changes back (`Some`: why) or lets them through again.
    pub(crate) fn guard_writes(&self, reason: Option<String>) {
        self.guard.send_replace(reason);
    }

    /// Why changes would be refused now, if they would: the guard, or a failing trial write.
    pub(crate) async fn write_problem(&self) -> Option<String> {
        let trial = async {
            let txn = self.write().await?;
            txn.meta_set("write_trial", 0).await?;
            txn.rollback().await
        };
        trial
            .await
            .err()
            .map(|error: StoreError| mesh_daemon::report::chain(&error))
    }

    /// Closes all connections, so that the last pages are in the database file.
    pub(crate) async fn close(&self) {
        for connection in [&self.reader, &self.writer] {
            if let Err(error) = connection.close_by_ref().await {
                tracing::warn!(%error, "closing the database failed");
            }
        }
    }
}

impl Txn {
    /// Makes everything since the beginning durable.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        self.inner.commit().await.map_err(StoreError::writing)
    }

    /// Undoes everything since the beginning.
    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        self.inner.rollback().await.map_err(StoreError::writing)
    }

    async fn meta_set(&self, name: &str, value: i64) -> Result<(), StoreError> {
        set_meta(&self.inner, name, value).await
    }
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

async fn check_version(on: &DatabaseConnection, dir: &Path) -> Result<(), StoreError> {
    let manager = SchemaManager::new(on);
    if !manager
        .has_table("meta")
        .await
        .map_err(StoreError::reading)?
    {
        return Ok(());
    }
    let row = meta::Entity::find_by_id(STATE_VERSION_KEY)
        .one(on)
        .await
        .map_err(StoreError::reading)?;
    match row {
        Some(row) if row.value > STATE_VERSION => Err(StoreError::Newer {
            path: dir.to_path_buf(),
            found: row.value,
        }),
        _ => Ok(()),
    }
}

async fn record_version(on: &DatabaseConnection) -> Result<(), StoreError> {
    set_meta(on, STATE_VERSION_KEY, STATE_VERSION).await
}

async fn connect(path: &Path, connections: u32) -> Result<DatabaseConnection, StoreError> {
    let path = path.to_path_buf();
    let mut options = ConnectOptions::new("sqlite://coordinator.db");
    options
        .max_connections(connections)
        .min_connections(1)
        .sqlx_logging(false)
        .acquire_timeout(Duration::from_secs(10))
        .max_lifetime(None::<Duration>)
        .idle_timeout(None::<Duration>)
        .map_sqlx_sqlite_opts(move |sqlite| {
            sqlite
                .filename(&path)
                .create_if_missing(true)
                .foreign_keys(true)
                .busy_timeout(Duration::from_secs(5))
                .pragma("journal_mode", "WAL")
                .pragma("synchronous", "NORMAL")
        });
    Database::connect(options)
        .await
        .map_err(StoreError::reading)
}

/// The database holds hashes and sealed secrets, but also who is where: nobody else reads it.
fn create_private(path: &Path) -> Result<(), StoreError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|source| StoreError::File {
            path: path.to_path_buf(),
            source,
        })
}

/// Takes the lock file and writes our process id into it.
fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::File {
        path: path.to_path_buf(),
        source,
    };
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(failed)?;
            let dir = path.parent().unwrap_or(path).to_path_buf();
            return Err(StoreError::Locked {
                path: dir,
                pid: pid.trim().to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}
