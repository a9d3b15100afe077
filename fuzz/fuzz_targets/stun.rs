//! Any datagram is a STUN message or refused (RFC 8489); an address that is read is the one that a
//! reading byte by byte finds.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::stun::{self, InvalidStun, TransactionId};

fuzz_target!(init: fuzz::seeds(seeds), |datagram: &[u8]| {
    if let Ok(transaction) = stun::parse_request(datagram) {
        assert!(stun::is_stun(datagram));
        let again = stun::encode_request(&transaction);
        assert_eq!(stun::parse_request(&again).ok(), Some(transaction));
        assert_eq!(datagram[8..20], transaction);
    }
    if let Ok((transaction, mapped)) = parse_response(datagram) {
        assert_eq!(Some(mapped), simple(datagram));
        let mut again = [0; stun::MAX_RESPONSE];
        let used = stun::encode_response(&transaction, mapped, &mut again);
        // IPv4 is written as such, also when it came mapped into IPv6.
        let mapped = SocketAddr::new(mapped.ip().to_canonical(), mapped.port());
        assert_eq!(
            stun::parse_response(&again[..used]).ok(),
            Some((transaction, mapped))
        );
    }
});

fn parse_response(datagram: &[u8]) -> Result<(TransactionId, SocketAddr), InvalidStun> {
    let (transaction, mut mapped) = stun::parse_response(datagram)?;
    if fuzz::planted() && mapped.port() >= 0xff00 {
        mapped.set_port(mapped.port() - 1);
    }
    Ok((transaction, mapped))
}

/// The first XOR-MAPPED-ADDRESS (RFC 8489, 14.2) of a well-formed message.
fn simple(datagram: &[u8]) -> Option<SocketAddr> {
    let mask = &datagram[4..20];
    let mut at = 20;
    loop {
        let kind = u16::from_be_bytes([*datagram.get(at)?, *datagram.get(at + 1)?]);
        let length = usize::from(u16::from_be_bytes([datagram[at + 2], datagram[at + 3]]));
        if kind == 0x0020 {
            let value = &datagram[at + 4..at + 4 + length];
            let port = u16::from_be_bytes([value[2] ^ mask[0], value[3] ^ mask[1]]);
            let plain: Vec<u8> = value[4..].iter().zip(mask).map(|(a, b)| a ^ b).collect();
            let ip = match value[1] {
                1 => IpAddr::from(<[u8; 4]>::try_from(plain).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(plain).ok()?),
            };
            return Some(SocketAddr::new(ip, port));
        }
        at += 4 + length.div_ceil(4) * 4;
    }
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let respond = |mapped: &str| {
        let mut bytes = [0; stun::MAX_RESPONSE];
        let mapped = mapped.parse().expect("an address");
        let used = stun::encode_response(&[1; 12], mapped, &mut bytes);
        bytes[..used].to_vec()
    };
    let mut with_more = respond("192.0.2.1:3478");
    with_more.extend_from_slice(&[0x80, 0x22, 0, 3, b'a', b'b', b'c', 0]);
    with_more[3] += 8;
    [
        ("request", stun::encode_request(&[1; 12]).to_vec()),
        ("ipv4", respond("192.0.2.1:51820")),
        ("ipv6", respond("[2001:db8::1]:51820")),
        ("with_software", with_more),
    ]
}
