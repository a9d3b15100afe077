//! What runs in this process: when it is ready, and where it is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_daemon::Handles;
use mesh_node::{Enrolled, Node};
use mesh_types::{NetworkName, NodeName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::listen::Bind;
use super::report::{Facts, NodeFacts, typed};
use super::roles::CONTEXT;
use crate::args::UpArgs;

/// What is known of what runs.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) handles: Handles,
    pub(super) state_dir: PathBuf,
    pub(super) coordinator: SocketAddr,
    pub(super) relay: RelayAddrs,
    pub(super) gateway: GatewayFacts,
    pub(super) deploy: DeployFacts,
    pub(super) admin: Option<SocketAddr>,
    pub(super) workers: Vec<(Enrolled, Node, PathBuf)>,
}

#[derive(Debug)]
pub(super) struct RelayAddrs {
    pub(super) derp: SocketAddr,
    pub(super) stun: SocketAddr,
}

#[derive(Debug)]
pub(super) struct GatewayFacts {
    pub(super) addr: SocketAddr,
    pub(super) url: String,
    pub(super) enrolled: Enrolled,
    pub(super) node: Node,
    pub(super) state: PathBuf,
}

#[derive(Debug)]
pub(super) struct DeployFacts {
    pub(super) grpc: SocketAddr,
    pub(super) networks: deploy_manager::Networks,
    pub(super) enrolled: Enrolled,
    pub(super) state: PathBuf,
}

impl Parts {
    /// Resolves when every role is ready and each worker of the demo answers: its console through
    /// the gateway, its SSH from the deploy-manager.
    pub(super) async fn ready(&self) {
        while !self.handles.readiness.is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for (worker, _, _) in &self.workers {
            while !self.console_answers(&worker.name).await {
                sleep(Duration::from_millis(50)).await;
            }
            while !self.ssh_answers(worker).await {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn console_answers(&self, worker: &NodeName) -> bool {
        http_ok(self.gateway.addr, &format!("/{worker}/"))
            .await
            .unwrap_or(false)
    }

    async fn ssh_answers(&self, worker: &Enrolled) -> bool {
        let overlay = {
            let networks = self.deploy.networks.borrow();
            worker
                .network
                .as_ref()
                .and_then(|network| networks.get(network))
                .map(|opened| opened.overlay.clone())
        };
        let (Some(overlay), Some(addrs)) = (overlay, worker.addrs) else {
            return false;
        };
        overlay
            .dial((addrs.v4, mesh_types::service::SSH_PORT).into())
            .await
            .is_ok()
    }

    /// What is not ready yet, for people.
    pub(super) fn not_ready(&self) -> String {
        let report = self.handles.readiness.report();
        if report.is_empty() {
            return "the workers do not answer through the gateway".to_owned();
        }
        let parts = report
            .iter()
            .map(|latch| format!("{}: {}", latch.name, latch.reason));
        parts.collect::<Vec<_>>().join("; ")
    }

    /// Where everything is.
    pub(super) fn facts(&self, args: &UpArgs) -> Result<Facts> {
        let default = NetworkName::default_network();
        let networks = self.deploy.networks.borrow();
        let deployer = networks
            .get(&default)
            .context("the deploy-manager has no network")?;
        let mut nodes = vec![
            node_facts(
                &self.gateway.enrolled,
                &self.gateway.node,
                &self.gateway.state,
            )?,
            node_facts(&self.deploy.enrolled, &deployer.overlay, &self.deploy.state)?,
        ];
        for (enrolled, node, dir) in &self.workers {
            nodes.push(node_facts(enrolled, node, dir)?);
        }
        let shown = Bind::of(args).shown(self.coordinator);
        Ok(Facts {
            program: program(),
            state_dir: self.state_dir.clone(),
            context: CONTEXT.to_owned(),
            coordinator: shown,
            derp: Bind::of(args).shown(self.relay.derp),
            stun: Bind::of(args).shown(self.relay.stun),
            gateway: self.gateway.url.clone(),
            deploy: self.deploy.grpc.to_string(),
            socks: networks
                .iter()
                .map(|(network, opened)| (network.clone(), opened.socks.to_string()))
                .collect(),
            admin: self.admin.map(|addr| addr.to_string()),
            nodes,
            workers: self
                .workers
                .iter()
                .map(|(enrolled, _, _)| enrolled.name.clone())
                .collect(),
        })
    }
}

/// How this program is typed here, for what to try next.
fn program() -> String {
    let search = std::env::var_os("PATH").unwrap_or_default();
    match (std::env::current_exe(), std::env::current_dir()) {
        (Ok(exe), Ok(here)) => typed(&exe, &search, &here),
        _ => "mesh".to_owned(),
    }
}

fn node_facts(enrolled: &Enrolled, node: &Node, state_dir: &Path) -> Result<NodeFacts> {
    Ok(NodeFacts {
        id: enrolled.node,
        name: enrolled.name.clone(),
        role: enrolled.role,
        network: enrolled
            .network
            .clone()
            .context("a node without a network")?,
        addrs: enrolled.addrs.context("a node without addresses")?,
        wg_port: node.status().wg_port,
        state_dir: state_dir.to_owned(),
    })
}

/// Whether a plain GET is answered with 200.
async fn http_ok(addr: SocketAddr, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n",
        addr.port()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(&head == b"HTTP/1.1 200")
}
