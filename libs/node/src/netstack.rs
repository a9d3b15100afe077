//! The TCP/IP stack of a node: what the driver feeds with packets, and what dials and listens.
//!
//! Userspace TCP/IP ([`Netstack`], on smoltcp): no root, no device. Where the node has a TUN device
//! the machine's own stack has the overlay addresses too; this one then keeps what the node itself
//! listens on and dials, published services above all, and leaves every other packet to the
//! machine (docs/adr/0020-tun-beside-userspace.md).
//!
//! One lock guards the stack. The driver takes it once per batch of packets and a stream once per
//! read or write; the socket buffers are the bounded rings between them, so that a byte is copied
//! once on each side and no packet crosses a channel.

use std::net::SocketAddr;
use std::time::Duration;

mod listener;
mod phy;
mod stack;
mod stream;
#[cfg(test)]
mod tests;
mod udp;

pub(crate) use listener::ListenerCloser;
pub use listener::OverlayListener;
pub(crate) use stack::LeftToMachine;
pub use stack::Netstack;
pub use stream::OverlayStream;
pub use udp::OverlayUdp;

/// Sizes and limits of a [`Netstack`].
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// Largest IP packet, in bytes.
    pub mtu: usize,
    /// Receive buffer and send buffer of each TCP connection, in bytes each.
    pub socket_buffer: usize,
    /// Cap on the sum of all socket buffers, in bytes; beyond it dials fail and new inbound
    /// connections are left unanswered.
    pub socket_memory: usize,
    /// Connections per listener that are half open or not yet accepted; more are left unanswered.
    pub backlog: usize,
    /// A connection whose other end does not react for this long is over, however alive the peer
    /// is otherwise. Longer than TCP ever waits between two probes of a closed window.
    pub timeout: Duration,
    /// How often an idle connection is probed.
    pub keepalive: Duration,
    /// Fresh randomness: sequence numbers and ephemeral ports start from it.
    pub seed: u64,
}

impl Default for StackConfig {
    fn default() -> Self {
        Self {
            mtu: 1280,
            socket_buffer: 128 * 1024,
            socket_memory: 512 * 1024 * 1024,
            backlog: 1024,
            timeout: Duration::from_secs(300),
            keepalive: Duration::from_secs(60),
            seed: 0,
        }
    }
}

/// A connection over the overlay could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// No peer of this network has the address.
    #[error("{0} belongs to no node that this one may talk to")]
    NotAPeer(SocketAddr),
    /// The address is this node's own.
    #[error("{0} is this node's own address")]
    OwnAddress(SocketAddr),
    /// The other side answered with a reset: nothing is published on the port.
    #[error("{0} refused the connection: nothing is published on that port")]
    Refused(SocketAddr),
    /// Nothing came back in time; `reason` says what is known about the way there.
    #[error("{to} did not answer within {} s: {reason}", .after.as_secs_f32().ceil())]
    TimedOut {
        /// What was dialled.
        to: SocketAddr,
        /// The limit that passed.
        after: Duration,
        /// What is known, for people.
        reason: &'static str,
    },
    /// No netmap is known yet, so the node has no overlay address.
    #[error("this node has not received its netmap yet")]
    NotReady,
    /// The cap on socket memory is reached.
    #[error("too many connections are open on this node")]
    Busy,
    /// The node is stopping.
    #[error("this node is stopping")]
    Closed,
    /// The node has ended, since it is in no network any more.
    #[error("this node was removed from its network")]
    Removed,
}

impl DialError {
    /// Whether nothing answered in time.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }

    /// Whether the other side said no.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// A port cannot be listened on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Something on this node has it already.
    #[error("overlay port {0} is taken on this node")]
    PortTaken(u16),
    /// No port is left.
    #[error("no free overlay port is left on this node")]
    NoPort,
    /// The cap on socket memory is reached.
    #[error("too many sockets are open on this node")]
    Busy,
    /// The node is stopping.
    #[error("this node is stopping")]
    Closed,
    /// The node has ended, since it is in no network any more.
    #[error("this node was removed from its network")]
    Removed,
}
