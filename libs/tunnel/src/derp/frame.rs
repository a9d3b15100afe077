//! The frames of the stream.

use std::ops::Range;
use std::time::Duration;

use mesh_types::WgPublicKey;

/// The first bytes of a `ServerKey` body: `DERP` and U+1F511.
const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
const HEADER: usize = 5;
const KEY: usize = 32;

/// Longest packet that is carried, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;
/// Longest body of any frame, in bytes: a forwarded packet with both keys.
pub const MAX_FRAME: usize = MAX_PACKET + 2 * KEY;
/// Bytes that a `SendPacket` or `RecvPacket` frame puts ahead of its packet.
pub const PACKET_HEADER: usize = HEADER + KEY;

/// Why a stream is not DERP; the connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DerpError {
    /// A frame is longer than any frame may be.
    #[error("a DERP frame of {0} bytes, more than any frame may have")]
    TooLong(u32),
    /// A frame's body is too short or malformed for its type.
    #[error("a malformed DERP frame of type {0:#04x}")]
    Malformed(u8),
    /// A frame that may not come at this point of the conversation.
    #[error("an unexpected DERP frame of type {0:#04x}")]
    Unexpected(u8),
    /// The box that should prove the other side's key does not.
    #[error("the other side could not prove its DERP key")]
    Unauthentic,
    /// The other side speaks another version.
    #[error("the other side speaks DERP version {0}, this one speaks 2")]
    Version(u32),
}

/// Why a peer is not reachable through a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// It was connected and is no more.
    Disconnected,
    /// It is not connected, or may not be talked to; a relay does not tell which.
    NotHere,
}

/// One frame; bodies are borrowed from the stream's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Relay to client, first of all: the relay's DERP key.
    ServerKey(&'a [u8; KEY]),
    /// Client to relay: its WireGuard key, and nonce and box of its facts.
    ClientInfo {
        /// The client's WireGuard key.
        key: WgPublicKey,
        /// Nonce and box, from the client's WireGuard key to the relay's DERP key.
        sealed: &'a [u8],
    },
    /// Relay to client: nonce and box of its facts.
    ServerInfo(&'a [u8]),
    /// Client to relay: a packet for another client.
    Send {
        /// The receiver's WireGuard key.
        to: WgPublicKey,
        /// The packet.
        payload: &'a [u8],
    },
    /// Relay to client: a packet from another client.
    Recv {
        /// The sender's WireGuard key.
        from: WgPublicKey,
        /// The packet.
        payload: &'a [u8],
    },
    /// Relay to client: still there.
    KeepAlive,
    /// Client to relay: whether this is the relay it listens on.
    NotePreferred(bool),
    /// Relay to client: a peer cannot be reached through this relay.
    PeerGone {
        /// Which peer.
        peer: WgPublicKey,
        /// Why.
        reason: GoneReason,
    },
    /// To be answered with a pong of the same bytes.
    Ping([u8; 8]),
    /// The answer to a ping.
    Pong([u8; 8]),
    /// Relay to client: empty, or what is wrong, for people.
    Health(&'a str),
    /// Relay to client: it is about to restart.
    Restarting {
        /// When to come back at the earliest.
        reconnect_in: Duration,
        /// For how long to try.
        try_for: Duration,
    },
    /// A type that is not used here (peer presence, forwarding between relays, or a newer one).
    Other(u8),
}

impl<'a> Frame<'a> {
    /// The type byte.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::ServerKey(_) => 0x01,
            Self::ClientInfo { .. } => 0x02,
            Self::ServerInfo(_) => 0x03,
            Self::Send { .. } => 0x04,
            Self::Recv { .. } => 0x05,
            Self::KeepAlive => 0x06,
            Self::NotePreferred(_) => 0x07,
            Self::PeerGone { .. } => 0x08,
            Self::Ping(_) => 0x12,
            Self::Pong(_) => 0x13,
            Self::Health(_) => 0x14,
            Self::Restarting { .. } => 0x15,
            Self::Other(kind) => *kind,
        }
    }

    /// Reads a frame's body. Bodies may be longer than needed: newer fields come last.
    pub fn decode(kind: u8, body: &'a [u8]) -> Result<Self, DerpError> {
        let malformed = DerpError::Malformed(kind);
        let keyed = || body.split_first_chunk::<KEY>().ok_or(malformed);
        let eight = || body.first_chunk::<8>().copied().ok_or(malformed);
        Ok(match kind {
            0x01 => {
                let key = body.strip_prefix(&MAGIC).ok_or(malformed)?;
                Self::ServerKey(key.first_chunk().ok_or(malformed)?)
            }
            0x02 => {
                let (key, sealed) = keyed()?;
                Self::ClientInfo {
                    key: WgPublicKey::from_bytes(*key),
                    sealed,
                }
            }
            0x03 => Self::ServerInfo(body),
            0x04 => {
                let (key, payload) = keyed()?;
                Self::Send {
                    to: WgPublicKey::from_bytes(*key),
                    payload: within(payload, malformed)?,
                }
            }
            0x05 => {
                let (key, payload) = keyed()?;
                Self::Recv {
                    from: WgPublicKey::from_bytes(*key),
                    payload: within(payload, malformed)?,
                }
            }
            0x06 => Self::KeepAlive,
            0x07 => Self::NotePreferred(*body.first().ok_or(malformed)? != 0),
            0x08 => {
                let (key, rest) = keyed()?;
                Self::PeerGone {
                    peer: WgPublicKey::from_bytes(*key),
                    reason: match rest.first() {
                        Some(1) => GoneReason::NotHere,
                        _ => GoneReason::Disconnected,
                    },
                }
            }
            0x12 => Self::Ping(eight()?),
            0x13 => Self::Pong(eight()?),
            0x14 => Self::Health(std::str::from_utf8(body).map_err(|_| malformed)?),
            0x15 => {
                let [a, b, c, d, e, f, g, h] = eight()?;
                let millis = |bytes| Duration::from_millis(u64::from(u32::from_be_bytes(bytes)));
                Self::Restarting {
                    reconnect_in: millis([a, b, c, d]),
                    try_for: millis([e, f, g, h]),
                }
            }
            kind => Self::Other(kind),
        })
    }

    /// Appends the whole frame.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let start = begin(self.kind(), into);
        match self {
            Self::ServerKey(key) => {
                into.extend_from_slice(&MAGIC);
                into.extend_from_slice(*key);
            }
            Self::ClientInfo { key, sealed } => {
                into.extend_from_slice(key.as_bytes());
                into.extend_from_slice(sealed);
            }
            Self::ServerInfo(sealed) => into.extend_from_slice(sealed),
            Self::Send { to: key, payload } | Self::Recv { from: key, payload } => {
                into.extend_from_slice(key.as_bytes());
                into.extend_from_slice(payload);
            }
            Self::KeepAlive | Self::Other(_) => {}
            Self::NotePreferred(preferred) => into.push(u8::from(*preferred)),
            Self::PeerGone { peer, reason } => {
                into.extend_from_slice(peer.as_bytes());
                into.push(u8::from(*reason == GoneReason::NotHere));
            }
            Self::Ping(data) | Self::Pong(data) => into.extend_from_slice(data),
            Self::Health(text) => into.extend_from_slice(text.as_bytes()),
            Self::Restarting {
                reconnect_in,
                try_for,
            } => {
                for duration in [reconnect_in, try_for] {
                    let millis = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
                    into.extend_from_slice(&millis.to_be_bytes());
                }
            }
        }
        finish(start, into);
    }
}

fn within(payload: &[u8], otherwise: DerpError) -> Result<&[u8], DerpError> {
    if payload.len() <= MAX_PACKET {
        Ok(payload)
    } else {
        Err(otherwise)
    }
}

fn begin(kind: u8, into: &mut Vec<u8>) -> usize {
    into.extend_from_slice(&[kind, 0, 0, 0, 0]);
    into.len()
}

fn finish(start: usize, into: &mut [u8]) {
    let length = u32::try_from(into.len() - start).expect("a frame is far shorter than 4 GiB");
    into[start - 4..start].copy_from_slice(&length.to_be_bytes());
}

/// Appends a `SendPacket` frame: what a client gives its relay.
pub fn encode_send(to: &WgPublicKey, payload: &[u8], into: &mut Vec<u8>) {
    Frame::Send { to: *to, payload }.encode(into);
}

/// Appends a `RecvPacket` frame: what a relay gives the receiving client.
pub fn encode_recv(from: &WgPublicKey, payload: &[u8], into: &mut Vec<u8>) {
    Frame::Recv {
        from: *from,
        payload,
    }
    .encode(into);
}

/// The head of a `SendPacket` frame for a payload of `length` bytes that follows it.
pub(crate) fn send_header(to: &WgPublicKey, length: usize) -> [u8; PACKET_HEADER] {
    let mut head = [0; PACKET_HEADER];
    head[0] = 0x04;
    let body = u32::try_from(KEY + length).expect("a packet is far shorter than 4 GiB");
    head[1..HEADER].copy_from_slice(&body.to_be_bytes());
    head[HEADER..].copy_from_slice(to.as_bytes());
    head
}

/// Cuts a byte stream into frames. Holds at most one frame and what came with it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream. Call [`Decoder::next_frame`] until `None` in between,
    /// so that no more is held than one frame.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more bytes have been pushed.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, DerpError> {
        match self.advance()? {
            Some(found) => self.frame(&found).map(Some),
            None => Ok(None),
        }
    }

    /// Steps over the next whole frame; where it lies is good until the next `push`.
    pub(super) fn advance(&mut self) -> Result<Option<Located>, DerpError> {
        let Some((&[kind, a, b, c, d], rest)) =
            self.buffer[self.start..].split_first_chunk::<HEADER>()
        else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        if wanted > MAX_FRAME {
            return Err(DerpError::TooLong(length));
        }
        if rest.len() < wanted {
            return Ok(None);
        }
        let body = self.start + HEADER;
        self.start = body + wanted;
        Ok(Some(Located {
            kind,
            body: body..body + wanted,
        }))
    }

    /// The frame that `advance` stepped over.
    pub(super) fn frame(&self, found: &Located) -> Result<Frame<'_>, DerpError> {
        Frame::decode(found.kind, &self.buffer[found.body.clone()])
    }
}

/// Where a whole frame lies in the decoder's buffer.
#[derive(Debug, Clone)]
pub(super) struct Located {
    kind: u8,
    body: Range<usize>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(key: WgPublicKey, bytes: &[u8], fixed: [u8; 8]) -> Vec<Frame<'_>> {
        vec![
            Frame::ServerKey(&[7; 32]),
            Frame::ClientInfo { key, sealed: bytes },
            Frame::ServerInfo(bytes),
            Frame::Send {
                to: key,
                payload: bytes,
            },
            Frame::Recv {
                from: key,
                payload: bytes,
            },
            Frame::KeepAlive,
            Frame::NotePreferred(true),
            Frame::PeerGone {
                peer: key,
                reason: GoneReason::NotHere,
            },
            Frame::Ping(fixed),
            Frame::Pong(fixed),
            Frame::Health("slow disk"),
            Frame::Restarting {
                reconnect_in: Duration::from_millis(250),
                try_for: Duration::from_secs(30),
            },
            Frame::Other(0x09),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_a_stream_cut_anywhere(
            key in any::<[u8; 32]>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            fixed in any::<[u8; 8]>(),
            cut in 1usize..97,
        ) {
            let sent = frames(WgPublicKey::from_bytes(key), &bytes, fixed);
            let mut stream = Vec::new();
            for frame in &sent {
                frame.encode(&mut stream);
            }
            let mut decoder = Decoder::new();
            let mut received = 0;
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().expect("own frames") {
                    prop_assert_eq!(frame, sent[received]);
                    received += 1;
                }
            }
            prop_assert_eq!(received, sent.len());
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn a_frame_too_long_is_refused_before_it_arrives() {
        let mut decoder = Decoder::new();
        decoder.push(&[0x04, 0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_frame(), Err(DerpError::TooLong(0x7fff_ffff)));
    }

    #[test]
    fn the_header_made_in_advance_is_that_of_the_frame() {
        let to = WgPublicKey::from_bytes([3; 32]);
        let mut whole = Vec::new();
        encode_send(&to, b"packet", &mut whole);
        assert_eq!(whole[..PACKET_HEADER], send_header(&to, 6));
    }
}
