//! SQLite: one process by a file lock, one writer connection, readers of their own.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use sea_orm::{ConnectOptions, Database, DatabaseConnection};

use super::StoreError;

pub(super) async fn connect(
    path: &Path,
    connections: u32,
) -> Result<DatabaseConnection, StoreError> {
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
