//! Contexts: where a command line finds its coordinator, its credential and its SOCKS addresses.
//!
//! One 0600 JSON file per context under `$XDG_CONFIG_HOME/mesh/contexts`, and a file `current`
//! that names the one in use. Written by `mesh up` and `mesh login`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::client::{self, ALPN_H2, ConnectError};
use crate::tls::{self, COORDINATOR_NAME, ClientCert, Pin};

/// What a command line needs to act for its operator.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Version of this form; 1.
    pub version: u32,
    /// `host:port` of the coordinator, tried in order.
    pub coordinators: Vec<String>,
    /// The CA's certificate: base64 of the DER.
    pub ca: String,
    /// The operator's certificate: base64 of the DER.
    pub certificate: String,
    /// The operator's private key: base64 of the PKCS#8 DER.
    pub key: String,
    /// The network that is meant when none is named.
    pub network: String,
    /// The deploy-manager's SOCKS5 listener of each network: `host:port`.
    #[serde(default)]
    pub socks: BTreeMap<String, String>,
    /// `host:port` of the deploy-manager's gRPC, and the node id on its certificate.
    #[serde(default)]
    pub deploy: Option<DeployManager>,
    /// The gateway's URL, for messages.
    #[serde(default)]
    pub gateway: Option<String>,
}

/// Where the deploy-manager answers gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployManager {
    /// `host:port`.
    pub addr: String,
    /// The node id in its certificate's name.
    pub node: mesh_types::NodeId,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("coordinators", &self.coordinators)
            .field("network", &self.network)
            .field("socks", &self.socks)
            .field("deploy", &self.deploy)
            .finish_non_exhaustive()
    }
}

/// Why there is no usable context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// None was ever written.
    #[error(
        "no context yet: run 'mesh up', or 'mesh login' with a credential from \
         'mesh operator add'"
    )]
    None,
    /// The one named does not exist.
    #[error("there is no context {name:?} in {}: choose one of: {known}", dir.display())]
    Unknown {
        /// Its name.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
        /// Those that exist.
        known: String,
    },
    /// Its name cannot be a file's.
    #[error("{0:?} cannot name a context: use a-z, 0-9 and '-'")]
    InvalidName(String),
    /// Its file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its file is not a context.
    #[error("{} is damaged or of another version: write it again with 'mesh up' or 'mesh login'", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Others can read its file, which holds a private key.
    #[error("{} can be read by other users: run 'chmod 600 {}'", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
    },
}

/// The folder of contexts: one per user.
#[derive(Debug, Clone)]
pub struct Contexts {
    dir: PathBuf,
}

impl Contexts {
    /// Under `$XDG_CONFIG_HOME/mesh`, else `$HOME/.config/mesh`.
    pub fn of_user() -> Result<Self, ContextError> {
        let base = std::env::var_os("XDG_CONFIG_HOME")
            .filter(|dir| Path::new(dir).is_absolute())
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")))
            .ok_or(ContextError::None)?;
        Ok(Self {
            dir: base.join("mesh/contexts"),
        })
    }

    /// In exactly this folder.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The file of the context so named.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    /// The context so named; by default the one in `$MESH_CONTEXT`, else the current one.
    pub fn load(&self, name: Option<&str>) -> Result<Context, ContextError> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => match std::env::var("MESH_CONTEXT") {
                Ok(name) if !name.is_empty() => name,
                _ => self.current()?.ok_or(ContextError::None)?,
            },
        };
        check_name(&name)?;
        let path = self.path(&name);
        let text = match fs::read(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let known = self.names().join(", ");
                return Err(ContextError::Unknown {
                    name,
                    dir: self.dir.clone(),
                    known,
                });
            }
            Err(source) => return Err(ContextError::Io { path, source }),
        };
        refuse_exposed(&path)?;
        let context: Context =
            serde_json::from_slice(&text).map_err(|source| ContextError::Damaged {
                path: path.clone(),
                source: source.into(),
            })?;
        if context.version != 1 {
            let source = format!("version {}", context.version).into();
            return Err(ContextError::Damaged { path, source });
        }
        Ok(context)
    }

    /// Writes the context (0600, atomically) and makes it the current one when `select`.
    pub fn save(&self, name: &str, context: &Context, select: bool) -> Result<(), ContextError> {
        check_name(name)?;
        let text = Zeroizing::new(serde_json::to_vec_pretty(context).map_err(|source| {
            ContextError::Damaged {
                path: self.path(name),
                source: source.into(),
            }
        })?);
        self.write(&format!("{name}.json"), &text)?;
        if select {
            self.write("current", name.as_bytes())?;
        }
        Ok(())
    }

    /// The names of all contexts, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                Some(
                    entry
                        .file_name()
                        .to_str()?
                        .strip_suffix(".json")?
                        .to_owned(),
                )
            })
            .collect();
        names.sort();
        names
    }

    /// The name of the context in use.
    pub fn current(&self) -> Result<Option<String>, ContextError> {
        let path = self.dir.join("current");
        match fs::read_to_string(&path) {
            Ok(name) => Ok(Some(name.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ContextError::Io { path, source }),
        }
    }

    fn write(&self, file: &str, content: &[u8]) -> Result<(), ContextError> {
        let path = self.dir.join(file);
        let fault = |source| ContextError::Io {
            path: path.clone(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(fault)?;
        let fresh = self.dir.join(format!(".{file}.{}", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut out = options.open(&fresh).map_err(fault)?;
        out.write_all(content).map_err(fault)?;
        out.sync_all().map_err(fault)?;
        fs::rename(&fresh, &path).map_err(fault)
    }
}

fn check_name(name: &str) -> Result<(), ContextError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !name.is_empty() && name.len() <= 64 && name.bytes().all(fits) && name != "current" {
        Ok(())
    } else {
        Err(ContextError::InvalidName(name.chars().take(64).collect()))
    }
}

fn refuse_exposed(path: &Path) -> Result<(), ContextError> {
    use std::os::unix::fs::PermissionsExt as _;

    let found = fs::metadata(path).map_err(|source| ContextError::Io {
        path: path.to_owned(),
        source,
    })?;
    if found.permissions().mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(ContextError::Exposed {
            path: path.to_owned(),
        })
    }
}

/// Why the context does not lead to a connection.
#[derive(Debug, thiserror::Error)]
pub enum ContextConnectError {
    /// Its certificate, key or CA is unusable.
    #[error("the context's credential is damaged: write it again with 'mesh up' or 'mesh login'")]
    Credential(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server is not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl Context {
    /// From DER and PKCS#8 bytes.
    pub fn new(
        coordinators: Vec<String>,
        ca: &[u8],
        certificate: &[u8],
        key_pkcs8: &[u8],
        network: impl Into<String>,
    ) -> Self {
        Self {
            version: 1,
            coordinators,
            ca: STANDARD.encode(ca),
            certificate: STANDARD.encode(certificate),
            key: STANDARD.encode(key_pkcs8),
            network: network.into(),
            socks: BTreeMap::new(),
            deploy: None,
            gateway: None,
        }
    }

    /// From PEM texts (RFC 7468), as a coordinator writes them for its first operator.
    pub fn from_pem(
        coordinators: Vec<String>,
        ca: &str,
        certificate: &str,
        key: &str,
        network: impl Into<String>,
    ) -> Result<Self, ContextConnectError> {
        let fault = |error: pem::Error| ContextConnectError::Credential(error.into());
        let ca = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(fault)?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(fault)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).map_err(fault)?;
        Ok(Self::new(
            coordinators,
            &ca,
            &certificate,
            key.secret_pkcs8_der(),
            network,
        ))
    }

    /// The CA's certificate (DER).
    pub fn ca_der(&self) -> Result<CertificateDer<'static>, ContextConnectError> {
        Ok(CertificateDer::from(decode(&self.ca)?.to_vec()))
    }

    /// A TLS configuration that is the operator and accepts servers of this CA only.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, ContextConnectError> {
        let identity = ClientCert {
            certificate: CertificateDer::from(decode(&self.certificate)?.to_vec()),
            key_pkcs8: decode(&self.key)?,
        };
        tls::client_config(Pin::Ca(self.ca_der()?), Some(identity), &[ALPN_H2])
            .map_err(|error| ContextConnectError::Credential(error.into()))
    }

    /// A channel to the coordinator.
    pub async fn coordinator(&self) -> Result<Channel, ContextConnectError> {
        Ok(client::connect(&self.coordinators, COORDINATOR_NAME, self.tls()?).await?)
    }

    /// A channel to a deploy-manager.
    pub async fn deploy_manager(
        &self,
        deploy: &DeployManager,
    ) -> Result<Channel, ContextConnectError> {
        let addrs = [deploy.addr.clone()];
        let name = tls::deploy_name(deploy.node);
        Ok(client::connect(&addrs, &name, self.tls()?).await?)
    }
}

fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, ContextConnectError> {
    STANDARD
        .decode(text)
        .map(Zeroizing::new)
        .map_err(|error| ContextConnectError::Credential(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Context {
        Context::new(
            vec!["localhost:8080".into()],
            b"ca",
            b"cert",
            b"key",
            "default",
        )
    }

    #[test]
    fn a_saved_context_is_the_current_one_and_private() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("a folder");
        let contexts = Contexts::in_dir(dir.path().join("contexts"));
        contexts.save("home", &sample(), true).expect("saved");
        let read = contexts.load(Some("home")).expect("read");
        assert_eq!(read.coordinators, sample().coordinators);
        assert_eq!(contexts.current().expect("read"), Some("home".to_owned()));
        let mode = fs::metadata(contexts.path("home"))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_readable_file_is_refused_with_the_command_that_mends_it() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("a folder");
        let contexts = Contexts::in_dir(dir.path());
        contexts.save("home", &sample(), true).expect("saved");
        let path = contexts.path("home");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        let error = contexts.load(Some("home")).expect_err("exposed");
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let dir = tempfile::tempdir().expect("a folder");
        let contexts = Contexts::in_dir(dir.path());
        contexts.save("home", &sample(), false).expect("saved");
        let error = contexts.load(Some("work")).expect_err("unknown");
        assert!(error.to_string().contains("home"));
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let contexts = Contexts::in_dir("/nowhere");
        assert!(matches!(
            contexts.load(Some("../x")),
            Err(ContextError::InvalidName(_))
        ));
    }

    #[test]
    fn debug_hides_the_key() {
        assert!(!format!("{:?}", sample()).contains(&sample().key));
    }
}
