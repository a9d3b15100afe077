//! What the device tells its shell besides packets.

use std::net::SocketAddr;

use mesh_types::{NodeId, RelayId};

/// How packets to a peer travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// Straight to this underlay address.
    Direct(SocketAddr),
    /// Through this relay.
    Relay(RelayId),
    /// Not at all: no address is known and no relay is connected.
    None,
}

/// Something that the shell may want to act on or show. None of them must be acted on for packets
/// to flow, except [`Event::RelayWanted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session with the peer was established or renewed.
    HandshakeDone {
        /// Which peer.
        peer: NodeId,
    },
    /// Packets to the peer travel another way from now on.
    PathChanged {
        /// Which peer.
        peer: NodeId,
        /// The new way.
        path: PathKind,
    },
    /// The peer did not answer handshakes for 90 s; the next packet to it tries again.
    PeerUnreachable {
        /// Which peer.
        peer: NodeId,
    },
    /// [`crate::Device::endpoints`] changed: tell the coordinator.
    EndpointsChanged,
    /// There is traffic to a peer that listens on a relay without a session: connect to it.
    RelayWanted {
        /// Which relay.
        relay: RelayId,
    },
}
