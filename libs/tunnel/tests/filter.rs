//! The packet filter against a model that remembers everything and thinks slowly.

#![allow(
    clippy::disallowed_methods,
    reason = "a test needs some instant to start from"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use mesh_tunnel::DropReason;
use mesh_tunnel::filter::Filter;
use mesh_tunnel::packet::{Header, parse};
use mesh_types::{FilterRule, OverlayAddrs, PacketFilter, PortRange, Protocol};
use proptest::prelude::*;

const OWN_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Proto {
    Tcp(u8),
    Udp,
    EchoRequest,
    EchoReply,
}

/// A packet from `src` to `dst`; for echo `src_port` is the identifier.
fn packet(src: IpAddr, dst: IpAddr, proto: Proto, src_port: u16, dst_port: u16) -> Vec<u8> {
    let mut body = Vec::new();
    let v6 = src.is_ipv6();
    let number = match proto {
        Proto::Tcp(flags) => {
            body.extend(src_port.to_be_bytes());
            body.extend(dst_port.to_be_bytes());
            body.extend([0; 8]);
            body.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
            6
        }
        Proto::Udp => {
            body.extend(src_port.to_be_bytes());
            body.extend(dst_port.to_be_bytes());
            body.extend([0, 8, 0, 0]);
            17
        }
        Proto::EchoRequest | Proto::EchoReply => {
            let kind = match (proto, v6) {
                (Proto::EchoRequest, false) => 8,
                (Proto::EchoRequest, true) => 128,
                (_, false) => 0,
                (_, true) => 129,
            };
            body.extend([kind, 0, 0, 0]);
            body.extend(src_port.to_be_bytes());
            body.extend([0, 1]);
            if v6 { 58 } else { 1 }
        }
    };
    ip(src, dst, number, 0, &body)
}

fn ip(src: IpAddr, dst: IpAddr, protocol: u8, fragmentation: u16, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).expect("short");
    let mut packet = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet.extend([0x45, 0]);
            packet.extend((len + 20).to_be_bytes());
            packet.extend([0, 7]);
            packet.extend(fragmentation.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(len.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        _ => panic!("mixed families"),
    }
    packet.extend(body);
    packet
}

fn header(bytes: &[u8]) -> Header {
    parse(bytes).expect("a well-formed packet")
}

fn own(remote: IpAddr) -> IpAddr {
    if remote.is_ipv4() {
        OWN_V4.into()
    } else {
        OWN_V6.into()
    }
}

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

// ---- the model

type Key = (IpAddr, u16, u16, u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Theirs,
    Cut,
}

#[derive(Debug)]
struct Flow {
    whose: Whose,
    used: u64,
    limit: u64,
}

#[derive(Debug, Default)]
struct Model {
    rules: Vec<FilterRule>,
    flows: BTreeMap<Key, Flow>,
    now: u64,
}

impl Model {
    fn allows(&self, remote: IpAddr, protocol: Protocol, port: u16) -> bool {
        self.rules.iter().any(|rule| {
            rule.sources.iter().any(|net| net.contains(&remote))
                && rule.protocols.contains(&protocol)
                && (protocol == Protocol::Icmp || rule.ports.iter().any(|r| r.contains(port)))
        })
    }

    fn first_limit(proto: Proto) -> u64 {
        match proto {
            Proto::Tcp(flags) if flags & (RST | 1) != 0 => 30,
            Proto::Tcp(flags) if flags & SYN != 0 => 60,
            Proto::Tcp(_) => 7440,
            Proto::Udp => 180,
            Proto::EchoRequest | Proto::EchoReply => 60,
        }
    }

    fn used(flow: &mut Flow, proto: Proto, now: u64) {
        flow.used = now;
        if let Proto::Tcp(flags) = proto {
            if flags & (RST | 1) != 0 {
                flow.limit = 30;
            } else if flags & SYN == 0 && flags & ACK != 0 && flow.limit == 60 {
                flow.limit = 7440;
            }
        }
    }

    fn living(&mut self, key: &Key) -> Option<&mut Flow> {
        let now = self.now;
        self.flows
            .get_mut(key)
            .filter(|flow| now - flow.used <= flow.limit)
    }

    fn outgoing(&mut self, remote: IpAddr, proto: Proto, local: u16, port: u16) {
        let now = self.now;
        let key = match proto {
            Proto::Tcp(_) => (remote, local, port, 6),
            Proto::Udp => (remote, local, port, 17),
            Proto::EchoRequest => (remote, local, 0, 1),
            Proto::EchoReply => return,
        };
        let fresh = matches!(proto, Proto::Tcp(flags) if flags & (SYN | ACK) == SYN);
        if let Some(flow) = self.living(&key)
            && !(flow.whose == Whose::Cut && fresh)
        {
            Self::used(flow, proto, now);
            return;
        }
        let limit = Self::first_limit(proto);
        self.flows.insert(
            key,
            Flow {
                whose: Whose::Ours,
                used: now,
                limit,
            },
        );
    }

    fn incoming(&mut self, remote: IpAddr, proto: Proto, port: u16, local: u16) -> bool {
        let now = self.now;
        let (key, protocol) = match proto {
            Proto::Tcp(_) => ((remote, local, port, 6), Protocol::Tcp),
            Proto::Udp => ((remote, local, port, 17), Protocol::Udp),
            Proto::EchoRequest => return self.allows(remote, Protocol::Icmp, 0),
            Proto::EchoReply => ((remote, port, 0, 1), Protocol::Icmp),
        };
        if let Some(flow) = self.living(&key) {
            if flow.whose == Whose::Cut {
                return false;
            }
            Self::used(flow, proto, now);
            return true;
        }
        if protocol == Protocol::Icmp || !self.allows(remote, protocol, local) {
            return false;
        }
        let limit = Self::first_limit(proto);
        self.flows.insert(
            key,
            Flow {
                whose: Whose::Theirs,
                used: now,
                limit,
            },
        );
        true
    }

    fn set_rules(&mut self, rules: Vec<FilterRule>) {
        if self.rules == rules {
            return;
        }
        self.rules = rules;
        let now = self.now;
        let mut flows = std::mem::take(&mut self.flows);
        flows.retain(|_, flow| now - flow.used <= flow.limit);
        for (&(remote, local, _, number), flow) in &mut flows {
            let protocol = if number == 6 {
                Protocol::Tcp
            } else {
                Protocol::Udp
            };
            if flow.whose != Whose::Ours {
                let whose = if self.allows(remote, protocol, local) {
                    Whose::Theirs
                } else {
                    Whose::Cut
                };
                if whose != flow.whose {
                    flow.whose = whose;
                    flow.used = now;
                }
            }
        }
        self.flows = flows;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Out(usize, Proto, u16, u16),
    In(usize, Proto, u16, u16),
    Rules(usize),
    Wait(u64),
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
                Just(ACK | 1)
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
        1 => prop_oneof![Just(1), Just(29), Just(31), Just(61), Just(181), Just(7441)]
            .prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_filter_judges_like_the_model(steps in proptest::collection::vec(steps(), 1..60)) {
        let start = Instant::now();
        let mut filter = filter(1000, start);
        let mut model = Model::default();
        for (at, step) in steps.into_iter().enumerate() {
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
                Step::Wait(seconds) => {
                    model.now += seconds;
                    filter.expire(start + Duration::from_secs(model.now));
                }
            }
        }
    }
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
