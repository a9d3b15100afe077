//! Which of this machine's addresses peers may try.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use mesh_types::OverlayAddrs;

/// Most addresses offered.
const MOST: usize = 16;

/// The machine's addresses, up and configured.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Interfaces {
    /// Of all of them.
    pub(super) all: Vec<IpAddr>,
    /// Without those of an overlay, this one or another that has a TUN device here: a tunnel inside
    /// a tunnel helps nobody, and crosses networks.
    pub(super) outside: Vec<IpAddr>,
}

impl Interfaces {
    /// As the system tells them; `None` when it does not, as for want of descriptors, which says
    /// nothing of them.
    pub(super) fn read() -> Option<Self> {
        let mut read = Self::default();
        for interface in nix::ifaddrs::getifaddrs().ok()? {
            if !interface
                .flags
                .contains(nix::net::if_::InterfaceFlags::IFF_UP)
            {
                continue;
            }
            let Some(addr) = interface.address.as_ref() else {
                continue;
            };
            let ip = match (addr.as_sockaddr_in(), addr.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (None, Some(v6)) => IpAddr::V6(v6.ip()),
                (None, None) => continue,
            };
            read.all.push(ip);
            if !is_overlay(&interface) {
                read.outside.push(ip);
            }
        }
        Some(read)
    }

    /// Whether an address that leads somewhere went, or came where there was none.
    pub(super) fn is_elsewhere(&self, before: &Self) -> bool {
        let usable = |of: &Self| of.outside.iter().any(is_usable);
        let mut former = before.outside.iter().filter(|ip| is_usable(ip));
        former.any(|ip| !self.outside.contains(ip)) || (usable(self) && !usable(before))
    }

    /// Whether this address was the machine's before and is no more.
    pub(super) fn has_lost(&self, before: &Self, ip: IpAddr) -> bool {
        before.all.contains(&ip) && !self.all.contains(&ip)
    }
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

/// Whether other machines may be reached from it.
fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

/// The candidates: for each bound socket its address, or those of the interfaces when it is bound
/// to all of them. Loopback counts when a socket is bound to it, or when there is nothing else.
pub(super) fn candidates(
    bound: &[SocketAddr],
    interfaces: &[IpAddr],
    extra: &[SocketAddr],
    overlay: Option<OverlayAddrs>,
) -> Vec<SocketAddr> {
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
                .filter(|ip| is_usable(ip) && !ours(ip))
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
    fn an_address_is_lost_when_it_was_there_before() {
        let of = |all: &[&str]| Interfaces {
            all: ips(all),
            outside: Vec::new(),
        };
        let (before, now) = (
            of(&["127.0.0.1", "10.0.0.1"]),
            of(&["127.0.0.1", "10.0.0.2"]),
        );
        let lost = |ip: &str| now.has_lost(&before, ip.parse().expect("an address"));
        assert!(lost("10.0.0.1"));
        assert!(!lost("127.0.0.1") && !lost("10.0.0.2"));
        assert!(
            !lost("192.0.2.1"),
            "never on an interface, so nothing is known of it"
        );
    }

    #[test]
    fn a_machine_is_elsewhere_when_an_address_that_leads_somewhere_goes_or_is_the_first() {
        let elsewhere = |before: &[&str], now: &[&str]| {
            let of = |outside: &[&str]| Interfaces {
                all: Vec::new(),
                outside: ips(outside),
            };
            of(now).is_elsewhere(&of(before))
        };
        let home = ["127.0.0.1", "192.168.1.5"];
        assert!(elsewhere(&home, &["127.0.0.1"]));
        assert!(elsewhere(&home, &["127.0.0.1", "10.0.0.9"]));
        assert!(elsewhere(&["127.0.0.1", "fe80::1"], &home));
        assert!(!elsewhere(&home, &home));
        let bridge = ["127.0.0.1", "192.168.1.5", "172.17.0.1", "fe80::2"];
        assert!(!elsewhere(&home, &bridge), "one more");
        assert!(!elsewhere(&["192.168.1.5", "fe80::2"], &["192.168.1.5"]));
    }

    #[test]
    fn this_machine_has_loopback() {
        let read = Interfaces::read().expect("the system tells");
        assert!(
            read.all.contains(&std::net::Ipv4Addr::LOCALHOST.into()),
            "{read:?}"
        );
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
