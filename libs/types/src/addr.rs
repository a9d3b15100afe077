//! Addresses: overlay (inside the mesh) and underlay (the network that carries it).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where a node can be reached on the underlay: an IP address and a UDP port.
pub type Endpoint = SocketAddr;

/// The two overlay addresses of a node; both are unique over the whole coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OverlayAddrs {
    /// From 100.64.0.0/10 (RFC 6598) unless configured otherwise.
    pub v4: Ipv4Addr,
    /// From fd7a:115c:a1e0::/48 (RFC 4193) unless configured otherwise.
    pub v6: Ipv6Addr,
}

impl OverlayAddrs {
    /// Whether `ip` is one of the two.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(v4) => v4 == self.v4,
            IpAddr::V6(v6) => v6 == self.v6,
        }
    }

    /// Both addresses, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)].into_iter()
    }
}

/// The overlay IPv4 range unless the coordinator is configured otherwise (RFC 6598).
pub const DEFAULT_OVERLAY_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(100, 64, 0, 0), 10);
/// The overlay IPv6 range unless the coordinator is configured otherwise (RFC 4193).
pub const DEFAULT_OVERLAY_V6: (Ipv6Addr, u8) =
    (Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);
