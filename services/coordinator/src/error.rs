//! What can go wrong for a caller, each with its sentence, its gRPC code and its word.

use mesh_api::csr::CsrError;
use mesh_netmap::{Rejected, ReserveError};
use mesh_types::Role;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::ca::CaError;
use crate::seal::SealError;
use crate::store::StoreError;

/// Metadata key of the machine-readable word.
pub const REASON_KEY: &str = "mesh-error";

/// Why a call is refused or fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    // --- join tokens
    #[error(
        "this join token is not known to this coordinator: it was deleted or made by another one; make a new one with 'mesh token create'"
    )]
    TokenUnknown,
    #[error(
        "this join token was altered: its secret does not fit; copy it again, whole, or make a new one with 'mesh token create'"
    )]
    TokenWrongSecret,
    #[error(
        "this join token has been used by another machine and was good for one; make a new one with 'mesh token create' (or '--reusable')"
    )]
    TokenUsed,
    #[error("this join token has expired; make a new one with 'mesh token create'")]
    TokenExpired,
    #[error("this join token was revoked; make a new one with 'mesh token create'")]
    TokenRevoked,
    #[error(
        "this join token is for a {token}, which {} runs, not for {}; it was not used up; make one with 'mesh token create --role {asked}'",
        token.program(),
        asked.program()
    )]
    TokenRole { token: Role, asked: Role },
    #[error("a token's life is 60 seconds to 24 hours, not {0} seconds")]
    TokenLifetime(u64),

    // --- enrolment and renewal
    #[error("the challenge is unknown, used or older than 60 seconds: try again")]
    NonceUnknown,
    #[error("the {0} key is not proven: only the machine that holds its private half can enrol it")]
    BadProof(&'static str),
    #[error(
        "this WireGuard or disco key is enrolled as another node: copied state directories cannot join twice; start with an empty --state-dir"
    )]
    KeyTaken,
    #[error(
        "this machine's identity is enrolled as {0} and cannot be taken over by this token: start with an empty --state-dir, or remove that node first"
    )]
    Takeover(String),
    #[error(
        "this permit is unknown, used, expired or for another network or role: ask for a new one with 'mesh node permit'"
    )]
    PermitInvalid,
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("the certificate request is for another key than the enrolled one")]
    OtherKey,
    #[error("{0:?} cannot become a node name: give a host name with letters or digits")]
    HostnameInvalid(String),
    #[error("no overlay addresses are left: widen overlay.v4 in the coordinator's configuration")]
    AddressesExhausted,
    #[error("this {0} was removed from the mesh: join again with a new token")]
    Removed(&'static str),
    #[error("no node, relay or operator has this id")]
    UnknownSubject,
    #[error("the signature does not fit the enrolled key")]
    BadSignature,

    // --- authorisation
    #[error(
        "this call needs a certificate: join with 'worker-agent join', or choose an operator's context with 'mesh --context NAME'"
    )]
    Unauthenticated,
    #[error("the certificate has expired: renew it (agents do so by themselves)")]
    CertificateExpired,
    #[error("the certificate belongs to an earlier key of this {0}")]
    CertificateReplaced(&'static str),
    #[error("this operator credential was revoked: ask another operator for 'mesh operator add'")]
    Revoked,
    #[error("a caller with role {0} may not do this")]
    NotAllowed(&'static str),
    #[error("this belongs to another network")]
    WrongNetwork,

    // --- operators' input
    #[error("there is no {kind} {name:?}; see {see}")]
    NotFound {
        kind: &'static str,
        name: String,
        see: &'static str,
    },
    #[error("a {kind} named {name:?} exists already")]
    Exists { kind: &'static str, name: String },
    #[error("{0}")]
    Invalid(String),
    #[error(
        "network {name:?} still has {nodes} nodes: 'mesh node list --network {name}' shows them, and 'mesh network delete {name} --force' removes them with it (the gateway and deploy-manager of 'mesh up' join every network)"
    )]
    NetworkNotEmpty { name: String, nodes: usize },

    #[error("host keys of a node change once a minute at most")]
    KeysChangeTooOften,

    // --- SSH
    #[error(
        "network {0:?} has no deploy-manager: certificates are bound to its addresses; start one with a token of role deployer"
    )]
    NoDeployer(String),

    // --- the coordinator itself
    #[error("too many requests from this address: try again in {0} s")]
    RateLimited(u64),
    #[error(
        "the coordinator cannot change anything now ({0}); running connections go on; try again later"
    )]
    StoreUnavailable(String),
    #[error("the coordinator's database is busy with another transaction: try again")]
    StoreConflict,
    #[error("the coordinator is shutting down: try again")]
    ShuttingDown,
    #[error("something went wrong in the coordinator; see its log")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// A failure that is not the caller's and whose text stays in our log.
    pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
    }

    pub(crate) fn not_found(kind: &'static str, name: impl ToString, see: &'static str) -> Self {
        Self::NotFound {
            kind,
            name: name.to_string(),
            see,
        }
    }

    /// The gRPC code and the word in [`REASON_KEY`].
    pub(crate) fn kind(&self) -> (Code, &'static str) {
        match self {
            Self::TokenUnknown => (Code::NotFound, "token-unknown"),
            Self::TokenWrongSecret => (Code::Unauthenticated, "token-wrong-secret"),
            Self::TokenUsed => (Code::AlreadyExists, "token-used"),
            Self::TokenExpired => (Code::FailedPrecondition, "token-expired"),
            Self::TokenRevoked => (Code::PermissionDenied, "token-revoked"),
            Self::TokenRole { .. } => (Code::FailedPrecondition, "token-role"),
            Self::NonceUnknown => (Code::Aborted, "nonce-unknown"),
            Self::BadProof(_) => (Code::PermissionDenied, "bad-proof"),
            Self::KeyTaken => (Code::AlreadyExists, "key-taken"),
            Self::Takeover(_) => (Code::PermissionDenied, "takeover"),
            Self::PermitInvalid => (Code::PermissionDenied, "permit-invalid"),
            Self::Csr(CsrError::Rights(_)) => (Code::PermissionDenied, "csr-server-rights"),
            Self::Csr(CsrError::Invalid(_)) | Self::OtherKey => {
                (Code::InvalidArgument, "csr-invalid")
            }
            Self::HostnameInvalid(_) => (Code::InvalidArgument, "hostname-invalid"),
            Self::AddressesExhausted => (Code::FailedPrecondition, "address-space-full"),
            Self::Removed(_) => (Code::PermissionDenied, "removed"),
            Self::UnknownSubject => (Code::NotFound, "unknown-node"),
            Self::BadSignature => (Code::Unauthenticated, "bad-signature"),
            Self::Unauthenticated => (Code::Unauthenticated, "unauthenticated"),
            Self::CertificateExpired => (Code::Unauthenticated, "certificate-expired"),
            Self::CertificateReplaced(_) => (Code::Unauthenticated, "certificate-replaced"),
            Self::Revoked => (Code::PermissionDenied, "revoked"),
            Self::NotAllowed(_) => (Code::PermissionDenied, "not-allowed"),
            Self::WrongNetwork => (Code::PermissionDenied, "wrong-network"),
            Self::NotFound { .. } => (Code::NotFound, "not-found"),
            Self::Exists { .. } => (Code::AlreadyExists, "exists"),
            Self::TokenLifetime(_) | Self::Invalid(_) => (Code::InvalidArgument, "invalid"),
            Self::NetworkNotEmpty { .. } => (Code::FailedPrecondition, "network-not-empty"),
            Self::KeysChangeTooOften => (Code::ResourceExhausted, "keys-change-too-often"),
            Self::NoDeployer(_) => (Code::FailedPrecondition, "no-deployer"),
            Self::RateLimited(_) => (Code::ResourceExhausted, "rate-limited"),
            Self::StoreUnavailable(_) => (Code::Unavailable, "store-unavailable"),
            Self::StoreConflict => (Code::Unavailable, "store-conflict"),
            Self::ShuttingDown => (Code::Unavailable, "shutting-down"),
            Self::Internal(_) => (Code::Internal, "internal"),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, word) = error.kind();
        if let Error::Internal(source) = &error {
            tracing::error!(
                error = mesh_daemon::report::chain(source.as_ref()),
                "a call failed"
            );
        }
        let mut status = Self::new(code, error.to_string());
        status
            .metadata_mut()
            .insert(REASON_KEY, MetadataValue::from_static(word));
        status
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::StoreConflict,
            StoreError::ReadOnly(reason) => Self::StoreUnavailable(reason),
            StoreError::Unavailable { .. } | StoreError::Stale => {
                Self::StoreUnavailable(error.to_string())
            }
            error => Self::internal(error),
        }
    }
}

impl From<CaError> for Error {
    fn from(error: CaError) -> Self {
        Self::internal(error)
    }
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        Self::internal(error)
    }
}

impl From<Rejected> for Error {
    fn from(error: Rejected) -> Self {
        Self::internal(error)
    }
}

impl From<ReserveError> for Error {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::AddressesExhausted => Self::AddressesExhausted,
            error => Self::internal(error),
        }
    }
}

impl From<mesh_api::ProtocolError> for Error {
    fn from(error: mesh_api::ProtocolError) -> Self {
        Self::Invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_sentence_code_and_word() {
        let status = Status::from(Error::TokenExpired);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("mesh token create"));
        assert_eq!(
            status.metadata().get(REASON_KEY).expect("a word"),
            "token-expired"
        );
    }

    #[test]
    fn the_five_token_refusals_differ_in_everything() {
        let all = [
            Error::TokenUnknown,
            Error::TokenWrongSecret,
            Error::TokenUsed,
            Error::TokenExpired,
            Error::TokenRevoked,
        ];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(one.to_string(), other.to_string());
                assert_ne!(one.kind().0, other.kind().0, "{one} / {other}");
                assert_ne!(one.kind().1, other.kind().1);
            }
        }
    }

    #[test]
    fn what_went_wrong_inside_stays_inside() {
        let status = Status::from(Error::internal("table node, secret detail"));
        assert!(!status.message().contains("secret detail"));
    }
}
