//! DERP: relaying of encrypted packets between nodes that are named by their WireGuard keys.
//!
//! A stream of frames, each a type byte, a big-endian length (4 bytes) and a body. The relay
//! speaks first (`ServerKey`); the client answers with a box that only the owner of its WireGuard
//! key can make (`ClientInfo`), and the relay confirms with a box of its own (`ServerInfo`). From
//! then on either side sends packets, keepalives and pings.
//!
//! [`Client`] and [`Server`] are the two ends of that conversation, sans-IO: stream bytes in,
//! events and stream bytes out. TLS and the HTTP upgrade ([`PATH`], [`UPGRADE`]) are the shell's.

mod client;
mod frame;
mod server;

use std::time::Duration;

pub use client::{Client, ClientEvent};
pub use frame::{
    Decoder, DerpError, Frame, GoneReason, MAX_FRAME, MAX_PACKET, PACKET_HEADER, encode_recv,
    encode_send,
};
pub use server::{Server, ServerEvent};

pub(crate) use frame::send_header;

/// The path that is upgraded to DERP.
pub const PATH: &str = "/derp";
/// The protocol named in the `Upgrade` header.
pub const UPGRADE: &str = "DERP";
/// How often a relay sends a keepalive on a quiet connection.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// Silence for this long means that the connection is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(60);
/// The protocol version that both sides name in their boxes.
pub const VERSION: u32 = 2;
