//! Identity keys (ECDSA P-256) and what they sign.

use std::fmt;

use mesh_types::IdentityPublicKey;
use mesh_types::heartbeat::RENEW_CONTEXT;
use rcgen::PublicKeyData as _;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use zeroize::Zeroizing;

/// Precedes nonce and SPKI in the proof of a WireGuard key at enrolment.
pub const ENROL_WG: &[u8] = b"mesh-enrol-wg-v1";
/// Precedes nonce and SPKI in the proof of a disco key at enrolment.
pub const ENROL_DISCO: &[u8] = b"mesh-enrol-disco-v1";

/// A key pair that never leaves the machine that made it.
pub struct Identity {
    pkcs8: Zeroizing<Vec<u8>>,
    signing: EcdsaKeyPair,
    rcgen: rcgen::KeyPair,
    public: IdentityPublicKey,
    random: SystemRandom,
}

/// The bytes are no P-256 private key in PKCS#8 (RFC 5208), or the system gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("not a P-256 private key: the file is damaged or of another kind")]
pub struct InvalidIdentity;

impl Identity {
    /// A new key pair from the system's randomness.
    pub fn generate() -> Result<Self, InvalidIdentity> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_| InvalidIdentity)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// The key pair stored as PKCS#8 DER (RFC 5208).
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidIdentity> {
        let random = SystemRandom::new();
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random)
            .map_err(|_| InvalidIdentity)?;
        let pkcs8 = Zeroizing::new(der.to_vec());
        let rcgen = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
            &der.into(),
            &rcgen::PKCS_ECDSA_P256_SHA256,
        )
        .map_err(|_| InvalidIdentity)?;
        let public = IdentityPublicKey::from_spki_der(&rcgen.subject_public_key_info())
            .map_err(|_| InvalidIdentity)?;
        Ok(Self {
            pkcs8,
            signing,
            rcgen,
            public,
            random,
        })
    }

    /// The private key as PKCS#8 DER, for a 0600 file and for TLS.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half.
    pub fn public_key(&self) -> &IdentityPublicKey {
        &self.public
    }

    /// A certificate request (PKCS#10, RFC 2986) that asks for nothing but this key.
    pub fn csr_der(&self) -> Result<Vec<u8>, InvalidIdentity> {
        let params = rcgen::CertificateParams::default();
        let csr = params
            .serialize_request(&self.rcgen)
            .map_err(|_| InvalidIdentity)?;
        Ok(csr.der().to_vec())
    }

    /// An ECDSA P-256 SHA-256 signature in ASN.1 (RFC 3279, 2.2.3).
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, InvalidIdentity> {
        let signature = self
            .signing
            .sign(&self.random, message)
            .map_err(|_| InvalidIdentity)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.public)
    }
}

/// Whether `signature` is `key`'s over `message`.
pub fn verify(key: &IdentityPublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.as_point())
        .verify(message, signature)
        .is_ok()
}

/// The proof that the sender holds an X25519 private key: HMAC-SHA256 keyed by the shared secret
/// with the coordinator's challenge key, over context ‖ nonce ‖ SPKI of the request.
pub fn enrol_proof(context: &[u8], shared: &[u8; 32], nonce: &[u8], spki: &[u8]) -> [u8; 32] {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, shared);
    let tag = ring::hmac::sign(&key, &[context, nonce, spki].concat());
    let mut proof = [0; 32];
    proof.copy_from_slice(tag.as_ref());
    proof
}

/// Whether `proof` is the one [`enrol_proof`] makes; in constant time.
pub fn verify_enrol_proof(
    context: &[u8],
    shared: &[u8; 32],
    nonce: &[u8],
    spki: &[u8],
    proof: &[u8],
) -> bool {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, shared);
    ring::hmac::verify(&key, &[context, nonce, spki].concat(), proof).is_ok()
}

/// The bytes under a renewal's signature: context ‖ nonce ‖ id ‖ certificate request.
pub fn renew_bytes(nonce: &[u8], id: &[u8; 16], csr: &[u8]) -> Vec<u8> {
    [RENEW_CONTEXT, nonce, id, csr].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_storage_and_signs_for_its_public_half() {
        let made = Identity::generate().expect("randomness");
        let read = Identity::from_pkcs8(made.pkcs8()).expect("its own form");
        let signature = read.sign(b"hello").expect("signs");
        assert!(verify(made.public_key(), b"hello", &signature));
        assert!(!verify(made.public_key(), b"hullo", &signature));
    }

    #[test]
    fn a_request_carries_the_public_key() {
        let made = Identity::generate().expect("randomness");
        let csr = made.csr_der().expect("a request");
        let needle = made.public_key().as_spki_der();
        assert!(csr.windows(needle.len()).any(|window| window == needle));
    }

    #[test]
    fn a_proof_fits_only_its_own_context_and_nonce() {
        let proof = enrol_proof(ENROL_WG, &[1; 32], b"nonce", b"spki");
        assert!(verify_enrol_proof(
            ENROL_WG, &[1; 32], b"nonce", b"spki", &proof
        ));
        assert!(!verify_enrol_proof(
            ENROL_DISCO,
            &[1; 32],
            b"nonce",
            b"spki",
            &proof
        ));
        assert!(!verify_enrol_proof(
            ENROL_WG, &[2; 32], b"nonce", b"spki", &proof
        ));
        assert!(!verify_enrol_proof(
            ENROL_WG, &[1; 32], b"other", b"spki", &proof
        ));
    }

    #[test]
    fn debug_shows_no_private_bytes() {
        let made = Identity::generate().expect("randomness");
        assert!(format!("{made:?}").len() < 40);
    }
}
