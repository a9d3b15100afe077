//! A node at the wire: enrols by hand, so that it can also do what no honest node does.

use std::sync::Arc;

use anyhow::Context as _;
use mesh_api::client::{ALPN_H2, connect, connect_lazy};
use mesh_api::context::Context as CliContext;
use mesh_api::identity::{ENROL_DISCO, ENROL_WG, Identity, enrol_proof};
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::tls::{COORDINATOR_NAME, ClientCert, Pin, client_config};
use mesh_types::{JoinToken, NodeId};
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;
use tonic::Status;
use tonic::transport::Channel;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// What a machine brings when it joins, honest unless changed.
pub struct Applicant {
    /// Its identity key.
    pub identity: Arc<Identity>,
    /// Its WireGuard key.
    pub wg: StaticSecret,
    /// Its disco key.
    pub disco: StaticSecret,
    /// The name it wishes for.
    pub hostname: String,
    /// A certificate request instead of its own.
    pub csr: Option<Vec<u8>>,
    /// A WireGuard public key to claim instead of its own.
    pub claimed_wg: Option<[u8; 32]>,
    /// An operator's permit.
    pub permit: Vec<u8>,
}

/// A node that joined.
#[derive(Debug)]
pub struct RawNode {
    /// What the coordinator answered.
    pub enrolled: pb::EnrolResponse,
    /// What it joined with.
    pub applicant: Applicant,
}

impl std::fmt::Debug for Applicant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Applicant({})", self.hostname)
    }
}

impl Applicant {
    /// A machine with fresh keys.
    pub fn new(hostname: &str) -> anyhow::Result<Self> {
        Ok(Self {
            identity: Arc::new(Identity::generate()?),
            wg: fresh_key()?,
            disco: fresh_key()?,
            hostname: hostname.to_owned(),
            csr: None,
            claimed_wg: None,
            permit: Vec::new(),
        })
    }

    /// Its WireGuard public key.
    pub fn wg_public(&self) -> [u8; 32] {
        PublicKey::from(&self.wg).to_bytes()
    }

    /// Connects as a machine that has nothing but the token.
    pub async fn connect(token: &JoinToken) -> anyhow::Result<Channel> {
        let tls = client_config(Pin::Fingerprint(token.ca_fingerprint), None, &[ALPN_H2])?;
        Ok(connect(&token.coordinators, COORDINATOR_NAME, tls).await?)
    }

    /// Asks for a challenge and enrols, over a connection of its own.
    pub async fn enrol(
        &self,
        token: &JoinToken,
    ) -> anyhow::Result<Result<pb::EnrolResponse, Status>> {
        let channel = Self::connect(token).await?;
        self.enrol_over(channel, token).await
    }

    /// Asks for a challenge and enrols.
    async fn enrol_over(
        &self,
        channel: Channel,
        token: &JoinToken,
    ) -> anyhow::Result<Result<pb::EnrolResponse, Status>> {
        let mut client = ControlServiceClient::new(channel);
        let request = self.request(&mut client, token).await?;
        Ok(client.enrol(request).await.map(tonic::Response::into_inner))
    }

    /// Asks for a challenge, and says what it would enrol with.
    pub async fn request(
        &self,
        client: &mut ControlServiceClient<Channel>,
        token: &JoinToken,
    ) -> anyhow::Result<pb::EnrolRequest> {
        let challenge = client
            .challenge(pb::ChallengeRequest {})
            .await?
            .into_inner();
        let server: [u8; 32] = challenge
            .dh_public
            .as_slice()
            .try_into()
            .map_err(|_| anyhow::anyhow!("the challenge's key is not 32 bytes"))?;
        let csr = match &self.csr {
            Some(csr) => csr.clone(),
            None => self.identity.csr_der()?,
        };
        let spki = spki_of(&csr)?;
        let proof = |context, key: &StaticSecret| {
            let shared = key.diffie_hellman(&PublicKey::from(server)).to_bytes();
            enrol_proof(context, &shared, &challenge.nonce, &spki).to_vec()
        };
        Ok(pb::EnrolRequest {
            token_id: token.id.as_bytes().to_vec(),
            token_secret: token.secret.to_vec(),
            nonce: challenge.nonce.clone(),
            hostname: self.hostname.clone(),
            csr,
            wg_key: self.claimed_wg.unwrap_or_else(|| self.wg_public()).to_vec(),
            disco_key: PublicKey::from(&self.disco).to_bytes().to_vec(),
            wg_proof: proof(ENROL_WG, &self.wg),
            disco_proof: proof(ENROL_DISCO, &self.disco),
            version: "test".to_owned(),
            permit: self.permit.clone(),
            roles: Vec::new(),
        })
    }

    /// Enrols and expects to be let in.
    pub async fn join(self, token: &JoinToken) -> anyhow::Result<RawNode> {
        let enrolled = self.enrol(token).await?.context("enrol")?;
        Ok(RawNode {
            enrolled,
            applicant: self,
        })
    }
}

impl RawNode {
    /// Its id.
    pub fn id(&self) -> anyhow::Result<NodeId> {
        Ok(NodeId::try_from(self.enrolled.node_id.as_slice())?)
    }

    /// A TLS identity of it.
    pub fn client_cert(&self) -> ClientCert {
        ClientCert {
            certificate: CertificateDer::from(self.enrolled.certificate.clone()),
            key_pkcs8: Zeroizing::new(self.applicant.identity.pkcs8().to_vec()),
        }
    }

    /// A channel that shows its certificate.
    pub fn channel(&self, addrs: &[String], server_name: &str) -> anyhow::Result<Channel> {
        let ca = Pin::Ca(CertificateDer::from(self.enrolled.ca_certificate.clone()));
        let tls = client_config(ca, Some(self.client_cert()), &[ALPN_H2])?;
        Ok(connect_lazy(addrs, server_name, tls))
    }
}

/// A channel that shows no certificate.
pub fn anonymous(context: &CliContext, addrs: &[String], name: &str) -> anyhow::Result<Channel> {
    let tls = client_config(Pin::Ca(context.ca_der()?), None, &[ALPN_H2])?;
    Ok(connect_lazy(addrs, name, tls))
}

/// The refusal's machine word.
pub fn word(status: &Status) -> &str {
    status
        .metadata()
        .get("mesh-error")
        .and_then(|word| word.to_str().ok())
        .unwrap_or_default()
}

fn fresh_key() -> anyhow::Result<StaticSecret> {
    // A P-256 key's scalar is as good as 32 bytes from the system, and needs no further crate.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let der = key.serialized_der();
    let bytes: [u8; 32] = seed_of(der).context("an Ed25519 key holds 32 bytes")?;
    Ok(StaticSecret::from(bytes))
}

/// The seed inside an Ed25519 PKCS#8 key (RFC 8410, section 7): an OCTET STRING of 32 bytes.
fn seed_of(der: &[u8]) -> Option<[u8; 32]> {
    let at = der
        .windows(4)
        .position(|bytes| bytes == [0x04, 0x22, 0x04, 0x20])?
        + 4;
    der.get(at..at + 32)?.try_into().ok()
}

/// The DER SubjectPublicKeyInfo of a certificate request.
fn spki_of(csr: &[u8]) -> anyhow::Result<Vec<u8>> {
    let parsed = rcgen::CertificateSigningRequestParams::from_der(&csr.into())?;
    Ok(parsed.public_key.subject_public_key_info())
}

/// A certificate request that asks to be the coordinator.
pub fn server_csr(identity: &Identity) -> anyhow::Result<Vec<u8>> {
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &identity.pkcs8().into(),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    )?;
    let mut params = rcgen::CertificateParams::new(vec![COORDINATOR_NAME.to_owned()])?;
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params.serialize_request(&key)?.der().to_vec())
}
