//! Enrolment requests: what a machine that nobody knows yet sends to join.

use std::fmt;

use mesh_types::{DiscoPublicKey, Role, TokenId, WgPublicKey};
use zeroize::Zeroizing;

use super::enums::role;
use super::from_bytes;
use crate::error::ProtocolError;
use crate::pb;

/// A public key with the proof that the sender holds its private half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenKey<K> {
    /// The key.
    pub key: K,
    /// See [`crate::identity::enrol_proof`]; not yet checked.
    pub proof: Vec<u8>,
}

/// What a machine sends to join. Nothing in it is proven yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// Which join token.
    pub token: TokenId,
    /// The token's secret.
    pub secret: Zeroizing<Vec<u8>>,
    /// Of the challenge that the proofs answer.
    pub nonce: Vec<u8>,
    /// Of the machine; a wish for the node's name.
    pub hostname: String,
    /// PKCS#10 DER; see [`crate::csr::key_of_request`].
    pub csr: Vec<u8>,
    /// Nodes have both keys; relays may have none.
    pub wg: Option<ProvenKey<WgPublicKey>>,
    /// The disco key.
    pub disco: Option<ProvenKey<DiscoPublicKey>>,
    /// Of the program.
    pub version: String,
    /// An operator's permit to take an existing node's place.
    pub permit: Option<Vec<u8>>,
    /// What the program can run; empty when it does not say.
    pub roles: Vec<Role>,
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolment")
            .field("token", &self.token)
            .field("hostname", &self.hostname)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl TryFrom<pb::EnrolRequest> for Enrolment {
    type Error = ProtocolError;

    fn try_from(request: pb::EnrolRequest) -> Result<Self, ProtocolError> {
        let pb::EnrolRequest {
            token_id,
            token_secret,
            nonce,
            hostname,
            csr,
            wg_key,
            disco_key,
            wg_proof,
            disco_proof,
            version,
            permit,
            roles,
        } = request;
        let secret = Zeroizing::new(token_secret);
        Ok(Self {
            token: from_bytes("token_id", &token_id)?,
            secret,
            nonce,
            hostname,
            csr,
            wg: proven("wg_key", &wg_key, wg_proof)?,
            disco: proven("disco_key", &disco_key, disco_proof)?,
            version,
            permit: (!permit.is_empty()).then_some(permit),
            roles: roles.into_iter().map(role).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Enrolment> for pb::EnrolRequest {
    fn from(enrolment: Enrolment) -> Self {
        let Enrolment {
            token,
            secret,
            nonce,
            hostname,
            csr,
            wg,
            disco,
            version,
            permit,
            roles,
        } = enrolment;
        let (wg_key, wg_proof) = wg.map_or_else(Default::default, |wg| {
            (wg.key.as_bytes().to_vec(), wg.proof)
        });
        let (disco_key, disco_proof) = disco.map_or_else(Default::default, |disco| {
            (disco.key.as_bytes().to_vec(), disco.proof)
        });
        Self {
            token_id: token.as_bytes().to_vec(),
            token_secret: secret.to_vec(),
            nonce,
            hostname,
            csr,
            wg_key,
            disco_key,
            wg_proof,
            disco_proof,
            version,
            permit: permit.unwrap_or_default(),
            roles: roles
                .into_iter()
                .map(|role| pb::Role::from(role).into())
                .collect(),
        }
    }
}

/// The key with its proof; `None` when the message has neither.
fn proven<'a, K: TryFrom<&'a [u8]>>(
    field: &'static str,
    key: &'a [u8],
    proof: Vec<u8>,
) -> Result<Option<ProvenKey<K>>, ProtocolError>
where
    K::Error: fmt::Display,
{
    if key.is_empty() && proof.is_empty() {
        return Ok(None);
    }
    let key = from_bytes(field, key)?;
    Ok(Some(ProvenKey { key, proof }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> pb::EnrolRequest {
        pb::EnrolRequest {
            token_id: vec![1; 16],
            token_secret: vec![0xaa; 32],
            wg_key: vec![3; 32],
            wg_proof: vec![4; 32],
            ..pb::EnrolRequest::default()
        }
    }

    #[test]
    fn keys_are_whole_or_absent() {
        let read = Enrolment::try_from(request()).expect("a request");
        assert_eq!(read.wg.map(|wg| wg.proof), Some(vec![4; 32]));
        assert_eq!(read.disco, None);
        let short = pb::EnrolRequest {
            wg_key: vec![3; 31],
            ..request()
        };
        assert!(Enrolment::try_from(short).is_err());
        let proof_alone = pb::EnrolRequest {
            disco_proof: vec![1],
            ..request()
        };
        assert!(Enrolment::try_from(proof_alone).is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let read = Enrolment::try_from(request()).expect("a request");
        let shown = format!("{read:?}");
        assert!(
            !shown.contains("170") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
