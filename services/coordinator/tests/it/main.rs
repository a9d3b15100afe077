//! The coordinator as its callers see it: the real `App`, TLS and gRPC, in this process.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bootstrap;
mod enrol;
mod harness;
mod operate;
mod port;
mod renew;
mod report;
mod rights;
mod session;
mod stream;
