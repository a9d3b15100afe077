//! Server-side TLS: rustls with ring, a certificate that can be replaced while serving, optional
//! client certificates, and a clock that tests can turn.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// ALPN name of HTTP/2 (RFC 9113 section 3.1).
pub const ALPN_H2: &[u8] = b"h2";
/// ALPN name of HTTP/1.1 (RFC 7301 section 6).
pub const ALPN_HTTP11: &[u8] = b"http/1.1";
/// How long a client may take for its handshake.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The system's clock, for [`server_config`].
pub type SystemClock = DefaultTimeProvider;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text does not hold what it should.
    #[error("there is no {wanted} in the PEM text")]
    Pem {
        /// What was looked for.
        wanted: &'static str,
        /// What the parser says.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// There is no certificate at all.
    #[error("there is no certificate in the PEM text")]
    NoCertificate,
    /// Certificate and key do not belong together, or their kind is not supported.
    #[error("the certificate and its key cannot be used")]
    Certificate(#[source] rustls::Error),
    /// A root certificate is unusable.
    #[error("a root certificate cannot be used")]
    Root(#[source] rustls::Error),
    /// The roots for client certificates are unusable.
    #[error("client certificates cannot be verified")]
    Verifier(#[source] VerifierBuilderError),
    /// rustls refused the settings.
    #[error("TLS cannot be set up")]
    Config(#[source] rustls::Error),
}

/// The only cryptography provider of the mesh: ring.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server's certificate and key, replaceable while connections are accepted. Clones share it.
#[derive(Clone)]
pub struct CertificateSlot(Arc<RwLock<Arc<CertifiedKey>>>);

impl CertificateSlot {
    /// Holds a chain (own certificate first) and its key.
    ///
    /// # Errors
    /// When the two do not belong together.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(certified(chain, key)?))))
    }

    /// The same from PEM texts.
    ///
    /// # Errors
    /// When the texts hold no certificate or key, or these do not belong together.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, TlsError> {
        let (chain, key) = read_pem(chain, key)?;
        Self::new(chain, key)
    }

    /// New connections get this certificate; the old one stays when there is an error.
    ///
    /// # Errors
    /// When the two do not belong together.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        let fresh = certified(chain, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// The same from PEM texts.
    ///
    /// # Errors
    /// When the texts hold no certificate or key, or these do not belong together.
    pub fn replace_pem(&self, chain: &str, key: &str) -> Result<(), TlsError> {
        let (chain, key) = read_pem(chain, key)?;
        self.replace(chain, key)
    }

    /// The server's own certificate in force.
    pub fn leaf(&self) -> CertificateDer<'static> {
        // INVARIANT: `certified` refuses an empty chain.
        self.current().cert[0].clone()
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for CertificateSlot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl fmt::Debug for CertificateSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateSlot([redacted])")
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    CertifiedKey::from_der(chain, key, &provider())
        .map(Arc::new)
        .map_err(TlsError::Certificate)
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_pem(chain: &str, key: &str) -> Result<ChainAndKey, TlsError> {
    let chain = certificates(chain)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|source| TlsError::Pem {
        wanted: "private key",
        source,
    })?;
    Ok((chain, key))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem {
            wanted: "certificate",
            source,
        })
}

/// The certificates of a PEM text as roots.
///
/// # Errors
/// When there is none, or one is unusable.
pub fn roots_from_pem(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(TlsError::Root)?;
    }
    if roots.is_empty() {
        Err(TlsError::NoCertificate)
    } else {
        Ok(roots)
    }
}

/// Whether clients show certificates.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// They are not asked for one.
    None,
    /// They may show one; if they do it must be good and lead to these roots.
    Optional(RootCertStore),
    /// They must show a good one that leads to these roots.
    Required(RootCertStore),
}

/// A server's TLS settings: TLS 1.2 and 1.3, the slot's certificate, `alpn` in order of preference.
/// `clock` decides whether client certificates have expired; `None` is the system's.
///
/// # Errors
/// When the roots are unusable.
pub fn server_config(
    slot: CertificateSlot,
    clients: ClientAuth,
    alpn: &[&[u8]],
    clock: Option<Arc<dyn TimeProvider>>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let clock = clock.unwrap_or_else(|| Arc::new(SystemClock {}));
    let verifier = |roots: RootCertStore| {
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
    };
    let verifier = match clients {
        ClientAuth::None => Ok(WebPkiClientVerifier::no_client_auth()),
        ClientAuth::Optional(roots) => verifier(roots).allow_unauthenticated().build(),
        ClientAuth::Required(roots) => verifier(roots).build(),
    };
    let mut config = ServerConfig::builder_with_details(Arc::clone(&provider), clock)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(verifier.map_err(TlsError::Verifier)?)
        .with_cert_resolver(Arc::new(slot));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The server's side of a handshake, within [`HANDSHAKE_LIMIT`].
///
/// # Errors
/// The client's fault as a rule, so nothing to log above DEBUG.
pub async fn handshake(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream))
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "TLS handshake too slow",
            ))
        })
}

#[cfg(test)]
mod tests;
