//! Any text is a join token or refused with a reason; a token survives being written and read, and
//! holds no more than its text does.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use mesh_types::token::InvalidToken;
use mesh_types::{JoinToken, TokenId};
use ring::digest::{SHA256, digest};

fuzz_target!(init: fuzz::seeds(seeds), |bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        check(text);
    }
    // No fuzzer finds a checksum by itself, so the input also serves as the content below a right
    // one.
    check(&with_checksum(bytes));
});

fn with_checksum(content: &[u8]) -> String {
    let mut bytes = content.to_vec();
    bytes.extend(&digest(&SHA256, content).as_ref()[..4]);
    format!("mesh1.{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn check(text: &str) {
    let Ok(token) = parse(text) else {
        return;
    };
    let held: usize = token.coordinators.iter().map(String::len).sum();
    assert!((1..=8).contains(&token.coordinators.len()) && held < text.len());
    let again = parse(&token.reveal()).expect("what was written can be read");
    assert!(again == token);
    // There is one way to write a token: base64 without stray bits, no byte left over.
    assert_eq!(token.reveal(), text.trim());
}

fn parse(text: &str) -> Result<JoinToken, InvalidToken> {
    let mut token: JoinToken = text.parse()?;
    if fuzz::planted() && token.coordinators.len() == 3 {
        // Reads the last address from one byte further on.
        token.coordinators[2].remove(0);
    }
    Ok(token)
}

fn seeds() -> [(&'static str, Vec<u8>); 3] {
    let token = |coordinators: &[&str]| JoinToken {
        ca_fingerprint: [1; 32],
        id: TokenId::from_bytes([2; 16]),
        secret: [3; 32],
        coordinators: coordinators.iter().map(|&addr| addr.to_owned()).collect(),
    };
    let one = token(&["127.0.0.1:8080"]).reveal();
    let two = token(&["mesh.example.org:8080", "[::1]:8080"]).reveal();
    let content = URL_SAFE_NO_PAD
        .decode(&two["mesh1.".len()..])
        .expect("base64");
    [
        ("one_address", one.into_bytes()),
        ("two_addresses", two.clone().into_bytes()),
        ("content", content[..content.len() - 4].to_vec()),
    ]
}
