//! What the coordinator stores its state in, with its servers, and how often those are asked.

use anyhow::{Context as _, bail};
use mesh_testkit::{Postgres, PostgresOptions, Redis};
use serde_json::{Value, json};

/// A set-up with its servers running.
pub(crate) enum Setup {
    /// As `mesh up` and a home server have it.
    Sqlite,
    /// As a team has it.
    PostgresRedis {
        postgres: Postgres,
        database: String,
        bus: Redis,
    },
}

/// How often a set-up's servers were asked since they started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    statements: u64,
    commands: u64,
}

impl Setup {
    /// All, or the one of that name, each with its servers started.
    pub(crate) fn all(only: Option<&str>) -> anyhow::Result<Vec<Self>> {
        match only {
            None => Ok(vec![Self::Sqlite, Self::postgres_redis()?]),
            Some("sqlite") => Ok(vec![Self::Sqlite]),
            Some("postgres-redis") => Ok(vec![Self::postgres_redis()?]),
            Some(other) => bail!("there is no set-up {other}: it is sqlite or postgres-redis"),
        }
    }

    fn postgres_redis() -> anyhow::Result<Self> {
        let counting = PostgresOptions::default()
            .set("shared_preload_libraries", "pg_stat_statements")
            // As a real server has it: each commit is on disk before it is answered.
            .set("fsync", "on")
            .set("synchronous_commit", "on");
        let postgres = Postgres::start_with(&counting)?;
        let url = postgres.database();
        let (_, database) = url.rsplit_once('/').context("a URL ends in a name")?;
        let database = database.to_owned();
        postgres.psql(&database, "CREATE EXTENSION pg_stat_statements")?;
        Ok(Self::PostgresRedis {
            postgres,
            database,
            bus: Redis::start()?,
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::PostgresRedis { .. } => "postgres-redis",
        }
    }

    /// The coordinator's settings.
    pub(crate) fn settings(&self) -> Vec<String> {
        match self {
            Self::Sqlite => Vec::new(),
            Self::PostgresRedis {
                postgres,
                database,
                bus,
            } => vec![
                format!("store.url={}", postgres.url(database)),
                format!("store.password_file={}", postgres.password_file().display()),
                format!("bus.redis_url={}", bus.url()),
            ],
        }
    }

    /// As the servers count it; `None` for SQLite, which is in the process.
    pub(crate) fn asked(&self) -> anyhow::Result<Option<Asked>> {
        let Self::PostgresRedis {
            postgres,
            database,
            bus,
        } = self
        else {
            return Ok(None);
        };
        let sum = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
                   WHERE query NOT LIKE '%pg_stat_statements%'";
        let statements = postgres.psql(database, sum)?;
        let stats = bus.ask(&["INFO", "commandstats"])?;
        let commands = stats
            .split([',', ':'])
            .filter_map(|field| field.strip_prefix("calls="))
            .filter_map(|calls| calls.parse::<u64>().ok())
            .sum();
        Ok(Some(Asked {
            statements: statements.trim().parse().context("a number of calls")?,
            commands,
        }))
    }
}

impl Asked {
    /// Between two counts, for each of `changes`.
    pub(crate) fn per_change(before: Option<Self>, after: Option<Self>, changes: usize) -> Value {
        let Some((before, after)) = before.zip(after) else {
            return Value::Null;
        };
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let each = |before: u64, after: u64| (after - before) as f64 / changes as f64;
        json!({
            "postgres_statements": each(before.statements, after.statements),
            "redis_commands": each(before.commands, after.commands),
        })
    }
}
