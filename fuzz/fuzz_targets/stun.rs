//! Any datagram is a STUN message or refused (RFC 8489).

#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::stun;

fuzz_target!(|datagram: &[u8]| {
    if let Ok(transaction) = stun::parse_request(datagram) {
        let again = stun::encode_request(&transaction);
        assert_eq!(stun::parse_request(&again).ok(), Some(transaction));
    }
    if let Ok((transaction, mapped)) = stun::parse_response(datagram) {
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
