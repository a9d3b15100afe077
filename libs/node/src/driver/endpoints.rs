//! Which of this machine's addresses peers may try.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use mesh_types::OverlayAddrs;

/// Most addresses offered.
const MOST: usize = 16;

/// The machine's own addresses, up and configured; not those of an overlay, this one or another
/// that has a TUN device here: a tunnel inside a tunnel helps nobody, and crosses networks.
pub(super) fn interface_addrs() -> Vec<IpAddr> {
    let Ok(list) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    list.filter(|interface| {
        interface
            .flags
            .contains(nix::net::if_::InterfaceFlags::IFF_UP)
    })
    .filter(|interface| !is_overlay(interface))
    .filter_map(|interface| {
        let addr = interface.address?;
        if let Some(v4) = addr.as_sockaddr_in() {
            Some(IpAddr::V4(v4.ip()))
        } else {
            addr.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
        }
    })
    .collect()
}

/// Whether it is a TUN device's address that stands for this machine alone (/32, /128), as an
/// overlay gives it.
fn is_overlay(interface: &nix::ifaddrs::InterfaceAddress) -> bool {
    let Some(mask) = interface.netmask else {
        return false;
    };
    let alone = match (mask.as_sockaddr_in(), mask.as_sockaddr_in6()) {
        (Some(v4), _) => u32::from(v4.ip()) == u32::MAX,
        (None, Some(v6)) => u128::from(v6.ip()) == u128::MAX,
        (None, None) => false,
    };
    let device = Path::new("/sys/class/net").join(&interface.interface_name);
    alone && device.join("tun_flags").exists()
}

/// The candidates: for each bound socket its address, or those of the interfaces when it is bound
/// to all of them. Loopback counts when a socket is bound to it, or when there is nothing else.
pub(super) fn candidates(
    bound: &[SocketAddr],
    interfaces: &[IpAddr],
    extra: &[SocketAddr],
    overlay: Option<OverlayAddrs>,
) -> Vec<SocketAddr> {
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    };
    let ours = |ip: &IpAddr| overlay.is_some_and(|overlay| overlay.contains(*ip));
    let mut list: Vec<SocketAddr> = extra.to_vec();
    for socket in bound {
        if !socket.ip().is_unspecified() {
            list.push(*socket);
            continue;
        }
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == socket.is_ipv4();
        list.extend(
            interfaces
                .iter()
                .filter(of_family)
                .filter(|ip| usable(ip) && !ours(ip))
                .map(|ip| SocketAddr::new(*ip, socket.port())),
        );
    }
    if list.is_empty() {
        let loopback = |socket: &SocketAddr| {
            let ip: IpAddr = if socket.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            };
            interfaces
                .contains(&ip)
                .then(|| SocketAddr::new(ip, socket.port()))
        };
        list.extend(bound.iter().filter_map(loopback));
    }
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|addr| seen.insert(*addr));
    list.truncate(MOST);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    fn sockets(list: &[&str]) -> Vec<SocketAddr> {
        list.iter()
            .map(|text| text.parse().expect("a socket address"))
            .collect()
    }

    #[test]
    fn a_socket_on_all_interfaces_offers_their_global_addresses() {
        let interfaces = ips(&["127.0.0.1", "::1", "192.168.1.5", "fe80::1", "2001:db8::5"]);
        let bound = sockets(&["0.0.0.0:7000", "[::]:7001"]);
        let expected = sockets(&["192.168.1.5:7000", "[2001:db8::5]:7001"]);
        assert_eq!(candidates(&bound, &interfaces, &[], None), expected);
    }

    #[test]
    fn a_socket_on_loopback_offers_loopback() {
        let bound = sockets(&["127.0.0.1:7000"]);
        assert_eq!(candidates(&bound, &ips(&["192.168.1.5"]), &[], None), bound);
    }

    #[test]
    fn loopback_is_offered_when_there_is_nothing_else() {
        let bound = sockets(&["0.0.0.0:7000", "[::]:7001"]);
        let expected = sockets(&["127.0.0.1:7000"]);
        assert_eq!(
            candidates(&bound, &ips(&["127.0.0.1"]), &[], None),
            expected
        );
    }

    #[test]
    fn overlay_addresses_are_never_offered() {
        let overlay = OverlayAddrs {
            v4: "100.64.0.1".parse().expect("an address"),
            v6: "fd7a:115c:a1e0::1".parse().expect("an address"),
        };
        let interfaces = ips(&["10.0.0.1", "100.64.0.1"]);
        let bound = sockets(&["0.0.0.0:7000"]);
        let expected = sockets(&["10.0.0.1:7000"]);
        assert_eq!(
            candidates(&bound, &interfaces, &[], Some(overlay)),
            expected
        );
    }

    #[test]
    fn configured_endpoints_come_first_and_once() {
        let bound = sockets(&["10.0.0.1:7000"]);
        let extra = sockets(&["203.0.113.1:7000", "10.0.0.1:7000"]);
        assert_eq!(candidates(&bound, &[], &extra, None), extra);
    }
}
