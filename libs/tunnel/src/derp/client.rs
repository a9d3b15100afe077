//! A node's end of the conversation.

use mesh_types::WgPublicKey;
use mesh_types::key::SecretKey;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::VERSION;
use super::frame::{Decoder, DerpError, Frame};
use crate::nacl::{NONCE, SharedBox, wg_public_key};

/// What happened on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientEvent<'a> {
    /// The relay has taken us in: packets may be sent.
    Ready,
    /// A packet from another client of the relay.
    Packet {
        /// Its WireGuard key, proven to the relay.
        from: WgPublicKey,
        /// The packet.
        payload: &'a [u8],
    },
    /// A peer cannot be reached through this relay.
    PeerGone {
        /// Which peer.
        peer: WgPublicKey,
    },
    /// The relay is still there.
    KeepAlive,
    /// The answer to [`Client::ping`].
    Pong([u8; 8]),
    /// The relay is about to restart; connect again in a moment.
    Restarting,
    /// What the relay says is wrong with the connection; empty when it is well again.
    Health(&'a str),
}

#[derive(Debug)]
enum State {
    AwaitsServerKey,
    AwaitsServerInfo(SharedBox),
    Ready,
}

/// A node's end of one DERP connection. Give it what the stream brings ([`Client::handle_bytes`]),
/// call [`Client::poll`] until `None`, write what [`Client::take_output`] has.
#[derive(Debug)]
pub struct Client {
    key: SecretKey,
    state: State,
    decoder: Decoder,
    output: Vec<u8>,
    nonce: [u8; NONCE],
    scratch: Vec<u8>,
}

impl Client {
    /// A client that will prove `wg_key`. `seed` must be fresh randomness for every connection.
    pub fn new(wg_key: &SecretKey, seed: [u8; 32]) -> Self {
        let mut nonce = [0; NONCE];
        StdRng::from_seed(seed).fill_bytes(&mut nonce);
        Self {
            key: wg_key.clone(),
            state: State::AwaitsServerKey,
            decoder: Decoder::new(),
            output: Vec::new(),
            nonce,
            scratch: Vec::new(),
        }
    }

    /// Takes the next bytes of the stream.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next thing that happened; call again until `None`, then after more bytes.
    ///
    /// # Errors
    /// The stream is not DERP, or the relay could not prove its key. The connection must end.
    pub fn poll(&mut self) -> Result<Option<ClientEvent<'_>>, DerpError> {
        while let Some(found) = self.decoder.advance()? {
            let frame = self.decoder.frame(&found)?;
            match (&self.state, frame) {
                (_, Frame::Ping(data)) => Frame::Pong(data).encode(&mut self.output),
                (_, Frame::Other(_)) => {}
                (State::AwaitsServerKey, Frame::ServerKey(key)) => {
                    let shared = SharedBox::new(&self.key, key).ok_or(DerpError::Unauthentic)?;
                    let facts = format!(r#"{{"version":{VERSION},"canAckPings":true}}"#);
                    let mut sealed = Vec::with_capacity(128);
                    shared.seal(self.nonce, facts.as_bytes(), &mut sealed);
                    Frame::ClientInfo {
                        key: wg_public_key(&self.key),
                        sealed: &sealed,
                    }
                    .encode(&mut self.output);
                    self.state = State::AwaitsServerInfo(shared);
                }
                (State::AwaitsServerInfo(shared), Frame::ServerInfo(sealed)) => {
                    shared
                        .open(sealed, &mut self.scratch)
                        .ok_or(DerpError::Unauthentic)?;
                    self.state = State::Ready;
                    return Ok(Some(ClientEvent::Ready));
                }
                (State::Ready, Frame::Recv { .. } | Frame::PeerGone { .. })
                | (
                    _,
                    Frame::KeepAlive | Frame::Pong(_) | Frame::Health(_) | Frame::Restarting { .. },
                ) => return self.decoder.frame(&found).map(event),
                (_, frame) => return Err(DerpError::Unexpected(frame.kind())),
            }
        }
        Ok(None)
    }

    /// Asks the relay for a pong with these bytes.
    pub fn ping(&mut self, data: [u8; 8]) {
        Frame::Ping(data).encode(&mut self.output);
    }

    /// Tells the relay whether this is the one that this node listens on.
    pub fn note_preferred(&mut self, preferred: bool) {
        Frame::NotePreferred(preferred).encode(&mut self.output);
    }

    /// Appends what must be written to the stream. Call after every other call.
    pub fn take_output(&mut self, into: &mut Vec<u8>) {
        into.append(&mut self.output);
    }
}

/// The event that a frame is to the shell; `None` for those that are none.
fn event(frame: Frame<'_>) -> Option<ClientEvent<'_>> {
    match frame {
        Frame::Recv { from, payload } => Some(ClientEvent::Packet { from, payload }),
        Frame::PeerGone { peer, reason: _ } => Some(ClientEvent::PeerGone { peer }),
        Frame::KeepAlive => Some(ClientEvent::KeepAlive),
        Frame::Pong(data) => Some(ClientEvent::Pong(data)),
        Frame::Health(text) => Some(ClientEvent::Health(text)),
        Frame::Restarting { .. } => Some(ClientEvent::Restarting),
        _ => None,
    }
}
