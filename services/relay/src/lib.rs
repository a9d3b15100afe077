//! Carries encrypted packets between nodes that cannot reach each other directly (DERP over TLS),
//! and tells nodes their public address (STUN).
//!
//! The relay sees WireGuard and disco packets, which it cannot read. A client is who its WireGuard
//! key says, which it proves by DERP's opening box; the coordinator says which keys there are and
//! in which network each is, and packets pass only within one network. The last such list is kept
//! on disk, so that a relay also serves while the coordinator is away, and after a restart.
//!
//! Parts: [`registry`] decides (who is connected, who may talk to whom), [`mailbox`] holds what
//! waits for each client, bounded; the rest is the shell around them.
//!
//! It does not forward between relays, keep anything about traffic but counters, or know names.

mod app;
pub mod cli;
mod clients;
pub mod config;
mod connection;
mod grpc;
pub mod mailbox;
mod metrics;
pub mod registry;
mod server;
pub mod status;
mod stun;

pub use app::App;
pub use config::Config;
