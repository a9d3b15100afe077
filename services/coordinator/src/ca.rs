//! The certificate authority: ECDSA P-256, ten years, made at first start.
//!
//! Names, usages and validity of a certificate are decided here; of a request only the public key
//! is used (after its self-signature was checked), and a request that asks for more is refused.

use std::time::Duration;

use mesh_api::identity::Identity;
use mesh_api::tls::{COORDINATOR_NAME, deploy_name, fingerprint, relay_name};
use mesh_api::uri::Subject;
use mesh_types::{IdentityPublicKey, Role, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

const DAY: u64 = 24 * 60 * 60;
/// How long the CA itself holds.
const CA_LIFE: Duration = Duration::from_secs(3653 * DAY);
/// How long a node's, relay's or server's certificate holds.
pub(crate) const NODE_LIFE: Duration = Duration::from_secs(30 * DAY);
/// How long an operator's certificate holds.
pub(crate) const OPERATOR_LIFE: Duration = Duration::from_secs(90 * DAY);
/// How far back certificates are dated, for machines whose clock is late.
const BACKDATE: Duration = Duration::from_secs(48 * 60 * 60);

/// The CA cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    /// The stored certificate or key is not what it should be.
    #[error("the stored certificate authority is damaged")]
    Damaged,
    /// Signing failed.
    #[error("the certificate cannot be signed")]
    Sign(#[source] rcgen::Error),
    /// A key pair cannot be made.
    #[error("a key pair cannot be made")]
    Key(#[source] mesh_api::identity::InvalidIdentity),
    /// The system gave no randomness.
    #[error("the system gives no randomness")]
    Random,
}

/// A certificate that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    /// DER.
    pub(crate) certificate: Vec<u8>,
    pub(crate) not_after: Timestamp,
}

/// A server certificate with its chain and key, ready for TLS.
#[derive(Debug)]
pub(crate) struct ServerCertificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) not_after: Timestamp,
}

/// The authority, ready to sign.
pub(crate) struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    fingerprint: [u8; 32],
    not_after: Timestamp,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What is stored of a CA: the certificate in the open, the key to be sealed.
pub(crate) struct CaParts {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key_pkcs8: Zeroizing<Vec<u8>>,
}

impl CaParts {
    /// A new authority, valid from 48 h ago for ten years.
    pub(crate) fn generate(now: Timestamp) -> Result<Self, CaError> {
        let key = Identity::generate().map_err(CaError::Key)?;
        let pair = key_pair(key.pkcs8())?;
        let mut params = params("Wonder Mesh CA", now, CA_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&pair).map_err(CaError::Sign)?;
        Ok(Self {
            certificate: certificate.der().to_vec(),
            key_pkcs8: Zeroizing::new(key.pkcs8().to_vec()),
        })
    }
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, CaError> {
    KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|_| CaError::Damaged)
}

fn date(at: Timestamp) -> Result<OffsetDateTime, CaError> {
    OffsetDateTime::from_unix_timestamp(at.as_secs()).map_err(|_| CaError::Damaged)
}

/// Common name, a random serial of 16 bytes and the validity.
fn params(name: &str, now: Timestamp, life: Duration) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| CaError::Random)?;
    serial[0] &= 0x7f; // positive (RFC 5280, 4.1.2.2)
    let mut params = CertificateParams::default();
    params.not_before = date(now.minus(BACKDATE))?;
    params.not_after = date(now.plus(life))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn dns(name: &str) -> Result<SanType, CaError> {
    name.try_into().map(SanType::DnsName).map_err(CaError::Sign)
}

impl Ca {
    /// The authority from its stored parts.
    pub(crate) fn open(parts: &CaParts) -> Result<Self, CaError> {
        let certificate = CertificateDer::from(parts.certificate.clone());
        let pair = key_pair(&parts.key_pkcs8)?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|_| CaError::Damaged)?;
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&pair) {
            return Err(CaError::Damaged);
        }
        let not_after = Timestamp::from_secs(parsed.validity().not_after.timestamp());
        let fingerprint = fingerprint(&certificate).ok_or(CaError::Damaged)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, pair).map_err(|_| CaError::Damaged)?;
        Ok(Self {
            certificate,
            issuer,
            fingerprint,
            not_after,
        })
    }

    /// The CA's certificate (DER).
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the DER SubjectPublicKeyInfo: what join tokens carry.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Until when the authority itself holds.
    pub(crate) fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// A certificate for this subject and key. Relays and deployers are servers too, under the
    /// name that follows from their id; all others are clients only.
    pub(crate) fn issue(
        &self,
        subject: &Subject,
        role: Option<Role>,
        key: &IdentityPublicKey,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        let (name, server_name, life) = match subject {
            Subject::Operator(id) => (id.to_string(), None, OPERATOR_LIFE),
            Subject::Relay(id) => (id.to_string(), Some(relay_name(*id)), NODE_LIFE),
            Subject::Node { network: _, node } => {
                let server = (role == Some(Role::Deployer)).then(|| deploy_name(*node));
                (node.to_string(), server, NODE_LIFE)
            }
        };
        let mut params = params(&name, now, life)?;
        let uri = subject.to_string().try_into().map_err(CaError::Sign)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(name) = server_name {
            params.subject_alt_names.push(dns(&name)?);
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(key.as_spki_der()).map_err(CaError::Sign)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(CaError::Sign)?;
        Ok(Issued {
            certificate: certificate.der().to_vec(),
            not_after: Timestamp::from_secs(now.plus(life).as_secs()),
        })
    }

    /// The coordinator's own certificate, with a key of its own that is never stored.
    pub(crate) fn issue_own(&self, now: Timestamp) -> Result<ServerCertificate, CaError> {
        let key = Identity::generate().map_err(CaError::Key)?;
        let pair = key_pair(key.pkcs8())?;
        let mut params = params(COORDINATOR_NAME, now, NODE_LIFE)?;
        params.subject_alt_names = vec![dns(COORDINATOR_NAME)?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&pair, &self.issuer)
            .map_err(CaError::Sign)?;
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()).into(),
            not_after: Timestamp::from_secs(now.plus(NODE_LIFE).as_secs()),
        })
    }
}

#[cfg(test)]
mod tests {
    use mesh_types::{NetworkName, NodeId, RelayId};
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::server::WebPkiClientVerifier;
    use std::sync::Arc;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn ca() -> Ca {
        Ca::open(&CaParts::generate(NOW).expect("generates")).expect("opens")
    }

    fn worker() -> Subject {
        let node = NodeId::from_bytes([7; 16]);
        Subject::Node {
            network: NetworkName::default_network(),
            node,
        }
    }

    fn roots(ca: &Ca) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().clone()).expect("a root");
        Arc::new(roots)
    }

    fn unix(at: Timestamp) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(at.as_unix_millis()))
    }

    fn is_client(ca: &Ca, der: &[u8], at: Timestamp) -> bool {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        WebPkiClientVerifier::builder_with_provider(roots(ca), provider)
            .build()
            .expect("a verifier")
            .verify_client_cert(&CertificateDer::from(der), &[], unix(at))
            .is_ok()
    }

    fn is_server(ca: &Ca, der: &[u8], name: &str) -> bool {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let name = ServerName::try_from(name).expect("a name");
        WebPkiServerVerifier::builder_with_provider(roots(ca), provider)
            .build()
            .expect("a verifier")
            .verify_server_cert(&CertificateDer::from(der), &[], &name, &[], unix(NOW))
            .is_ok()
    }

    fn issue(ca: &Ca, subject: &Subject, role: Role) -> Issued {
        let key = Identity::generate().expect("a key");
        ca.issue(subject, Some(role), key.public_key(), NOW)
            .expect("issues")
    }

    #[test]
    fn a_worker_is_a_client_and_no_server() {
        let ca = ca();
        let issued = issue(&ca, &worker(), Role::Worker);
        assert_eq!(Subject::from_certificate(&issued.certificate), Ok(worker()));
        assert!(is_client(&ca, &issued.certificate, NOW));
        assert!(!is_server(&ca, &issued.certificate, COORDINATOR_NAME));
    }

    #[test]
    fn a_certificate_holds_from_48_hours_ago_for_30_days() {
        let ca = ca();
        let issued = issue(&ca, &worker(), Role::Worker);
        let holds = |at| is_client(&ca, &issued.certificate, at);
        assert!(holds(NOW.minus(BACKDATE)));
        assert!(!holds(NOW.minus(BACKDATE + Duration::from_secs(1))));
        assert!(holds(issued.not_after));
        assert!(!holds(issued.not_after.plus(Duration::from_secs(1))));
        assert_eq!(issued.not_after.since(NOW), NODE_LIFE);
    }

    #[test]
    fn relays_and_deployers_are_servers_under_their_own_name_only() {
        let ca = ca();
        let id = RelayId::from_bytes([9; 16]);
        let relay = issue(&ca, &Subject::Relay(id), Role::Relay);
        let deployer = issue(&ca, &worker(), Role::Deployer);
        for (issued, name) in [
            (&relay, relay_name(id)),
            (&deployer, deploy_name(NodeId::from_bytes([7; 16]))),
        ] {
            assert!(is_server(&ca, &issued.certificate, &name));
            assert!(!is_server(&ca, &issued.certificate, COORDINATOR_NAME));
        }
    }

    #[test]
    fn the_coordinators_own_certificate_names_the_coordinator() {
        let ca = ca();
        let own = ca.issue_own(NOW).expect("issues");
        assert!(is_server(&ca, &own.chain[0], COORDINATOR_NAME));
        assert_eq!(own.chain[1], *ca.certificate());
    }
}
