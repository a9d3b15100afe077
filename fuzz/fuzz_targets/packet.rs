//! Any bytes are an IP packet that the filter can look at, or refused (RFC 791, RFC 8200).

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::packet;

fuzz_target!(|bytes: &[u8]| {
    let _ = packet::parse(bytes);
});
