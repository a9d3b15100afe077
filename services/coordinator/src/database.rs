//! Looking after the database while no coordinator serves from it: migrate, check, copy.
//!
//! Works on the machine of the coordinator with its own configuration, under its lock: beside a
//! coordinator that runs, each of these is refused.

use anyhow::{Context as _, bail};
use mesh_daemon::private_dir;
use serde::Serialize;

use crate::app::bootstrap::MASTER_KEY_FILE;
use crate::config::{Config, StoreConfig};
use crate::seal::Sealer;
use crate::store::{Purpose, Store, StoreError, TableSum};

/// What [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Migrated {
    /// Where the database is, without a secret.
    pub database: String,
    /// The migrations that were run, oldest first; empty when none waited.
    pub applied: Vec<String>,
}

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Where the database is, without a secret.
    pub database: String,
    /// The version of its state; absent when no coordinator has ever used it.
    pub state_version: Option<i64>,
    /// Rows of each table, by its name.
    pub tables: Vec<TableCount>,
    /// How many sealed secrets open with the master key.
    pub secrets: usize,
    /// What is wrong, in words; empty when nothing is.
    pub problems: Vec<String>,
}

/// How many rows a table has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableCount {
    /// Its name.
    pub table: String,
    /// Its rows.
    pub rows: u64,
}

/// What [`copy`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Where from, without a secret.
    pub from: String,
    /// Where to, without a secret.
    pub to: String,
    /// Every table, as it was read here and read again there.
    pub tables: Vec<TableCopy>,
}

/// A table on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableCopy {
    /// Its name.
    pub table: String,
    /// Rows here.
    pub rows: u64,
    /// Rows there.
    pub rows_copied: u64,
    /// SHA-256 over the rows here, in hexadecimal.
    pub checksum: String,
    /// SHA-256 over the rows there.
    pub checksum_copied: String,
    /// Whether both are the same.
    pub same: bool,
}

async fn open(config: &Config, store: &StoreConfig, purpose: Purpose) -> anyhow::Result<Store> {
    private_dir(&config.state_dir).context("the state directory cannot be used")?;
    Ok(Store::open_as(store, &config.state_dir, purpose).await?)
}

/// Brings the schema up to date.
///
/// # Errors
/// A sentence for people: a coordinator runs, or the database cannot be reached or changed.
pub async fn migrate(config: &Config) -> anyhow::Result<Migrated> {
    // What waits is told before it is done; a database that is not there yet waits for everything.
    let before = match open(config, &config.store, Purpose::Inspect).await {
        Ok(store) => {
            let waiting = store.schema().await;
            store.close().await;
            waiting?.1
        }
        Err(error) if begins(&error) => Store::migrations(),
        Err(error) => return Err(error),
    };
    let store = open(config, &config.store, Purpose::Serve).await?;
    let database = store.place().to_owned();
    store.close().await;
    Ok(Migrated {
        database,
        applied: before,
    })
}

/// Whether there is no database yet, or none but the beginning of one.
fn begins(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<StoreError>(),
        Some(StoreError::NoFile { .. } | StoreError::CutOff { .. })
    )
}

/// Looks for damage. The database is opened for reading only: nothing is changed, and the log of a
/// coordinator that was killed stays beside it.
///
/// # Errors
/// A sentence for people: a coordinator runs, or the database cannot be read at all.
pub async fn check(config: &Config) -> anyhow::Result<Checked> {
    let store = open(config, &config.store, Purpose::Inspect).await?;
    let checked = look(config, &store).await;
    store.close().await;
    checked
}

async fn look(config: &Config, store: &Store) -> anyhow::Result<Checked> {
    let (state_version, waiting) = store.schema().await?;
    let mut checked = Checked {
        database: store.place().to_owned(),
        state_version,
        tables: Vec::new(),
        secrets: 0,
        problems: Vec::new(),
    };
    if !waiting.is_empty() {
        let waiting = waiting.join(", ");
        checked.problems.push(format!(
            "the schema is not up to date ({waiting}): run 'mesh db migrate', or start the coordinator"
        ));
        return Ok(checked);
    }
    for (table, rows) in store.counts().await? {
        let table = table.to_owned();
        checked.tables.push(TableCount { table, rows });
    }
    checked.problems = store.damage().await?;
    let secrets = store.secret_list().await?;
    if secrets.is_empty() {
        return Ok(checked);
    }
    match sealer(config) {
        Ok(sealer) => {
            for (name, secret) in &secrets {
                match sealer.open(name, &secret.sealed) {
                    Ok(_) => checked.secrets += 1,
                    Err(error) => checked.problems.push(error.to_string()),
                }
            }
        }
        Err(error) => checked.problems.push(format!("{error:#}")),
    }
    Ok(checked)
}

fn sealer(config: &Config) -> anyhow::Result<Sealer> {
    Ok(if config.master_key.is_empty() {
        Sealer::load(&config.state_dir.join(MASTER_KEY_FILE), false)?
    } else {
        Sealer::from_text(config.master_key.expose())?
    })
}

/// Copies everything into the empty database `to`, in one transaction, reads it again there and
/// compares. `progress` hears of each table and its rows so far.
///
/// # Errors
/// A sentence for people: a coordinator runs on either side, the schema here is old, `to` is not
/// empty or cannot be reached; then `to` is as empty as it was.
pub async fn copy(
    config: &Config,
    to: &StoreConfig,
    progress: &mut (impl FnMut(&'static str, u64) + Send),
) -> anyhow::Result<Copied> {
    let from = open(config, &config.store, Purpose::Inspect).await?;
    let (_, waiting) = from.schema().await?;
    if !waiting.is_empty() {
        bail!(
            "the schema of {} is not up to date: run 'mesh db migrate' first",
            from.place()
        );
    }
    let to = open(config, to, Purpose::Target)
        .await
        .context("open the database to copy to")?;
    for (table, rows) in to.counts().await? {
        if rows > 0 && table != "meta" {
            bail!(
                "{} is not empty: table {table} has {rows} rows; give an empty database",
                to.place()
            );
        }
    }
    let read = from.copy_to(&to, progress).await?;
    let written = to.sums().await?;
    let copied = Copied {
        from: from.place().to_owned(),
        to: to.place().to_owned(),
        tables: read
            .iter()
            .zip(&written)
            .map(|(here, there)| table_copy(here, there))
            .collect(),
    };
    to.close().await;
    from.close().await;
    Ok(copied)
}

fn table_copy(here: &TableSum, there: &TableSum) -> TableCopy {
    let hex = |sum: &TableSum| {
        sum.checksum
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    TableCopy {
        table: here.table.to_owned(),
        rows: here.rows,
        rows_copied: there.rows,
        checksum: hex(here),
        checksum_copied: hex(there),
        same: here == there,
    }
}
