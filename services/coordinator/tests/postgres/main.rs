//! The coordinator on a real Postgres: all that `tests/it` asks of it on SQLite, and what happens
//! when the server goes away.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "figures are printed")]

#[path = "../it/bootstrap.rs"]
mod bootstrap;
#[path = "../it/bus.rs"]
mod bus;
mod database;
#[path = "../it/enrol.rs"]
mod enrol;
#[path = "../it/guard.rs"]
mod guard;
#[path = "../it/harness.rs"]
mod harness;
#[path = "../it/operate.rs"]
mod operate;
mod outage;
#[path = "../it/port.rs"]
mod port;
#[path = "../it/renew.rs"]
mod renew;
#[path = "../it/report.rs"]
mod report;
#[path = "../it/rights.rs"]
mod rights;
#[path = "../it/session.rs"]
mod session;
#[path = "../it/standing.rs"]
mod standing;
#[path = "../it/stream.rs"]
mod stream;

/// What is asked on SQLite is asked here too.
#[test]
fn nothing_is_left_out() {
    let modules = |text: &'static str| {
        let names = text.lines().filter_map(|line| line.strip_prefix("mod "));
        names.filter_map(|rest| rest.strip_suffix(';'))
    };
    let here: Vec<&str> = modules(include_str!("main.rs")).collect();
    for module in modules(include_str!("../it/main.rs")) {
        assert!(here.contains(&module), "{module} is not asked on Postgres");
    }
}

/// What these tests run on.
mod engine {
    use std::path::Path;
    use std::time::Duration;

    use coordinator::StoreConfig;
    use mesh_daemon::Secret;
    use mesh_testkit::{POSTGRES_PASSWORD, Postgres};

    /// What it keeps in the state directory.
    pub(crate) const FILES: &[&str] = &[];
    /// Whether `bootstrap` works beside a coordinator.
    pub(crate) const BOOTSTRAP_BESIDE: bool = true;

    /// The database that belongs to a test's directory, made when it is asked for first.
    pub(crate) fn store(dir: &Path) -> StoreConfig {
        let note = dir.join("database-url");
        let url = std::fs::read_to_string(&note).unwrap_or_else(|_| {
            let url = Postgres::shared().database();
            std::fs::write(&note, &url).expect("notes the database");
            url
        });
        StoreConfig {
            url,
            password: Secret::new(POSTGRES_PASSWORD),
            // Servers that do not answer are part of these tests.
            acquire_timeout: Duration::from_secs(4),
            connect_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(3),
            ..StoreConfig::default()
        }
    }
}
