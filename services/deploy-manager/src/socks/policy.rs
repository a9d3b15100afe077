//! Where a SOCKS5 client may go: nodes of this network, by their name or overlay address, and
//! nowhere else. A pure decision over the netmap; nothing is ever looked up anywhere else.

use std::net::{IpAddr, SocketAddr};

use fast_socks5::ReplyError;
use fast_socks5::util::target_addr::TargetAddr;
use mesh_types::{Netmap, NodeState, OverlayAddrs};

/// Why a destination is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No netmap has arrived yet.
    #[error("the overlay is not up yet")]
    NotReady,
    /// The name is no node's in this network.
    #[error("no node of this network has that name")]
    UnknownName,
    /// This deploy-manager's own name or address.
    #[error("it is this deploy-manager itself")]
    Own,
    /// This machine: loopback or unspecified addresses, `localhost`.
    #[error("it is this machine")]
    Loopback,
    /// Link-local addresses, cloud metadata services among them.
    #[error("it is link-local")]
    LinkLocal,
    /// Multicast and broadcast.
    #[error("it is no single host")]
    NotUnicast,
    /// Any other address that no node of this network has: underlay, internet, other networks.
    #[error("no node of this network has that address")]
    Outside,
    /// Port 0.
    #[error("port 0 is no port")]
    PortZero,
}

impl Refusal {
    /// The reply (RFC 1928, section 6).
    pub fn reply(self) -> ReplyError {
        match self {
            Self::NotReady => ReplyError::NetworkUnreachable,
            Self::UnknownName => ReplyError::HostUnreachable,
            Self::Own
            | Self::Loopback
            | Self::LinkLocal
            | Self::NotUnicast
            | Self::Outside
            | Self::PortZero => ReplyError::ConnectionNotAllowed,
        }
    }

    /// For the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::UnknownName => "unknown-name",
            Self::Own => "own",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::NotUnicast => "not-unicast",
            Self::Outside => "outside",
            Self::PortZero => "port-zero",
        }
    }
}

/// The overlay address to dial for `target`.
pub fn decide(netmap: Option<&Netmap>, target: &TargetAddr) -> Result<SocketAddr, Refusal> {
    let netmap = netmap.ok_or(Refusal::NotReady)?;
    let (addr, port) = match target {
        TargetAddr::Ip(addr) => (by_address(netmap, addr.ip())?, addr.port()),
        TargetAddr::Domain(name, port) => {
            // Some clients send addresses as names; brackets come from URLs.
            let bare = name
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'));
            let addr = match bare.unwrap_or(name).parse::<IpAddr>() {
                Ok(ip) => by_address(netmap, ip)?,
                Err(_) => by_name(netmap, name)?,
            };
            (addr, *port)
        }
    };
    if port == 0 {
        return Err(Refusal::PortZero);
    }
    Ok(SocketAddr::new(addr, port))
}

fn by_address(netmap: &Netmap, ip: IpAddr) -> Result<IpAddr, Refusal> {
    let ip = ip.to_canonical();
    if netmap.node.addrs.contains(ip) {
        return Err(Refusal::Own);
    }
    if ip.is_loopback() || ip.is_unspecified() {
        return Err(Refusal::Loopback);
    }
    let (link_local, broadcast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    if link_local {
        return Err(Refusal::LinkLocal);
    }
    if ip.is_multicast() || broadcast {
        return Err(Refusal::NotUnicast);
    }
    let is_peer = netmap.peers.values().any(|peer| peer.addrs.contains(ip));
    if is_peer {
        Ok(ip)
    } else {
        Err(Refusal::Outside)
    }
}

fn by_name(netmap: &Netmap, name: &str) -> Result<IpAddr, Refusal> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return Err(Refusal::Loopback);
    }
    let name = name.strip_suffix(".mesh.local").unwrap_or(&name);
    let label = match name.split_once('.') {
        None => name,
        Some((label, network)) if network == netmap.node.network_name.as_str() => label,
        Some(_) => return Err(Refusal::UnknownName),
    };
    if label == netmap.node.name.as_str() {
        return Err(Refusal::Own);
    }
    let first = |addrs: &OverlayAddrs| IpAddr::V4(addrs.v4);
    netmap
        .peers
        .values()
        .find(|peer| peer.name.as_str() == label)
        .map(|peer| first(&peer.addrs))
        .ok_or(Refusal::UnknownName)
}

/// Whether the coordinator says that the node with this address is offline.
pub fn is_offline(netmap: Option<&Netmap>, addr: IpAddr) -> bool {
    let mut peers = netmap.into_iter().flat_map(|netmap| netmap.peers.values());
    peers.any(|peer| peer.addrs.contains(addr) && peer.state == NodeState::Offline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::netmap;

    fn target(text: &str) -> TargetAddr {
        match text.parse::<SocketAddr>() {
            Ok(addr) => TargetAddr::Ip(addr),
            Err(_) => {
                let (name, port) = text.rsplit_once(':').unwrap();
                TargetAddr::Domain(name.to_owned(), port.parse().unwrap())
            }
        }
    }

    #[test]
    fn nodes_are_reached_by_every_form_of_their_name_and_by_both_addresses() {
        let netmap = netmap();
        for (given, dialled) in [
            ("worker-node-1:22", "100.64.0.2:22"),
            ("WORKER-NODE-1.:22", "100.64.0.2:22"),
            ("worker-node-1.default:80", "100.64.0.2:80"),
            ("worker-node-1.default.mesh.local:80", "100.64.0.2:80"),
            ("100.64.0.2:22", "100.64.0.2:22"),
            ("[::ffff:100.64.0.2]:22", "100.64.0.2:22"),
            ("[fd7a:115c:a1e0::2]:22", "[fd7a:115c:a1e0::2]:22"),
        ] {
            let decided = decide(Some(&netmap), &target(given));
            assert_eq!(decided, Ok(dialled.parse().unwrap()), "{given}");
        }
        let named = TargetAddr::Domain("100.64.0.2".into(), 22);
        assert!(decide(Some(&netmap), &named).is_ok());
    }

    #[test]
    fn everything_outside_the_network_is_refused_with_its_own_reason() {
        let netmap = netmap();
        for (given, refusal) in [
            ("127.0.0.1:80", Refusal::Loopback),
            ("127.9.9.9:80", Refusal::Loopback),
            ("0.0.0.0:80", Refusal::Loopback),
            ("[::1]:80", Refusal::Loopback),
            ("[::]:80", Refusal::Loopback),
            ("[::ffff:127.0.0.1]:80", Refusal::Loopback),
            ("localhost:80", Refusal::Loopback),
            ("LOCALHOST.:80", Refusal::Loopback),
            ("a.localhost:80", Refusal::Loopback),
            ("169.254.169.254:80", Refusal::LinkLocal),
            ("[::ffff:169.254.169.254]:80", Refusal::LinkLocal),
            ("[fe80::1]:80", Refusal::LinkLocal),
            ("224.0.0.1:80", Refusal::NotUnicast),
            ("255.255.255.255:80", Refusal::NotUnicast),
            ("[ff02::1]:80", Refusal::NotUnicast),
            // The underlay address at which worker-node-1 is reached.
            ("192.168.1.10:80", Refusal::Outside),
            // An overlay address of another network.
            ("100.64.7.7:80", Refusal::Outside),
            ("[fd7a:115c:a1e0::77]:80", Refusal::Outside),
            ("8.8.8.8:53", Refusal::Outside),
            ("100.64.0.1:22", Refusal::Own),
            ("[fd7a:115c:a1e0::1]:22", Refusal::Own),
            ("deploy-manager:22", Refusal::Own),
            ("deploy-manager.default.mesh.local:22", Refusal::Own),
            ("example.org:80", Refusal::UnknownName),
            ("worker-node-1.home:80", Refusal::UnknownName),
            ("worker-node-1.home.mesh.local:80", Refusal::UnknownName),
            ("worker-node-1.example.org:80", Refusal::UnknownName),
            ("worker-node-9:80", Refusal::UnknownName),
            ("mesh.local:80", Refusal::UnknownName),
            (":80", Refusal::UnknownName),
            ("worker-node-1:0", Refusal::PortZero),
        ] {
            assert_eq!(
                decide(Some(&netmap), &target(given)),
                Err(refusal),
                "{given}"
            );
        }
        assert_eq!(
            decide(None, &target("worker-node-1:22")),
            Err(Refusal::NotReady)
        );
    }

    #[test]
    fn replies_tell_not_allowed_from_not_found() {
        assert_eq!(Refusal::Loopback.reply().as_u8(), 2);
        assert_eq!(Refusal::Outside.reply().as_u8(), 2);
        assert_eq!(Refusal::UnknownName.reply().as_u8(), 4);
        assert_eq!(Refusal::NotReady.reply().as_u8(), 3);
    }
}
