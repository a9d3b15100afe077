//! Secrets at rest: sealed by ChaCha20-Poly1305 (RFC 8439) under the master key, a 0600 file made
//! at first start. A copy of the database alone opens nothing.

use std::path::{Path, PathBuf};

use mesh_daemon::{PrivateFileError, read_private, write_private};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

const KEY_LEN: usize = 32;

/// Why secrets cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// The key file cannot be read or written.
    #[error("read or write the master key {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: PrivateFileError,
    },
    /// The key file holds something else.
    #[error(
        "{} is damaged (expected 64 hexadecimal digits): restore it from a backup", path.display()
    )]
    Damaged { path: PathBuf },
    /// The configured key is no key.
    #[error(
        "master_key is no key: 64 hexadecimal digits are expected, as 'openssl rand -hex 32' gives them"
    )]
    Malformed,
    /// The key file is gone while sealed secrets exist.
    #[error(
        "{} is missing: the certificate authority in the database cannot be opened without it; restore it from a backup, or start with an empty --state-dir",
        path.display()
    )]
    Missing { path: PathBuf },
    /// The sealed bytes do not open.
    #[error(
        "the sealed secret {name:?} does not open: the master key belongs to another database, or the database is damaged"
    )]
    Open { name: String },
    /// The system gave no randomness.
    #[error("the system gives no randomness")]
    Random,
}

/// The master key, ready to seal and open.
pub(crate) struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer([redacted])")
    }
}

impl Sealer {
    /// Reads the master key, or makes it when `may_create` (nothing has been sealed yet).
    pub(crate) fn load(path: &Path, may_create: bool) -> Result<Self, SealError> {
        let at = || path.to_path_buf();
        let file = |source| SealError::File { path: at(), source };
        let bytes = match read_private(path).map_err(file)? {
            Some(text) => decode_hex(&text).ok_or_else(|| SealError::Damaged { path: at() })?,
            None if may_create => {
                let mut bytes = Zeroizing::new([0; KEY_LEN]);
                SystemRandom::new()
                    .fill(bytes.as_mut())
                    .map_err(|_| SealError::Random)?;
                let text = Zeroizing::new(encode_hex(bytes.as_ref()));
                write_private(path, text.as_bytes()).map_err(file)?;
                bytes
            }
            None => return Err(SealError::Missing { path: at() }),
        };
        Self::new(&bytes).ok_or_else(|| SealError::Damaged { path: at() })
    }

    /// With a key from the configuration: 64 hexadecimal digits.
    pub(crate) fn from_text(text: &str) -> Result<Self, SealError> {
        let bytes = decode_hex(text.as_bytes()).ok_or(SealError::Malformed)?;
        Self::new(&bytes).ok_or(SealError::Malformed)
    }

    fn new(bytes: &[u8; KEY_LEN]) -> Option<Self> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).ok()?;
        Some(Self {
            key: LessSafeKey::new(key),
            random: SystemRandom::new(),
        })
    }

    /// Seals `secret` under its name; the name must be given again to open it.
    pub(crate) fn seal(&self, name: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random
            .fill(&mut nonce)
            .map_err(|_| SealError::Random)?;
        let mut body = secret.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name.as_bytes()),
                &mut body,
            )
            .map_err(|_| SealError::Random)?;
        Ok([nonce.as_slice(), &body].concat())
    }

    /// Opens what [`Self::seal`] made under the same name.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let wrong = || SealError::Open {
            name: name.to_owned(),
        };
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let mut body = Zeroizing::new(body.to_vec());
        let opened = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(name.as_bytes()),
                body.as_mut_slice(),
            )
            .map_err(|_| wrong())?
            .len();
        body.truncate(opened);
        Ok(body)
    }
}

fn encode_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode_hex(text: &[u8]) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if text.len() != KEY_LEN * 2 || !text.is_ascii() {
        return None;
    }
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(dir: &Path) -> Sealer {
        Sealer::load(&dir.join("master.key"), true).expect("a new key")
    }

    #[test]
    fn a_secret_opens_under_its_own_name_and_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let sealed = sealer(dir.path()).seal("ca", b"hello").expect("seals");
        assert!(!sealed.windows(5).any(|window| window == b"hello"));
        let again = sealer(dir.path());
        assert_eq!(
            again.open("ca", &sealed).expect("opens").as_slice(),
            b"hello"
        );
        assert!(matches!(
            again.open("other", &sealed),
            Err(SealError::Open { .. })
        ));
    }

    #[test]
    fn a_configured_key_is_the_same_as_one_in_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let sealed = sealer(dir.path()).seal("ca", b"hello").expect("seals");
        let text = std::fs::read_to_string(dir.path().join("master.key")).expect("there");
        let given = Sealer::from_text(&format!("{text}\n")).expect("a key");
        assert_eq!(
            given.open("ca", &sealed).expect("opens").as_slice(),
            b"hello"
        );
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(66)] {
            assert!(matches!(Sealer::from_text(bad), Err(SealError::Malformed)));
        }
    }

    #[test]
    fn a_changed_byte_does_not_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let sealer = sealer(dir.path());
        let mut sealed = sealer.seal("ca", b"hello").expect("seals");
        sealed[14] ^= 1;
        assert!(sealer.open("ca", &sealed).is_err());
        assert!(sealer.open("ca", b"short").is_err());
    }

    #[test]
    fn a_lost_or_damaged_key_is_told_and_never_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("master.key");
        assert!(matches!(
            Sealer::load(&path, false),
            Err(SealError::Missing { .. })
        ));
        write_private(&path, b"zz").expect("writes");
        assert!(matches!(
            Sealer::load(&path, true),
            Err(SealError::Damaged { .. })
        ));
    }
}
