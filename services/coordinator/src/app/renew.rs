//! Renewal: a signature of the enrolled key over a fresh nonce in, a new certificate out. The old
//! certificate plays no part, so an expired one strands nobody.

use std::sync::Arc;

use mesh_api::csr::key_of_request;
use mesh_api::identity::{renew_bytes, verify};
use mesh_api::uri::Subject;
use mesh_types::{IdentityPublicKey, Role};

use super::Core;
use super::happening::renewed_late;
use crate::ca::Issued;
use crate::error::Error;
use crate::members::Member;
use crate::record::{EventKind, NodeRecord, OperatorRecord, RelayRecord};

/// A request for a new certificate.
#[derive(Debug, Clone)]
pub(crate) struct Renewal {
    /// Of a node, relay or operator.
    pub(crate) id: [u8; 16],
    pub(crate) nonce: Vec<u8>,
    pub(crate) csr: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

impl Core {
    /// A new certificate for whoever holds the enrolled key, unless removed or revoked.
    pub(crate) async fn renew(&self, request: Renewal) -> Result<Issued, Error> {
        self.take_challenge(&request.nonce)?;
        let (subject, role, key) = self.renewable(&request.id)?;
        let signed = renew_bytes(&request.nonce, &request.id, &request.csr);
        if !verify(&key, &signed, &request.signature) {
            return Err(Error::BadSignature);
        }
        if key_of_request(&request.csr)? != key {
            return Err(Error::OtherKey);
        }
        let issued = self
            .again(|| self.renew_proven(&request.id, &subject, role, &key))
            .await?;
        self.figures.renewals.inc();
        tracing::debug!(%subject, "a certificate was renewed");
        Ok(issued)
    }

    async fn renew_proven(
        &self,
        id: &[u8; 16],
        subject: &Subject,
        role: Option<Role>,
        key: &IdentityPublicKey,
    ) -> Result<Issued, Error> {
        let mut change = self.change("coordinator").await?;
        // The turn has come: nobody is removed between this look and the commit.
        let member = self.members.by_id(id).ok_or(Error::UnknownSubject)?;
        let issued = self.ca.issue(subject, role, key, change.now)?;
        let not_after = issued.not_after;
        match member {
            Member::Node(node) => {
                if let Some(late) = renewed_late(node.certificate_not_after, change.now) {
                    let network = self.network_of(node.network)?.record.name.clone();
                    let kind = EventKind::CertificateRenewedLate;
                    change.event(Some(&network), kind, &node.name, late);
                }
                change.txn.node_set_certificate(node.id, not_after).await?;
                let _turn = change.commit().await?;
                let record = NodeRecord {
                    certificate_not_after: not_after,
                    ..Arc::unwrap_or_clone(node)
                };
                self.members.put_node(record);
            }
            Member::Relay(relay) => {
                if let Some(late) = renewed_late(relay.certificate_not_after, change.now) {
                    let kind = EventKind::CertificateRenewedLate;
                    change.event(None, kind, &relay.name, late);
                }
                let record = RelayRecord {
                    certificate_not_after: not_after,
                    ..Arc::unwrap_or_clone(relay)
                };
                change.txn.relay_update(&record).await?;
                let _turn = change.commit().await?;
                self.members.put_relay(record);
            }
            Member::Operator(operator) => {
                if let Some(late) = renewed_late(operator.certificate_not_after, change.now) {
                    let subject = format!("operator {}", operator.name);
                    change.event(None, EventKind::CertificateRenewedLate, subject, late);
                }
                let record = OperatorRecord {
                    certificate_not_after: not_after,
                    ..Arc::unwrap_or_clone(operator)
                };
                change.txn.operator_update(&record).await?;
                let _turn = change.commit().await?;
                self.members.put_operator(record);
            }
            Member::Removed => return Err(Error::Removed("node")),
        }
        Ok(issued)
    }

    fn renewable(
        &self,
        id: &[u8; 16],
    ) -> Result<(Subject, Option<Role>, IdentityPublicKey), Error> {
        match self.members.by_id(id).ok_or(Error::UnknownSubject)? {
            Member::Node(node) => {
                let network = self.network_of(node.network)?.record.name.clone();
                let subject = Subject::Node {
                    network,
                    node: node.id,
                };
                Ok((subject, Some(node.role), node.identity.clone()))
            }
            Member::Relay(relay) => Ok((
                Subject::Relay(relay.id),
                Some(Role::Relay),
                relay.identity.clone(),
            )),
            Member::Operator(operator) if operator.revoked_at.is_some() => Err(Error::Revoked),
            Member::Operator(operator) => Ok((
                Subject::Operator(operator.id),
                None,
                operator.identity.clone(),
            )),
            Member::Removed => Err(Error::Removed("node")),
        }
    }
}
