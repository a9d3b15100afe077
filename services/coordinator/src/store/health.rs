//! Whether the store can be used, as the last who tried has seen it.

use std::time::{Duration, Instant};

use sea_orm::sqlx;
use sea_orm::{DbErr, RuntimeErr};
use tokio::sync::watch;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Down {
    reason: String,
    /// Reading fails too: the database does not answer at all.
    unreachable: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    /// Held back on purpose: why.
    held: Option<String>,
    down: Option<Down>,
    /// When it went down.
    since: Option<Instant>,
    /// Since when another coordinator has held the database while we are away from it.
    taken: Option<Instant>,
    /// It has held it for so long that it is its own now: why we must end.
    displaced: Option<String>,
    /// Another coordinator has changed the database: what we hold in memory is old.
    stale: bool,
    /// The file is not what was written. For good: a write that goes through proves nothing of the
    /// pages that it did not touch.
    damaged: bool,
}

/// Shared by everything that touches the database.
#[derive(Debug, Default)]
pub(super) struct Health(watch::Sender<State>);

/// How long what members were told before an outage is still acted upon without the store: another
/// coordinator may meanwhile have revoked or removed them.
const TRUSTED: Duration = Duration::from_secs(60 * 60);

/// How long another coordinator may hold the database before this one ends itself. Shorter ones may be
/// a successor that does not find its way.
const DISPLACED: Duration = Duration::from_secs(30);

/// What the text says once memory and database have gone different ways.
pub(super) const STALE: &str =
    "another coordinator has changed this database; this one must be started again";

impl Health {
    /// Holds changes back on purpose (`Some`: why) or lets them through again.
    pub(super) fn hold(&self, reason: Option<String>) {
        self.0.send_modify(|state| state.held = reason);
    }

    /// Takes note of an error; those that say nothing of the store's health are left alone.
    pub(super) fn failed(&self, error: &DbErr) {
        if let Some(down) = outage(error) {
            self.go_down(down, is_damage(error));
        }
    }

    /// The store cannot be used, for this reason.
    pub(super) fn set_down(&self, reason: String, unreachable: bool) {
        let down = Down {
            reason,
            unreachable,
        };
        self.go_down(down, false);
    }

    /// One log line for each time it goes down. In one step: a trial that ends meanwhile would take
    /// back the reason of what is for good.
    fn go_down(&self, down: Down, damaged: bool) {
        self.0.send_if_modified(|state| {
            if state.damaged {
                // Whatever comes of it, that is the reason.
                return false;
            }
            if state.down.is_none() {
                tracing::warn!(
                    reason = down.reason,
                    "the store takes no changes until it heals; connections go on"
                );
            }
            state.since.get_or_insert_with(Instant::now);
            let down = Some(down);
            let news = damaged || state.down != down;
            state.down = down;
            state.damaged = damaged;
            news
        });
    }

    /// Another coordinator has taken the database over.
    pub(super) fn set_taken(&self, reason: String, now: Instant) {
        self.set_down(reason.clone(), false);
        self.0.send_modify(|state| {
            let since = *state.taken.get_or_insert(now);
            let held = now.saturating_duration_since(since);
            if held > DISPLACED && state.displaced.is_none() {
                state.displaced = Some(format!(
                    "{reason}, and has held it for {} s: this one ends; one database serves one \
                     coordinator, so stop the other first if this is the right one",
                    held.as_secs()
                ));
            }
        });
    }

    /// Whether what is in memory may still be acted upon although nothing can be stored.
    pub(super) fn is_memory_trusted(&self, now: Instant) -> bool {
        let state = self.0.borrow();
        let recent = |since| now.saturating_duration_since(since) < TRUSTED;
        !state.stale && state.taken.is_none() && state.since.is_none_or(recent)
    }

    /// A change has gone through.
    pub(super) fn healed(&self) {
        self.0.send_if_modified(|state| {
            if state.damaged {
                return false;
            }
            let was = state.down.take();
            state.since = None;
            state.taken = None;
            if was.is_some() {
                tracing::info!("the store takes changes again");
            }
            was.is_some()
        });
    }

    pub(super) fn set_stale(&self) {
        self.0.send_modify(|state| state.stale = true);
    }

    /// Whether the file was found damaged: nothing heals that while we run.
    pub(super) fn is_damaged(&self) -> bool {
        self.0.borrow().damaged
    }

    pub(super) fn is_stale(&self) -> bool {
        self.0.borrow().stale
    }

    /// Why this process must end, if it must; for good.
    pub(super) fn end_reason(&self) -> Option<String> {
        let state = self.0.borrow();
        if state.stale {
            return Some(STALE.to_owned());
        }
        state.displaced.clone()
    }

    pub(super) fn is_down(&self) -> bool {
        self.0.borrow().down.is_some()
    }

    /// Why changes are refused, if they are.
    pub(super) fn refusal(&self) -> Option<String> {
        let state = self.0.borrow();
        if state.stale {
            return Some(STALE.to_owned());
        }
        let held = state.held.clone();
        held.or_else(|| state.down.as_ref().map(|down| down.reason.clone()))
    }

    /// Why reading is not even tried, if it is not.
    pub(super) fn unreachable(&self) -> Option<String> {
        let state = self.0.borrow();
        let down = state.down.as_ref().filter(|down| down.unreachable)?;
        Some(down.reason.clone())
    }

    /// Follows what changes here.
    pub(super) fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }
}

/// A follower of the store's health.
#[derive(Debug)]
pub(crate) struct Watch(watch::Receiver<State>);

impl Watch {
    /// Waits until something has changed.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The store is gone, and with it everything that could change.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until changes are refused, and answers why.
    pub(crate) async fn refused(&mut self) -> String {
        let refuses = |state: &State| state.held.is_some() || state.down.is_some() || state.stale;
        let reason = match self.0.wait_for(refuses).await {
            Ok(state) if state.stale => Some(STALE.to_owned()),
            Ok(state) => state
                .held
                .clone()
                .or_else(|| state.down.as_ref().map(|down| down.reason.clone())),
            Err(_) => None,
        };
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

/// An answer that did not come.
pub(super) fn no_answer(within: Duration) -> DbErr {
    DbErr::Conn(RuntimeErr::Internal(format!(
        "the database gave no answer within {} s",
        within.as_secs_f32()
    )))
}

fn driver(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

/// The engine's own code: an SQLSTATE, or SQLite's extended result code.
fn code(error: &DbErr) -> Option<String> {
    match driver(error)? {
        sqlx::Error::Database(error) => Some(error.code()?.into_owned()),
        _ => None,
    }
}

/// The database gave way to another transaction: the same again may well succeed.
pub(super) fn is_conflict(error: &DbErr) -> bool {
    // serialization_failure, deadlock_detected
    code(error).is_some_and(|code| code == "40001" || code == "40P01")
}

/// The file is not what SQLite wrote: SQLITE_CORRUPT, SQLITE_NOTADB.
pub(super) fn is_damage(error: &DbErr) -> bool {
    let Some(sqlx::Error::Database(database)) = driver(error) else {
        return false;
    };
    let sqlite = database.try_downcast_ref::<sqlx::sqlite::SqliteError>();
    let code = sqlite.and_then(|_| database.code()?.parse::<u32>().ok());
    code.is_some_and(|code| [11, 26].contains(&(code & 0xff)))
}

/// What was asked for takes writing, and this connection may not: SQLITE_READONLY.
pub(super) fn is_read_only(error: &DbErr) -> bool {
    let code = code(error).and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == 8)
}

/// No connection could be had in time: the database does not answer, or all are in use.
pub(super) fn is_pool_timeout(error: &DbErr) -> bool {
    matches!(error, DbErr::ConnectionAcquire(_))
        || matches!(driver(error), Some(sqlx::Error::PoolTimedOut))
}

/// Whether a failed commit may have happened all the same: nobody has said that it did not.
pub(super) fn is_in_doubt(error: &DbErr) -> bool {
    match (driver(error), code(error)) {
        // admin_shutdown and connection exceptions reach us in place of the answer.
        (_, Some(code)) => code.starts_with("57P") || code.starts_with("08"),
        (Some(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed), _) => false,
        _ => true,
    }
}

/// What an error says of the store's health; `None`: nothing.
fn outage(error: &DbErr) -> Option<Down> {
    let down = |unreachable| {
        Some(Down {
            reason: text(error),
            unreachable,
        })
    };
    if let DbErr::ConnectionAcquire(_) | DbErr::Conn(_) = error {
        return down(true);
    }
    match driver(error)? {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::BeginFailed
        | sqlx::Error::WorkerCrashed => down(true),
        sqlx::Error::Database(database) => {
            let code = database.code()?;
            match code.parse::<u32>() {
                // SQLite: the low byte is the primary result code.
                Ok(code)
                    if database
                        .try_downcast_ref::<sqlx::sqlite::SqliteError>()
                        .is_some() =>
                {
                    // BUSY, LOCKED, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, NOTADB
                    [5, 6, 8, 10, 11, 13, 14, 15, 26]
                        .contains(&(code & 0xff))
                        .then(|| down(false))
                        .flatten()
                }
                _ => match &code[..code.len().min(2)] {
                    "08" => down(true),
                    // admin_shutdown, crash_shutdown, cannot_connect_now, …
                    "57" if code.starts_with("57P") => down(true),
                    // query_canceled (too slow), disk_full and the like, system errors,
                    // read_only_sql_transaction (a standby), insufficient_privilege.
                    _ if ["57014", "25006", "42501", "55P03"].contains(&code.as_ref()) => {
                        down(false)
                    }
                    "53" | "58" => down(false),
                    _ => None,
                },
            }
        }
        _ => None,
    }
}

/// The error as a person reads it.
pub(super) fn text(error: &DbErr) -> String {
    match error {
        DbErr::Conn(RuntimeErr::Internal(text)) => text.clone(),
        DbErr::ConnectionAcquire(_) => "the database cannot be reached".to_owned(),
        error => match driver(error) {
            Some(error) => driver_text(error),
            None => mesh_daemon::report::chain(error),
        },
    }
}

pub(super) fn driver_text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => {
            let says = error.message();
            // Its last words to a connection, which name nobody: admin_shutdown, crash_shutdown, …
            let leaves = |code: &str| code.starts_with("57P") && code != "57P03";
            if error.code().as_deref().is_some_and(leaves) {
                format!("the database ended the connection: {says}")
            } else {
                says.to_owned()
            }
        }
        sqlx::Error::Io(error) => format!("the connection to the database failed: {error}"),
        sqlx::Error::PoolTimedOut => "the database cannot be reached".to_owned(),
        error => mesh_daemon::report::chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_told_and_holding_goes_first() {
        let health = Health::default();
        assert_eq!(health.refusal(), None);
        health.failed(&no_answer(Duration::from_secs(2)));
        assert_eq!(
            health.refusal().as_deref(),
            Some("the database gave no answer within 2 s")
        );
        assert!(health.unreachable().is_some());
        health.hold(Some("restoring".into()));
        assert_eq!(health.refusal().as_deref(), Some("restoring"));
        health.healed();
        assert_eq!(health.refusal().as_deref(), Some("restoring"));
        health.hold(None);
        assert_eq!(health.refusal(), None);
        health.failed(&DbErr::RecordNotUpdated);
        assert_eq!(health.refusal(), None, "says nothing of the store");
    }

    #[test]
    fn memory_is_trusted_for_an_hour_and_not_beside_another_coordinator() {
        let health = Health::default();
        let now = Instant::now();
        assert!(health.is_memory_trusted(now + 2 * TRUSTED));
        health.set_down("away".into(), true);
        health.set_down("still away".into(), true);
        assert!(health.is_memory_trusted(now + TRUSTED / 2));
        assert!(!health.is_memory_trusted(now + 2 * TRUSTED));
        health.healed();
        assert!(health.is_memory_trusted(now + 2 * TRUSTED));
        health.set_taken("another coordinator".into(), now);
        assert!(!health.is_memory_trusted(now));
        assert!(health.refusal().is_some());
        health.healed();
        assert!(health.is_memory_trusted(now));
        health.set_stale();
        assert!(!health.is_memory_trusted(now));
    }

    #[test]
    fn whoever_lost_the_database_to_another_for_half_a_minute_ends() {
        let health = Health::default();
        let now = Instant::now();
        let taken = |secs| health.set_taken("b has it".into(), now + Duration::from_secs(secs));
        taken(0);
        taken(30);
        assert_eq!(health.end_reason(), None, "the other may be ending");
        health.healed();
        taken(31);
        assert_eq!(health.end_reason(), None, "counted anew");
        taken(62);
        let reason = health.end_reason().expect("long enough");
        assert!(
            reason.contains("b has it") && reason.contains("31 s"),
            "{reason}"
        );
        health.healed();
        assert!(health.end_reason().is_some(), "for good");
    }

    #[test]
    fn damage_is_told_for_good_whatever_else_is_found() {
        let health = Health::default();
        let mut news = health.0.subscribe();
        let down = Down {
            reason: "malformed".into(),
            unreachable: false,
        };
        health.go_down(down, true);
        // Whoever looks sees both or neither.
        let seen = news.borrow_and_update().clone();
        assert!(seen.damaged && seen.down.is_some(), "{seen:?}");
        health.healed();
        health.set_down("away".into(), true);
        health.healed();
        assert_eq!(health.refusal().as_deref(), Some("malformed"));
        assert!(health.is_damaged() && health.unreachable().is_none());
    }

    #[test]
    fn stale_is_for_good() {
        let health = Health::default();
        health.set_stale();
        health.healed();
        assert_eq!(health.refusal().as_deref(), Some(STALE));
    }
}
