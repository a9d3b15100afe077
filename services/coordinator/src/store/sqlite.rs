//! SQLite: one process by a file lock, one writer connection, readers of their own.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr,
    Statement, TryGetable,
};

use super::health::{is_damage, is_read_only, text};
use super::{StoreError, had_database};

pub(super) async fn connect(
    path: &Path,
    connections: u32,
) -> Result<DatabaseConnection, StoreError> {
    open(path, connections, |sqlite| {
        sqlite
            .create_if_missing(true)
            .foreign_keys(true)
            .pragma("journal_mode", "WAL")
            .pragma("synchronous", "NORMAL")
    })
    .await
}

/// Opens the file to look at it. Nothing is written to it or to its log, and the log stays: the
/// last connection that could write would move it into the file when it is closed.
///
/// Without a log the file is opened as one that nobody changes (`immutable`), which our lock makes
/// true; then not even an empty log or an index of one (`-shm`) appears beside it. With a log
/// SQLite makes the index when it is not there: it holds nothing that is not in the log.
pub(super) async fn connect_to_look(path: &Path) -> Result<DatabaseConnection, StoreError> {
    let has = |suffix: &str| {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        std::fs::metadata(beside).is_ok_and(|file| file.len() > 0)
    };
    let alone = !has("-wal") && !has("-journal");
    let on = open(path, 2, move |sqlite| {
        sqlite.read_only(true).immutable(alone)
    })
    .await;
    let looked = match on {
        Ok(on) => first_value::<i64>(&on, "SELECT count(*) FROM sqlite_master")
            .await
            .map(|_| on)
            .map_err(|error| unreadable(path, error)),
        Err(error) => Err(error),
    };
    looked.map_err(|error| match error {
        StoreError::Unavailable { cause, .. } if is_read_only(&cause) => StoreError::CutOff {
            path: path.to_path_buf(),
        },
        error => error,
    })
}

async fn open(
    path: &Path,
    connections: u32,
    set: impl Fn(SqliteConnectOptions) -> SqliteConnectOptions + Send + Sync + 'static,
) -> Result<DatabaseConnection, StoreError> {
    let shown = path.to_path_buf();
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
            let sqlite = sqlite.filename(&path);
            set(sqlite.busy_timeout(Duration::from_secs(5)))
        });
    Database::connect(options)
        .await
        .map_err(|error| unreadable(&shown, error))
}

fn unreadable(path: &Path, error: DbErr) -> StoreError {
    if is_damage(&error) {
        StoreError::Damaged {
            path: path.to_path_buf(),
            reason: text(&error),
        }
    } else {
        StoreError::reading(error)
    }
}

/// Refuses a damaged file before anything is written to it. Reads all of it.
///
/// By a connection that cannot write: the last one that could would move the log into the file
/// when it is closed, and remove the log.
pub(super) async fn check_sound(path: &Path) -> Result<(), StoreError> {
    let checked = match open(path, 1, |sqlite| sqlite.read_only(true)).await {
        Ok(on) => quick_check(on, path).await,
        Err(error) => Err(error),
    };
    match checked {
        // A change of before there was a log must be taken back first, which takes writing: a first
        // start was killed while SQLite put page 1 into the file.
        Err(StoreError::Unavailable { cause, .. }) if is_read_only(&cause) => {
            quick_check(connect(path, 1).await?, path).await
        }
        checked => checked,
    }
}

async fn quick_check(on: DatabaseConnection, path: &Path) -> Result<(), StoreError> {
    let told = first_value::<String>(&on, "PRAGMA quick_check(1)").await;
    let closed = on.close().await;
    match told.map_err(|error| unreadable(path, error))? {
        Some(told) if told != "ok" => Err(StoreError::Damaged {
            path: path.to_path_buf(),
            reason: told.lines().last().unwrap_or_default().trim().to_owned(),
        }),
        _ => closed.map_err(StoreError::reading),
    }
}

/// The first value of the first row.
async fn first_value<T: TryGetable>(
    on: &DatabaseConnection,
    query: &str,
) -> Result<Option<T>, DbErr> {
    let ask = Statement::from_string(DbBackend::Sqlite, query);
    let row = on.query_one_raw(ask).await?;
    row.map(|row| row.try_get_by_index(0)).transpose()
}

/// Moves the log into the file, and waits until it is on disk there.
pub(super) async fn flush(on: &DatabaseConnection) -> Result<(), StoreError> {
    let busy = first_value::<i32>(on, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    match busy.map_err(StoreError::writing)? {
        // Somebody read something old for all of the time that we waited.
        Some(busy) if busy != 0 => Err(StoreError::Conflict),
        _ => Ok(()),
    }
}

/// Refuses to make a new database where an old one must have been: its nodes, tokens and
/// authorities would be replaced by none.
///
/// That one must have been is told by `operator/`, which a first start makes last, after the
/// authorities are in the database file itself ([`flush`]): a start that ended before leaves none,
/// whatever else it leaves (nothing, an empty file, one page, the tables), and begins again. A log
/// beside an empty or lost file says nothing: SQLite puts page 1 into the file before there is a
/// log, and deletes a log that it finds without one.
pub(super) fn check_present(path: &Path, dir: &Path) -> Result<(), StoreError> {
    let is_empty = match std::fs::metadata(path) {
        Ok(file) => file.len() == 0,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(source) => {
            return Err(StoreError::File {
                path: path.to_path_buf(),
                source,
            });
        }
    };
    if is_empty && had_database(dir) {
        return Err(vanished(path, dir));
    }
    Ok(())
}

/// Refuses what [`check_present`] cannot see: a file without a single table, because its log is
/// lost that had them.
pub(super) async fn check_filled(
    on: &DatabaseConnection,
    path: &Path,
    dir: &Path,
) -> Result<(), StoreError> {
    if !had_database(dir) {
        return Ok(());
    }
    let tables = first_value::<i64>(on, "SELECT count(*) FROM sqlite_master").await;
    match tables.map_err(|error| unreadable(path, error))? {
        Some(0) => Err(vanished(path, dir)),
        _ => Ok(()),
    }
}

fn vanished(path: &Path, dir: &Path) -> StoreError {
    StoreError::Vanished {
        path: path.to_path_buf(),
        dir: dir.to_path_buf(),
    }
}

/// The database holds hashes and sealed secrets, but also who is where: nobody else reads it.
pub(super) fn create_private(path: &Path) -> Result<(), StoreError> {
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

/// Takes a lock file and writes our process id into it. `what`: what it stands for.
pub(super) fn lock(path: &Path, what: &Path) -> Result<File, StoreError> {
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
            return Err(StoreError::Locked {
                path: what.to_path_buf(),
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
