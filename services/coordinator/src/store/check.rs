//! Looking for damage: what the engine itself says, and what must hold between rows.

use sea_orm::{ConnectionTrait, DbBackend, EntityTrait as _, Statement};
use sea_orm_migration::MigratorTrait as _;

use super::entity::secret;
use super::meta::{STATE_VERSION_KEY, one_value, read_meta, waiting};
use super::migration::Migrator;
use super::snapshot::Reader;
use super::timed::Timed;
use super::{SealedSecret, Store, StoreError};

/// Rows that refer to what is not there, as a count and what it is called.
const ORPHANS: &[(&str, &str)] = &[
    (
        "nodes without a network",
        "SELECT count(*) FROM node WHERE network_id NOT IN (SELECT id FROM network)",
    ),
    (
        "join tokens without their network",
        "SELECT count(*) FROM token WHERE network_id IS NOT NULL \
         AND network_id NOT IN (SELECT id FROM network)",
    ),
    (
        "uses without a join token",
        "SELECT count(*) FROM token_use WHERE token_id NOT IN (SELECT id FROM token)",
    ),
    (
        "host keys without a node",
        "SELECT count(*) FROM host_key WHERE node_id NOT IN (SELECT id FROM node)",
    ),
    (
        "nodes newer than their network",
        "SELECT count(*) FROM node JOIN network ON network.id = node.network_id \
         WHERE node.changed_version > network.version",
    ),
];

/// Postgres checks each row as it comes; broken indexes and unchecked constraints it remembers.
const POSTGRES: &[(&str, &str)] = &[
    (
        "indexes that are not valid",
        "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid \
         WHERE c.relnamespace = current_schema()::regnamespace AND NOT i.indisvalid",
    ),
    (
        "constraints that were never checked",
        "SELECT count(*) FROM pg_constraint WHERE connamespace = current_schema()::regnamespace \
         AND NOT convalidated",
    ),
];

impl Store {
    /// Every migration that there is, oldest first.
    pub(crate) fn migrations() -> Vec<String> {
        let all = Migrator::migrations();
        all.iter().map(|one| one.name().to_owned()).collect()
    }

    /// The version of the state, and the names of migrations that wait.
    pub(crate) async fn schema(&self) -> Result<(Option<i64>, Vec<String>), StoreError> {
        let on = self.pools().reader.pool().clone();
        let waiting = waiting(&on).await?;
        let version = if waiting.len() < Migrator::migrations().len() {
            read_meta(&on, STATE_VERSION_KEY).await?
        } else {
            None
        };
        Ok((version, waiting))
    }

    /// What is damaged, in words; empty when nothing is.
    pub(crate) async fn damage(&self) -> Result<Vec<String>, StoreError> {
        let on = self.reader();
        let mut found = match on.get_database_backend() {
            DbBackend::Sqlite => sqlite_damage(&on).await?,
            _ => counted(&on, POSTGRES).await?,
        };
        found.extend(counted(&on, ORPHANS).await?);
        for (table, outcome) in [
            ("network", self.network_list().await.map(drop)),
            ("node", self.node_list().await.map(drop)),
            ("relay", self.relay_list().await.map(drop)),
            ("operator", self.operator_list().await.map(drop)),
            ("token", self.token_list(None).await.map(drop)),
            ("tombstone", self.tombstone_list().await.map(drop)),
        ] {
            match outcome {
                Ok(()) => {}
                Err(error @ StoreError::Corrupt { .. }) => {
                    found.push(format!("table {table}: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        if let Err(row) = self.audit_verify().await? {
            found.push(format!(
                "the audit chain is broken at row {row}: somebody changed or removed entries"
            ));
        }
        Ok(found)
    }

    /// All sealed secrets by name.
    pub(crate) async fn secret_list(&self) -> Result<Vec<(String, SealedSecret)>, StoreError> {
        let rows = secret::Entity::find()
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        let taken = rows.into_iter().map(|row| {
            let secret = SealedSecret {
                sealed: row.sealed,
                public: row.public,
            };
            (row.name, secret)
        });
        Ok(taken.collect())
    }
}

async fn counted(
    on: &Timed<Reader>,
    questions: &[(&str, &str)],
) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for (what, sql) in questions {
        let count = one_value(on, (*sql).to_owned())
            .await
            .map_err(StoreError::reading)?;
        if count > 0 {
            found.push(format!("{count} {what}"));
        }
    }
    Ok(found)
}

async fn sqlite_damage(on: &Timed<Reader>) -> Result<Vec<String>, StoreError> {
    let ask = async |pragma: &str| {
        let statement = Statement::from_string(DbBackend::Sqlite, pragma);
        on.query_all_raw(statement)
            .await
            .map_err(StoreError::reading)
    };
    let mut found = Vec::new();
    for row in ask("PRAGMA integrity_check").await? {
        let text: String = row.try_get_by_index(0).map_err(StoreError::reading)?;
        if text != "ok" {
            found.push(text);
        }
    }
    let broken = ask("PRAGMA foreign_key_check").await?.len();
    if broken > 0 {
        found.push(format!("{broken} rows refer to rows that are not there"));
    }
    Ok(found)
}
