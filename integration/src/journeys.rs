//! What more than one test goes through: with direct paths, and again over the relay.
//!
//! Each journey first puts its parts on the workers' hosts (`install`), lets them join, and is then
//! gone through on the running field.

pub mod commands;
pub mod consoles;
pub mod fleet;
pub mod refusals;
pub mod transfers;

/// The two workers of the journeys.
pub const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
