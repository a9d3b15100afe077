//! Any datagram is a STUN message or refused (RFC 8489).

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::stun;

fuzz_target!(|datagram: &[u8]| {
    if let Ok(transaction) = stun::parse_request(datagram) {
        let again = stun::encode_request(&transaction);
        assert_eq!(stun::parse_request(&again).ok(), Some(transaction));
    }
    if let Ok((transaction, mapped)) = stun::parse_response(datagram) {
        let again = stun::encode_response(&transaction, mapped);
        assert_eq!(stun::parse_response(&again).ok(), Some((transaction, mapped)));
    }
});
