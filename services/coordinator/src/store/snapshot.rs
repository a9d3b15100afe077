//! What is read by: the pool of readers, or one snapshot of the whole database.

use std::sync::Arc;

use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    ExecResult, IsolationLevel, QueryResult, Statement, TransactionTrait as _,
};
use sea_orm_migration::async_trait::async_trait;

use super::{Pools, Store, StoreError};

/// Where reads go.
#[derive(Debug, Clone)]
pub(super) enum Reader {
    /// Each statement sees what is committed when it begins.
    Pool(DatabaseConnection),
    /// All statements see the database of one moment.
    Snapshot {
        pool: DatabaseConnection,
        at: Arc<DatabaseTransaction>,
    },
}

impl Reader {
    pub(super) fn pool(&self) -> &DatabaseConnection {
        match self {
            Self::Pool(pool) | Self::Snapshot { pool, .. } => pool,
        }
    }
}

impl Store {
    /// From now on all reads see the database as it is at this moment, whoever writes meanwhile.
    pub(super) async fn freeze(&self) -> Result<(), StoreError> {
        let Pools { writer, reader } = self.pools();
        let pool = reader.pool().clone();
        let begun = match pool.get_database_backend() {
            DbBackend::Postgres => {
                let level = Some(IsolationLevel::RepeatableRead);
                pool.begin_with_config(level, Some(AccessMode::ReadOnly))
                    .await
            }
            _ => pool.begin().await,
        };
        let at = begun.map_err(StoreError::reading)?;
        if pool.get_database_backend() == DbBackend::Postgres {
            // Between two pages much may be written elsewhere.
            let patient = "SET LOCAL idle_in_transaction_session_timeout = 0";
            at.execute_unprepared(patient)
                .await
                .map_err(StoreError::reading)?;
        }
        // The first statement is what fixes the moment.
        at.execute_unprepared("SELECT 1")
            .await
            .map_err(StoreError::reading)?;
        let at = Arc::new(at);
        self.replace_pools(Pools {
            writer,
            reader: Reader::Snapshot { pool, at },
        });
        Ok(())
    }

    /// Ends the snapshot, if there is one; answers the pool of readers.
    pub(super) fn thaw(&self) -> DatabaseConnection {
        let Pools { writer, reader } = self.pools();
        let pool = reader.pool().clone();
        self.replace_pools(Pools {
            writer,
            reader: Reader::Pool(pool.clone()),
        });
        pool
    }
}

#[async_trait]
impl ConnectionTrait for Reader {
    fn get_database_backend(&self) -> DbBackend {
        self.pool().get_database_backend()
    }

    async fn execute_raw(&self, stmt: Statement) -> Result<ExecResult, DbErr> {
        match self {
            Self::Pool(pool) => pool.execute_raw(stmt).await,
            Self::Snapshot { at, .. } => at.execute_raw(stmt).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match self {
            Self::Pool(pool) => pool.execute_unprepared(sql).await,
            Self::Snapshot { at, .. } => at.execute_unprepared(sql).await,
        }
    }

    async fn query_one_raw(&self, stmt: Statement) -> Result<Option<QueryResult>, DbErr> {
        match self {
            Self::Pool(pool) => pool.query_one_raw(stmt).await,
            Self::Snapshot { at, .. } => at.query_one_raw(stmt).await,
        }
    }

    async fn query_all_raw(&self, stmt: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Self::Pool(pool) => pool.query_all_raw(stmt).await,
            Self::Snapshot { at, .. } => at.query_all_raw(stmt).await,
        }
    }
}
