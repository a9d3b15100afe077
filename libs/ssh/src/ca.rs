//! The user certificate authority: one per network, held by the coordinator.
//!
//! Its certificates open exactly one door for a short time: one principal, five minutes, only from
//! the listed addresses, no forwarding of anything.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use mesh_types::Timestamp;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use russh::keys::ssh_key;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use zeroize::Zeroizing;

use crate::key::{Certificate, KeyError, PrivateKey, PublicKey};

/// How long a certificate is valid from the moment it is asked for.
pub const VALIDITY: Duration = Duration::from_secs(300);
/// How far a certificate is backdated, for clocks that run behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// The text is not a user name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a user name: use 1 to 32 of a-z, A-Z, 0-9, '_', '.', '-', not starting with '-' or '.'"
)]
pub struct InvalidPrincipal(String);

/// The local user a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal(String);

impl Principal {
    /// The user's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    fn from_str(text: &str) -> Result<Self, InvalidPrincipal> {
        let fits = (1..=32).contains(&text.len())
            && !text.starts_with(['-', '.'])
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidPrincipal(text.chars().take(40).collect()))
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a certificate is to say.
#[derive(Debug, Clone)]
pub struct CertificateRequest {
    /// The key it is for.
    pub public_key: PublicKey,
    /// The local user it lets in as.
    pub principal: Principal,
    /// Who asked; shows up in the server's log.
    pub key_id: String,
    /// The authority's number for it.
    pub serial: u64,
    /// The addresses it may be used from; at least one.
    pub source_addresses: Vec<IpAddr>,
}

/// A certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No source address was given: the certificate would work from anywhere.
    #[error("a certificate needs at least one source address")]
    NoSource,
    /// The time is before 1970.
    #[error("the clock is before 1970")]
    Clock,
    /// The fields do not make a certificate, or signing failed.
    #[error("cannot make the SSH certificate")]
    Unsignable(#[source] ssh_key::Error),
}

/// The authority's key.
#[derive(Debug, Clone)]
pub struct UserCa(PrivateKey);

impl UserCa {
    /// A new authority with a fresh Ed25519 key.
    pub fn generate() -> Self {
        Self(PrivateKey::generate())
    }

    /// The authority whose key was written by [`Self::to_openssh`].
    ///
    /// # Errors
    ///
    /// [`KeyError`] when the text is not a private key.
    pub fn from_openssh(text: &str) -> Result<Self, KeyError> {
        PrivateKey::from_openssh(text, None).map(Self)
    }

    /// The authority's key as text, to be sealed and stored.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unwritable`] when the key cannot be encoded.
    pub fn to_openssh(&self) -> Result<Zeroizing<String>, KeyError> {
        self.0.to_openssh()
    }

    /// The authority's public key.
    pub fn public_key(&self) -> PublicKey {
        self.0.public_key()
    }

    /// The authority's public key as the line that nodes trust.
    pub fn public_line(&self) -> String {
        self.public_key().to_string()
    }

    /// Makes a user certificate that is valid from [`BACKDATE`] before `now` for [`VALIDITY`].
    ///
    /// # Errors
    ///
    /// [`CaError`] when no source address is given or the fields do not make a certificate.
    pub fn sign(
        &self,
        request: &CertificateRequest,
        now: Timestamp,
    ) -> Result<Certificate, CaError> {
        if request.source_addresses.is_empty() {
            return Err(CaError::NoSource);
        }
        let secs = |at: Timestamp| u64::try_from(at.as_secs()).map_err(|_| CaError::Clock);
        let sources: Vec<String> = request
            .source_addresses
            .iter()
            .map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }))
            .collect();
        self.build(
            request,
            secs(now.minus(BACKDATE))?,
            secs(now.plus(VALIDITY))?,
            sources.join(","),
        )
        .map(Certificate)
        .map_err(CaError::Unsignable)
    }

    fn build(
        &self,
        request: &CertificateRequest,
        valid_after: u64,
        valid_before: u64,
        sources: String,
    ) -> Result<ssh_key::Certificate, ssh_key::Error> {
        let mut builder = Builder::new_with_random_nonce(
            &mut UnwrapErr(SysRng),
            request.public_key.0.key_data().clone(),
            valid_after,
            valid_before,
        )?;
        builder
            .serial(request.serial)?
            .cert_type(CertType::User)?
            .key_id(request.key_id.clone())?
            .valid_principal(request.principal.as_str())?
            .critical_option("source-address", sources)?
            .extension("permit-pty", "")?;
        builder.sign(&*self.0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_shell_or_a_login_could_trip_over_are_refused() {
        for good in ["root", "deploy", "ubuntu", "a.b-c_d", "User1"] {
            assert!(good.parse::<Principal>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-oProxyCommand",
            ".",
            "a b",
            "a,b",
            "ü",
            "a/b",
            &"x".repeat(33),
        ] {
            assert!(bad.parse::<Principal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_without_a_source_address_is_not_made() {
        let request = CertificateRequest {
            public_key: PrivateKey::generate().public_key(),
            principal: "root".parse().unwrap(),
            key_id: "op".into(),
            serial: 1,
            source_addresses: Vec::new(),
        };
        let refused = UserCa::generate().sign(&request, Timestamp::from_secs(1_000_000));
        assert!(matches!(refused, Err(CaError::NoSource)), "{refused:?}");
    }
}
