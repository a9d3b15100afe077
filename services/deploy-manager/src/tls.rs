//! TLS of the gRPC listener: this node's own certificates outside, operators' certificates inside.

use std::fmt;
use std::sync::Arc;

use anyhow::Context as _;
use mesh_api::client::ALPN_H2;
use mesh_api::tls::deploy_name;
use mesh_node::StateDir;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use crate::members::Members;

/// Shows the certificate of the network that the caller names: `deploy-<node-id>.mesh.internal`.
struct ByName(Members);

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByName")
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name()?;
        let member = self
            .0
            .all()
            .into_iter()
            .find(|member| deploy_name(member.enrolled.node) == asked)?;
        match certified(member.node.state_dir()) {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                tracing::error!(network = %member.network, error = format!("{error:#}"), "cannot use the node's certificate");
                None
            }
        }
    }
}

/// The node's certificate and key as they are now: renewal replaces the file.
fn certified(state: &StateDir) -> anyhow::Result<CertifiedKey> {
    let (certificate, ca) = state
        .certificates()?
        .context("the node has no certificate")?;
    let key = PrivatePkcs8KeyDer::from(state.identity().pkcs8().to_vec());
    let provider = mesh_daemon::tls::provider();
    Ok(CertifiedKey::from_der(
        vec![certificate, ca],
        key.into(),
        &provider,
    )?)
}

/// The listener's settings for the networks of now. Callers need a certificate of a CA of one of
/// them; which one counts for which network is decided for each call by [`is_of_ca`].
pub(crate) fn server_config(members: &Members) -> anyhow::Result<Arc<ServerConfig>> {
    let mut roots = RootCertStore::empty();
    for member in members.all() {
        let (_, ca) = member
            .node
            .state_dir()
            .certificates()?
            .context("the node has no certificate")?;
        roots.add(ca)?;
    }
    let provider = mesh_daemon::tls::provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(ByName(members.clone())));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(Arc::new(config))
}

/// Whether the caller's certificate is one of the CA that `state` belongs to, and valid now.
pub(crate) fn is_of_ca(
    chain: &[CertificateDer<'static>],
    state: &StateDir,
) -> anyhow::Result<bool> {
    let (_, ca) = state
        .certificates()?
        .context("the node has no certificate")?;
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    let provider = mesh_daemon::tls::provider();
    let verifier: Arc<dyn ClientCertVerifier> =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    let Some((leaf, rest)) = chain.split_first() else {
        return Ok(false);
    };
    Ok(verifier
        .verify_client_cert(leaf, rest, UnixTime::now())
        .is_ok())
}
