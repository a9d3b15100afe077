//! The networks that the gateway is in: one identity, node and route stream each.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mesh_daemon::{Handles, Task};
use mesh_node::{Node, NodeConfig, PeerPath, StartError, StateDir, StateDirError};
use mesh_types::{NetworkName, NodeId};

use crate::fleet;
use crate::overlay::OverlayConnector;
use crate::route_table::NetworkSlot;
use crate::watch::{Table, follow};

const PREFIX: &str = "network-";
/// There once the identity is complete.
const CERTIFICATE: &str = "node.crt";
/// How often the state directory is looked at.
const LOOK: Duration = Duration::from_millis(400);

/// Where the identity for `network` is kept.
pub(crate) fn dir_of(state_dir: &Path, network: &NetworkName) -> PathBuf {
    state_dir.join(format!("{PREFIX}{network}"))
}

/// The networks joined so far, by their directories; the default one first.
pub fn joined(state_dir: &Path) -> io::Result<Vec<NetworkName>> {
    let entries = match std::fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(err),
    };
    let mut names: Vec<NetworkName> = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let network = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        names.extend(network.and_then(|name| name.parse().ok()));
    }
    names.sort_by_key(|name| (!name.is_default(), name.clone()));
    Ok(names)
}

/// Why a network cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Its directory is not what it should be.
    #[error("network {0}: the state directory cannot be used")]
    State(NetworkName, #[source] StateDirError),
    /// Its node does not start.
    #[error("network {0}: the mesh node does not start")]
    Start(NetworkName, #[source] Box<StartError>),
    /// The directory of all networks cannot be read.
    #[error("the state directory cannot be read")]
    Read(#[source] io::Error),
}

#[derive(Debug)]
struct Joined {
    node: Node,
    slot: NetworkSlot,
    _follow: Task,
    _coordinator: Task,
}

/// The running networks.
#[derive(Debug)]
pub(crate) struct Networks {
    state_dir: PathBuf,
    config: NodeConfig,
    handles: Handles,
    connector: OverlayConnector,
    table: Table,
    running: Mutex<BTreeMap<NetworkName, Joined>>,
    /// One scan at a time; two would start the same network twice.
    scanning: tokio::sync::Mutex<()>,
}

impl Networks {
    /// Nothing runs yet; see [`Networks::scan`].
    pub(crate) fn new(state_dir: PathBuf, config: NodeConfig, handles: Handles) -> Self {
        Self {
            state_dir,
            config,
            handles,
            connector: OverlayConnector::default(),
            table: Table::default(),
            running: Mutex::default(),
            scanning: tokio::sync::Mutex::default(),
        }
    }

    /// Looks for newly joined networks for ever, a few times each second: whoever joins one needs
    /// to tell nobody.
    pub(crate) async fn watch(&self) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            self.close_removed().await;
            match self.scan().await {
                Ok(_) => told.clear(),
                // An identity that is being made is locked by whoever makes it.
                Err(NetworkError::State(_, StateDirError::InUse { .. })) => {}
                Err(err) => {
                    let text = mesh_daemon::report::chain(&err);
                    if text != told {
                        tracing::warn!(error = text, "a joined network cannot be served");
                        told = text;
                    }
                }
            }
        }
    }

    /// Dials in all of them.
    pub(crate) fn connector(&self) -> &OverlayConnector {
        &self.connector
    }

    /// The routes of all of them.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Starts every joined network that is not running, and gives the names of those. The first
    /// that cannot be started is the error; the others run all the same.
    pub(crate) async fn scan(&self) -> Result<Vec<NetworkName>, NetworkError> {
        let _scanning = self.scanning.lock().await;
        let mut started = Vec::new();
        let mut failed = None;
        for network in joined(&self.state_dir).map_err(NetworkError::Read)? {
            if self.lock().contains_key(&network) {
                continue;
            }
            match self.start(&network) {
                Ok(true) => started.push(network),
                Ok(false) => {}
                Err(err) => failed = failed.or(Some(err)),
            }
        }
        failed.map_or(Ok(started), Err)
    }

    /// Closes the networks that this gateway was removed from, and puts their identities aside, so
    /// that a network of the same name can be joined. The last one stays: a gateway in no network
    /// has nothing to serve, and its readiness says why.
    async fn close_removed(&self) {
        let _scanning = self.scanning.lock().await;
        let gone: Vec<(NetworkName, Joined)> = {
            let mut running = self.lock();
            let removed = |joined: &Joined| joined.node.control().borrow().is_removed();
            if running.values().all(removed) {
                return;
            }
            running
                .extract_if(.., |_, joined| removed(joined))
                .collect()
        };
        for (network, joined) in gone {
            self.table.change(|table| table.remove_network(&network));
            self.connector.remove(joined.slot);
            let id = joined.node.enrolled().node;
            let Joined { node, .. } = joined;
            node.shutdown().await;
            let aside = self.state_dir.join(format!("removed-{network}-{id}"));
            match std::fs::rename(dir_of(&self.state_dir, &network), &aside) {
                Ok(()) => tracing::info!(
                    %network, kept = %aside.display(),
                    "removed from network; join again with: traffic-gateway join --token-file FILE"
                ),
                Err(error) => tracing::error!(%network, %error, "cannot put an identity aside"),
            }
        }
    }

    fn start(&self, network: &NetworkName) -> Result<bool, NetworkError> {
        let dir = dir_of(&self.state_dir, network);
        if !dir.join(CERTIFICATE).exists() {
            return Ok(false);
        }
        let state = StateDir::open(dir).map_err(|err| NetworkError::State(network.clone(), err))?;
        if !state.is_enrolled() {
            return Ok(false);
        }
        let mut config = self.config.clone();
        // A fixed port serves one network only.
        if !self.lock().is_empty() {
            for addr in &mut config.udp {
                addr.set_port(0);
            }
        }
        let node = Node::start(config, state)
            .map_err(|err| NetworkError::Start(network.clone(), Box::new(err)))?;
        node.watch_files(mesh_daemon::open_files);
        let slot = self.connector.add(node.clone());
        self.table.change(|table| table.add_network(network, slot));
        let latch = self
            .handles
            .readiness
            .latch(&format!("routes of network {network}"), "not received yet");
        let follow = Task::spawn(
            "gateway-routes",
            follow(node.clone(), network.clone(), self.table.clone(), latch),
        );
        let latch = self.handles.readiness.latch(
            &format!("coordinator of network {network}"),
            "not tried yet",
        );
        let netmap = node.netmap();
        let coordinator = latch.follow(node.control(), move |status| {
            status.trouble(netmap.borrow().is_some().then_some("the netmap"))
        });
        tracing::info!(%network, "serving a network");
        let joined = Joined {
            node,
            slot,
            _follow: follow,
            _coordinator: Task::spawn("coordinator latch", coordinator),
        };
        self.lock().insert(network.clone(), joined);
        Ok(true)
    }

    /// The node of a network.
    pub(crate) fn node(&self, network: &NetworkName) -> Option<Node> {
        self.lock().get(network).map(|joined| joined.node.clone())
    }

    /// All nodes with their networks.
    pub(crate) fn nodes(&self) -> Vec<(NetworkName, Node)> {
        let running = self.lock();
        running
            .iter()
            .map(|(network, joined)| (network.clone(), joined.node.clone()))
            .collect()
    }

    /// How packets travel to each worker at present.
    pub(crate) fn paths(&self) -> HashMap<NodeId, fleet::Path> {
        let mut paths = HashMap::new();
        for (_, node) in self.nodes() {
            for peer in node.status().peers {
                let path = match peer.path {
                    PeerPath::Direct { .. } => fleet::Path::Direct,
                    PeerPath::Relay { .. } => fleet::Path::Relay,
                    PeerPath::None => fleet::Path::None,
                };
                paths.insert(peer.id, path);
            }
        }
        paths
    }

    /// Stops all of them.
    pub(crate) async fn shutdown(&self) {
        let running = std::mem::take(&mut *self.lock());
        for joined in running.into_values() {
            joined.node.shutdown().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NetworkName, Joined>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
