//! The compiled packet filter: what a node lets in. Enforced where the packet arrives; default deny.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An IP protocol as the filter knows it (IANA protocol numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// ICMP (1) and ICMPv6 (58).
    Icmp,
    /// TCP (6).
    Tcp,
    /// UDP (17).
    Udp,
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest port let through.
    pub first: u16,
    /// The highest port let through; not below `first`.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// Exactly one port.
    pub const fn single(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether the port is in the range.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// One permission: packets from these sources to these ports of this node may open a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FilterRule {
    /// Overlay source prefixes.
    pub sources: Vec<IpNet>,
    /// Protocols let through; ports mean nothing to ICMP.
    pub protocols: Vec<Protocol>,
    /// Destination ports on this node.
    pub ports: Vec<PortRange>,
}

/// What a node lets in. Replies to flows the node opened itself pass always; all else is dropped.
///
/// The empty filter denies everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PacketFilter {
    /// The permissions; a packet passes when any of them matches.
    pub rules: Vec<FilterRule>,
}
