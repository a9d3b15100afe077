//! Disco: the messages by which two nodes find out how they reach each other.
//!
//! On the wire: magic (6 bytes), the sender's disco key (32), nonce (24), then a NaCl box of type
//! (1), version (1) and body. They travel on the WireGuard socket and over relays; WireGuard data
//! can never be mistaken for one, since its first byte is 1 to 4 and the next three are zero.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use mesh_types::{DiscoPublicKey, WgPublicKey};

use crate::nacl::{NONCE, SharedBox, TAG};

/// The first bytes of every disco message: `TS` and U+1F4AC.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
const SENDER_END: usize = MAGIC.len() + 32;
const SEALED_MIN: usize = NONCE + TAG + 2;
const ENDPOINT: usize = 18;

/// Most endpoints that one call-me-maybe carries; more are cut off when reading and writing.
pub const MAX_ENDPOINTS: usize = 32;

/// The 96 bits that tie a pong to its ping.
pub type TxId = [u8; 12];

/// A disco message, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// "Do you hear me this way?"
    Ping {
        /// To be repeated by the pong.
        tx: TxId,
        /// The sender's WireGuard key, which its disco key must belong to.
        wg_key: WgPublicKey,
    },
    /// "Yes, and this is where I saw you."
    Pong {
        /// Of the ping.
        tx: TxId,
        /// The ping's source, as the answering side saw it; unspecified when it came by relay.
        seen: SocketAddr,
    },
    /// "Ping me at these, I am about to ping you"; only ever sent over a relay.
    CallMeMaybe {
        /// Where the sender may be reached.
        endpoints: Vec<SocketAddr>,
    },
}

/// Why bytes are not a disco message for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDisco {
    /// Too short, or without the magic.
    #[error("not a disco message")]
    Format,
    /// The box was not sealed by the claimed sender for us, or was changed.
    #[error("a disco message that is not authentic")]
    Unauthentic,
    /// Authentic, but of a type that is not known; newer nodes may send such.
    #[error("a disco message of unknown type {0}")]
    UnknownType(u8),
    /// Authentic, but its body is too short.
    #[error("a truncated disco message")]
    Truncated,
}

/// Whether a datagram claims to be disco.
pub fn is_disco(datagram: &[u8]) -> bool {
    datagram.len() >= SENDER_END + SEALED_MIN && datagram.starts_with(&MAGIC)
}

/// The disco key that a message claims to come from. Nothing is proven before it is opened.
pub fn claimed_sender(datagram: &[u8]) -> Result<DiscoPublicKey, InvalidDisco> {
    if !is_disco(datagram) {
        return Err(InvalidDisco::Format);
    }
    DiscoPublicKey::try_from(&datagram[MAGIC.len()..SENDER_END]).map_err(|_| InvalidDisco::Format)
}

/// Opens a message with the box shared between us and its claimed sender.
pub(crate) fn open(
    shared: &SharedBox,
    datagram: &[u8],
    scratch: &mut Vec<u8>,
) -> Result<Message, InvalidDisco> {
    if !is_disco(datagram) {
        return Err(InvalidDisco::Format);
    }
    let plain = shared
        .open(&datagram[SENDER_END..], scratch)
        .ok_or(InvalidDisco::Unauthentic)?;
    Message::decode(plain)
}

/// Appends the whole message, sealed for the other end of `shared`.
pub(crate) fn seal(
    sender: &DiscoPublicKey,
    shared: &SharedBox,
    nonce: [u8; NONCE],
    message: &Message,
    into: &mut Vec<u8>,
) {
    into.extend_from_slice(&MAGIC);
    into.extend_from_slice(sender.as_bytes());
    let mut plain = Vec::with_capacity(64);
    message.encode(&mut plain);
    shared.seal(nonce, &plain, into);
}

impl Message {
    /// Reads what was in the box: type, version, body. Longer bodies are padding or newer fields.
    pub fn decode(plain: &[u8]) -> Result<Self, InvalidDisco> {
        let [kind, _version, body @ ..] = plain else {
            return Err(InvalidDisco::Truncated);
        };
        match kind {
            1 => {
                let (tx, rest) = body
                    .split_first_chunk::<12>()
                    .ok_or(InvalidDisco::Truncated)?;
                let key = rest.first_chunk::<32>().ok_or(InvalidDisco::Truncated)?;
                Ok(Self::Ping {
                    tx: *tx,
                    wg_key: WgPublicKey::from_bytes(*key),
                })
            }
            2 => {
                let (tx, rest) = body
                    .split_first_chunk::<12>()
                    .ok_or(InvalidDisco::Truncated)?;
                let seen = rest
                    .first_chunk::<ENDPOINT>()
                    .ok_or(InvalidDisco::Truncated)?;
                Ok(Self::Pong {
                    tx: *tx,
                    seen: decode_endpoint(seen),
                })
            }
            3 => {
                let (endpoints, []) = body.as_chunks::<ENDPOINT>() else {
                    return Err(InvalidDisco::Truncated);
                };
                Ok(Self::CallMeMaybe {
                    endpoints: endpoints
                        .iter()
                        .take(MAX_ENDPOINTS)
                        .map(decode_endpoint)
                        .collect(),
                })
            }
            &kind => Err(InvalidDisco::UnknownType(kind)),
        }
    }

    /// Appends what goes into the box: type, version 0, body.
    pub fn encode(&self, into: &mut Vec<u8>) {
        match self {
            Self::Ping { tx, wg_key } => {
                into.extend_from_slice(&[1, 0]);
                into.extend_from_slice(tx);
                into.extend_from_slice(wg_key.as_bytes());
            }
            Self::Pong { tx, seen } => {
                into.extend_from_slice(&[2, 0]);
                into.extend_from_slice(tx);
                encode_endpoint(seen, into);
            }
            Self::CallMeMaybe { endpoints } => {
                into.extend_from_slice(&[3, 0]);
                for endpoint in endpoints.iter().take(MAX_ENDPOINTS) {
                    encode_endpoint(endpoint, into);
                }
            }
        }
    }
}

/// 16 bytes of address (IPv4 as IPv4-mapped), 2 of port, both big-endian.
fn encode_endpoint(endpoint: &SocketAddr, into: &mut Vec<u8>) {
    let address = match endpoint.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    into.extend_from_slice(&address.octets());
    into.extend_from_slice(&endpoint.port().to_be_bytes());
}

fn decode_endpoint(bytes: &[u8; ENDPOINT]) -> SocketAddr {
    let (address, port) = bytes.split_at(16);
    let mut octets = [0; 16];
    octets.copy_from_slice(address);
    SocketAddr::new(
        Ipv6Addr::from(octets).to_canonical(),
        u16::from_be_bytes([port[0], port[1]]),
    )
}

#[cfg(test)]
mod tests {
    use mesh_types::key::SecretKey;
    use proptest::prelude::*;

    use super::*;
    use crate::nacl::disco_public_key;

    fn messages() -> impl Strategy<Value = Message> {
        let endpoint = || {
            (any::<IpAddr>(), any::<u16>())
                .prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
        };
        prop_oneof![
            (any::<TxId>(), any::<[u8; 32]>()).prop_map(|(tx, key)| Message::Ping {
                tx,
                wg_key: WgPublicKey::from_bytes(key)
            }),
            (any::<TxId>(), endpoint()).prop_map(|(tx, seen)| Message::Pong { tx, seen }),
            proptest::collection::vec(endpoint(), 0..MAX_ENDPOINTS)
                .prop_map(|endpoints| Message::CallMeMaybe { endpoints }),
        ]
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire(message in messages(), nonce in any::<[u8; NONCE]>()) {
            let (a, b) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
            let there = SharedBox::new(&a, disco_public_key(&b).as_bytes()).expect("honest");
            let back = SharedBox::new(&b, disco_public_key(&a).as_bytes()).expect("honest");
            let mut wire = Vec::new();
            seal(&disco_public_key(&a), &there, nonce, &message, &mut wire);
            prop_assert_eq!(claimed_sender(&wire), Ok(disco_public_key(&a)));
            let mut scratch = Vec::new();
            prop_assert_eq!(open(&back, &wire, &mut scratch), Ok(message));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = Message::decode(&bytes) {
                let mut again = Vec::new();
                message.encode(&mut again);
                prop_assert_eq!(Message::decode(&again), Ok(message));
            }
        }
    }

    #[test]
    fn a_ping_may_be_padded() {
        let ping = Message::Ping {
            tx: [1; 12],
            wg_key: WgPublicKey::from_bytes([2; 32]),
        };
        let mut plain = Vec::new();
        ping.encode(&mut plain);
        plain.extend([0; 500]);
        assert_eq!(Message::decode(&plain), Ok(ping));
    }
}
