//! Any decrypted disco message is understood or refused, and what is understood can be written, in
//! no more bytes than it came in.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::disco::{self, InvalidDisco, MAX_ENDPOINTS, Message};
use mesh_types::{DiscoPublicKey, WgPublicKey};

fuzz_target!(init: fuzz::seeds(seeds), |bytes: &[u8]| {
    if disco::is_disco(bytes) {
        let claimed = DiscoPublicKey::from_bytes(bytes[6..38].try_into().expect("32 bytes"));
        let known = claimed.is_canonical().then_some(claimed);
        assert_eq!(disco::claimed_sender(bytes).ok(), known, "nobody else");
    }
    let Ok(message) = decode(bytes) else {
        return;
    };
    if let Message::CallMeMaybe { endpoints } = &message {
        assert!(endpoints.len() <= MAX_ENDPOINTS);
        assert_eq!(endpoints.first().copied(), bytes[2..].first_chunk().map(endpoint));
    }
    let mut again = Vec::new();
    message.encode(&mut again);
    assert!(again.len() <= bytes.len(), "it grew");
    assert_eq!(decode(&again), Ok(message));
});

fn decode(bytes: &[u8]) -> Result<Message, InvalidDisco> {
    let mut message = Message::decode(bytes)?;
    if fuzz::planted()
        && let Message::CallMeMaybe { endpoints } = &mut message
        && endpoints.len() > 3
    {
        // One too few is read of a long list.
        endpoints.pop();
    }
    Ok(message)
}

/// 16 bytes of address, 2 of port.
fn endpoint(bytes: &[u8; 18]) -> SocketAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[..16]);
    let port = u16::from_be_bytes([bytes[16], bytes[17]]);
    SocketAddr::new(IpAddr::from(octets).to_canonical(), port)
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let write = |message: Message| {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    };
    let (v4, v6): (SocketAddr, SocketAddr) = (
        "192.0.2.1:51820".parse().expect("an address"),
        "[2001:db8::1]:51820".parse().expect("an address"),
    );
    let ping = Message::Ping {
        tx: [1; 12],
        wg_key: WgPublicKey::from_bytes([2; 32]),
    };
    let call = Message::CallMeMaybe {
        endpoints: vec![v4, v6],
    };
    let sealed = [&disco::MAGIC[..], &[7; 100]].concat();
    [
        ("ping", write(ping)),
        (
            "pong",
            write(Message::Pong {
                tx: [1; 12],
                seen: v4,
            }),
        ),
        ("call_me_maybe", write(call)),
        ("sealed", sealed),
    ]
}
