//! Source lists of packet filters that stay short and still when a network grows.
//!
//! A filter is judged only on packets whose source address belongs to a peer of the node (its
//! WireGuard keys see to that), so a list of sources has to tell apart the peers that are let in
//! from those that are not, and nothing else. Up to [`EXACT`] nodes are listed address by address.
//! Above that, the list is the smallest set of prefixes that hold every allowed and no denied peer:
//! ten thousand workers of one owner make a handful of prefixes, and one more worker of that owner
//! usually changes none of them, so that a join does not send a new filter to everybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use mesh_types::OverlayAddrs;

/// Up to this many allowed nodes are listed one by one.
pub(crate) const EXACT: usize = 64;

/// An address as a number, and whether it is let in.
type Entry = (u128, bool);

/// Prefixes that hold every allowed node and none of the denied ones, in order.
pub(crate) fn compile(
    allowed: &[OverlayAddrs],
    denied: impl Iterator<Item = OverlayAddrs>,
) -> Vec<IpNet> {
    let mut v4: Vec<Entry> = allowed.iter().map(|a| (number_v4(*a), true)).collect();
    let mut v6: Vec<Entry> = allowed.iter().map(|a| (number_v6(*a), true)).collect();
    let mut nets = Vec::new();
    if allowed.len() > EXACT {
        for addrs in denied {
            v4.push((number_v4(addrs), false));
            v6.push((number_v6(addrs), false));
        }
        v4.sort_unstable();
        v6.sort_unstable();
        cover(&v4, 32, &mut nets);
        cover(&v6, 128, &mut nets);
    } else {
        v4.sort_unstable();
        v6.sort_unstable();
        nets.extend(v4.iter().filter_map(|&(number, _)| net(number, 32, 32)));
        nets.extend(v6.iter().filter_map(|&(number, _)| net(number, 128, 128)));
    }
    nets
}

fn number_v4(addrs: OverlayAddrs) -> u128 {
    u128::from(u32::from(addrs.v4))
}

fn number_v6(addrs: OverlayAddrs) -> u128 {
    u128::from(addrs.v6)
}

/// Appends the fewest prefixes that hold all allowed and no denied entries of a sorted list.
fn cover(entries: &[Entry], bits: u32, nets: &mut Vec<IpNet>) {
    let Some(((first, _), (last, _))) = entries.first().zip(entries.last()) else {
        return;
    };
    if entries.iter().all(|&(_, allowed)| !allowed) {
        return;
    }
    let shared = (first ^ last)
        .leading_zeros()
        .saturating_sub(128 - bits)
        .min(bits);
    if entries.iter().all(|&(_, allowed)| allowed) {
        nets.extend(net(*first, shared, bits));
        return;
    }
    if shared == bits {
        // One address that is both allowed and denied: denied.
        return;
    }
    let bit = bits - shared - 1;
    let half = entries.partition_point(|&(number, _)| (number >> bit) & 1 == 0);
    let (low, high) = entries.split_at(half);
    cover(low, bits, nets);
    cover(high, bits, nets);
}

/// The prefix of this length around an address.
fn net(number: u128, len: u32, bits: u32) -> Option<IpNet> {
    let addr = if bits == 32 {
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number).ok()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(number))
    };
    Some(IpNet::new(addr, u8::try_from(len).ok()?).ok()?.trunc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(n: u32) -> OverlayAddrs {
        let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + n);
        let v6 = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0);
        OverlayAddrs {
            v4,
            v6: Ipv6Addr::from(u128::from(v6) + u128::from(n)),
        }
    }

    fn holds(nets: &[IpNet], addrs: OverlayAddrs) -> [bool; 2] {
        let mut held = addrs
            .iter()
            .map(|ip| nets.iter().any(|net| net.contains(&ip)));
        [held.next(), held.next()].map(|h| h == Some(true))
    }

    #[test]
    fn few_nodes_are_listed_one_by_one() {
        let nets = compile(&[node(2), node(1)], std::iter::empty());
        let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
        assert_eq!(texts[..2], ["100.64.0.1/32", "100.64.0.2/32"]);
        assert_eq!(nets.len(), 4);
    }

    #[test]
    fn ten_thousand_nodes_and_one_stranger_are_few_prefixes() {
        let allowed: Vec<_> = (1..10_001).filter(|n| *n != 5_000).map(node).collect();
        let nets = compile(&allowed, std::iter::once(node(5_000)));
        assert!(nets.len() < 60, "{}", nets.len());
        assert_eq!(holds(&nets, node(5_000)), [false; 2]);
        let more: Vec<_> = (1..10_101).filter(|n| *n != 5_000).map(node).collect();
        assert_eq!(compile(&more, std::iter::once(node(5_000))), nets);
    }

    proptest! {
        #[test]
        fn allowed_nodes_are_in_and_denied_ones_out(
            nodes in proptest::collection::btree_map(0u32..4_000_000, any::<bool>(), 0..300)
        ) {
            let pick = |wanted| nodes.iter().filter(move |(_, a)| **a == wanted).map(|(n, _)| node(*n));
            let allowed: Vec<_> = pick(true).collect();
            let nets = compile(&allowed, pick(false));
            for addrs in &allowed {
                prop_assert_eq!(holds(&nets, *addrs), [true; 2]);
            }
            for addrs in pick(false) {
                prop_assert_eq!(holds(&nets, addrs), [false; 2]);
            }
            prop_assert!(nets.len() <= 2 * allowed.len());
        }
    }
}
