//! Sans-IO data-plane core: WireGuard peers, disco, path choice, packet filter, timers.
//!
//! [`Device`] is the root. A shell (in `mesh-node`) gives it netmaps, datagrams, IP packets and the
//! time; it gives back datagrams for UDP and for relays, decrypted IP packets, events, and the
//! moment at which it wants to be called again. Everything on the path of a packet works on batches
//! in buffers that the shell owns and reuses ([`Batch`], [`Out`]).
//!
//! Beside it live the wire formats that the data plane speaks, for the shell and for the relay:
//! [`derp`] (relaying), [`disco`] (path discovery), [`stun`] (public address).
//!
//! It does not open sockets, read the clock, take locks, spawn anything or know the coordinator.
//! One exception is hidden in `wg`: boringtun reads the clock for its own timers
//! (docs/adr/0004-boringtun-and-time.md).

pub mod buffers;
pub mod derp;
pub mod device;
pub mod disco;
pub mod event;
pub mod filter;
mod hash;
mod nacl;
pub mod offload;
pub mod packet;
mod path;
mod peer;
mod router;
pub mod stats;
pub mod stun;
mod timers;
mod turns;
mod wg;

pub use buffers::{Batch, Out, Received, Relayed, Transmit};
pub use device::{Device, DeviceConfig, Source};
pub use event::{Event, PathKind};
pub use nacl::{disco_public_key, wg_public_key};
pub use stats::{DropCounters, DropReason, PeerStats};
pub use turns::{MOST_AT_ONCE, MOST_PER_SECOND};
pub use wg::MOST_WAITING;

/// Overlay MTU in bytes, unless a larger path MTU has been proven: the least that IPv6 allows
/// (RFC 8200, section 5).
pub const DEFAULT_MTU: u16 = 1280;
