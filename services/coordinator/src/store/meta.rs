//! What the database says of itself: its version, the number of its last change, its schema.

use std::path::Path;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbErr, EntityName as _, EntityTrait as _, QueryOrder as _,
    Statement,
};
use sea_orm_migration::{MigratorTrait as _, SchemaManager, seaql_migrations};

use super::entity::meta;
use super::migration::Migrator;
use super::{StoreError, had_database};

/// The version of everything in the state directory that this program knows.
pub(super) const STATE_VERSION: i64 = 1;
pub(super) const STATE_VERSION_KEY: &str = "state_version";
/// The row that counts writing transactions.
pub(super) const CHANGE_KEY: &str = "change";

pub(super) async fn one_value(on: &impl ConnectionTrait, sql: String) -> Result<i64, DbErr> {
    let statement = Statement::from_string(on.get_database_backend(), sql);
    on.query_one_raw(statement)
        .await?
        .ok_or(DbErr::RecordNotUpdated)?
        .try_get_by_index(0)
}

pub(super) async fn set_meta(
    on: &impl ConnectionTrait,
    name: &str,
    value: i64,
) -> Result<(), StoreError> {
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

pub(super) async fn read_meta(
    on: &impl ConnectionTrait,
    name: &str,
) -> Result<Option<i64>, StoreError> {
    let row = meta::Entity::find_by_id(name)
        .one(on)
        .await
        .map_err(StoreError::reading)?;
    Ok(row.map(|row| row.value))
}

/// Refuses a database that a newer program has written to; changes nothing.
pub(super) async fn check_version(on: &DatabaseConnection, place: &str) -> Result<(), StoreError> {
    let newer = |found| StoreError::Newer {
        place: place.to_owned(),
        found,
    };
    if has_table(on, "meta").await?
        && let Some(found) = read_meta(on, STATE_VERSION_KEY).await?
        && found > STATE_VERSION
    {
        return Err(newer(format!("state {found}")));
    }
    // Its migrations are written one by one, and the state's number only after the last.
    let known = Migrator::migrations();
    let unknown = |name: &String| known.iter().all(|migration| migration.name() != name);
    match applied(on).await?.into_iter().find(unknown) {
        Some(name) => Err(newer(format!("migration {name}"))),
        None => Ok(()),
    }
}

pub(super) async fn migrate(on: &DatabaseConnection) -> Result<(), StoreError> {
    Migrator::up(on, None).await.map_err(StoreError::writing)?;
    set_meta(on, STATE_VERSION_KEY, STATE_VERSION).await
}

/// Refuses an empty database where a full one must have been: its nodes, tokens and authorities
/// would be replaced by none.
pub(super) async fn check_begun(
    on: &DatabaseConnection,
    place: &str,
    dir: &Path,
) -> Result<(), StoreError> {
    // Asked first: another process may be making both now, the tables before the directory.
    if !had_database(dir) || has_table(on, "meta").await? {
        return Ok(());
    }
    Err(StoreError::Emptied {
        place: place.to_owned(),
        dir: dir.to_path_buf(),
    })
}

async fn has_table(on: &DatabaseConnection, table: &str) -> Result<bool, StoreError> {
    let found = SchemaManager::new(on).has_table(table).await;
    found.map_err(StoreError::reading)
}

/// The migrations that were run, oldest first. Only reads: the migrator's own way makes its table
/// when that is missing.
async fn applied(on: &DatabaseConnection) -> Result<Vec<String>, StoreError> {
    if !has_table(on, seaql_migrations::Entity.table_name()).await? {
        return Ok(Vec::new());
    }
    let rows = seaql_migrations::Entity::find()
        .order_by_asc(seaql_migrations::Column::Version)
        .all(on)
        .await
        .map_err(StoreError::reading)?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

/// The names of the migrations that wait to be run, oldest first.
pub(super) async fn waiting(on: &DatabaseConnection) -> Result<Vec<String>, StoreError> {
    let applied = applied(on).await?;
    let all = Migrator::migrations().into_iter();
    let names = all.map(|migration| migration.name().to_owned());
    Ok(names.filter(|name| !applied.contains(name)).collect())
}

/// Whether no migration waits to be run.
pub(super) async fn is_up_to_date(on: &DatabaseConnection) -> Result<bool, StoreError> {
    Ok(waiting(on).await?.is_empty())
}

/// The number of the last change; the row is made when it is not there yet.
///
/// Another process may make it at the same moment, and raise it too: what stands there stays.
pub(super) async fn change_number(on: &impl ConnectionTrait) -> Result<i64, StoreError> {
    if let Some(number) = read_meta(on, CHANGE_KEY).await? {
        return Ok(number);
    }
    make_change_number(on).await?;
    let made = read_meta(on, CHANGE_KEY).await?;
    made.ok_or(StoreError::Missing)
}

async fn make_change_number(on: &impl ConnectionTrait) -> Result<(), StoreError> {
    let make = format!(
        "INSERT INTO meta (name, value) VALUES ('{CHANGE_KEY}', 0) ON CONFLICT (name) DO NOTHING"
    );
    let made = on.execute_unprepared(&make).await;
    made.map(drop).map_err(StoreError::writing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use crate::store::Store;

    #[tokio::test]
    async fn a_change_number_that_another_process_has_raised_meanwhile_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = Store::open(&StoreConfig::default(), dir.path()).await;
        let store = opened.expect("opens");
        let writer = store.pools().writer;
        set_meta(&writer, CHANGE_KEY, 7).await.expect("sets");
        // As a process does that has looked before there was a row.
        make_change_number(&writer).await.expect("makes");
        assert_eq!(change_number(&writer).await.expect("reads"), 7);
    }
}
