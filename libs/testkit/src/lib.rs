//! Test harness: network namespaces, child processes, real servers, a real browser.
//!
//! For tests and benches only. Everything here is plain blocking code: a journey reads from top to
//! bottom, and a condition is waited for with a deadline ([`eventually()`]), never slept for. What a
//! test makes (namespaces, users, processes, files) is removed when its value is dropped, also
//! while a panic unwinds; what a killed test left behind is swept by the next one.
//!
//! Of the product it knows the vocabulary alone: where its binaries are and how they start is the
//! business of the `integration` package.

#![allow(
    clippy::print_stderr,
    reason = "what a test skipped, and the logs of a failed one, are for the person who runs it"
)]

pub mod artefact;
pub mod browser;
pub mod capture;
pub mod child;
pub mod cockpit;
pub mod documented;
pub mod eventually;
pub mod finding;
pub mod flat;
pub mod heap;
pub mod http;
pub mod lab;
pub mod log;
pub mod mounts;
pub mod need;
pub mod port;
pub mod postgres;
pub mod redis;
pub mod sshd;
pub mod user;

pub use browser::{Browser, BrowserOptions};
pub use capture::Capture;
pub use child::{Child, Finished, Spec};
pub use cockpit::Cockpit;
pub use eventually::{eventually, holds_for, rest};
pub use finding::assert_found;
pub use http::{Curl, CurlReply, HttpReply, http_get};
pub use lab::{Blocked, Host, Lab, Segment};
pub use log::{Line, Log, Stream};
pub use mounts::{Filled, SmallDisk, stand_in, with_own_mounts};
pub use need::{Need, needs};
pub use port::{free_tcp_port, free_udp_port};
pub use postgres::{POSTGRES_PASSWORD, POSTGRES_USER, Postgres, PostgresOptions};
pub use redis::{REDIS_PASSWORD, Redis, RedisOptions};
pub use sshd::{Sshd, SshdOptions};
pub use user::TestUser;
