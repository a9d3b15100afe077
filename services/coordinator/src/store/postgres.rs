//! Postgres: connections, and the lock that keeps a second coordinator out.
//!
//! The lock is a session-level advisory lock on a connection of its own, so the server frees it
//! when we are gone, however we went. It is taken again after an outage. That nobody wrote in
//! between shows in the change number (`super::Txn`), not in the lock.

use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions, PgSslMode};
use sea_orm::sqlx::{self, ConnectOptions as _, Connection as _, Row as _};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::StoreError;
use super::health::driver_text;
use crate::config::{StoreConfig, StoreTls};

/// The advisory lock's key: "meshcoor" in ASCII. Advisory locks belong to one database.
const LOCK_KEY: i64 = 0x6d65_7368_636f_6f72;
/// How long a start waits for a predecessor's lock: its connection may just be ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How long the server lets a transaction of ours stand idle before it ends it.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(30);
/// Connections to write by: one writes, and one may ask what became of a commit.
const WRITERS: u32 = 2;
/// How often a start tells that it still waits.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why the lock is not ours.
#[derive(Debug)]
pub(super) enum NotHeld {
    /// Another coordinator has it.
    Taken(String),
    /// The server cannot be asked.
    Unreachable(String),
    /// The server refuses us, and will go on to.
    Refused(String),
    /// The server is not shown to be the right one: nothing was said to it.
    Untrusted(String),
}

impl NotHeld {
    fn of(error: &sqlx::Error) -> Self {
        let reason = driver_text(error);
        match error {
            // invalid_authorization_specification: a wrong password, or no right to connect
            sqlx::Error::Database(error) if error.code().is_some_and(|c| c.starts_with("28")) => {
                Self::Refused(reason)
            }
            sqlx::Error::Configuration(_) => Self::Refused(reason),
            sqlx::Error::Tls(error) => Self::Untrusted(error.to_string()),
            // A certificate that does not hold, as TLS reports it through the socket.
            sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Self::Untrusted(error.to_string())
            }
            _ => Self::Unreachable(reason),
        }
    }
}

/// A database on a Postgres server.
#[derive(Debug)]
pub(super) struct Postgres {
    options: PgConnectOptions,
    place: String,
    limits: Limits,
    /// The connection that holds the lock.
    session: Mutex<Option<PgConnection>>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    connections: u32,
    acquire: Duration,
    connect: Duration,
    statement: Duration,
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// Who we are, as `pg_stat_activity` shows it.
fn application_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("coordinator {} process {}", host.trim(), std::process::id());
    name.chars().filter(char::is_ascii).take(63).collect()
}

impl Postgres {
    pub(super) fn new(options: PgConnectOptions, tls: StoreTls, config: &StoreConfig) -> Self {
        let mode = match tls {
            StoreTls::VerifyFull => PgSslMode::VerifyFull,
            StoreTls::VerifyCa => PgSslMode::VerifyCa,
            StoreTls::Require => PgSslMode::Require,
            StoreTls::PrivateNetwork | StoreTls::Disable => PgSslMode::Disable,
        };
        let place = format!(
            "postgres://{}@{}:{}/{}",
            options.get_username(),
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or_default()
        );
        let mut options = options
            .ssl_mode(mode)
            .application_name(&application_name())
            .disable_statement_logging()
            .options([
                (
                    "idle_in_transaction_session_timeout",
                    millis(IDLE_IN_TRANSACTION),
                ),
                ("client_min_messages", "warning".to_owned()),
                ("default_transaction_isolation", "read committed".to_owned()),
                // A client that is gone without a word is noticed within 30 s.
                ("tcp_keepalives_idle", "15".to_owned()),
                ("tcp_keepalives_interval", "5".to_owned()),
                ("tcp_keepalives_count", "3".to_owned()),
            ]);
        if !config.password.is_empty() {
            options = options.password(config.password.expose());
        }
        if !config.ca.is_empty() {
            options = options.ssl_root_cert_from_pem(config.ca.clone().into_bytes());
        }
        Self {
            options,
            place,
            limits: Limits {
                connections: config.max_connections,
                acquire: config.acquire_timeout,
                connect: config.connect_timeout,
                statement: config.statement_timeout,
            },
            session: Mutex::new(None),
        }
    }

    /// The same, with connections that the server lets write nothing.
    pub(super) fn read_only(mut self) -> Self {
        self.options = self
            .options
            .options([("default_transaction_read_only", "on")]);
        self
    }

    /// Where it is, without a secret.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    fn limited(&self, statement: Duration) -> PgConnectOptions {
        self.options
            .clone()
            .options([("statement_timeout", millis(statement))])
    }

    /// A pool to write by that connects when it is asked to. Readers never take its connections.
    pub(super) fn writer(&self) -> DatabaseConnection {
        self.pool_of(WRITERS, self.limits.statement)
    }

    /// A pool to read by that connects when it is asked to.
    pub(super) fn reader(&self) -> DatabaseConnection {
        let connections = self.limits.connections.saturating_sub(WRITERS).max(1);
        self.pool_of(connections, self.limits.statement)
    }

    /// One connection without a limit for statements: migrations take what they take.
    pub(super) fn unlimited(&self) -> DatabaseConnection {
        self.pool_of(1, Duration::ZERO)
    }

    fn pool_of(&self, connections: u32, statement: Duration) -> DatabaseConnection {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(self.limits.acquire)
            .idle_timeout(Duration::from_secs(10 * 60))
            .max_lifetime(Duration::from_secs(60 * 60))
            .connect_lazy_with(self.limited(statement));
        SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
    }

    async fn connect(&self) -> Result<PgConnection, NotHeld> {
        let options = self.limited(self.limits.statement);
        match timeout(self.limits.connect, PgConnection::connect_with(&options)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(NotHeld::of(&error)),
            Err(_) => Err(NotHeld::Unreachable(format!(
                "the database gave no answer within {} s",
                self.limits.connect.as_secs_f32()
            ))),
        }
    }

    /// Makes sure that the lock is ours: looks after the connection that holds it, or takes it anew.
    pub(super) async fn hold(&self) -> Result<(), NotHeld> {
        let mut session = self.session.lock().await;
        if let Some(mut connection) = session.take() {
            let alive = timeout(self.limits.statement, connection.ping()).await;
            if matches!(alive, Ok(Ok(()))) {
                *session = Some(connection);
                return Ok(());
            }
        }
        let mut connection = self.connect().await?;
        let asked = timeout(self.limits.statement, take(&mut connection)).await;
        match asked {
            Ok(Ok(None)) => {
                *session = Some(connection);
                Ok(())
            }
            Ok(Ok(Some(holder))) => {
                drop(timeout(self.limits.connect, connection.close()).await);
                Err(NotHeld::Taken(holder))
            }
            Ok(Err(error)) => Err(NotHeld::of(&error)),
            Err(_) => Err(NotHeld::Unreachable(
                "the database does not answer".to_owned(),
            )),
        }
    }

    /// Takes the lock at a start: waits for a server that is not there yet, and a little for a
    /// predecessor that is just ending.
    /// `Some`: who has it, when `may_be_beside` and it is somebody else.
    pub(super) async fn hold_at_start(
        &self,
        wait: Duration,
        may_be_beside: bool,
    ) -> Result<Option<String>, StoreError> {
        let (started, place) = (Instant::now(), self.place.clone());
        let mut told: Option<(Instant, String)> = None;
        let mut taken_since = None;
        let mut pause = Duration::from_millis(100);
        loop {
            let reason = match self.hold().await {
                Ok(()) => {
                    if told.is_some() {
                        tracing::info!(database = place, "the database answers");
                    }
                    return Ok(None);
                }
                Err(NotHeld::Taken(holder)) if may_be_beside => return Ok(Some(holder)),
                Err(NotHeld::Refused(reason)) => return Err(StoreError::Refused { place, reason }),
                Err(NotHeld::Untrusted(reason)) => {
                    return Err(StoreError::Untrusted { place, reason });
                }
                Err(NotHeld::Taken(holder)) => {
                    let since = *taken_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= LOCK_PATIENCE {
                        return Err(StoreError::Taken { place, holder });
                    }
                    format!("another coordinator holds it: {holder}")
                }
                Err(NotHeld::Unreachable(reason)) => reason,
            };
            let waited = started.elapsed();
            if taken_since.is_none() && waited >= wait {
                return Err(StoreError::Unreachable {
                    place,
                    waited,
                    reason,
                });
            }
            let news = told
                .as_ref()
                .is_none_or(|(at, before)| *before != reason || at.elapsed() >= TELL_EVERY);
            if news {
                tracing::info!(
                    database = place,
                    reason,
                    up_to = ?wait,
                    "waiting for the database"
                );
                told = Some((Instant::now(), reason));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Lets the lock go.
    pub(super) async fn release(&self) {
        if let Some(connection) = self.session.lock().await.take() {
            // The server frees the lock when the connection ends, in good order or not.
            drop(timeout(self.limits.connect, connection.close()).await);
        }
    }
}

/// Tries to take the lock; `Some`: who has it.
async fn take(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let taken: bool = sqlx::query("SELECT pg_try_advisory_lock($1)")
        .bind(LOCK_KEY)
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    if taken {
        return Ok(None);
    }
    let holder = sqlx::query(
        "SELECT concat(coalesce(nullif(a.application_name, ''), 'an unnamed program'), \
         coalesce(' at ' || host(a.client_addr), ''), coalesce(', session ' || l.pid::text, '')) \
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
         AND ((l.classid::bigint << 32) | l.objid::bigint) = $1 \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .bind(LOCK_KEY)
    .fetch_optional(&mut *connection)
    .await?;
    let holder = holder.map(|row| row.try_get::<String, _>(0)).transpose()?;
    Ok(Some(
        holder.unwrap_or_else(|| "it has just gone".to_owned()),
    ))
}
