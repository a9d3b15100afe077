//! The relay's end of the conversation.

use mesh_types::WgPublicKey;
use mesh_types::key::SecretKey;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::VERSION;
use super::frame::{Decoder, DerpError, Frame};
use crate::nacl::{NONCE, SharedBox, wg_public_key};

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEvent<'a> {
    /// The client has proven its WireGuard key. Answer with [`Server::accept`], or end the
    /// connection.
    Hello {
        /// The proven key.
        client: WgPublicKey,
    },
    /// A packet for another client.
    Packet {
        /// The receiver's WireGuard key.
        to: WgPublicKey,
        /// The packet.
        payload: &'a [u8],
    },
    /// Whether the client listens on this relay.
    Preferred(bool),
    /// The answer to [`Server::ping`].
    Pong([u8; 8]),
}

#[derive(Debug)]
enum State {
    AwaitsClientInfo,
    AwaitsAccept(SharedBox),
    Ready,
}

/// A relay's end of one DERP connection; used like [`super::Client`].
#[derive(Debug)]
pub struct Server {
    key: SecretKey,
    state: State,
    decoder: Decoder,
    output: Vec<u8>,
    nonce: [u8; NONCE],
    scratch: Vec<u8>,
}

impl Server {
    /// A relay's end with its DERP key. `seed` must be fresh randomness for every connection.
    /// The first output is there at once.
    pub fn new(derp_key: &SecretKey, seed: [u8; 32]) -> Self {
        let mut nonce = [0; NONCE];
        StdRng::from_seed(seed).fill_bytes(&mut nonce);
        let mut output = Vec::with_capacity(64);
        Frame::ServerKey(wg_public_key(derp_key).as_bytes()).encode(&mut output);
        Self {
            key: derp_key.clone(),
            state: State::AwaitsClientInfo,
            decoder: Decoder::new(),
            output,
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
    /// The stream is not DERP, the client could not prove its key, or it speaks before it was
    /// accepted. The connection must end.
    pub fn poll(&mut self) -> Result<Option<ServerEvent<'_>>, DerpError> {
        while let Some(found) = self.decoder.advance()? {
            let frame = self.decoder.frame(&found)?;
            match (&self.state, frame) {
                (_, Frame::Ping(data)) => Frame::Pong(data).encode(&mut self.output),
                (_, Frame::KeepAlive | Frame::Other(_)) => {}
                // Another spelling of a key would be proven too, and is nobody's name.
                (State::AwaitsClientInfo, Frame::ClientInfo { key, .. }) if !key.is_canonical() => {
                    return Err(DerpError::Unauthentic);
                }
                (State::AwaitsClientInfo, Frame::ClientInfo { key, sealed }) => {
                    let shared =
                        SharedBox::new(&self.key, key.as_bytes()).ok_or(DerpError::Unauthentic)?;
                    let facts = shared
                        .open(sealed, &mut self.scratch)
                        .ok_or(DerpError::Unauthentic)?;
                    let version = version(facts).ok_or(DerpError::Malformed(frame.kind()))?;
                    if version != VERSION {
                        return Err(DerpError::Version(version));
                    }
                    self.state = State::AwaitsAccept(shared);
                    return Ok(Some(ServerEvent::Hello { client: key }));
                }
                (State::Ready, Frame::Send { .. } | Frame::NotePreferred(_))
                | (_, Frame::Pong(_)) => return self.decoder.frame(&found).map(event),
                (_, frame) => return Err(DerpError::Unexpected(frame.kind())),
            }
        }
        Ok(None)
    }

    /// Takes the client in, after [`ServerEvent::Hello`] and before any other event.
    pub fn accept(&mut self) {
        let State::AwaitsAccept(shared) = std::mem::replace(&mut self.state, State::Ready) else {
            return;
        };
        let facts = format!(r#"{{"version":{VERSION}}}"#);
        let mut sealed = Vec::with_capacity(96);
        shared.seal(self.nonce, facts.as_bytes(), &mut sealed);
        Frame::ServerInfo(&sealed).encode(&mut self.output);
    }

    /// Asks the client for a pong with these bytes.
    pub fn ping(&mut self, data: [u8; 8]) {
        Frame::Ping(data).encode(&mut self.output);
    }

    /// Appends what must be written to the stream. Call after every other call.
    pub fn take_output(&mut self, into: &mut Vec<u8>) {
        into.append(&mut self.output);
    }
}

/// The event that a frame is to the shell; `None` for those that are none.
fn event(frame: Frame<'_>) -> Option<ServerEvent<'_>> {
    match frame {
        Frame::Send { to, payload } => Some(ServerEvent::Packet { to, payload }),
        Frame::NotePreferred(preferred) => Some(ServerEvent::Preferred(preferred)),
        Frame::Pong(data) => Some(ServerEvent::Pong(data)),
        _ => None,
    }
}

/// The `version` of a client's facts, which are a JSON object.
fn version(facts: &[u8]) -> Option<u32> {
    let facts: serde_json::Value = serde_json::from_slice(facts).ok()?;
    facts.get("version")?.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derp::{Client, ClientEvent, encode_recv, encode_send};

    fn carry_to_client(server: &mut Server, client: &mut Client) {
        let mut bytes = Vec::new();
        server.take_output(&mut bytes);
        client.handle_bytes(&bytes);
    }

    fn carry_to_server(client: &mut Client, server: &mut Server) {
        let mut bytes = Vec::new();
        client.take_output(&mut bytes);
        server.handle_bytes(&bytes);
    }

    fn ready_pair() -> (Client, Server, WgPublicKey) {
        let wg_key = SecretKey::from_bytes([5; 32]);
        let mut client = Client::new(&wg_key, [1; 32]);
        let mut server = Server::new(&SecretKey::from_bytes([6; 32]), [2; 32]);
        carry_to_client(&mut server, &mut client);
        assert_eq!(client.poll(), Ok(None));
        carry_to_server(&mut client, &mut server);
        let hello = ServerEvent::Hello {
            client: wg_public_key(&wg_key),
        };
        assert_eq!(server.poll(), Ok(Some(hello)));
        server.accept();
        carry_to_client(&mut server, &mut client);
        assert_eq!(client.poll(), Ok(Some(ClientEvent::Ready)));
        (client, server, wg_public_key(&wg_key))
    }

    #[test]
    fn a_client_proves_its_key_and_packets_flow() {
        let (mut client, mut server, key) = ready_pair();
        let mut stream = Vec::new();
        encode_send(&key, b"there", &mut stream);
        server.handle_bytes(&stream);
        assert_eq!(
            server.poll(),
            Ok(Some(ServerEvent::Packet {
                to: key,
                payload: b"there"
            }))
        );
        stream.clear();
        encode_recv(&key, b"back", &mut stream);
        client.handle_bytes(&stream);
        assert_eq!(
            client.poll(),
            Ok(Some(ClientEvent::Packet {
                from: key,
                payload: b"back"
            }))
        );
    }

    #[test]
    fn pings_are_answered_by_both_ends() {
        let (mut client, mut server, _) = ready_pair();
        client.ping([1; 8]);
        carry_to_server(&mut client, &mut server);
        assert_eq!(server.poll(), Ok(None));
        carry_to_client(&mut server, &mut client);
        assert_eq!(client.poll(), Ok(Some(ClientEvent::Pong([1; 8]))));
        server.ping([2; 8]);
        carry_to_client(&mut server, &mut client);
        assert_eq!(client.poll(), Ok(None));
        carry_to_server(&mut client, &mut server);
        assert_eq!(server.poll(), Ok(Some(ServerEvent::Pong([2; 8]))));
    }

    #[test]
    fn somebody_elses_key_is_refused() {
        let relay = SecretKey::from_bytes([6; 32]);
        let mut server = Server::new(&relay, [2; 32]);
        let thief = SecretKey::from_bytes([9; 32]);
        let shared = SharedBox::new(&thief, wg_public_key(&relay).as_bytes()).expect("honest");
        let mut sealed = Vec::new();
        shared.seal([0; NONCE], br#"{"version":2}"#, &mut sealed);
        let mut stream = Vec::new();
        Frame::ClientInfo {
            key: wg_public_key(&SecretKey::from_bytes([5; 32])),
            sealed: &sealed,
        }
        .encode(&mut stream);
        server.handle_bytes(&stream);
        assert_eq!(server.poll(), Err(DerpError::Unauthentic));
    }

    #[test]
    fn another_spelling_of_ones_own_key_is_refused() {
        let relay = SecretKey::from_bytes([6; 32]);
        let mut server = Server::new(&relay, [2; 32]);
        let own = SecretKey::from_bytes([5; 32]);
        let mut alias = *wg_public_key(&own).as_bytes();
        alias[31] |= 0x80;
        let shared = SharedBox::new(&own, wg_public_key(&relay).as_bytes()).expect("honest");
        let mut sealed = Vec::new();
        shared.seal([0; NONCE], br#"{"version":2}"#, &mut sealed);
        let mut stream = Vec::new();
        let key = WgPublicKey::from_bytes(alias);
        Frame::ClientInfo {
            key,
            sealed: &sealed,
        }
        .encode(&mut stream);
        server.handle_bytes(&stream);
        assert_eq!(server.poll(), Err(DerpError::Unauthentic));
    }

    #[test]
    fn packets_before_the_proof_end_the_connection() {
        let mut server = Server::new(&SecretKey::from_bytes([6; 32]), [2; 32]);
        let mut stream = Vec::new();
        encode_send(&WgPublicKey::from_bytes([1; 32]), b"x", &mut stream);
        server.handle_bytes(&stream);
        assert_eq!(server.poll(), Err(DerpError::Unexpected(0x04)));
    }

    #[test]
    fn another_version_is_named() {
        let relay = SecretKey::from_bytes([6; 32]);
        let mut server = Server::new(&relay, [2; 32]);
        let key = SecretKey::from_bytes([9; 32]);
        let shared = SharedBox::new(&key, wg_public_key(&relay).as_bytes()).expect("honest");
        let mut sealed = Vec::new();
        shared.seal([0; NONCE], br#"{"version":7}"#, &mut sealed);
        let mut stream = Vec::new();
        Frame::ClientInfo {
            key: wg_public_key(&key),
            sealed: &sealed,
        }
        .encode(&mut stream);
        server.handle_bytes(&stream);
        assert_eq!(server.poll(), Err(DerpError::Version(7)));
    }
}
