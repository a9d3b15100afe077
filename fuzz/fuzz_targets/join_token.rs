//! Any text is a join token or refused with a reason; a token survives being written and read.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use mesh_types::JoinToken;
use ring::digest::{SHA256, digest};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        check(text);
    }
    // No fuzzer finds a checksum by itself, so the input also serves as the content below a right
    // one.
    let mut content = bytes.to_vec();
    content.extend(&digest(&SHA256, bytes).as_ref()[..4]);
    check(&format!("mesh1.{}", URL_SAFE_NO_PAD.encode(content)));
});

fn check(text: &str) {
    if let Ok(token) = text.parse::<JoinToken>() {
        let again: JoinToken = token
            .reveal()
            .parse()
            .expect("what was written can be read");
        assert!(again == token);
    }
}
