//! Any decrypted disco message is understood or refused, and what is understood can be written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::disco::{self, Message};

fuzz_target!(|bytes: &[u8]| {
    if disco::is_disco(bytes) {
        let _ = disco::claimed_sender(bytes);
    }
    if let Ok(message) = Message::decode(bytes) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert!(Message::decode(&again).ok() == Some(message));
    }
});
