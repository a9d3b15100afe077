//! Any bytes are an IP packet that the filter can look at, or refused (RFC 791, RFC 8200). What is
//! read is what a reading of plain headers finds, of exactly one packet.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::packet::{self, Header, InvalidPacket, Transport};

fuzz_target!(init: fuzz::seeds(seeds), |bytes: &[u8]| {
    let Ok(header) = parse(bytes) else {
        return;
    };
    assert!(parse(&[bytes, &[0]].concat()).is_err(), "a byte too many");
    assert!(parse(&bytes[..bytes.len() - 1]).is_err(), "a byte too few");
    let (src, dst, next, body) = plain(bytes);
    assert_eq!((header.src, header.dst), (src.into(), dst.into()));
    let ports = || {
        let word = |at| u16::from_be_bytes([body[at], body[at + 1]]);
        (word(0), word(2))
    };
    // Behind extension headers and in fragments there is more to read than this knows.
    match header.transport {
        Transport::Tcp { src, dst, flags } if next == 6 && header.fragment.is_none() => {
            assert_eq!(((src, dst), flags), (ports(), body[13]));
        }
        Transport::Udp { src, dst } if next == 17 && header.fragment.is_none() => {
            assert_eq!((src, dst), ports());
        }
        Transport::Echo { id, .. } if header.fragment.is_none() && matches!(next, 1 | 58) => {
            assert_eq!(id, u16::from_be_bytes([body[4], body[5]]));
        }
        Transport::LaterFragment => assert!(header.fragment.is_some()),
        Transport::Other(protocol) if bytes[0] >> 4 == 4 => assert_eq!(protocol, next),
        _ => {}
    }
});

fn parse(bytes: &[u8]) -> Result<Header, InvalidPacket> {
    let outcome = packet::parse(bytes);
    if fuzz::planted() && outcome.is_err() && bytes.get(6) == Some(&60) {
        // What follows a packet with destination options is not looked at.
        let length = bytes
            .get(4..6)
            .map(|two| u16::from_be_bytes([two[0], two[1]]));
        let whole = 40 + usize::from(length.unwrap_or(0));
        return packet::parse(bytes.get(..whole).unwrap_or_default());
    }
    outcome
}

/// Addresses, what the first header names, and what is behind it.
fn plain(bytes: &[u8]) -> (IpAddr, IpAddr, u8, &[u8]) {
    if bytes[0] >> 4 == 4 {
        let at = |at: usize| IpAddr::from(*bytes[at..].first_chunk::<4>().expect("a header"));
        let length = usize::from(bytes[0] & 15) * 4;
        (at(12), at(16), bytes[9], &bytes[length..])
    } else {
        let at = |at: usize| IpAddr::from(*bytes[at..].first_chunk::<16>().expect("a header"));
        (at(8), at(24), bytes[6], &bytes[40..])
    }
}

fn seeds() -> [(&'static str, Vec<u8>); 8] {
    let udp = [4, 210, 0, 53, 0, 9, 0, 0, 1];
    let mut tcp = [0; 20];
    tcp[..4].copy_from_slice(&[4, 210, 0, 22]);
    (tcp[12], tcp[13]) = (0x50, 2);
    let echo = [8, 0, 0, 0, 0, 7, 0, 1];
    let error = [&[3, 1, 0, 0, 0, 0, 0, 0], &*v4(17, 0, &udp)].concat();
    let hop_by_hop = [&[17, 0, 1, 4, 0, 0, 0, 0], &udp[..]].concat();
    let fragment = [&[17, 0, 0, 1, 0, 0, 0, 9], &udp[..]].concat();
    [
        ("udp", v4(17, 0, &udp)),
        ("tcp", v4(6, 0x4000, &tcp)),
        ("echo", v4(1, 0, &echo)),
        ("error", v4(1, 0, &error)),
        ("later_fragment", v4(17, 0x2010, &udp)),
        ("udp_v6", v6(17, &udp)),
        ("hop_by_hop", v6(0, &hop_by_hop)),
        ("first_fragment", v6(44, &fragment)),
    ]
}

fn v4(protocol: u8, fragmentation: u16, body: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + body.len()).expect("it is small");
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 9]);
    packet.extend(fragmentation.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 100, 64, 0, 2, 100, 64, 0, 1]);
    packet.extend(body);
    packet
}

fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(
        u16::try_from(body.len())
            .expect("it is small")
            .to_be_bytes(),
    );
    packet.extend([next, 64]);
    for last in [2, 1] {
        packet.extend([
            0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last,
        ]);
    }
    packet.extend(body);
    packet
}
