//! Which overlay addresses are free. Unique over the whole coordinator.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_types::OverlayAddrs;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Which free address a new node gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressChoice {
    /// The lowest one.
    #[default]
    Lowest,
    /// Any one, by the engine's seed: an address is unlikely to come back soon after its node left.
    Random,
}

/// The configured overlay ranges cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRange {
    /// Fewer than two usable IPv4 addresses.
    #[error("the overlay IPv4 range {0} is too small: use a prefix of /30 or shorter")]
    TooSmall(Ipv4Net),
    /// Fewer IPv6 than IPv4 addresses.
    #[error(
        "the overlay IPv6 range {0} has fewer addresses than the IPv4 range: use a /64 or shorter"
    )]
    FewerV6(Ipv6Net),
}

/// Kept free for a resolver on the node, where the field's clients look for one.
const RESERVED: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 100);
/// Random picks before the lowest free address is taken after all.
const RANDOM_TRIES: usize = 32;

/// The two overlay ranges and what of them is taken.
///
/// The n-th IPv4 address goes with the n-th IPv6 address. INVARIANT: `first_free` is not above the
/// lowest index of which both are free.
#[derive(Debug)]
pub(crate) struct Addresses {
    v4: Ipv4Net,
    v6: Ipv6Net,
    choice: AddressChoice,
    rng: StdRng,
    taken_v4: BTreeSet<Ipv4Addr>,
    taken_v6: BTreeSet<Ipv6Addr>,
    first_free: u32,
}

impl Addresses {
    pub(crate) fn new(
        v4: Ipv4Net,
        v6: Ipv6Net,
        choice: AddressChoice,
        seed: [u8; 32],
    ) -> Result<Self, InvalidRange> {
        if v4.prefix_len() > 30 {
            return Err(InvalidRange::TooSmall(v4));
        }
        if 128 - v6.prefix_len() < 32 - v4.prefix_len() {
            return Err(InvalidRange::FewerV6(v6));
        }
        Ok(Self {
            v4: v4.trunc(),
            v6: v6.trunc(),
            choice,
            rng: StdRng::from_seed(seed),
            taken_v4: BTreeSet::new(),
            taken_v6: BTreeSet::new(),
            first_free: 1,
        })
    }

    /// Takes a free pair; `None` when there is none.
    pub(crate) fn allocate(&mut self) -> Option<OverlayAddrs> {
        let picked = match self.choice {
            AddressChoice::Lowest => None,
            AddressChoice::Random => (0..RANDOM_TRIES).find_map(|_| {
                let index = self.rng.random_range(1..=self.last());
                self.free_at(index)
            }),
        };
        let addrs = picked.or_else(|| self.lowest())?;
        self.take(addrs);
        Some(addrs)
    }

    /// Marks a pair as taken.
    pub(crate) fn take(&mut self, addrs: OverlayAddrs) {
        self.taken_v4.insert(addrs.v4);
        self.taken_v6.insert(addrs.v6);
    }

    /// Marks a pair as free.
    pub(crate) fn give_back(&mut self, addrs: OverlayAddrs) {
        self.taken_v4.remove(&addrs.v4);
        self.taken_v6.remove(&addrs.v6);
        let base = u32::from(self.v4.network());
        let index_v4 = u32::from(addrs.v4).saturating_sub(base);
        let base = u128::from(self.v6.network());
        let index_v6 = u128::from(addrs.v6).saturating_sub(base);
        let index_v6 = u32::try_from(index_v6).unwrap_or(u32::MAX);
        self.first_free = self.first_free.min(index_v4).min(index_v6).max(1);
    }

    fn lowest(&mut self) -> Option<OverlayAddrs> {
        let found = (self.first_free..=self.last()).find_map(|i| Some((i, self.free_at(i)?)));
        self.first_free = found.map_or(self.last(), |(index, _)| index);
        found.map(|(_, addrs)| addrs)
    }

    /// The last index before the broadcast address.
    fn last(&self) -> u32 {
        let hosts = u64::from(u32::MAX) >> self.v4.prefix_len();
        u32::try_from(hosts).unwrap_or(u32::MAX) - 1
    }

    fn free_at(&self, index: u32) -> Option<OverlayAddrs> {
        let v4 = Ipv4Addr::from(u32::from(self.v4.network()).checked_add(index)?);
        let v6 = Ipv6Addr::from(u128::from(self.v6.network()).checked_add(u128::from(index))?);
        let taken = v4 == RESERVED || self.taken_v4.contains(&v4) || self.taken_v6.contains(&v6);
        (!taken).then_some(OverlayAddrs { v4, v6 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(choice: AddressChoice) -> Addresses {
        let v4 = "100.100.100.96/29".parse().expect("a prefix");
        let v6 = "fd7a:115c:a1e0::/48".parse().expect("a prefix");
        Addresses::new(v4, v6, choice, [1; 32]).expect("usable")
    }

    #[test]
    fn network_broadcast_and_resolver_addresses_are_never_given_out() {
        for choice in [AddressChoice::Lowest, AddressChoice::Random] {
            let mut addresses = small(choice);
            let mut last: Vec<u8> = std::iter::from_fn(|| addresses.allocate())
                .map(|addrs| addrs.v4.octets()[3])
                .collect();
            last.sort_unstable();
            assert_eq!(last, [97, 98, 99, 101, 102]);
        }
    }

    #[test]
    fn the_lowest_free_address_comes_back_first() {
        let mut addresses = small(AddressChoice::Lowest);
        let given: Vec<_> = std::iter::from_fn(|| addresses.allocate()).collect();
        addresses.give_back(given[3]);
        addresses.give_back(given[1]);
        assert_eq!(addresses.allocate(), Some(given[1]));
        assert_eq!(addresses.allocate(), Some(given[3]));
        assert_eq!(addresses.allocate(), None);
    }

    #[test]
    fn a_pair_is_free_only_when_both_addresses_are() {
        let mut addresses = small(AddressChoice::Lowest);
        let v4 = "100.100.100.98".parse().expect("an address");
        let v6 = "fd7a:115c:a1e0::1".parse().expect("an address");
        addresses.take(OverlayAddrs { v4, v6 });
        let first = addresses.allocate().expect("room");
        assert_eq!(first.v4.octets()[3], 99);
    }

    #[test]
    fn ranges_that_cannot_work_are_refused() {
        let v4: Ipv4Net = "100.64.0.0/31".parse().expect("a prefix");
        let v6: Ipv6Net = "fd00::/64".parse().expect("a prefix");
        let new = |v4, v6| Addresses::new(v4, v6, AddressChoice::Lowest, [0; 32]).map(|_| ());
        assert_eq!(new(v4, v6), Err(InvalidRange::TooSmall(v4)));
        let v4: Ipv4Net = "100.64.0.0/10".parse().expect("a prefix");
        let v6: Ipv6Net = "fd00::/112".parse().expect("a prefix");
        assert_eq!(new(v4, v6), Err(InvalidRange::FewerV6(v6)));
    }
}
