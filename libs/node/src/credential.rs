//! The node's certificate as TLS uses it: always the current one, also after a renewal.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use mesh_api::client::{ALPN_H2, connect_lazy};
use mesh_api::tls::{self, COORDINATOR_NAME, Pin};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use tonic::transport::Channel;

use crate::control::Validity;
use crate::state_dir::{StateDir, StateDirError};

/// The certificate on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// There is none.
    #[error("this node has not joined a network yet: run 'join' with a token first")]
    NotEnrolled,
    /// It, its key or its CA is not usable.
    #[error("the node's certificate is damaged: empty the state directory and join again")]
    Damaged,
    /// It cannot be read.
    #[error("the node's certificate cannot be read")]
    State(#[from] StateDirError),
}

/// Certificate, key and CA of this node; a cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    state: StateDir,
    current: Arc<Current>,
}

struct Current {
    shown: RwLock<Shown>,
}

struct Shown {
    key: Arc<CertifiedKey>,
    ca: CertificateDer<'static>,
    validity: Validity,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current([redacted])")
    }
}

impl Credential {
    /// Reads what is in the state directory.
    pub(crate) fn load(state: &StateDir) -> Result<Self, CredentialError> {
        let (certificate, ca) = state.certificates()?.ok_or(CredentialError::NotEnrolled)?;
        let shown = Shown::new(state, certificate, ca)?;
        Ok(Self {
            state: state.clone(),
            current: Arc::new(Current {
                shown: RwLock::new(shown),
            }),
        })
    }

    /// Stores a renewed certificate (both DER) and shows it from now on.
    pub(crate) fn replace(&self, certificate: &[u8], ca: &[u8]) -> Result<(), CredentialError> {
        let shown = Shown::new(
            &self.state,
            CertificateDer::from(certificate.to_vec()),
            CertificateDer::from(ca.to_vec()),
        )?;
        self.state.store_certificate(certificate, ca)?;
        *self
            .current
            .shown
            .write()
            .unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(())
    }

    /// When the current certificate counts.
    pub(crate) fn validity(&self) -> Validity {
        self.current.read(|shown| shown.validity)
    }

    /// A client configuration held to the CA; `show` presents the certificate.
    pub(crate) fn client_config(
        &self,
        show: bool,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, CredentialError> {
        let ca = self.current.read(|shown| shown.ca.clone());
        let config =
            tls::client_config(Pin::Ca(ca), None, alpn).map_err(|_| CredentialError::Damaged)?;
        let mut config = Arc::unwrap_or_clone(config);
        // A resumed session would carry the certificate of an earlier handshake.
        config.resumption = Resumption::disabled();
        if show {
            let current = Arc::clone(&self.current);
            config.client_auth_cert_resolver = current;
        }
        Ok(Arc::new(config))
    }

    /// A channel to the coordinator that connects when it is used.
    pub(crate) fn channel(&self, addrs: &[String]) -> Result<Channel, CredentialError> {
        let tls = self.client_config(true, &[ALPN_H2])?;
        Ok(connect_lazy(addrs, COORDINATOR_NAME, tls))
    }
}

impl Current {
    fn read<T>(&self, take: impl FnOnce(&Shown) -> T) -> T {
        take(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shown {
    fn new(
        state: &StateDir,
        certificate: CertificateDer<'static>,
        ca: CertificateDer<'static>,
    ) -> Result<Self, CredentialError> {
        let validity = validity_of(&certificate).ok_or(CredentialError::Damaged)?;
        let key = PrivatePkcs8KeyDer::from(state.identity().pkcs8().to_vec());
        let key = rustls::crypto::ring::sign::any_supported_type(&key.into())
            .map_err(|_| CredentialError::Damaged)?;
        let chain = vec![certificate, ca.clone()];
        Ok(Self {
            key: Arc::new(CertifiedKey::new(chain, key)),
            ca,
            validity,
        })
    }
}

impl ResolvesClientCert for Current {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let key = self.read(|shown| Arc::clone(&shown.key));
        key.key.choose_scheme(schemes).is_some().then_some(key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// When a certificate (DER) counts (RFC 5280, 4.1.2.5).
pub(crate) fn validity_of(certificate: &[u8]) -> Option<Validity> {
    let (from, until) = tls::validity(certificate)?;
    Some(Validity { from, until })
}
