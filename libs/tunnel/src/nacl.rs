//! NaCl boxes as disco and DERP use them: X25519, XSalsa20, Poly1305; the tag goes first.

use crypto_box::aead::AeadInPlace;
use crypto_box::aead::generic_array::GenericArray;
use crypto_box::{PublicKey, SalsaBox};
use mesh_types::key::SecretKey;
use mesh_types::{DiscoPublicKey, WgPublicKey};
use x25519_dalek::StaticSecret;

/// Bytes of the nonce that goes ahead of a box.
pub(crate) const NONCE: usize = 24;
/// Bytes of the authenticator at the start of a box.
pub(crate) const TAG: usize = 16;

/// The WireGuard public key that belongs to a private key (RFC 7748, section 6.1).
pub fn wg_public_key(private: &SecretKey) -> WgPublicKey {
    WgPublicKey::from_bytes(public_bytes(private))
}

/// The disco public key that belongs to a private key (RFC 7748, section 6.1).
pub fn disco_public_key(private: &SecretKey) -> DiscoPublicKey {
    DiscoPublicKey::from_bytes(public_bytes(private))
}

fn public_bytes(private: &SecretKey) -> [u8; 32] {
    x25519_dalek::PublicKey::from(&StaticSecret::from(*private.expose())).to_bytes()
}

/// The key that two parties share, ready for boxes in both directions.
pub(crate) struct SharedBox(SalsaBox);

impl SharedBox {
    /// `None` when the public key has low order, so that the secret would be known to everybody.
    pub(crate) fn new(private: &SecretKey, public: &[u8; 32]) -> Option<Self> {
        let secret = StaticSecret::from(*private.expose());
        let contributory = secret
            .diffie_hellman(&x25519_dalek::PublicKey::from(*public))
            .was_contributory();
        contributory.then(|| {
            Self(SalsaBox::new(
                &PublicKey::from_bytes(*public),
                &crypto_box::SecretKey::from_bytes(*private.expose()),
            ))
        })
    }

    /// Appends nonce and box of `plain`. The nonce must be fresh for this pair of keys.
    pub(crate) fn seal(&self, nonce: [u8; NONCE], plain: &[u8], into: &mut Vec<u8>) {
        into.extend_from_slice(&nonce);
        let tag_at = into.len();
        into.extend_from_slice(&[0; TAG]);
        into.extend_from_slice(plain);
        let (head, body) = into.split_at_mut(tag_at + TAG);
        let tag = self
            .0
            .encrypt_in_place_detached(GenericArray::from_slice(&nonce), &[], body)
            .expect("messages here are far below the cipher's limit");
        head[tag_at..].copy_from_slice(&tag);
    }

    /// The plain text of nonce and box, left in `scratch`; `None` when it is not authentic.
    pub(crate) fn open<'s>(&self, sealed: &[u8], scratch: &'s mut Vec<u8>) -> Option<&'s [u8]> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>()?;
        let (tag, body) = rest.split_first_chunk::<TAG>()?;
        scratch.clear();
        scratch.extend_from_slice(body);
        self.0
            .decrypt_in_place_detached(
                GenericArray::from_slice(nonce),
                &[],
                scratch,
                GenericArray::from_slice(tag),
            )
            .ok()?;
        Some(scratch)
    }
}

impl std::fmt::Debug for SharedBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedBox([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_share_a_box_and_changes_are_noticed() {
        let (a, b) = (
            SecretKey::from_bytes([1; 32]),
            SecretKey::from_bytes([2; 32]),
        );
        let there = SharedBox::new(&a, wg_public_key(&b).as_bytes()).expect("an honest key");
        let back = SharedBox::new(&b, wg_public_key(&a).as_bytes()).expect("an honest key");
        let mut sealed = Vec::new();
        there.seal([7; NONCE], b"hello", &mut sealed);
        let mut scratch = Vec::new();
        assert_eq!(back.open(&sealed, &mut scratch), Some(b"hello".as_slice()));
        for i in 0..sealed.len() {
            sealed[i] ^= 1;
            assert_eq!(back.open(&sealed, &mut scratch), None);
            sealed[i] ^= 1;
        }
    }

    #[test]
    fn a_low_order_key_shares_nothing() {
        assert!(SharedBox::new(&SecretKey::from_bytes([1; 32]), &[0; 32]).is_none());
    }
}
