//! Keys and certificates as OpenSSH writes them.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use mesh_types::Timestamp;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use russh::keys::ssh_key;
use russh::keys::ssh_key::{Algorithm, HashAlg, LineEnding};
use zeroize::Zeroizing;

/// A key or certificate cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is not an OpenSSH public key line.
    #[error("not an SSH public key (expected a line such as \"ssh-ed25519 AAAA…\")")]
    InvalidPublicKey(#[source] ssh_key::Error),
    /// The text is not a private key in a known format, or of a kind that is not offered.
    #[error("not a usable SSH private key (Ed25519 and ECDSA keys are; RSA keys are not)")]
    InvalidPrivateKey(#[source] russh::keys::Error),
    /// The private key needs a passphrase.
    #[error("the SSH private key is protected by a passphrase")]
    Encrypted,
    /// The text is not an OpenSSH certificate line.
    #[error("not an SSH certificate")]
    InvalidCertificate(#[source] ssh_key::Error),
    /// The key cannot be written as text.
    #[error("cannot write the SSH key as text")]
    Unwritable(#[source] ssh_key::Error),
}

/// A public key: a host's, a user's or an authority's. Two keys are equal when their key material
/// is; comments are dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(pub(crate) ssh_key::PublicKey);

impl PublicKey {
    pub(crate) fn new(data: ssh_key::public::KeyData) -> Self {
        Self(ssh_key::PublicKey::new(data, ""))
    }

    /// `SHA256:` and base64 without padding, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The algorithm's wire name, such as `ssh-ed25519` (RFC 8709).
    pub fn algorithm(&self) -> String {
        self.0.algorithm().to_string()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(line: &str) -> Result<Self, KeyError> {
        let key = ssh_key::PublicKey::from_openssh(line.trim());
        key.map(|key| Self::new(key.key_data().clone()))
            .map_err(KeyError::InvalidPublicKey)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_openssh().map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key_data().cmp(other.0.key_data())
    }
}

/// A private key. Cheap to clone; never shown.
#[derive(Clone)]
pub struct PrivateKey(pub(crate) Arc<ssh_key::PrivateKey>);

impl PrivateKey {
    /// A fresh Ed25519 key from the system's randomness.
    ///
    /// # Panics
    ///
    /// When the operating system has no randomness to give.
    pub fn generate() -> Self {
        let key = ssh_key::PrivateKey::random(&mut UnwrapErr(SysRng), Algorithm::Ed25519)
            .expect("Ed25519 is compiled in and any 32 bytes are a key");
        Self(Arc::new(key))
    }

    /// Reads a private key file's text: OpenSSH, PKCS#8 or PuTTY.
    ///
    /// # Errors
    ///
    /// [`KeyError::Encrypted`] when it needs a passphrase and none was given.
    pub fn from_openssh(text: &str, passphrase: Option<&str>) -> Result<Self, KeyError> {
        let key = match russh::keys::decode_secret_key(text, passphrase) {
            Ok(key) => key,
            Err(russh::keys::Error::KeyIsEncrypted) => return Err(KeyError::Encrypted),
            Err(error) => return Err(KeyError::InvalidPrivateKey(error)),
        };
        if key.is_encrypted() {
            return Err(KeyError::Encrypted);
        }
        Ok(Self(Arc::new(key)))
    }

    /// The key as an OpenSSH private key file, without a passphrase.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unwritable`] when the key cannot be encoded.
    pub fn to_openssh(&self) -> Result<Zeroizing<String>, KeyError> {
        self.0
            .to_openssh(LineEnding::LF)
            .map_err(KeyError::Unwritable)
    }

    /// Its public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::new(self.0.public_key().key_data().clone())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public_key().fingerprint())
    }
}

/// An OpenSSH user certificate (OpenSSH's PROTOCOL.certkeys).
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate(pub(crate) ssh_key::Certificate);

impl Certificate {
    /// When it stops being valid.
    pub fn valid_until(&self) -> Timestamp {
        Timestamp::from_secs(i64::try_from(self.0.valid_before()).unwrap_or(i64::MAX))
    }

    /// Who asked for it, in the authority's words.
    pub fn key_id(&self) -> &str {
        self.0.key_id()
    }

    /// The authority's number for it.
    pub fn serial(&self) -> u64 {
        self.0.serial()
    }
}

impl FromStr for Certificate {
    type Err = KeyError;

    fn from_str(line: &str) -> Result<Self, KeyError> {
        ssh_key::Certificate::from_openssh(line.trim())
            .map(Self)
            .map_err(KeyError::InvalidCertificate)
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_openssh().map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("serial", &self.serial())
            .field("key_id", &self.key_id())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_survives_its_text_and_its_debug_form_hides_it() {
        let key = PrivateKey::generate();
        let text = key.to_openssh().unwrap();
        let again = PrivateKey::from_openssh(&text, None).unwrap();
        assert_eq!(key.public_key(), again.public_key());
        assert!(format!("{key:?}").starts_with("PrivateKey(SHA256:"));
    }

    #[test]
    fn a_public_key_drops_its_comment_and_compares_by_its_material() {
        let key = PrivateKey::generate().public_key();
        let commented: PublicKey = format!("{key} someone@somewhere\n").parse().unwrap();
        assert_eq!(key, commented);
        assert_eq!(commented.to_string(), key.to_string());
        assert!("ssh-ed25519 nonsense".parse::<PublicKey>().is_err());
    }
}
