//! One network: its node, its SOCKS5 listener, its SSH credentials.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_daemon::{Handles, Latch, Places, Shutdown, Task, Tasks, bind_tcp};
use mesh_node::{DialError, Enrolled, Node, NodeConfig, OverlayStream, OverlayUdp, StateDir};
use mesh_ssh::PrivateKey;
use mesh_types::{Netmap, NetworkName};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::metrics::ServiceMetrics;
use crate::socks::{Access, Datagrams, DialFault, DialFaultKind, Overlay, SocksServer};

/// SOCKS5 clients of one network at the same time.
const MAX_CLIENTS: usize = 1024;
/// A client has as long to say where to go, whoever else comes.
const GRACE: Duration = Duration::from_secs(1);

/// A network that is being served.
pub(crate) struct Member {
    pub(crate) network: NetworkName,
    pub(crate) dir: PathBuf,
    pub(crate) node: Node,
    pub(crate) enrolled: Enrolled,
    pub(crate) socks: SocketAddr,
    /// Certifies this process for SSH; made anew at each start and never written anywhere.
    pub(crate) ssh_key: PrivateKey,
    latch: Latch,
    _coordinator: Task,
}

/// The bound SOCKS5 listener of a network, to be served.
pub(crate) struct Listening {
    listener: TcpListener,
    server: SocksServer<NodeOverlay>,
}

impl Member {
    /// Starts the node in `dir` and binds its listener.
    pub(crate) fn open(
        network: NetworkName,
        dir: PathBuf,
        config: &Config,
        handles: &Handles,
        metrics: &ServiceMetrics,
    ) -> anyhow::Result<(Self, Listening)> {
        let flag = if network.is_default() {
            "--set socks.listen=".to_owned()
        } else {
            format!("--set socks.networks.{network}=")
        };
        let what = format!("SOCKS5 of network {network}");
        let listener = bind_tcp(config.socks.listen_of(&network), &what, &flag)?;
        let socks = listener
            .local_addr()
            .context("read the listener's address")?;
        let state = StateDir::open(&dir)?;
        let mut node_config = NodeConfig {
            version: mesh_daemon::build_info::VERSION.to_owned(),
            ..NodeConfig::default()
        };
        if !config.wireguard.listen.is_empty() {
            node_config.udp.clone_from(&config.wireguard.listen);
        }
        let node = Node::start(node_config, state)?;
        node.watch_files(mesh_daemon::open_files);
        let enrolled = node.enrolled().clone();
        let server = SocksServer::new(
            network.clone(),
            NodeOverlay(node.clone()),
            Access::of(&config.socks),
            metrics.socks.clone(),
        );
        tracing::info!(%network, addr = %socks, "socks listening");
        let latch = handles
            .readiness
            .latch(&format!("network {network}"), "the overlay is not up yet");
        let coordinator = handles.readiness.latch(
            &format!("coordinator of network {network}"),
            "not tried yet",
        );
        let netmap = node.netmap();
        let coordinator = coordinator.follow(node.control(), move |status| {
            status.trouble(netmap.borrow().is_some().then_some("the netmap"))
        });
        let member = Self {
            network,
            dir,
            node,
            enrolled,
            socks,
            ssh_key: PrivateKey::generate(),
            latch,
            _coordinator: Task::spawn("coordinator latch", coordinator),
        };
        Ok((member, Listening { listener, server }))
    }

    /// Whether the coordinator removed this node.
    pub(crate) fn is_removed(&self) -> bool {
        self.node.control().borrow().is_removed()
    }

    /// Whether the overlay is up; says so to the health endpoint.
    pub(crate) fn check_ready(&self) -> bool {
        let up = self.node.addrs().is_some();
        if up {
            self.latch.ready();
        }
        up
    }
}

impl Listening {
    /// Takes clients until shutdown begins; those being served may finish.
    pub(crate) async fn serve(self, shutdown: Shutdown) {
        let Self { listener, server } = self;
        let server = Arc::new(server);
        let mut clients = Tasks::new();
        let places = Places::new(MAX_CLIENTS, GRACE, server.metrics().shed());
        loop {
            let (stream, client, place) = tokio::select! {
                next = places.accept(&listener) => next,
                () = shutdown.draining() => break,
            };
            let (server, guard) = (Arc::clone(&server), shutdown.guard());
            let turn = place.turn().clone();
            clients.reap();
            clients.spawn_in_turn("socks client", &turn.clone(), async move {
                let _held = (place, guard);
                server.serve(stream, client, &turn).await;
            });
        }
        drop(listener);
        while !clients.is_empty() {
            clients.next_end().await;
        }
    }
}

struct NodeOverlay(Node);

impl Overlay for NodeOverlay {
    type Stream = OverlayStream;
    type Datagrams = NodeDatagrams;

    fn netmap(&self) -> Option<Arc<Netmap>> {
        self.0.netmap().borrow().clone()
    }

    async fn dial(&self, to: SocketAddr) -> Result<OverlayStream, DialFault> {
        self.0.dial(to).await.map_err(|error| DialFault {
            kind: match error {
                DialError::Refused(_) => DialFaultKind::Refused,
                DialError::TimedOut { .. } => DialFaultKind::TimedOut,
                DialError::NotAPeer(_) | DialError::OwnAddress(_) => DialFaultKind::NotAllowed,
                DialError::NotReady | DialError::Closed | DialError::Removed => {
                    DialFaultKind::Unreachable
                }
                DialError::Busy => DialFaultKind::Failed,
            },
            reason: error.to_string(),
        })
    }

    fn bind_udp(&self) -> io::Result<NodeDatagrams> {
        self.0
            .bind_udp(0)
            .map(NodeDatagrams)
            .map_err(io::Error::other)
    }
}

struct NodeDatagrams(OverlayUdp);

impl Datagrams for NodeDatagrams {
    async fn send_to(&self, data: &[u8], to: SocketAddr) -> io::Result<()> {
        self.0.send_to(data, to).await.map(drop)
    }

    async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.recv_from(buf).await
    }
}
