//! TLS as clients of the mesh use it: pinned to one certificate authority, one server name per
//! role whatever address was dialled, ring as the only provider.

use std::sync::Arc;

use mesh_types::{NodeId, RelayId, Timestamp};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore};
use zeroize::Zeroizing;

/// The name on the coordinator's certificate.
pub const COORDINATOR_NAME: &str = "coordinator.mesh.internal";

/// The name on a relay's certificate.
pub fn relay_name(id: RelayId) -> String {
    format!("relay-{id}.mesh.internal")
}

/// The name on a deploy-manager's certificate.
pub fn deploy_name(id: NodeId) -> String {
    format!("deploy-{id}.mesh.internal")
}

/// What a client holds the server to.
#[derive(Debug, Clone)]
pub enum Pin {
    /// The chain must hold a CA whose DER SubjectPublicKeyInfo has this SHA-256 (while joining).
    Fingerprint([u8; 32]),
    /// This CA, as stored (DER).
    Ca(CertificateDer<'static>),
}

/// What a client shows of itself.
#[derive(Clone)]
pub struct ClientCert {
    /// The certificate (DER).
    pub certificate: CertificateDer<'static>,
    /// Its private key (PKCS#8 DER).
    pub key_pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for ClientCert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientCert([redacted])")
    }
}

/// Keys or certificates do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("the certificate, its key or the CA cannot be used for TLS")]
pub struct TlsConfigError(#[from] Error);

/// SHA-256 of a certificate's DER SubjectPublicKeyInfo; `None` when it is not a certificate.
pub fn fingerprint(certificate: &[u8]) -> Option<[u8; 32]> {
    let (_, cert) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let hash = ring::digest::digest(&ring::digest::SHA256, cert.public_key().raw);
    hash.as_ref().try_into().ok()
}

/// From when until when a certificate is valid; `None` when it is not a certificate.
pub fn validity(certificate: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let (_, cert) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = cert.validity();
    let at = |time: &x509_parser::time::ASN1Time| Timestamp::from_secs(time.timestamp());
    Some((at(&validity.not_before), at(&validity.not_after)))
}

/// A client configuration held to `pin`, with the ALPN protocols given (empty: none).
pub fn client_config(
    pin: Pin,
    identity: Option<ClientCert>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let provider = Arc::new(provider::default_provider());
    let verifier = Arc::new(PinnedVerifier::new(pin, Arc::clone(&provider))?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(ClientCert {
            certificate,
            key_pkcs8,
        }) => {
            let key = PrivatePkcs8KeyDer::from(key_pkcs8.to_vec());
            builder.with_client_auth_cert(vec![certificate], key.into())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Checks chain, name and validity like any client, with roots that come from the pin.
#[derive(Debug)]
struct PinnedVerifier {
    pin: Pin,
    known: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedVerifier {
    fn new(pin: Pin, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let known = match &pin {
            Pin::Ca(ca) => Some(verifier_for(ca.clone(), &provider)?),
            Pin::Fingerprint(_) => None,
        };
        let algorithms = provider.signature_verification_algorithms;
        Ok(Self {
            pin,
            known,
            provider,
            algorithms,
        })
    }
}

fn verifier_for(
    ca: CertificateDer<'static>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = match (&self.known, &self.pin) {
            (Some(known), _) => Arc::clone(known),
            (None, Pin::Fingerprint(wanted)) => {
                let ca = intermediates
                    .iter()
                    .find(|cert| fingerprint(cert).as_ref() == Some(wanted))
                    .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                verifier_for(ca.clone().into_owned(), &self.provider)?
            }
            (None, Pin::Ca(_)) => {
                return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
            }
        };
        // The CA travels in the chain; as an intermediate it would only be looked at twice.
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
