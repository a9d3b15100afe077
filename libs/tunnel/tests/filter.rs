//! The packet filter: against a model, and one by one what an attacker would try.

#![allow(
    clippy::disallowed_methods,
    reason = "a test needs some instant to start from"
)]

#[path = "filter/model.rs"]
mod model;
#[path = "filter/packets.rs"]
mod packets;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use mesh_tunnel::DropReason;
use mesh_tunnel::filter::Filter;
use mesh_types::{FilterRule, OverlayAddrs, PacketFilter, PortRange, Protocol};
use proptest::prelude::*;

use model::Model;
use packets::{ACK, FIN, OWN_V4, OWN_V6, Proto, RST, SYN, header, ip, own, packet};

fn filter(max_flows: usize, now: Instant) -> Filter {
    let mut filter = Filter::new(42, max_flows, now);
    filter.set_own(OverlayAddrs {
        v4: OWN_V4,
        v6: OWN_V6,
    });
    filter
}

fn allow(source: &str, protocol: Protocol, first: u16, last: u16) -> FilterRule {
    FilterRule {
        sources: vec![source.parse().expect("a prefix")],
        protocols: vec![protocol],
        ports: vec![PortRange { first, last }],
    }
}

#[derive(Debug, Clone)]
enum Step {
    Out(usize, Proto, u16, u16),
    In(usize, Proto, u16, u16),
    Rules(usize),
    Wait(u64),
    Sweep,
}

fn remotes() -> [IpAddr; 3] {
    [
        Ipv4Addr::new(100, 64, 0, 2).into(),
        Ipv4Addr::new(100, 64, 9, 9).into(),
        Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2).into(),
    ]
}

fn rule_sets() -> [Vec<FilterRule>; 4] {
    [
        vec![],
        vec![allow("100.64.0.0/16", Protocol::Tcp, 1, 2)],
        vec![
            allow("100.64.9.9/32", Protocol::Udp, 0, 65535),
            allow("fd7a:115c:a1e0::/48", Protocol::Icmp, 0, 0),
        ],
        vec![
            allow("0.0.0.0/0", Protocol::Tcp, 1, 1),
            allow("::/0", Protocol::Udp, 2, 3),
            allow("0.0.0.0/0", Protocol::Icmp, 0, 0),
        ],
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let proto = || {
        prop_oneof![
            prop_oneof![
                Just(SYN),
                Just(SYN | ACK),
                Just(ACK),
                Just(RST),
                Just(ACK | FIN)
            ]
            .prop_map(Proto::Tcp),
            Just(Proto::Udp),
            Just(Proto::EchoRequest),
            Just(Proto::EchoReply),
        ]
    };
    prop_oneof![
        5 => (0usize..3, proto(), 1u16..4, 1u16..4).prop_map(|(r, p, a, b)| Step::Out(r, p, a, b)),
        5 => (0usize..3, proto(), 1u16..4, 1u16..4).prop_map(|(r, p, a, b)| Step::In(r, p, a, b)),
        1 => (0usize..4).prop_map(Step::Rules),
        1 => prop_oneof![Just(29), Just(31), Just(61), Just(181), Just(7441)].prop_map(Step::Wait),
        1 => Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_filter_judges_like_the_model(
        // A sample of 16 entries sees all of a small table.
        max in prop_oneof![1usize..6, Just(1000)],
        steps in proptest::collection::vec(steps(), 1..80),
    ) {
        let start = Instant::now();
        let mut filter = filter(max, start);
        let mut model = Model::new(max);
        for (at, step) in steps.into_iter().enumerate() {
            // Each step has its own second, so that it is never open which entry is the oldest.
            model.pass(1);
            let now = start + Duration::from_secs(model.now);
            match step {
                Step::Out(remote, proto, local, port) => {
                    let remote = remotes()[remote];
                    let bytes = packet(own(remote), remote, proto, local, port);
                    filter.note_outgoing(&header(&bytes), now);
                    model.outgoing(remote, proto, local, port);
                }
                Step::In(remote, proto, port, local) => {
                    let remote = remotes()[remote];
                    let bytes = packet(remote, own(remote), proto, port, local);
                    let admitted = filter.admit(&header(&bytes), now).is_ok();
                    let expected = model.incoming(remote, proto, port, local);
                    prop_assert_eq!(admitted, expected, "step {}: {:?}", at, step);
                }
                Step::Rules(which) => {
                    let rules = rule_sets()[which].clone();
                    filter.set_rules(&PacketFilter { rules: rules.clone() }, now);
                    model.set_rules(rules);
                }
                Step::Wait(seconds) => model.pass(seconds),
                Step::Sweep => filter.expire(now),
            }
            prop_assert!(filter.flows() >= model.len(), "step {}: {:?}", at, step);
            prop_assert!(filter.flows() <= 2 * max);
        }
    }

    #[test]
    fn expiry_misses_no_entry(
        // Also more than one call looks at.
        living in proptest::collection::vec(any::<bool>(), 1..700),
        calls in 0usize..4,
        reopened in proptest::collection::vec(0u16..700, 0..40),
    ) {
        let start = Instant::now();
        let mut filter = filter(1000, start);
        let remote = remotes()[0];
        let total = u16::try_from(living.len()).expect("some hundreds");
        let send = |filter: &mut Filter, port: u16, now| {
            let bytes = packet(own(remote), remote, Proto::Udp, port, 53);
            filter.note_outgoing(&header(&bytes), now);
        };
        for port in 0..total {
            send(&mut filter, port, start);
        }
        // The cursor may stand anywhere.
        for _ in 0..calls {
            filter.expire(start);
        }
        let later = start + Duration::from_secs(170);
        let mut used: BTreeSet<u16> = (0..total).filter(|&p| living[usize::from(p)]).collect();
        for &port in &used {
            send(&mut filter, port, later);
        }
        let end = start + Duration::from_secs(181);
        filter.expire(end);
        // Entries that are found expired are replaced, which moves others to their places.
        for port in reopened.into_iter().filter(|&port| port < total) {
            send(&mut filter, port, end);
            used.insert(port);
        }
        for _ in 0..2 * usize::from(total).div_ceil(256) {
            filter.expire(end);
        }
        prop_assert_eq!(filter.flows(), used.len());
    }
}

/// A peer's connection to our port 22, established at `now` by a rule.
fn peer_connects(filter: &mut Filter, now: Instant) -> [Vec<u8>; 2] {
    let remote = remotes()[0];
    filter.set_rules(&ssh_rule(), now);
    let theirs = |flags| packet(remote, own(remote), Proto::Tcp(flags), 5000, 22);
    let ours = |flags| packet(own(remote), remote, Proto::Tcp(flags), 22, 5000);
    assert_eq!(filter.admit(&header(&theirs(SYN)), now), Ok(()));
    filter.note_outgoing(&header(&ours(SYN | ACK)), now);
    assert_eq!(filter.admit(&header(&theirs(ACK)), now), Ok(()));
    [theirs(ACK), ours(ACK)]
}

fn ssh_rule() -> PacketFilter {
    PacketFilter {
        rules: vec![allow("100.64.0.2/32", Protocol::Tcp, 22, 22)],
    }
}

#[test]
fn a_connection_of_a_peer_never_becomes_ours_by_our_answers() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    // Reset and quiet, or idle for too long: the entry has expired, the connection may live on.
    for (reset, quiet) in [(true, 31), (false, 7441)] {
        for swept in [false, true] {
            let mut filter = filter(10, start);
            let [theirs, ours] = peer_connects(&mut filter, start);
            if reset {
                let reset = packet(remotes()[0], OWN_V4.into(), Proto::Tcp(RST), 5000, 22);
                assert_eq!(filter.admit(&header(&reset), start), Ok(()));
            }
            if swept {
                filter.expire(at(quiet));
            }
            filter.note_outgoing(&header(&ours), at(quiet));
            filter.set_rules(&PacketFilter::default(), at(quiet));
            let refused = Err(DropReason::Filtered);
            assert_eq!(filter.admit(&header(&theirs), at(quiet)), refused);
            filter.note_outgoing(&header(&ours), at(quiet));
            assert_eq!(filter.admit(&header(&theirs), at(quiet)), refused);
        }
    }
}

#[test]
fn an_evicted_connection_of_a_peer_does_not_become_ours() {
    let now = Instant::now();
    let mut filter = filter(4, now);
    let [theirs, ours] = peer_connects(&mut filter, now);
    let later = now + Duration::from_secs(1);
    for port in 6000..6004 {
        let other = packet(remotes()[0], OWN_V4.into(), Proto::Tcp(ACK), port, 22);
        assert_eq!(filter.admit(&header(&other), later), Ok(()));
    }
    filter.note_outgoing(&header(&ours), later);
    filter.set_rules(&PacketFilter::default(), later);
    let refused = Err(DropReason::Filtered);
    assert_eq!(filter.admit(&header(&theirs), later), refused);
}

#[test]
fn a_udp_answer_to_an_expired_flow_stands_on_the_rule() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut filter = filter(10, start);
    let rules = PacketFilter {
        rules: vec![allow("100.64.0.2/32", Protocol::Udp, 53, 53)],
    };
    filter.set_rules(&rules, start);
    let remote = remotes()[0];
    let query = packet(remote, own(remote), Proto::Udp, 4000, 53);
    let answer = packet(own(remote), remote, Proto::Udp, 53, 4000);
    assert_eq!(filter.admit(&header(&query), start), Ok(()));
    filter.expire(at(200));
    assert_eq!(filter.flows(), 0);
    filter.note_outgoing(&header(&answer), at(200));
    filter.set_rules(&PacketFilter::default(), at(201));
    let refused = Err(DropReason::Filtered);
    assert_eq!(filter.admit(&header(&query), at(201)), refused);
    // However long the service goes on sending, or pauses for less than two hours.
    filter.note_outgoing(&header(&answer), at(202));
    filter.expire(at(7000));
    filter.note_outgoing(&header(&answer), at(7000));
    assert_eq!(filter.admit(&header(&query), at(14_000)), refused);
    // A flow that we open on another port is ours.
    let fresh = packet(own(remote), remote, Proto::Udp, 5353, 4000);
    let reply = packet(remote, own(remote), Proto::Udp, 4000, 5353);
    filter.note_outgoing(&header(&fresh), at(14_000));
    assert_eq!(filter.admit(&header(&reply), at(14_000)), Ok(()));
}

#[test]
fn a_flood_cannot_push_out_what_was_cut() {
    let start = Instant::now();
    let mut filter = filter(8, start);
    let [victim, flooder, _] = remotes();
    let both = PacketFilter {
        rules: vec![allow("100.64.0.0/16", Protocol::Udp, 53, 53)],
    };
    filter.set_rules(&both, start);
    let query = packet(victim, own(victim), Proto::Udp, 4000, 53);
    let answer = packet(own(victim), victim, Proto::Udp, 53, 4000);
    assert_eq!(filter.admit(&header(&query), start), Ok(()));
    let one = PacketFilter {
        rules: vec![allow("100.64.9.9/32", Protocol::Udp, 53, 53)],
    };
    filter.set_rules(&one, start);
    let later = start + Duration::from_secs(1);
    for port in 0..100 {
        let bytes = packet(flooder, own(flooder), Proto::Udp, port, 53);
        assert_eq!(filter.admit(&header(&bytes), later), Ok(()));
    }
    filter.note_outgoing(&header(&answer), later);
    let refused = Err(DropReason::Filtered);
    assert_eq!(filter.admit(&header(&query), later), refused);
}

#[test]
fn a_half_closed_connection_may_be_quiet_and_a_closed_one_is_forgotten() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut filter = filter(10, start);
    let remote = remotes()[0];
    let ours = |flags| header(&packet(own(remote), remote, Proto::Tcp(flags), 4000, 80));
    let theirs = |flags| header(&packet(remote, own(remote), Proto::Tcp(flags), 80, 4000));
    filter.note_outgoing(&ours(SYN), start);
    assert_eq!(filter.admit(&theirs(SYN | ACK), start), Ok(()));
    filter.note_outgoing(&ours(ACK), start);
    filter.note_outgoing(&ours(FIN | ACK), at(1));
    // The other side goes on sending after our FIN.
    assert_eq!(filter.admit(&theirs(ACK), at(2)), Ok(()));
    assert_eq!(filter.admit(&theirs(ACK), at(600)), Ok(()));
    assert_eq!(filter.admit(&theirs(FIN | ACK), at(601)), Ok(()));
    filter.note_outgoing(&ours(ACK), at(601));
    let refused = Err(DropReason::Filtered);
    assert_eq!(filter.admit(&theirs(ACK), at(632)), refused);
}

#[test]
fn without_rules_and_flows_everything_is_denied() {
    let now = Instant::now();
    let mut filter = filter(10, now);
    for remote in remotes() {
        for proto in [
            Proto::Tcp(SYN),
            Proto::Udp,
            Proto::EchoRequest,
            Proto::EchoReply,
        ] {
            let bytes = packet(remote, own(remote), proto, 5, 6);
            assert_eq!(
                filter.admit(&header(&bytes), now),
                Err(DropReason::Filtered)
            );
        }
        let unknown = ip(remote, own(remote), 132, 0, &[0; 20]);
        assert_eq!(
            filter.admit(&header(&unknown), now),
            Err(DropReason::UnknownProtocol)
        );
    }
}

#[test]
fn packets_for_others_are_refused_whatever_the_rules() {
    let now = Instant::now();
    let mut filter = filter(10, now);
    filter.set_rules(
        &PacketFilter {
            rules: vec![allow("0.0.0.0/0", Protocol::Udp, 0, 65535)],
        },
        now,
    );
    let other = Ipv4Addr::new(100, 64, 0, 3).into();
    let bytes = packet(remotes()[0], other, Proto::Udp, 1, 2);
    assert_eq!(
        filter.admit(&header(&bytes), now),
        Err(DropReason::NotForUs)
    );
}

#[test]
fn later_fragments_pass_only_behind_their_first() {
    let now = Instant::now();
    let mut filter = filter(10, now);
    filter.set_rules(
        &PacketFilter {
            rules: vec![allow("100.64.0.2/32", Protocol::Udp, 53, 53)],
        },
        now,
    );
    let remote = remotes()[0];
    let first = ip(remote, own(remote), 17, 0x2000, &[0, 9, 0, 53, 0, 99, 0, 0]);
    let later = ip(remote, own(remote), 17, 0x0010, &[7; 40]);
    assert_eq!(
        filter.admit(&header(&later), now),
        Err(DropReason::Fragment)
    );
    assert_eq!(filter.admit(&header(&first), now), Ok(()));
    assert_eq!(filter.admit(&header(&later), now), Ok(()));
    let other = ip(remotes()[1], own(remote), 17, 0x0010, &[7; 40]);
    assert_eq!(
        filter.admit(&header(&other), now),
        Err(DropReason::Fragment)
    );
    let too_late = now + Duration::from_secs(11);
    assert_eq!(
        filter.admit(&header(&later), too_late),
        Err(DropReason::Fragment)
    );
    let denied = ip(remote, own(remote), 17, 0x2000, &[0, 9, 0, 54, 0, 99, 0, 0]);
    assert_eq!(
        filter.admit(&header(&denied), too_late),
        Err(DropReason::Filtered)
    );
}

#[test]
fn icmp_errors_pass_only_about_packets_that_were_sent() {
    let now = Instant::now();
    let mut filter = filter(10, now);
    let remote = remotes()[0];
    let sent = packet(own(remote), remote, Proto::Udp, 4000, 53);
    let error = |quoted: &[u8]| {
        let body = [[3, 3, 0, 0, 0, 0, 0, 0].as_slice(), quoted].concat();
        ip(remote, own(remote), 1, 0, &body)
    };
    assert_eq!(
        filter.admit(&header(&error(&sent)), now),
        Err(DropReason::UnrelatedIcmpError)
    );
    filter.note_outgoing(&header(&sent), now);
    assert_eq!(filter.admit(&header(&error(&sent)), now), Ok(()));
    let never_sent = packet(own(remote), remote, Proto::Udp, 4001, 53);
    assert_eq!(
        filter.admit(&header(&error(&never_sent)), now),
        Err(DropReason::UnrelatedIcmpError)
    );
}

#[test]
fn a_flood_from_a_peer_cannot_push_out_a_flow_of_ours() {
    let now = Instant::now();
    let mut filter = filter(100, now);
    filter.set_rules(
        &PacketFilter {
            rules: vec![allow("100.64.9.9/32", Protocol::Udp, 0, 65535)],
        },
        now,
    );
    let [victim, flooder, _] = remotes();
    let ours = packet(own(victim), victim, Proto::Udp, 4000, 53);
    filter.note_outgoing(&header(&ours), now);
    for port in 0..5000 {
        let bytes = packet(flooder, own(flooder), Proto::Udp, port, 9);
        assert_eq!(filter.admit(&header(&bytes), now), Ok(()));
    }
    assert!(filter.flows() <= 101, "{}", filter.flows());
    let answer = packet(victim, own(victim), Proto::Udp, 53, 4000);
    assert_eq!(filter.admit(&header(&answer), now), Ok(()));
}

#[test]
fn idle_flows_are_forgotten() {
    let now = Instant::now();
    let mut filter = filter(1000, now);
    let remote = remotes()[0];
    for port in 0..500 {
        filter.note_outgoing(
            &header(&packet(own(remote), remote, Proto::Udp, port, 53)),
            now,
        );
    }
    assert_eq!(filter.flows(), 500);
    let later = now + Duration::from_secs(200);
    for _ in 0..4 {
        filter.expire(later);
    }
    assert_eq!(filter.flows(), 0);
}
