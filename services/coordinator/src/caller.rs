//! Who calls: a certificate's subject, looked up anew for every call.

use std::sync::Arc;

use mesh_api::uri::Subject;
use mesh_types::{IdentityPublicKey, Role, Timestamp};

use crate::error::Error;
use crate::members::{Member, Members};
use crate::record::{NodeRecord, OperatorRecord, RelayRecord};

/// What a caller's certificate says; chain and usages were checked by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerCertificate {
    pub(crate) subject: Subject,
    pub(crate) identity: IdentityPublicKey,
    pub(crate) not_after: Timestamp,
}

impl PeerCertificate {
    /// Of the node, relay or operator.
    pub(crate) fn id(&self) -> [u8; 16] {
        match &self.subject {
            Subject::Node { network: _, node } => node.to_bytes(),
            Subject::Relay(id) => id.to_bytes(),
            Subject::Operator(id) => id.to_bytes(),
        }
    }

    /// Reads the certificate; `None` when it names nobody of this mesh.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let subject = Subject::from_certificate(der).ok()?;
        let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
        Some(Self {
            subject,
            identity: IdentityPublicKey::from_spki_der(cert.public_key().raw).ok()?,
            not_after: Timestamp::from_secs(cert.validity().not_after.timestamp()),
        })
    }
}

/// Who calls, as enrolled at this moment.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    Anonymous,
    Node(Arc<NodeRecord>),
    Relay(Arc<RelayRecord>),
    Operator(Arc<OperatorRecord>),
}

/// The kinds of caller that rights are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Anonymous,
    Node(Role),
    Relay,
    Operator,
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Node(role) => role.as_str(),
            Self::Relay => "relay",
            Self::Operator => "operator",
        }
    }
}

impl Caller {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Anonymous => Kind::Anonymous,
            Self::Node(node) => Kind::Node(node.role),
            Self::Relay(_) => Kind::Relay,
            Self::Operator(_) => Kind::Operator,
        }
    }

    /// Finds out who calls: see [`Self::enrolled`]. The certificate must not have expired.
    pub(crate) fn identify(
        members: &Members,
        certificate: Option<&PeerCertificate>,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let Some(certificate) = certificate else {
            return Ok(Self::Anonymous);
        };
        let caller = Self::enrolled(members, certificate)?;
        if now > certificate.not_after {
            return Err(Error::CertificateExpired);
        }
        Ok(caller)
    }

    /// Whose certificate this is. It must be of the key that is enrolled now, its network must be
    /// the node's, and its subject not be removed or revoked.
    pub(crate) fn enrolled(
        members: &Members,
        certificate: &PeerCertificate,
    ) -> Result<Self, Error> {
        let kind = match &certificate.subject {
            Subject::Node { .. } => "node",
            Subject::Relay(_) => "relay",
            Subject::Operator(_) => "operator",
        };
        let member = members.by_id(&certificate.id());
        let (caller, enrolled) = match (member, &certificate.subject) {
            (Some(Member::Node(node)), Subject::Node { network, node: _ }) => {
                let own = members
                    .network(node.network)
                    .ok_or(Error::Removed("node"))?;
                if own.record.name != *network {
                    return Err(Error::WrongNetwork);
                }
                let identity = node.identity.clone();
                (Self::Node(node), identity)
            }
            (Some(Member::Relay(relay)), Subject::Relay(_)) => {
                let identity = relay.identity.clone();
                (Self::Relay(relay), identity)
            }
            (Some(Member::Operator(operator)), Subject::Operator(_)) => {
                if operator.revoked_at.is_some() {
                    return Err(Error::Revoked);
                }
                let identity = operator.identity.clone();
                (Self::Operator(operator), identity)
            }
            // Certificates are only made for members, so this one was a member once.
            _ => return Err(Error::Removed(kind)),
        };
        if enrolled != certificate.identity {
            return Err(Error::CertificateReplaced(kind));
        }
        Ok(caller)
    }
}
