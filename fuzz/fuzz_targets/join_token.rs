//! Any text is a join token or refused with a reason; a token survives being written and read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_types::JoinToken;

fuzz_target!(|text: &str| {
    if let Ok(token) = text.parse::<JoinToken>() {
        let again: JoinToken = token.reveal().parse().expect("what was written can be read");
        assert!(again == token);
    }
});
