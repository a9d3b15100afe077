//! The account of the pod: the files that Kubernetes puts into it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_daemon::Secret;
use rustls::ClientConfig;

use super::PublishError;

/// The files of a service account. They are read for each try: Kubernetes replaces the token within
/// the hour, and the authority when the cluster changes its own.
#[derive(Debug)]
pub(super) struct Account {
    dir: PathBuf,
}

impl Account {
    /// The account in this directory.
    ///
    /// # Errors
    /// When no token is there.
    pub(super) fn open(dir: &Path) -> Result<Self, PublishError> {
        let account = Self {
            dir: dir.to_owned(),
        };
        account.token()?;
        Ok(account)
    }

    /// The bearer token in force.
    pub(super) fn token(&self) -> Result<Secret, PublishError> {
        self.read("token").map(Secret::new)
    }

    /// The namespace that the pod is in.
    pub(super) fn namespace(&self) -> Result<String, PublishError> {
        self.read("namespace")
    }

    /// TLS that trusts the cluster's authority and nobody else.
    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, PublishError> {
        let pem = self.read("ca.crt")?;
        let roots = mesh_daemon::tls::roots_from_pem(&pem).map_err(|source| {
            let path = self.authority();
            PublishError::Authority { path, source }
        })?;
        let mut config = ClientConfig::builder_with_provider(mesh_daemon::tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(PublishError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![mesh_daemon::tls::ALPN_HTTP11.to_vec()];
        Ok(Arc::new(config))
    }

    /// Where the authority is.
    pub(super) fn authority(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    fn read(&self, name: &str) -> Result<String, PublishError> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(PublishError::Account { path, source }),
        }
    }
}
