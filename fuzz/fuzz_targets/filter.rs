//! Any sequence of packets, in and out, is judged without a fault. Only what a rule lets in, or
//! what answers something that was sent, gets in; and what is remembered is bounded.
//!
//! The reading held beside it never forgets and looks at nothing but addresses and ports: it lets
//! in more than the filter may, and never less.

#![no_main]

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use fuzz::Steps;
use libfuzzer_sys::fuzz_target;
use mesh_tunnel::filter::Filter;
use mesh_tunnel::packet::{self, Addr, Header, Transport};
use mesh_types::{FilterRule, OverlayAddrs, PacketFilter, PortRange, Protocol};

const OWN: [u8; 4] = [100, 64, 0, 1];
const OWN_V6: [u16; 8] = [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1];
/// The only sender that may open anything, and only this.
const FRIEND: [u8; 4] = [100, 64, 0, 2];
const OPEN: PortRange = PortRange {
    first: 22,
    last: 80,
};
const OUTGOING: u8 = 1;
/// Most flows in each direction, and one that is being made.
const FLOWS: usize = 16;

/// Protocol, the other side, our port, its port.
type Flow = (u8, Addr, u16, u16);

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let mut now = Instant::now();
    let mut filter = Filter::new(7, FLOWS, now);
    filter.set_own(OverlayAddrs {
        v4: OWN.into(),
        v6: OWN_V6.into(),
    });
    filter.set_rules(&rules(), now);
    let mut model = Model::default();
    for step in Steps::new(input) {
        now += Duration::from_secs(u64::from(step.number));
        let mut bytes = step.bytes.to_vec();
        let outgoing = step.what & OUTGOING != 0;
        // No fuzzer guesses an address, so packets of IPv4 are put between the two that matter.
        let at = if outgoing { 12..16 } else { 16..20 };
        if let Some(own) = bytes.get_mut(at) {
            own.copy_from_slice(&OWN);
        }
        let Ok(header) = packet::parse(&bytes) else {
            continue;
        };
        if outgoing {
            filter.note_outgoing(&header, now);
            model.sent.extend(flow(&header, true));
        } else {
            let admitted = admit(&mut filter, &header, now);
            assert!(!admitted || model.may_pass(&header), "{header:?} was let in");
            model.note(&header, admitted);
        }
        filter.expire(now);
        assert!(filter.flows() <= 2 * FLOWS + 1);
    }
});

fn rules() -> PacketFilter {
    PacketFilter {
        rules: vec![FilterRule {
            sources: vec![IpAddr::from(FRIEND).into()],
            protocols: vec![Protocol::Tcp],
            ports: vec![OPEN],
        }],
    }
}

fn admit(filter: &mut Filter, header: &Header, now: Instant) -> bool {
    if fuzz::planted()
        && let Transport::Udp { src: 0..1024, .. } = header.transport
    {
        // "Surely an answer of a service that we asked."
        return true;
    }
    filter.admit(header, now).is_ok()
}

#[derive(Default)]
struct Model {
    sent: HashSet<Flow>,
    let_in: HashSet<Flow>,
    fragments: HashSet<(Addr, u32)>,
}

impl Model {
    fn may_pass(&self, header: &Header) -> bool {
        let own = [Ipv4Addr::from(OWN).into(), Ipv6Addr::from(OWN_V6).into()];
        if !own.contains(&header.dst) {
            return false;
        }
        match header.transport {
            Transport::Tcp { dst, .. } if header.src == Ipv4Addr::from(FRIEND).into() => {
                OPEN.contains(dst) || self.is_answer(header)
            }
            Transport::IcmpError(quoted) => {
                let kind = if quoted.protocol == 58 {
                    1
                } else {
                    quoted.protocol
                };
                let flow = (kind, quoted.dst, quoted.src_port, quoted.dst_port);
                self.sent.contains(&flow) || self.let_in.contains(&flow)
            }
            Transport::LaterFragment => header
                .fragment
                .is_some_and(|fragment| self.fragments.contains(&(header.src, fragment.id))),
            _ => self.is_answer(header),
        }
    }

    fn is_answer(&self, header: &Header) -> bool {
        flow(header, false).is_some_and(|flow| self.sent.contains(&flow))
    }

    fn note(&mut self, header: &Header, admitted: bool) {
        if !admitted {
            return;
        }
        self.let_in.extend(flow(header, false));
        if let Some(fragment) = header.fragment {
            self.fragments.insert((header.src, fragment.id));
        }
    }
}

/// The flow of a packet that could have opened it, or answers one that did.
fn flow(header: &Header, outgoing: bool) -> Option<Flow> {
    let (kind, src, dst) = match header.transport {
        Transport::Tcp { src, dst, .. } => (6, src, dst),
        Transport::Udp { src, dst } => (17, src, dst),
        Transport::Echo { request, id } if request == outgoing && outgoing => (1, id, 0),
        Transport::Echo { request, id } if request == outgoing => (1, 0, id),
        _ => return None,
    };
    Some(if outgoing {
        (kind, header.dst, src, dst)
    } else {
        (kind, header.src, dst, src)
    })
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let tcp = |src: u16, dst: u16, flags: u8| {
        let mut body = [0; 20];
        body[..2].copy_from_slice(&src.to_be_bytes());
        body[2..4].copy_from_slice(&dst.to_be_bytes());
        (body[12], body[13]) = (0x50, flags);
        v4(6, &body)
    };
    let udp = |src: u8, dst: u8| v4(17, &[0, src, 0, dst, 0, 8, 0, 0]);
    let (syn, accept) = (tcp(1234, 22, 2), tcp(22, 1234, 18));
    let (question, answer) = (udp(99, 80), udp(80, 99));
    let ping = v4(1, &[8, 0, 0, 0, 0, 7, 0, 1]);
    let pong = v4(1, &[0, 0, 0, 0, 0, 7, 0, 1]);
    let error = [&[3, 1, 0, 0, 0, 0, 0, 0], &*question].concat();
    let error = v4(1, &error);
    let (out, into) = (OUTGOING, 0);
    [
        (
            "let_in",
            Steps::write([(into, 0, &*syn), (out, 1, &*accept)]),
        ),
        (
            "answer",
            Steps::write([(out, 0, &*question), (into, 1, &*answer)]),
        ),
        (
            "echo",
            Steps::write([(out, 0, &*ping), (into, 1, &*pong), (into, 1, &*ping)]),
        ),
        (
            "error",
            Steps::write([(out, 0, &*question), (into, 1, &*error), (into, 9, &*error)]),
        ),
    ]
}

fn v4(protocol: u8, body: &[u8]) -> Vec<u8> {
    let total = u8::try_from(20 + body.len()).expect("it is small");
    let mut packet = vec![0x45, 0, 0, total, 0, 9, 0, 0, 64, protocol, 0, 0];
    packet.extend(FRIEND);
    packet.extend(FRIEND);
    packet.extend(body);
    packet
}
