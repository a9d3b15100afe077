//! A connection whose every statement has a time limit of ours: a server that is frozen, or behind
//! a network that drops packets, keeps no limit of its own.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_orm_migration::async_trait::async_trait;

use super::health::{Health, is_pool_timeout, no_answer};

/// A connection or transaction with limits; what fails is noted in the store's health.
#[derive(Debug)]
pub(super) struct Timed<C> {
    pub(super) inner: C,
    pub(super) limit: Duration,
    pub(super) health: Arc<Health>,
    /// Of readers: fails at once while the database is known not to answer. That no connection was
    /// free says nothing there: many may be reading.
    pub(super) fail_fast: bool,
}

impl<C> Timed<C> {
    async fn within<T>(
        &self,
        action: impl Future<Output = Result<T, DbErr>> + Send,
    ) -> Result<T, DbErr> {
        if self.fail_fast
            && let Some(reason) = self.health.unreachable()
        {
            return Err(DbErr::Conn(RuntimeErr::Internal(reason)));
        }
        let outcome = match tokio::time::timeout(self.limit, action).await {
            Ok(outcome) => outcome,
            Err(_) => Err(no_answer(self.limit)),
        };
        if let Err(error) = &outcome
            && !(self.fail_fast && is_pool_timeout(error))
        {
            self.health.failed(error);
        }
        outcome
    }
}

#[async_trait]
impl<C: ConnectionTrait + Send> ConnectionTrait for Timed<C> {
    fn get_database_backend(&self) -> DbBackend {
        self.inner.get_database_backend()
    }

    async fn execute_raw(&self, stmt: Statement) -> Result<ExecResult, DbErr> {
        self.within(self.inner.execute_raw(stmt)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.within(self.inner.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, stmt: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.within(self.inner.query_one_raw(stmt)).await
    }

    async fn query_all_raw(&self, stmt: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.within(self.inner.query_all_raw(stmt)).await
    }
}
