//! Copying a whole database into an empty one, and sums to prove that both hold the same.

use ring::digest::{Context, SHA256};
use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DbBackend, EntityTrait, IdenStatic as _, IntoActiveModel,
    Iterable as _, ModelTrait as _, PaginatorTrait as _, PrimaryKeyToColumn as _, QueryOrder as _,
    QuerySelect as _, Statement, Value,
};

use super::entity::{
    audit, event, host_key, meta, network, node, operator, relay, secret, token, token_use,
    tombstone,
};
use super::{Store, StoreError};

/// How many rows travel at once: below either engine's limit of values in one statement.
const PAGE: u64 = 500;

/// What a table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableSum {
    pub(crate) table: &'static str,
    pub(crate) rows: u64,
    /// SHA-256 over the hashes of its rows, whatever their order.
    pub(crate) checksum: [u8; 32],
}

/// Calls a macro with every table, those that others refer to first.
macro_rules! for_each_table {
    ($do:ident, $($args:tt)*) => {
        $do!($($args)*, meta "meta");
        $do!($($args)*, secret "secret");
        $do!($($args)*, network "network");
        $do!($($args)*, operator "operator");
        $do!($($args)*, relay "relay");
        $do!($($args)*, token "token");
        $do!($($args)*, token_use "token_use");
        $do!($($args)*, node "node");
        $do!($($args)*, host_key "host_key");
        $do!($($args)*, tombstone "tombstone");
        $do!($($args)*, event "event");
        $do!($($args)*, audit "audit");
    };
}

/// Hashes of rows, to be summed up.
#[derive(Debug, Default)]
struct Sum(Vec<[u8; 32]>);

impl Sum {
    fn add<E: EntityTrait>(&mut self, row: &E::Model) {
        let mut context = Context::new(&SHA256);
        let mut field = |tag: u8, bytes: &[u8]| {
            context.update(&[tag]);
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        for column in E::Column::iter() {
            field(b'c', column.as_str().as_bytes());
            match row.get(column) {
                Value::BigInt(Some(number)) => field(b'n', &number.to_be_bytes()),
                Value::Int(Some(number)) => field(b'n', &i64::from(number).to_be_bytes()),
                Value::String(Some(text)) => field(b't', text.as_bytes()),
                Value::Bytes(Some(bytes)) => field(b'b', &bytes),
                Value::BigInt(None)
                | Value::Int(None)
                | Value::String(None)
                | Value::Bytes(None) => field(b'0', b""),
                // No entity has any other type; should one ever, its text still tells a difference.
                other => field(b'?', other.to_string().as_bytes()),
            }
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        self.0.push(hash);
    }

    fn finish(mut self, table: &'static str) -> TableSum {
        // Engines sort differently; what is stored is the same in any order.
        self.0.sort_unstable();
        let mut context = Context::new(&SHA256);
        for hash in &self.0 {
            context.update(hash);
        }
        let mut checksum = [0; 32];
        checksum.copy_from_slice(context.finish().as_ref());
        TableSum {
            table,
            rows: self.0.len() as u64,
            checksum,
        }
    }
}

/// The next rows in the order of their keys.
async fn page<E: EntityTrait>(
    on: &impl ConnectionTrait,
    offset: u64,
) -> Result<Vec<E::Model>, StoreError> {
    let mut query = E::find();
    for key in E::PrimaryKey::iter() {
        query = query.order_by_asc(key.into_column());
    }
    query
        .offset(offset)
        .limit(PAGE)
        .all(on)
        .await
        .map_err(StoreError::reading)
}

async fn sum<E: EntityTrait>(
    on: &impl ConnectionTrait,
    table: &'static str,
) -> Result<TableSum, StoreError> {
    let mut sum = Sum::default();
    loop {
        let rows = page::<E>(on, sum.0.len() as u64).await?;
        if rows.is_empty() {
            return Ok(sum.finish(table));
        }
        rows.iter().for_each(|row| sum.add::<E>(row));
    }
}

async fn copy<E>(
    from: &impl ConnectionTrait,
    to: &impl ConnectionTrait,
    table: &'static str,
    progress: &mut (impl FnMut(&'static str, u64) + Send),
) -> Result<TableSum, StoreError>
where
    E: EntityTrait,
    E::Model: IntoActiveModel<E::ActiveModel>,
    E::ActiveModel: ActiveModelTrait<Entity = E> + Send,
{
    let mut sum = Sum::default();
    loop {
        let rows = page::<E>(from, sum.0.len() as u64).await?;
        if rows.is_empty() {
            progress(table, sum.0.len() as u64);
            return Ok(sum.finish(table));
        }
        rows.iter().for_each(|row| sum.add::<E>(row));
        progress(table, sum.0.len() as u64);
        let rows = rows.into_iter().map(IntoActiveModel::into_active_model);
        E::insert_many(rows)
            .exec_without_returning(to)
            .await
            .map_err(StoreError::writing)?;
    }
}

async fn count<E>(on: &impl ConnectionTrait) -> Result<u64, StoreError>
where
    E: EntityTrait,
    E::Model: Sync,
{
    E::find().count(on).await.map_err(StoreError::reading)
}

impl Store {
    /// How many rows each table has.
    pub(crate) async fn counts(&self) -> Result<Vec<(&'static str, u64)>, StoreError> {
        let on = self.reader();
        let mut counts = Vec::new();
        macro_rules! count_table {
            ($on:ident, $counts:ident, $module:ident $name:literal) => {
                $counts.push(($name, count::<$module::Entity>(&$on).await?));
            };
        }
        for_each_table!(count_table, on, counts);
        Ok(counts)
    }

    /// What each table holds.
    pub(crate) async fn sums(&self) -> Result<Vec<TableSum>, StoreError> {
        let on = self.reader();
        let mut sums = Vec::new();
        macro_rules! sum_table {
            ($on:ident, $sums:ident, $module:ident $name:literal) => {
                $sums.push(sum::<$module::Entity>(&$on, $name).await?);
            };
        }
        for_each_table!(sum_table, on, sums);
        Ok(sums)
    }

    /// Copies everything into `to` in one transaction and answers what was read here. `to` must be
    /// empty, which [`Self::counts`] tells. `progress` hears of each table and its rows so far.
    pub(crate) async fn copy_to(
        &self,
        to: &Self,
        progress: &mut (impl FnMut(&'static str, u64) + Send),
    ) -> Result<Vec<TableSum>, StoreError> {
        let from = self.reader();
        let txn = to.begin_raw().await?;
        // The empty database has rows of its own here; ours replace them.
        meta::Entity::delete_many()
            .exec(&txn)
            .await
            .map_err(StoreError::writing)?;
        let mut sums = Vec::new();
        macro_rules! copy_table {
            ($from:ident, $txn:ident, $sums:ident, $progress:ident, $module:ident $name:literal) => {
                $sums.push(copy::<$module::Entity>(&$from, &$txn, $name, $progress).await?);
            };
        }
        for_each_table!(copy_table, from, txn, sums, progress);
        if txn.get_database_backend() == DbBackend::Postgres {
            // Rows came with their ids; the next one's comes from here.
            let next = "SELECT setval(pg_get_serial_sequence('event', 'id'), \
                        greatest(coalesce(max(id), 0), 1), max(id) IS NOT NULL) FROM event";
            txn.query_one_raw(Statement::from_string(DbBackend::Postgres, next))
                .await
                .map_err(StoreError::writing)?;
        }
        to.commit_raw(txn).await.map_err(StoreError::writing)?;
        Ok(sums)
    }
}
