//! Join tokens: the one string that a machine needs to join a network.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use zeroize::Zeroize;

use crate::id::TokenId;

/// What every join token starts with.
pub const PREFIX: &str = "mesh1.";
const VERSION: u8 = 1;
const HEAD: usize = 1 + 32 + 16 + 32;
const CHECKSUM: usize = 4;
const MAX_ADDRS: usize = 8;

/// A join token: `mesh1.` + base64url of version, CA fingerprint, id, secret, coordinator
/// addresses and checksum. `Debug` and `Display` hide the secret; see [`JoinToken::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the DER SubjectPublicKeyInfo of the coordinator's CA: pins TLS while joining.
    pub ca_fingerprint: [u8; 32],
    /// Which token; not secret.
    pub id: TokenId,
    /// What proves it; the coordinator keeps a hash only.
    pub secret: [u8; 32],
    /// Where the coordinator is: `host:port` each, tried in order; 1 to 8 of them.
    pub coordinators: Vec<String>,
}

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It does not start with `mesh1.`.
    #[error(
        "this is not a join token: join tokens start with \"mesh1.\" (make one with 'mesh token create')"
    )]
    Prefix,
    /// A later version of the product made it.
    #[error("this join token is of version {0}, which this program does not know: upgrade it")]
    Version(u8),
    /// Characters are missing, added or changed.
    #[error(
        "this join token is damaged: characters are missing or were changed; copy it again, whole"
    )]
    Damaged,
}

impl JoinToken {
    /// The token as text, with its secret. Show it once, and never in a log.
    pub fn reveal(&self) -> String {
        let mut bytes = Vec::with_capacity(HEAD + 64);
        bytes.push(VERSION);
        bytes.extend(self.ca_fingerprint);
        bytes.extend(self.id.as_bytes());
        bytes.extend(self.secret);
        bytes.push(u8::try_from(self.coordinators.len().min(MAX_ADDRS)).unwrap_or(0));
        for addr in self.coordinators.iter().take(MAX_ADDRS) {
            let addr = &addr.as_bytes()[..addr.len().min(255)];
            bytes.push(u8::try_from(addr.len()).unwrap_or(0));
            bytes.extend(addr);
        }
        let sum = checksum(&bytes);
        bytes.extend(sum);
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
        bytes.zeroize();
        text
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = digest(&SHA256, bytes);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&hash.as_ref()[..CHECKSUM]);
    sum
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let body = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(InvalidToken::Prefix)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| InvalidToken::Damaged)?;
        let (&version, _) = bytes.split_first().ok_or(InvalidToken::Damaged)?;
        if bytes.len() < HEAD + 1 + CHECKSUM {
            return Err(InvalidToken::Damaged);
        }
        let (content, sum) = bytes.split_at(bytes.len() - CHECKSUM);
        if checksum(content) != sum {
            return Err(InvalidToken::Damaged);
        }
        if version != VERSION {
            return Err(InvalidToken::Version(version));
        }
        let mut rest = &content[1..];
        let ca_fingerprint = take::<32>(&mut rest)?;
        let id = TokenId::from_bytes(take::<16>(&mut rest)?);
        let secret = take::<32>(&mut rest)?;
        let [count] = take::<1>(&mut rest)?;
        if count == 0 || usize::from(count) > MAX_ADDRS {
            return Err(InvalidToken::Damaged);
        }
        let mut coordinators = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let [len] = take::<1>(&mut rest)?;
            let addr = rest
                .split_off(..usize::from(len))
                .ok_or(InvalidToken::Damaged)?;
            let addr = std::str::from_utf8(addr).map_err(|_| InvalidToken::Damaged)?;
            coordinators.push(addr.to_owned());
        }
        if !rest.is_empty() {
            return Err(InvalidToken::Damaged);
        }
        Ok(Self {
            ca_fingerprint,
            id,
            secret,
            coordinators,
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], InvalidToken> {
    let bytes = rest.split_off(..N).ok_or(InvalidToken::Damaged)?;
    bytes.try_into().map_err(|_| InvalidToken::Damaged)
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("coordinators", &self.coordinators)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}…({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> JoinToken {
        JoinToken {
            ca_fingerprint: [1; 32],
            id: TokenId::from_bytes([2; 16]),
            secret: [3; 32],
            coordinators: vec!["mesh.example.org:8080".into(), "[::1]:8080".into()],
        }
    }

    #[test]
    fn a_token_survives_its_text_form() {
        assert_eq!(sample().reveal().parse(), Ok(sample()));
    }

    #[test]
    fn the_secret_shows_in_neither_debug_nor_display() {
        let revealed = sample().reveal();
        for shown in [format!("{:?}", sample()), sample().to_string()] {
            assert!(!shown.contains("[3, 3") && !revealed.contains(&shown));
        }
    }

    #[test]
    fn other_texts_say_what_they_are_not() {
        assert_eq!("tskey-abc".parse::<JoinToken>(), Err(InvalidToken::Prefix));
        assert_eq!("mesh1.".parse::<JoinToken>(), Err(InvalidToken::Damaged));
    }

    #[test]
    fn a_later_version_asks_for_an_upgrade() {
        let text = sample().reveal();
        let mut bytes = URL_SAFE_NO_PAD
            .decode(&text[PREFIX.len()..])
            .expect("base64");
        bytes[0] = 9;
        let end = bytes.len() - CHECKSUM;
        let sum = checksum(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum);
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(text.parse::<JoinToken>(), Err(InvalidToken::Version(9)));
    }

    proptest! {
        #[test]
        fn any_single_changed_character_is_noticed(at in 6usize..120, with in "[A-Za-z0-9_-]") {
            let text = sample().reveal();
            let at = at % (text.len() - PREFIX.len()) + PREFIX.len();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != text);
            prop_assert!(changed.parse::<JoinToken>().is_err());
        }

        #[test]
        fn any_bytes_parse_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
            let _outcome = text.parse::<JoinToken>();
        }
    }
}
