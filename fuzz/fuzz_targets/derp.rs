//! Any stream of bytes, cut anywhere, is DERP frames or refused; both ends of the handshake take
//! what a stranger may send.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::derp::{Client, Decoder, Frame, Server};
use mesh_types::key::SecretKey;

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let mut decoder = Decoder::new();
    for part in [first, second] {
        decoder.push(part);
        while let Ok(Some(frame)) = decoder.next_frame() {
            let mut again = Vec::new();
            frame.encode(&mut again);
            // Five bytes of head: kind and length.
            Frame::decode(again[0], &again[5..]).expect("what was written can be read");
        }
    }

    let key = SecretKey::from_bytes([7; 32]);
    let mut server = Server::new(&key, [1; 32]);
    server.handle_bytes(bytes);
    while let Ok(Some(_)) = server.poll() {}
    let mut client = Client::new(&key, [2; 32]);
    client.handle_bytes(bytes);
    while let Ok(Some(_)) = client.poll() {}
});
