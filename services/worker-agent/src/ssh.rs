//! SSH on the overlay: the agent's own server, or the machine's sshd.
//!
//! Who reaches the port at all is decided by the packet filter before a byte arrives here.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_daemon::report;
use mesh_node::{Node, NodeReport, OverlayStream, Published, StateDir, StateDirError, Target};
use mesh_ssh::{PrivateKey, PublicKey, RunAs, ServerConfig, SshServer};
use mesh_trace::Tracer;
use mesh_types::service::SSH_PORT;
use mesh_types::{Netmap, Service, ServiceKind};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::{SshConfig, SshMode};

mod trust;

pub(crate) use trust::{Trusted, trust};

/// The host key's file in the state directory.
const HOST_KEY: &str = "ssh_host_ed25519_key";
/// Where sshd keeps its own.
const SSHD_KEYS: &str = "/etc/ssh";
/// How long a key exchange with sshd may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
/// Connections at the same time; more are reset.
const CONNECTIONS: usize = 256;
/// Connections that wait to be taken.
const QUEUE: usize = 64;

/// SSH cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    /// The host key cannot be kept.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The stored host key is no key.
    #[error(
        "the SSH host key in the state directory is damaged: remove {HOST_KEY}, and accept the new one with 'mesh node host-key accept'"
    )]
    HostKey(#[source] mesh_ssh::key::KeyError),
    /// The server has no host key.
    #[error(transparent)]
    Server(#[from] mesh_ssh::server::ServerConfigError),
    /// A configured key file cannot be used.
    #[error("ssh.host_keys: {} is not a readable public key file", .0.display())]
    KeyFile(PathBuf),
}

/// What is reported and shown about SSH.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) host_keys: Vec<String>,
    pub(crate) user: String,
    pub(crate) via_loopback: bool,
}

impl Facts {
    pub(crate) fn report(&self) -> NodeReport {
        NodeReport {
            ssh_host_keys: self.host_keys.clone(),
            ssh_user: self.user.clone(),
            ssh_via_loopback: self.via_loopback,
            ..NodeReport::default()
        }
    }
}

/// SSH as it is going to be served.
pub(crate) enum Ssh {
    Agent { server: SshServer, facts: Facts },
    Sshd { addr: SocketAddr, facts: Facts },
    Off,
}

impl Ssh {
    /// Prepares what the configuration asks for.
    pub(crate) async fn prepare(
        config: &SshConfig,
        state: &StateDir,
        node: String,
        tracer: Tracer,
    ) -> Result<Self, SshError> {
        let chosen = |own: &str| match config.user.as_str() {
            "" => own.to_owned(),
            user => user.to_owned(),
        };
        match config.mode {
            SshMode::Agent => {
                let key = host_key(state)?;
                let server = SshServer::new(ServerConfig {
                    host_keys: vec![key],
                    run_as: RunAs::detect(),
                    node,
                    tracer,
                })?;
                let facts = Facts {
                    host_keys: server.host_key_lines(),
                    user: chosen(server.default_user()),
                    via_loopback: false,
                };
                Ok(Self::Agent { server, facts })
            }
            SshMode::Sshd => {
                let facts = Facts {
                    host_keys: sshd_keys(config).await?,
                    user: chosen(&own_user()),
                    via_loopback: true,
                };
                Ok(Self::Sshd {
                    addr: config.sshd_addr,
                    facts,
                })
            }
            SshMode::Off => Ok(Self::Off),
        }
    }

    pub(crate) fn facts(&self) -> Facts {
        match self {
            Self::Agent { facts, .. } | Self::Sshd { facts, .. } => facts.clone(),
            Self::Off => Facts::default(),
        }
    }

    /// What to publish, and the connections that the agent's own server has to serve.
    pub(crate) fn publish(self) -> (Option<Published>, Option<(SshServer, Connections)>) {
        let service = Service {
            name: "ssh".parse().expect("a label"),
            kind: ServiceKind::Ssh,
            port: SSH_PORT,
        };
        match self {
            Self::Agent { server, .. } => {
                let (handler, connections) = mpsc::channel(QUEUE);
                let target = Target::Handler(handler);
                (
                    Some(Published { service, target }),
                    Some((server, connections)),
                )
            }
            Self::Sshd { addr, .. } => (
                Some(Published {
                    service,
                    target: Target::Loopback(addr),
                }),
                None,
            ),
            Self::Off => (None, None),
        }
    }
}

/// Connections to the agent's own server, with the peers' overlay addresses.
type Connections = mpsc::Receiver<(OverlayStream, SocketAddr)>;

/// Serves the agent's own server. Connections of peers that leave the netmap end at once, and all
/// of them with this future.
pub(crate) async fn serve(server: SshServer, mut connections: Connections, node: Node) {
    let mut netmap: watch::Receiver<Option<Arc<Netmap>>> = node.netmap();
    let mut open = JoinSet::new();
    let mut peers: Vec<(IpAddr, AbortHandle)> = Vec::new();
    loop {
        tokio::select! {
            accepted = connections.recv() => {
                let Some((stream, peer)) = accepted else { return };
                peers.retain(|(_, task)| !task.is_finished());
                if peers.len() >= CONNECTIONS {
                    tracing::debug!("too many SSH connections: one is refused");
                    stream.reset();
                    continue;
                }
                trust_netmap(&server, netmap.borrow_and_update().as_deref());
                let server = server.clone();
                let task = open.spawn(async move {
                    if let Err(error) = server.serve(stream, peer.ip()).await {
                        tracing::debug!(error = report::chain(&error), "SSH connection broke");
                    }
                });
                peers.push((peer.ip(), task));
            }
            changed = netmap.changed() => {
                if changed.is_err() {
                    return;
                }
                let netmap = netmap.borrow_and_update();
                trust_netmap(&server, netmap.as_deref());
                for (_, task) in peers.iter().filter(|(ip, _)| !is_peer(netmap.as_deref(), *ip)) {
                    task.abort();
                }
            }
            Some(ended) = open.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("an SSH connection's task panicked");
                }
            }
        }
    }
}

fn is_peer(netmap: Option<&Netmap>, ip: IpAddr) -> bool {
    netmap.is_some_and(|netmap| netmap.peers.values().any(|peer| peer.addrs.contains(ip)))
}

/// Trusts the network's authority, and nobody when it has none.
fn trust_netmap(server: &SshServer, netmap: Option<&Netmap>) {
    let line = netmap
        .map(|netmap| netmap.node.ssh_ca.as_str())
        .filter(|line| !line.is_empty());
    let authority = line.map(str::parse::<PublicKey>);
    if let Some(Err(error)) = &authority {
        let error = report::chain(error);
        tracing::warn!(
            error,
            "the network's SSH authority is not usable: nobody gets in"
        );
    }
    server.trust(authority.into_iter().flatten().collect());
}

/// The stored host key, made at the first start.
fn host_key(state: &StateDir) -> Result<PrivateKey, SshError> {
    if let Some(bytes) = state.read(HOST_KEY)? {
        let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
        return PrivateKey::from_openssh(&text, None).map_err(SshError::HostKey);
    }
    let key = PrivateKey::generate();
    let text = key.to_openssh().map_err(SshError::HostKey)?;
    state.write(HOST_KEY, text.as_bytes())?;
    Ok(key)
}

/// The machine's host keys: as configured, as its files say, or as it presents them.
pub(crate) async fn sshd_keys(config: &SshConfig) -> Result<Vec<String>, SshError> {
    if !config.host_keys.is_empty() {
        let lines = config
            .host_keys
            .iter()
            .map(|path| key_file(path).ok_or_else(|| SshError::KeyFile(path.clone())));
        return lines.collect();
    }
    let presented = tokio::time::timeout(EXCHANGE_LIMIT, exchange(config.sshd_addr)).await;
    let presented = presented.ok().flatten();
    let files = key_files(Path::new(SSHD_KEYS));
    // What the running sshd presents is the truth; files may be those of another one.
    match presented {
        Some(key) if !files.contains(&key) => Ok(vec![key]),
        _ if !files.is_empty() => Ok(files),
        _ => {
            tracing::info!(addr = %config.sshd_addr, "sshd does not answer: its host key is not known yet");
            Ok(Vec::new())
        }
    }
}

async fn exchange(addr: SocketAddr) -> Option<String> {
    let stream = TcpStream::connect(addr).await.ok()?;
    match mesh_ssh::client::host_key(stream, "sshd").await {
        Ok(key) => Some(key.to_string()),
        Err(error) => {
            tracing::debug!(error = report::chain(&error), "sshd shows no host key");
            None
        }
    }
}

fn key_file(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.parse::<PublicKey>().ok()?.to_string())
}

/// Every `ssh_host_*_key.pub` of a directory, in order.
fn key_files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            name.starts_with("ssh_host_") && name.ends_with("_key.pub")
        })
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| key_file(path)).collect()
}

fn own_user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    user.ok()
        .flatten()
        .map(|user| user.name)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
