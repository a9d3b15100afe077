//! Enrolment: a join token and proofs of the keys in, an identity out.

mod node;
mod relay;

use mesh_api::csr::key_of_request;
use mesh_api::identity::{ENROL_DISCO, ENROL_WG, verify_enrol_proof};
use mesh_api::model::enrolment::{Enrolment, ProvenKey};
use mesh_types::{
    DiscoPublicKey, IdentityPublicKey, NetworkId, NetworkName, NodeName, OverlayAddrs, Role,
    Timestamp, TokenId, WgPublicKey,
};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use super::Core;
use super::challenge::Taken;
use crate::error::Error;
use crate::metrics::Refusal;
use crate::record::{EventKind, TokenRecord};

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Enrolled {
    pub(crate) id: [u8; 16],
    /// `None` for relays.
    pub(crate) network: Option<(NetworkId, NetworkName)>,
    pub(crate) name: NodeName,
    pub(crate) role: Role,
    pub(crate) owner: String,
    pub(crate) addrs: Option<OverlayAddrs>,
    /// DER.
    pub(crate) certificate: Vec<u8>,
    pub(crate) console_prefix: String,
}

/// The keys after their proofs were checked.
#[derive(Debug, Clone)]
struct Keys {
    identity: IdentityPublicKey,
    wg: Option<WgPublicKey>,
    disco: Option<DiscoPublicKey>,
}

/// SHA-256, as secrets of tokens and permits are stored.
pub(super) fn secret_hash(secret: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret).as_ref());
    hash
}

fn check_proofs(request: &Enrolment, taken: &Taken) -> Result<Keys, Error> {
    let identity = key_of_request(&request.csr)?;
    let spki = identity.as_spki_der();
    let holds = |context, public: &[u8; 32], proof: &[u8]| {
        taken
            .shared(public)
            .is_some_and(|shared| verify_enrol_proof(context, &shared, &request.nonce, spki, proof))
    };
    if let Some(ProvenKey { key, proof }) = &request.wg
        && !holds(ENROL_WG, key.as_bytes(), proof)
    {
        return Err(Error::BadProof("WireGuard"));
    }
    if let Some(ProvenKey { key, proof }) = &request.disco
        && !holds(ENROL_DISCO, key.as_bytes(), proof)
    {
        return Err(Error::BadProof("disco"));
    }
    Ok(Keys {
        identity,
        wg: request.wg.as_ref().map(|proven| proven.key),
        disco: request.disco.as_ref().map(|proven| proven.key),
    })
}

/// The token the request names, when the request knows its secret.
fn genuine(token: Option<TokenRecord>, request: &Enrolment) -> Result<TokenRecord, Error> {
    let token = token.ok_or(Error::TokenUnknown)?;
    if bool::from(secret_hash(&request.secret).ct_eq(&token.secret_hash)) {
        Ok(token)
    } else {
        Err(Error::TokenWrongSecret)
    }
}

/// Whether the token lets anybody new in at this time.
fn admits(token: &TokenRecord, now: Timestamp) -> Result<(), Error> {
    if now >= token.expires_at {
        Err(Error::TokenExpired)
    } else if !token.reusable && token.uses > 0 {
        Err(Error::TokenUsed)
    } else {
        Ok(())
    }
}

/// Whether the program that asks runs what the token is for. Before anything is used up: it could
/// not do anything with the identity.
fn fits_program(token: &TokenRecord, runs: &[Role]) -> Result<(), Error> {
    match runs {
        [asked, ..] if !runs.contains(&token.role) => Err(Error::TokenRole {
            token: token.role,
            asked: *asked,
        }),
        _ => Ok(()),
    }
}

impl Core {
    /// Lets a machine in by a token. Atomic: of any number of machines with a one-use token,
    /// exactly one gets in; the same machine gets the same answer as often as it asks.
    pub(crate) async fn enrol(&self, request: Enrolment) -> Result<Enrolled, Error> {
        let token = request.token;
        let outcome = self.enrol_checked(request).await;
        match &outcome {
            Ok(_) => {
                self.figures.enrolments.inc();
            }
            Err(error) => {
                let (_, reason) = error.kind();
                tracing::info!(%token, reason, "a machine was not let in");
                self.figures
                    .enrolment_refusals
                    .get_or_create(&Refusal { reason })
                    .inc();
                let genuine = matches!(
                    error,
                    Error::TokenExpired
                        | Error::TokenUsed
                        | Error::TokenRevoked
                        | Error::TokenRole { .. }
                );
                if genuine {
                    self.note_refused_join(token, reason).await;
                }
            }
        }
        outcome
    }

    async fn note_refused_join(&self, token: TokenId, reason: &'static str) {
        let noted = async {
            let mut change = self.change("coordinator").await?;
            change.event(None, EventKind::JoinRefused, token, reason);
            change.commit().await.map(drop)
        };
        if let Err(error) = noted.await {
            let error = mesh_daemon::report::chain(&error);
            tracing::debug!(error, "a refused join was not recorded");
        }
    }

    async fn enrol_checked(&self, request: Enrolment) -> Result<Enrolled, Error> {
        let taken = self.take_challenge(&request.nonce)?;
        let keys = check_proofs(&request, &taken)?;
        // Who has no genuine token must not take the writer's turn from others.
        genuine(self.store.token_peek(request.token).await?, &request)?;
        self.genuine_tokens().insert(request.token);
        self.again(|| self.enrol_proven(&request, keys.clone()))
            .await
    }

    async fn enrol_proven(&self, request: &Enrolment, keys: Keys) -> Result<Enrolled, Error> {
        let change = self.change(format!("token:{}", request.token)).await?;
        let token = genuine(change.txn.token_show(request.token).await?, request)?;
        if token.revoked_at.is_some() {
            return Err(Error::TokenRevoked);
        }
        fits_program(&token, &request.roles)?;
        let before = change.txn.token_use_show(token.id, &keys.identity).await?;
        match token.network {
            Some(network) => {
                let network = self.network_of(network)?;
                self.enrol_node(change, request, keys, &token, &network, before)
                    .await
            }
            None => {
                self.enrol_relay(change, request, keys, &token, before)
                    .await
            }
        }
    }
}

fn wished_name(hostname: &str) -> Result<NodeName, Error> {
    NodeName::from_hostname(hostname)
        .ok_or_else(|| Error::HostnameInvalid(hostname.chars().take(80).collect()))
}

/// A program's version as it is kept.
pub(super) fn short(version: &str) -> String {
    version
        .chars()
        .filter(|c| !c.is_control())
        .take(64)
        .collect()
}
