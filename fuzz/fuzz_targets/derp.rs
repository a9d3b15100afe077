//! Any stream of bytes, cut anywhere, is the same DERP frames or refused; both ends of the handshake
//! take what a stranger may send, and answer with no more than they were sent.
//!
//! The first byte is where the stream is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::derp::{
    Client, ClientEvent, Decoder, DerpError, Frame, GoneReason, MAX_PACKET, Server, ServerEvent,
    encode_recv, encode_send,
};
use mesh_tunnel::wg_public_key;
use mesh_types::WgPublicKey;
use mesh_types::key::SecretKey;

const SERVER: SecretKey = SecretKey::from_bytes([7; 32]);
const CLIENT: SecretKey = SecretKey::from_bytes([5; 32]);

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else {
        return;
    };
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    assert_eq!(frames(&[first, second]), frames(&[bytes]), "cut at {cut}");
    serve(first, second);
    connect(first, second);
});

/// The frames, each as it would be written, and how the stream ended.
fn frames(parts: &[&[u8]]) -> (Vec<Vec<u8>>, Option<DerpError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let lost = usize::from(fuzz::planted() && at == 1 && !frames.is_empty() && part.len() > 4);
        decoder.push(&part[lost..]);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(written(&frame)),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn written(frame: &Frame<'_>) -> Vec<u8> {
    if let Frame::Send { payload, .. } | Frame::Recv { payload, .. } = frame {
        assert!(payload.len() <= MAX_PACKET);
    }
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    // Five bytes of head: kind and length.
    let again = Frame::decode(bytes[0], &bytes[5..]).expect("what was written can be read");
    assert_eq!(again, *frame);
    bytes
}

/// A relay's end: who has not proven a key gets no further.
fn serve(first: &[u8], second: &[u8]) {
    let mut server = Server::new(&SERVER, [1; 32]);
    let mut ready = false;
    let mut output = Vec::new();
    'stream: for part in [first, second] {
        server.handle_bytes(part);
        loop {
            match server.poll() {
                Ok(Some(ServerEvent::Hello { client })) => {
                    // The one key whose owner wrote a seed.
                    assert!(!ready && client == wg_public_key(&CLIENT));
                    server.accept();
                    ready = true;
                }
                Ok(Some(ServerEvent::Packet { .. } | ServerEvent::Preferred(_))) => assert!(ready),
                Ok(Some(ServerEvent::Pong(_))) => {}
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    server.take_output(&mut output);
    assert!(
        output.len() <= 200 + first.len() + second.len(),
        "{}",
        output.len()
    );
}

/// A node's end: a relay that has not proven its key hands it no packets.
fn connect(first: &[u8], second: &[u8]) {
    let mut client = Client::new(&CLIENT, [2; 32]);
    let mut ready = false;
    let mut output = Vec::new();
    'stream: for part in [first, second] {
        client.handle_bytes(part);
        loop {
            match client.poll() {
                Ok(Some(ClientEvent::Ready)) => ready = true,
                Ok(Some(ClientEvent::Packet { .. })) => assert!(ready),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    client.take_output(&mut output);
    assert!(
        output.len() <= 200 + first.len() + second.len(),
        "{}",
        output.len()
    );
}

fn seeds() -> [(&'static str, Vec<u8>); 5] {
    let key = wg_public_key(&SecretKey::from_bytes([6; 32]));
    let (mut client, mut server) = (Client::new(&CLIENT, [2; 32]), Server::new(&SERVER, [1; 32]));
    let (mut to_client, mut to_server) = (vec![255], vec![255]);
    server.take_output(&mut to_client);
    client.handle_bytes(&to_client[1..]);
    assert_eq!(client.poll(), Ok(None));
    client.take_output(&mut to_server);
    server.handle_bytes(&to_server[1..]);
    assert!(matches!(server.poll(), Ok(Some(ServerEvent::Hello { .. }))));
    server.accept();
    server.take_output(&mut to_client);
    encode_send(&key, b"a packet", &mut to_server);
    Frame::NotePreferred(true).encode(&mut to_server);
    encode_recv(&key, b"a packet", &mut to_client);
    Frame::Health("slow disk").encode(&mut to_client);
    [
        ("as_a_client", to_server),
        ("as_a_relay", to_client),
        ("pings", pings()),
        ("gone", gone(key)),
        ("too_long", vec![0, 4, 0, 1, 0, 0x41]),
    ]
}

fn pings() -> Vec<u8> {
    let mut bytes = vec![0];
    for n in 0..3 {
        Frame::Ping([n; 8]).encode(&mut bytes);
    }
    Frame::Other(0x09).encode(&mut bytes);
    bytes
}

fn gone(peer: WgPublicKey) -> Vec<u8> {
    let mut bytes = vec![0];
    let reason = GoneReason::NotHere;
    Frame::PeerGone { peer, reason }.encode(&mut bytes);
    Frame::KeepAlive.encode(&mut bytes);
    bytes
}
