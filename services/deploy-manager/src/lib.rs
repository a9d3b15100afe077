//! The deploy-manager: a mesh node without a device that carries programs into the mesh.
//!
//! One node, netstack and WireGuard socket per network. Programs on this machine reach nodes
//! through SOCKS5 ([`socks`]), one listener per network; operators have commands run by gRPC
//! (`DeployService`). Both dial through the overlay and nowhere else, and both know only the names
//! of the network's own netmap.
//!
//! It does not decide who may reach what (the packet filters of the nodes do), and it keeps no
//! credentials: SSH certificates come from the coordinator, for minutes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use mesh_daemon::{AdminServer, Handles, Latch, Shutdown, Task, TaskEnd, bind_tcp, private_dir};
use mesh_types::NetworkName;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval};

pub mod cli;
pub mod config;
#[cfg(test)]
mod fixture;
mod grpc;
pub mod join;
mod member;
mod members;
pub mod metrics;
mod runner;
pub mod socks;
pub mod status;
mod tls;

pub use config::Config;
pub use join::{JoinError, join};
pub use members::{Networks, Opened};

use member::{Listening, Member};
use members::Members;
use metrics::ServiceMetrics;
use status::StatusFile;

/// How often new networks are looked for.
const SCAN: Duration = Duration::from_millis(500);
/// A network that cannot be opened for this many looks needs somebody: until then its joining may
/// just not be over.
const PATIENCE: u32 = 10;

/// A deploy-manager that is ready to run.
pub struct App {
    state: State,
    listener: TcpListener,
    grpc: SocketAddr,
    admin: Option<AdminServer>,
    /// Bound by [`App::build`], to be served by [`App::run`].
    waiting: Vec<(NetworkName, Listening)>,
}

/// What the loop of [`App::run`] works on.
struct State {
    config: Config,
    handles: Handles,
    metrics: ServiceMetrics,
    members: Members,
    latch: Latch,
    ready: bool,
    /// Networks that cannot be opened: how often that was tried.
    failing: BTreeMap<NetworkName, u32>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("grpc", &self.grpc)
            .finish_non_exhaustive()
    }
}

impl App {
    /// Binds every listener and starts the node of every network that was joined.
    ///
    /// # Errors
    ///
    /// When an address is taken, or an identity cannot be used.
    #[expect(clippy::unused_async, reason = "the nodes' sockets need the runtime")]
    pub async fn build(config: Config, handles: Handles) -> anyhow::Result<Self> {
        private_dir(&config.state_dir)?;
        let flag = "--set server.listen=";
        let listener = bind_tcp(config.server.listen, "gRPC for operators", flag)?;
        let grpc = listener
            .local_addr()
            .context("read the listener's address")?;
        tracing::info!(addr = %grpc, "grpc listening");
        let admin = config
            .admin
            .as_ref()
            .map(|admin| AdminServer::bind(admin, handles.clone()))
            .transpose()?;
        let reason = "no network joined yet: run deploy-manager join --token-file FILE";
        let mut state = State {
            latch: handles.readiness.latch("networks", reason),
            metrics: ServiceMetrics::register(&handles.metrics),
            members: Members::new(),
            ready: false,
            failing: BTreeMap::new(),
            config,
            handles,
        };
        let mut waiting = Vec::new();
        for (network, dir) in join::joined(&state.config.state_dir)? {
            let opened = state.open(&network, dir);
            let listening = opened.with_context(|| format!("open network {network}"))?;
            waiting.push((network, listening));
        }
        Ok(Self {
            state,
            listener,
            grpc,
            admin,
            waiting,
        })
    }

    /// Where gRPC is served.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc
    }

    /// Where the health endpoint is, when there is one.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(AdminServer::local_addr)
    }

    /// The networks that are served, now and later.
    pub fn networks(&self) -> Networks {
        self.state.members.networks()
    }

    /// Serves until `shutdown`; picks up networks as they are joined.
    ///
    /// # Errors
    ///
    /// When a listener fails.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self {
            mut state,
            listener,
            grpc: grpc_addr,
            admin,
            waiting,
        } = self;
        let serve = |listening: Listening| Task::spawn("socks", listening.serve(shutdown.clone()));
        let mut serving: BTreeMap<NetworkName, Task> = waiting
            .into_iter()
            .map(|(network, listening)| (network, serve(listening)))
            .collect();
        let members = state.members.clone();
        let metrics = state.metrics.clone();
        let (handles, draining) = (state.handles.clone(), shutdown.clone());
        let mut grpc = Task::spawn("grpc", async move {
            grpc::serve(listener, members, metrics, &handles, draining).await
        });
        let _admin = admin.map(|admin| Task::spawn("admin", admin.run(shutdown.clone())));
        let mut status_file = StatusFile::new(&state.config.state_dir);
        let mut tick = interval(SCAN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.draining() => break,
                end = grpc.finished() => {
                    // It ends by itself at shutdown too, and may be seen first.
                    if matches!(end, TaskEnd::Completed) && shutdown.is_draining() {
                        break;
                    }
                    anyhow::bail!("the gRPC listener ended");
                }
                _ = tick.tick() => {
                    for network in state.close_removed().await {
                        serving.remove(&network);
                    }
                    for (network, listening) in state.open_new() {
                        serving.insert(network, serve(listening));
                    }
                    state.check_ready();
                    status_file.update(grpc_addr, &state.members);
                }
            }
        }
        state.latch.not_ready("shutting down");
        shutdown.drained().await;
        drop(serving);
        for member in state.members.all() {
            member.node.shutdown().await;
        }
        status::clear(&state.config.state_dir);
        Ok(())
    }
}

impl State {
    fn open(&mut self, network: &NetworkName, dir: PathBuf) -> anyhow::Result<Listening> {
        let (member, listening) = Member::open(
            network.clone(),
            dir,
            &self.config,
            &self.handles,
            &self.metrics,
        )?;
        self.members.add(member);
        self.metrics.networks.inc();
        Ok(listening)
    }

    /// Opens the networks that were joined since the last look.
    fn open_new(&mut self) -> Vec<(NetworkName, Listening)> {
        let joined = match join::joined(&self.config.state_dir) {
            Ok(joined) => joined,
            Err(error) => {
                tracing::debug!(%error, "cannot look for new networks");
                return Vec::new();
            }
        };
        let mut opened = Vec::new();
        for (network, dir) in joined {
            if self.members.get(&network).is_some() {
                continue;
            }
            match self.open(&network, dir) {
                Ok(listening) => {
                    self.failing.remove(&network);
                    tracing::info!(%network, "network joined");
                    opened.push((network, listening));
                }
                Err(error) => {
                    let tries = self.failing.entry(network.clone()).or_default();
                    *tries += 1;
                    let error = format!("{error:#}");
                    match *tries {
                        1 => tracing::info!(%network, error, "network cannot be opened yet"),
                        PATIENCE => tracing::error!(%network, error, "network cannot be opened"),
                        _ => {}
                    }
                }
            }
        }
        opened
    }

    /// Closes the networks that this node was removed from, and puts their identities aside.
    async fn close_removed(&mut self) -> Vec<NetworkName> {
        let mut closed = Vec::new();
        for member in self.members.all() {
            if !member.is_removed() {
                continue;
            }
            let network = member.network.clone();
            self.members.remove(&network);
            self.metrics.networks.dec();
            member.node.shutdown().await;
            match join::set_aside(&member.dir, &network, &member.enrolled) {
                Ok(aside) => tracing::info!(
                    %network, kept = %aside.display(),
                    "removed from network; join again with: deploy-manager join --token-file FILE"
                ),
                Err(error) => tracing::error!(%network, %error, "cannot put an identity aside"),
            }
            closed.push(network);
        }
        closed
    }

    fn check_ready(&mut self) {
        let members = self.members.all();
        // All are asked: each keeps its own latch.
        let up = members.iter().filter(|member| member.check_ready()).count();
        if members.is_empty() {
            self.latch
                .not_ready("no network joined: run deploy-manager join --token-file FILE");
            self.ready = false;
        } else {
            self.latch.ready();
            if up == members.len() && !self.ready {
                self.ready = true;
                tracing::info!(networks = up, "ready");
            }
        }
    }
}
