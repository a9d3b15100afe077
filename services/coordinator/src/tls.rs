//! TLS on the coordinator's port: our own certificate, renewed at the handshake that finds it two
//! thirds through, and client certificates, which are optional.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mesh_types::Timestamp;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::ca::{Ca, CaError, NODE_LIFE};
use crate::clock::{Clock, TlsClock};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("make the coordinator's own certificate")]
    Certificate(#[from] CaError),
    #[error("set up TLS")]
    Rustls(#[from] Error),
    #[error("set up the check of client certificates")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// The configuration of the TLS port.
pub(crate) fn server_config(
    ca: &Arc<Ca>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider::default_provider());
    let verifier = LenientVerifier::new(ca.certificate().clone(), &provider)?;
    let own = OwnCertificate::new(Arc::clone(ca), Arc::clone(clock), Arc::clone(&provider))?;
    let tls_clock = Arc::new(TlsClock(Arc::clone(clock)));
    let mut config = ServerConfig::builder_with_details(provider, tls_clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(own));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The coordinator's own certificate, and when the next one is due.
#[derive(Debug)]
struct OwnCertificate {
    ca: Arc<Ca>,
    clock: Arc<dyn Clock>,
    provider: Arc<CryptoProvider>,
    current: RwLock<(Arc<CertifiedKey>, Timestamp)>,
}

fn make(
    ca: &Ca,
    provider: &CryptoProvider,
    now: Timestamp,
) -> Result<(Arc<CertifiedKey>, Timestamp), TlsError> {
    let own = ca.issue_own(now)?;
    let key = provider.key_provider.load_private_key(own.key)?;
    let due = own.not_after.minus(NODE_LIFE / 3);
    Ok((Arc::new(CertifiedKey::new(own.chain, key)), due))
}

impl OwnCertificate {
    fn new(
        ca: Arc<Ca>,
        clock: Arc<dyn Clock>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let current = RwLock::new(make(&ca, &provider, clock.now())?);
        Ok(Self {
            ca,
            clock,
            provider,
            current,
        })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let now = self.clock.now();
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if now < current.1 {
                return Arc::clone(&current.0);
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if now >= current.1 {
            match make(&self.ca, &self.provider, now) {
                Ok(made) => {
                    tracing::info!("the coordinator renewed its own certificate");
                    *current = made;
                }
                Err(error) => {
                    let error = mesh_daemon::report::chain(&error);
                    tracing::error!(error, "the coordinator cannot renew its own certificate");
                }
            }
        }
        Arc::clone(&current.0)
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// Checks that a client certificate comes from our CA, at whatever time it was valid. Whether it
/// still is valid is decided for each call, so that an expired node can connect and renew.
#[derive(Debug)]
struct LenientVerifier {
    strict: Arc<dyn ClientCertVerifier>,
}

impl LenientVerifier {
    fn new(ca: CertificateDer<'static>, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        let strict =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .allow_unauthenticated()
                .build()?;
        Ok(Self { strict })
    }
}

/// A moment within the certificate's validity.
fn moment_of(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let (_, cert) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let secs = u64::try_from(cert.validity().not_after.timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(secs)))
}

impl ClientCertVerifier for LenientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.strict.root_hint_subjects()
    }

    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self
            .strict
            .verify_client_cert(end_entity, intermediates, now)
        {
            Err(Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            )) => {
                let then = moment_of(end_entity)
                    .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
                self.strict
                    .verify_client_cert(end_entity, intermediates, then)
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.strict.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.strict.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::identity::Identity;
    use mesh_api::uri::Subject;
    use mesh_types::{NetworkName, NodeId, Role};

    use super::*;
    use crate::ca::CaParts;
    use crate::clock::ManualClock;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn ca() -> Arc<Ca> {
        Arc::new(Ca::open(&CaParts::generate(NOW).expect("generates")).expect("opens"))
    }

    #[test]
    fn the_own_certificate_is_renewed_two_thirds_through() {
        let clock = Arc::new(ManualClock::new(NOW));
        let provider = Arc::new(provider::default_provider());
        let own = OwnCertificate::new(ca(), Arc::clone(&clock) as Arc<dyn Clock>, provider)
            .expect("makes one");
        let first = own.current().cert[0].clone();
        clock.advance(19 * DAY);
        assert_eq!(own.current().cert[0], first);
        clock.advance(2 * DAY);
        let second = own.current().cert[0].clone();
        assert_ne!(second, first);
        assert_eq!(own.current().cert[0], second);
    }

    #[test]
    fn an_expired_client_passes_and_a_stranger_does_not() {
        let ca = ca();
        let provider = Arc::new(provider::default_provider());
        let verifier = LenientVerifier::new(ca.certificate().clone(), &provider).expect("builds");
        let subject = Subject::Node {
            network: NetworkName::default_network(),
            node: NodeId::from_bytes([1; 16]),
        };
        let key = Identity::generate().expect("a key");
        let issue = |ca: &Ca| {
            let issued = ca.issue(&subject, Some(Role::Worker), key.public_key(), NOW);
            CertificateDer::from(issued.expect("issues").certificate)
        };
        let later = NOW.plus(400 * DAY).as_unix_millis();
        let later = UnixTime::since_unix_epoch(Duration::from_millis(later));
        assert!(verifier.verify_client_cert(&issue(&ca), &[], later).is_ok());
        let other = Ca::open(&CaParts::generate(NOW).expect("generates")).expect("opens");
        assert!(
            verifier
                .verify_client_cert(&issue(&other), &[], later)
                .is_err()
        );
    }
}
