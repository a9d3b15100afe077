//! Counters: per peer, and of what was dropped and why.

use std::time::{Duration, Instant};

use mesh_types::NodeId;

use crate::event::PathKind;

/// How one peer is doing. Bytes and packets are inner IP packets, since the peer was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStats {
    /// Which peer.
    pub node: NodeId,
    /// Bytes of IP packets sealed for it.
    pub tx_bytes: u64,
    /// IP packets sealed for it.
    pub tx_packets: u64,
    /// Bytes of IP packets received from it, dropped ones included.
    pub rx_bytes: u64,
    /// IP packets received from it, dropped ones included.
    pub rx_packets: u64,
    /// Of the sent bytes, those that went by relay.
    pub tx_relay_bytes: u64,
    /// Of the received bytes, those that came by relay.
    pub rx_relay_bytes: u64,
    /// When the current session was established.
    pub last_handshake: Option<Instant>,
    /// How packets to it travel.
    pub path: PathKind,
    /// Round-trip time of that path, as its probes measure it.
    pub rtt: Option<Duration>,
    /// Whether there was traffic lately.
    pub active: bool,
    /// Packets that wait for a session with it; [`MOST_WAITING`](crate::MOST_WAITING) at most, what
    /// comes after is lost.
    pub waiting: usize,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// Why a packet went no further.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason as a metric label.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// The IP or transport header is malformed or cut off.
    Malformed => "malformed",
    /// Outgoing: no peer has this destination.
    NoRoute => "no_route",
    /// Outgoing: the source is not one of this node's overlay addresses.
    ForeignSource => "foreign_source",
    /// Outgoing: longer than the MTU.
    TooLong => "too_long",
    /// Outgoing: no path to the peer is known.
    NoPath => "no_path",
    /// Incoming: the inner source does not belong to the peer whose key authenticated the packet.
    SpoofedSource => "spoofed_source",
    /// Incoming: the inner destination is not this node.
    NotForUs => "not_for_us",
    /// Incoming: no rule lets it in and no flow of this node is waiting for it.
    Filtered => "filtered",
    /// Incoming: neither TCP, UDP nor ICMP.
    UnknownProtocol => "unknown_protocol",
    /// Incoming: a later fragment whose first one was not let in, or a first one too short.
    Fragment => "fragment",
    /// Incoming: an ICMP error about a packet that this node did not send.
    UnrelatedIcmpError => "unrelated_icmp_error",
    /// Incoming datagram: neither WireGuard, disco nor STUN.
    UnknownDatagram => "unknown_datagram",
    /// Incoming datagram: of no session that is known.
    UnknownSession => "unknown_session",
    /// Incoming datagram: from a key that is no peer of this node.
    UnknownPeer => "unknown_peer",
    /// Incoming datagram: WireGuard could not authenticate it.
    Unauthentic => "unauthentic",
    /// Incoming datagram: a replay, or older than what was already received.
    Replayed => "replayed",
    /// Incoming handshake: there are too many at the moment.
    UnderLoad => "under_load",
    /// Incoming disco message that could not be opened or answered.
    InvalidDisco => "invalid_disco",
    /// Incoming STUN message that answers no request of this node.
    InvalidStun => "invalid_stun",
}

/// How many packets were dropped for each reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl DropCounters {
    pub(crate) const fn new() -> Self {
        Self([0; DropReason::ALL.len()])
    }

    #[inline]
    pub(crate) fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// How many were dropped for this reason.
    pub const fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.get(reason)))
    }

    /// How many were dropped in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
