//! The private keys of a node and their file.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_api::identity::{Identity, InvalidIdentity};
use mesh_types::key::SecretKey;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::{Zeroize as _, Zeroizing};

/// First line of the file.
const HEADER: &str = "mesh node keys 1";

/// All private keys of a node; wiped when dropped.
pub(super) struct Keys {
    /// Certificates are issued for it.
    pub(super) identity: Identity,
    /// Names the node to peers and relays.
    pub(super) wireguard: SecretKey,
    /// Path discovery.
    pub(super) disco: SecretKey,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys([redacted])")
    }
}

impl Keys {
    pub(super) fn generate() -> Result<Self, InvalidIdentity> {
        Ok(Self {
            identity: Identity::generate()?,
            wireguard: random_key()?,
            disco: random_key()?,
        })
    }

    pub(super) fn to_text(&self) -> Zeroizing<Vec<u8>> {
        let text = Zeroizing::new(format!(
            "{HEADER}\nidentity {}\nwireguard {}\ndisco {}\n",
            *Zeroizing::new(STANDARD.encode(self.identity.pkcs8())),
            *Zeroizing::new(STANDARD.encode(self.wireguard.expose())),
            *Zeroizing::new(STANDARD.encode(self.disco.expose())),
        ));
        Zeroizing::new(text.as_bytes().to_vec())
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines();
        if lines.next()? != HEADER {
            return None;
        }
        let mut field = |name: &str| {
            let encoded = lines.next()?.strip_prefix(name)?.strip_prefix(' ')?;
            STANDARD.decode(encoded).ok().map(Zeroizing::new)
        };
        let identity = field("identity")?;
        let wireguard = field("wireguard")?;
        let disco = field("disco")?;
        Some(Self {
            identity: Identity::from_pkcs8(&identity).ok()?,
            wireguard: secret(&wireguard)?,
            disco: secret(&disco)?,
        })
    }
}

fn secret(bytes: &[u8]) -> Option<SecretKey> {
    bytes.try_into().ok().map(SecretKey::from_bytes)
}

fn random_key() -> Result<SecretKey, InvalidIdentity> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| InvalidIdentity)?;
    let key = SecretKey::from_bytes(bytes);
    bytes.zeroize();
    Ok(key)
}

/// A certificate as PEM (RFC 7468, 5).
pub(super) fn to_pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut pem = String::with_capacity(encoded.len() + 80);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// The DER inside a PEM certificate (RFC 7468, 5).
pub(super) fn from_pem(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?;
    let body = text.split_once("-----BEGIN CERTIFICATE-----")?.1;
    let body = body.split_once("-----END CERTIFICATE-----")?.0;
    let encoded: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(encoded).ok()
}
