//! Why the store cannot be opened, read or written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sea_orm::{DbErr, SqlErr};

use super::health::{STALE, is_conflict, text};
use super::url::InvalidStoreUrl;

/// Why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another process holds the state directory or the database file.
    #[error(
        "{} is in use by another coordinator (process {pid}): stop that one, or use another --state-dir",
        path.display()
    )]
    Locked { path: PathBuf, pid: String },
    /// Another coordinator holds the database.
    #[error(
        "the database {place} is in use by another coordinator ({holder}): stop that one first; one database serves one coordinator"
    )]
    Taken { place: String, holder: String },
    /// The database comes from a newer program.
    #[error(
        "{place} was written by a newer version ({found}, which this program does not know): upgrade this program, or restore the copy made before the upgrade, or use another --state-dir or store.url"
    )]
    Newer { place: String, found: String },
    /// The database's file is not what SQLite wrote.
    #[error(
        "the database {} is damaged ({reason}) and was left as it is: {}, then put a copy of it in its place ('mesh db check' says whether that one is whole)",
        path.display(),
        aside(path)
    )]
    Damaged { path: PathBuf, reason: String },
    /// The database is gone, and what belongs to it is not.
    #[error(
        "the database {} is empty or gone, but {} holds a coordinator's keys: {}, then put a copy of the database in its place, or begin anew with another --state-dir (every machine must join again then)",
        path.display(),
        dir.display(),
        aside(path)
    )]
    Vanished { path: PathBuf, dir: PathBuf },
    /// The Postgres database is empty, and what belongs to a full one is not.
    #[error(
        "the database {place} is empty, but {} holds a coordinator's keys, so it once was not: is store.url the right one? Restore the database, or bring it over from SQLite with 'mesh db copy', or begin anew with another --state-dir (every machine must join again then)",
        dir.display()
    )]
    Emptied { place: String, dir: PathBuf },
    /// A change of before there was a log must be taken back, which takes writing.
    #[error(
        "the database {} holds a first start that was cut off: start the coordinator, which begins again",
        path.display()
    )]
    CutOff { path: PathBuf },
    /// A file of the state directory cannot be used.
    #[error("use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// There is no database yet.
    #[error("there is no database {}: has a coordinator ever run with this configuration?", path.display())]
    NoFile { path: PathBuf },
    /// The configured URL.
    #[error("store.url cannot be used: {0}")]
    Url(#[from] InvalidStoreUrl),
    /// It did not answer as long as we were told to wait.
    #[error(
        "the database {place} could not be reached for {} s ({reason}): start it, or look at store.url, store.password_file and store.ca_file",
        waited.as_secs()
    )]
    Unreachable {
        place: String,
        waited: Duration,
        reason: String,
    },
    /// It is not shown to be the right one.
    #[error(
        "the database {place} cannot be trusted ({reason}): it must speak TLS by a certificate for that host, of an authority in store.ca_file"
    )]
    Untrusted { place: String, reason: String },
    /// It answers, and refuses us for good.
    #[error("the database {place} refuses us: {reason}")]
    Refused { place: String, reason: String },
    /// The database cannot be used; nothing was changed.
    #[error("the coordinator's store cannot be {doing}: {}", text(cause))]
    Unavailable {
        doing: &'static str,
        // Not a `source`: it is shown above, in words for people.
        cause: DbErr,
    },
    /// The database gave way to somebody else's transaction; nothing was changed, and the same
    /// again may well succeed.
    #[error("the database gave way to another transaction")]
    Conflict,
    /// Changes are refused for now; nothing was changed.
    #[error("the coordinator's store takes no changes: {0}")]
    ReadOnly(String),
    /// Somebody else has written to the database: what we know is old.
    #[error("{STALE}")]
    Stale,
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

/// SQLite would take the log of the old file for the copy's.
fn aside(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().display();
    format!("move {name}, {name}-wal and {name}-shm aside together (those that are there)")
}

impl StoreError {
    pub(super) fn reading(source: DbErr) -> Self {
        Self::failed("read", source)
    }

    pub(super) fn writing(source: DbErr) -> Self {
        match source.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => Self::Exists,
            _ => match source {
                DbErr::RecordNotUpdated | DbErr::RecordNotFound(_) => Self::Missing,
                source => Self::failed("written", source),
            },
        }
    }

    fn failed(doing: &'static str, source: DbErr) -> Self {
        if is_conflict(&source) {
            Self::Conflict
        } else {
            Self::Unavailable {
                doing,
                cause: source,
            }
        }
    }
}
