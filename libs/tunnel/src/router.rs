//! Cryptokey routing: which peer an overlay address belongs to, in both directions.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::hash::Seeded;
use crate::packet::Addr;

/// A peer's place in the device's table.
pub(crate) type Slot = u32;

/// Longest prefix first; single addresses, which nearly all are, by hash.
#[derive(Debug)]
pub(crate) struct Router {
    hosts: HashMap<Addr, Slot, Seeded>,
    prefixes: Vec<(IpNet, Slot)>,
}

impl Router {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            hosts: HashMap::with_hasher(Seeded::new(seed)),
            prefixes: Vec::new(),
        }
    }

    /// The peer that packets for `addr` go to, and that packets from it must come from.
    #[inline]
    pub(crate) fn lookup(&self, addr: Addr) -> Option<Slot> {
        if let Some(&slot) = self.hosts.get(&addr) {
            return Some(slot);
        }
        if self.prefixes.is_empty() {
            return None;
        }
        let ip = IpAddr::from(addr);
        self.prefixes
            .iter()
            .find(|(net, _)| net.contains(&ip))
            .map(|&(_, slot)| slot)
    }

    pub(crate) fn insert_host(&mut self, ip: IpAddr, slot: Slot) {
        self.hosts.insert(ip.into(), slot);
    }

    pub(crate) fn insert_prefix(&mut self, net: IpNet, slot: Slot) {
        let net = net.trunc();
        if net.prefix_len() == net.max_prefix_len() {
            self.insert_host(net.addr(), slot);
            return;
        }
        self.prefixes.push((net, slot));
        self.prefixes
            .sort_by_key(|(net, slot)| (std::cmp::Reverse(net.prefix_len()), *slot));
    }

    /// Takes away all that leads to `slot`; `hosts` names its single addresses.
    pub(crate) fn remove(&mut self, hosts: impl Iterator<Item = IpAddr>, slot: Slot) {
        for ip in hosts {
            let addr = Addr::from(ip);
            if self.hosts.get(&addr) == Some(&slot) {
                self.hosts.remove(&addr);
            }
        }
        self.prefixes.retain(|&(_, owner)| owner != slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn the_longest_prefix_wins_and_removal_uncovers_the_next() {
        let mut router = Router::new(1);
        router.insert_prefix("10.0.0.0/8".parse().expect("a prefix"), 1);
        router.insert_prefix("10.1.0.0/16".parse().expect("a prefix"), 2);
        router.insert_host("10.1.2.3".parse().expect("an address"), 3);
        assert_eq!(router.lookup(addr("10.1.2.3")), Some(3));
        assert_eq!(router.lookup(addr("10.1.2.4")), Some(2));
        assert_eq!(router.lookup(addr("10.2.0.1")), Some(1));
        assert_eq!(router.lookup(addr("fd7a::1")), None);
        router.remove(["10.1.2.3".parse().expect("an address")].into_iter(), 3);
        assert_eq!(router.lookup(addr("10.1.2.3")), Some(2));
        router.remove(std::iter::empty(), 2);
        assert_eq!(router.lookup(addr("10.1.2.3")), Some(1));
    }
}
