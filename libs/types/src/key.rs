//! Public keys and private keys as plain bytes; the arithmetic lives where it is used.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The text or bytes are not a key of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} key (expected 32 bytes, as 44 characters of base64)")]
pub struct InvalidKey {
    kind: &'static str,
}

/// Whether these bytes, little-endian, are a number below X25519's prime 2^255 - 19.
fn is_canonical(key: &[u8; 32]) -> bool {
    let [first, middle @ .., last] = key;
    let at_least_the_prime =
        *last == 0x7f && middle.iter().all(|byte| *byte == 0xff) && *first >= 0xed;
    *last <= 0x7f && !at_least_the_prime
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        ///
        /// 32 bytes; text form is standard base64 with padding, as `wg` prints it.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// The key with exactly these bytes, of which the caller knows that they are a key;
            /// bytes from outside go through `TryFrom`.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Whether this is how the key's owner writes it. X25519 takes other spellings of a
            /// key for the same one (RFC 7748, 5); taken as names, they are somebody else's.
            pub fn is_canonical(&self) -> bool {
                is_canonical(&self.0)
            }

            /// The 32 bytes, as they travel.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first 8 characters of the text form, for logs and tables.
            pub fn short(&self) -> String {
                self.to_string().chars().take(8).collect()
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidKey;

            fn try_from(bytes: &[u8]) -> Result<Self, InvalidKey> {
                let key = bytes.try_into().map(Self).ok().filter(Self::is_canonical);
                key.ok_or(InvalidKey { kind: $kind })
            }
        }

        impl FromStr for $name {
            type Err = InvalidKey;

            fn from_str(text: &str) -> Result<Self, InvalidKey> {
                let bytes = STANDARD.decode(text).map_err(|_| InvalidKey { kind: $kind })?;
                Self::try_from(bytes.as_slice())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidKey;

            fn try_from(text: String) -> Result<Self, InvalidKey> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(key: $name) -> String {
                key.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&STANDARD.encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, ":{}"), self.short())
            }
        }
    };
}

public_key!(
    /// A node's WireGuard public key (X25519); it names the node to peers and relays.
    WgPublicKey, "WireGuard"
);
public_key!(
    /// A node's disco public key (X25519); path discovery messages are sealed to it.
    DiscoPublicKey, "disco"
);

/// 32 secret bytes that are wiped when dropped and never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// The secret with exactly these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret bytes. Name every use: nothing may log or send them.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey([redacted])")
    }
}

/// A node's or operator's identity public key: ECDSA P-256, as the DER of its
/// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7; RFC 5480).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityPublicKey(Vec<u8>);

/// The fixed head of a P-256 SubjectPublicKeyInfo with an uncompressed point (RFC 5480).
const P256_SPKI_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

impl IdentityPublicKey {
    /// Takes the DER of a SubjectPublicKeyInfo that holds an uncompressed P-256 point.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, InvalidKey> {
        if der.len() == 91 && der.starts_with(&P256_SPKI_PREFIX) {
            Ok(Self(der.to_vec()))
        } else {
            Err(InvalidKey {
                kind: "P-256 identity",
            })
        }
    }

    /// The DER of the SubjectPublicKeyInfo.
    pub fn as_spki_der(&self) -> &[u8] {
        &self.0
    }

    /// The uncompressed point (65 bytes, first 0x04), as signature verifiers want it (SEC 1, 2.3.3).
    pub fn as_point(&self) -> &[u8] {
        &self.0[26..]
    }
}

impl fmt::Debug for IdentityPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "identity:{}", &STANDARD.encode(&self.0[27..33]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_survives_its_text_form() {
        let key = WgPublicKey::from_bytes([9; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 44);
    }

    #[test]
    fn a_key_has_one_spelling() {
        let mut key = [9; 32];
        assert!(WgPublicKey::try_from(&key[..]).is_ok());
        key[31] |= 0x80;
        assert!(WgPublicKey::try_from(&key[..]).is_err(), "the unused bit");

        let mut prime = [0xff; 32];
        (prime[0], prime[31]) = (0xed, 0x7f);
        let mut below = prime;
        below[0] = 0xec;
        let mut above = prime;
        above[0] = 0xee;
        assert!(DiscoPublicKey::try_from(&below[..]).is_ok());
        assert!(DiscoPublicKey::try_from(&prime[..]).is_err(), "zero again");
        assert!(DiscoPublicKey::try_from(&above[..]).is_err(), "one again");
        let text = STANDARD.encode(above);
        assert!(text.parse::<DiscoPublicKey>().is_err());
    }

    #[test]
    fn a_secret_key_never_prints_its_bytes() {
        assert_eq!(
            format!("{:?}", SecretKey::from_bytes([65; 32])),
            "SecretKey([redacted])"
        );
    }

    #[test]
    fn an_identity_key_must_be_an_uncompressed_p256_point() {
        let mut der = P256_SPKI_PREFIX.to_vec();
        der.extend([1; 64]);
        let key = IdentityPublicKey::from_spki_der(&der).expect("well-formed");
        assert_eq!(key.as_point().len(), 65);
        assert_eq!(key.as_point()[0], 4);
        assert!(IdentityPublicKey::from_spki_der(&der[..90]).is_err());
    }
}
