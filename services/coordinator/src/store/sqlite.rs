//! SQLite: one process by a file lock, one writer connection, readers of their own.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr, Statement,
};

use super::StoreError;
use super::health::{is_damage, text};

pub(super) async fn connect(
    path: &Path,
    connections: u32,
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
pub(super) async fn check_sound(on: &DatabaseConnection, path: &Path) -> Result<(), StoreError> {
    let ask = Statement::from_string(DbBackend::Sqlite, "PRAGMA quick_check(1)");
    let told: Option<String> = match on.query_one_raw(ask).await {
        Ok(Some(row)) => Some(row.try_get_by_index(0).map_err(StoreError::reading)?),
        Ok(None) => None,
        Err(error) => return Err(unreadable(path, error)),
    };
    match told {
        Some(told) if told != "ok" => Err(StoreError::Damaged {
            path: path.to_path_buf(),
            reason: told.lines().last().unwrap_or_default().trim().to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Refuses to make a new database where an old one must have been: its nodes, tokens and
/// authorities would be replaced by none.
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
    // What is written into an empty database may still be in its log.
    let has_log = std::fs::metadata(log_of(path)).is_ok_and(|log| log.len() > 0);
    // It is written after the database.
    if is_empty && !has_log && dir.join("operator").exists() {
        return Err(StoreError::Vanished {
            path: path.to_path_buf(),
            dir: dir.to_path_buf(),
        });
    }
    Ok(())
}

fn log_of(path: &Path) -> std::path::PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
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
