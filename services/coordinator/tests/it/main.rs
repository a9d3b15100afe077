//! The coordinator as its callers see it: the real `App`, TLS and gRPC, in this process.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bootstrap;
mod bus;
mod enrol;
mod guard;
mod harness;
mod operate;
mod port;
mod renew;
mod report;
mod rights;
mod session;
mod standing;
mod stream;

/// What these tests run on; `tests/postgres` runs the same on Postgres.
mod engine {
    use std::path::Path;

    /// What it keeps in the state directory.
    pub(crate) const FILES: &[&str] = &["coordinator.db"];
    /// Whether `bootstrap` works beside a coordinator.
    pub(crate) const BOOTSTRAP_BESIDE: bool = false;

    pub(crate) fn store(_dir: &Path) -> coordinator::StoreConfig {
        coordinator::StoreConfig::default()
    }
}
