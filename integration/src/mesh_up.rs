//! `mesh up`: every role in one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_testkit::{Child, Curl, CurlReply, HttpReply, http_get};
use serde::Deserialize;

use crate::cli::Cli;

/// How long the start may take in any test; the first journey asks for less.
pub const START: Duration = Duration::from_secs(60);

/// The line that `mesh up --json` prints when it is ready.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// `mesh.up/1`.
    pub schema: String,
    /// The product's version.
    pub version: String,
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// The name of the context that was written.
    pub context: String,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The relay.
    pub relay: Relay,
    /// The traffic-gateway.
    pub gateway: Gateway,
    /// The deploy-manager.
    pub deploy_manager: DeployManager,
    /// Health and metrics of the process.
    pub admin: SocketAddr,
    /// Every node in the process.
    pub nodes: Vec<NodeReady>,
}

/// The coordinator in the ready line.
#[derive(Debug, Clone, Deserialize)]
pub struct Coordinator {
    /// Its gRPC and HTTPS.
    pub addr: String,
}

/// The relay in the ready line.
#[derive(Debug, Clone, Deserialize)]
pub struct Relay {
    /// DERP over TLS.
    pub derp: String,
    /// STUN.
    pub stun: String,
}

/// The gateway in the ready line.
#[derive(Debug, Clone, Deserialize)]
pub struct Gateway {
    /// Its URL, with a slash at the end.
    pub url: String,
}

/// The deploy-manager in the ready line.
#[derive(Debug, Clone, Deserialize)]
pub struct DeployManager {
    /// Its gRPC.
    pub grpc: String,
    /// Its SOCKS5 listeners by network.
    pub socks: std::collections::BTreeMap<String, String>,
}

/// A node in the ready line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeReady {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// Its network.
    pub network: String,
    /// Its id.
    pub id: String,
    /// Its overlay addresses.
    pub addrs: Vec<String>,
    /// Its WireGuard port.
    pub wg_port: u16,
    /// Its state directory.
    pub state_dir: PathBuf,
}

/// How `mesh up` is to be started.
#[derive(Debug, Clone)]
pub struct MeshUpOptions {
    /// With two workers in the process.
    pub demo: bool,
    /// The state directory; in the person's working folder otherwise.
    pub state_dir: Option<PathBuf>,
    /// Any free port for everything, where `args` name none; the product's own ports otherwise.
    pub free_ports: bool,
    /// Further arguments.
    pub args: Vec<String>,
}

impl Default for MeshUpOptions {
    fn default() -> Self {
        Self {
            demo: true,
            state_dir: None,
            free_ports: true,
            args: Vec::new(),
        }
    }
}

/// A running `mesh up`.
#[derive(Debug)]
pub struct MeshUp {
    cli: Cli,
    child: Child,
    ready: Ready,
    took: Duration,
}

/// Every flag of `mesh up` that takes a port.
pub const PORTS: [&str; 8] = [
    "--coordinator-port",
    "--gateway-port",
    "--deploy-port",
    "--socks-port",
    "--relay-port",
    "--stun-port",
    "--wg-port",
    "--admin-port",
];

impl MeshUp {
    /// With two workers, every port free, in the person's folders.
    #[track_caller]
    pub fn demo(cli: &Cli) -> Self {
        Self::start(cli, MeshUpOptions::default())
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn start(cli: &Cli, options: MeshUpOptions) -> Self {
        let started = Instant::now();
        let state_dir = options
            .state_dir
            .clone()
            .unwrap_or_else(|| cli.work("state"));
        let mut spec = cli
            .product("mesh")
            .name("mesh-up")
            .args(["--json", "up", "--log", "info"]);
        spec = spec.arg("--state-dir").arg(state_dir);
        if options.demo {
            spec = spec.arg("--demo");
        }
        for port in PORTS {
            if options.free_ports && !options.args.iter().any(|arg| arg == port) {
                spec = spec.args([port, "0"]);
            }
        }
        let child = spec
            .args(&options.args)
            .spawn()
            .unwrap_or_else(|error| panic!("{error:#}"));
        let ready: Ready = child.wait_for("its ready line", START, |line| {
            serde_json::from_str(&line.text)
                .ok()
                .filter(|ready: &Ready| ready.schema == "mesh.up/1")
        });
        Self {
            cli: cli.clone(),
            child,
            ready,
            took: started.elapsed(),
        }
    }

    /// The person who runs it.
    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    /// What it said when it was ready.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// From the start of the process to its ready line.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// The process.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// The process, to end it.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// A node by name.
    ///
    /// # Panics
    /// When the ready line does not name it.
    #[track_caller]
    pub fn node(&self, name: &str) -> &NodeReady {
        self.ready
            .nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap_or_else(|| panic!("no node {name} among {:?}", self.ready.nodes))
    }

    /// The WireGuard port of a node by name.
    #[track_caller]
    pub fn nodes_port(&self, name: &str) -> u16 {
        self.node(name).wg_port
    }

    /// The gateway's URL of a path that starts with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.ready.gateway.url.trim_end_matches('/'))
    }

    /// Fetches a path from the gateway with curl.
    pub fn curl(&self, path: &str) -> anyhow::Result<CurlReply> {
        Curl::new().on(self.cli.host()).get(self.url(path))
    }

    /// The gateway's port on loopback.
    ///
    /// # Panics
    /// When the ready line's URL has none.
    pub fn gateway_port(&self) -> u16 {
        let url: http::Uri = self.ready.gateway.url.parse().expect("the gateway's URL");
        url.port_u16().expect("the gateway's URL has a port")
    }

    /// Fetches a path from the gateway without the start of a process.
    pub fn get(&self, path: &str) -> anyhow::Result<HttpReply> {
        let port = self.gateway_port();
        let host = format!("localhost:{port}");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let get = || http_get(addr, &host, path, Duration::from_secs(15));
        self.cli.host().map_or_else(get, |host| host.enter(get))
    }

    /// The process's metrics, as text.
    pub fn metrics(&self) -> anyhow::Result<String> {
        let url = format!("http://{}/metrics", self.ready.admin);
        Curl::new().on(self.cli.host()).get(url)?.ok()
    }

    /// The SOCKS5 listener of a network.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    pub fn socks(&self, network: &str) -> SocketAddr {
        let addr = self.ready.deploy_manager.socks.get(network);
        addr.and_then(|addr| addr.parse().ok())
            .unwrap_or_else(|| panic!("no SOCKS5 for {network}: {:?}", self.ready.deploy_manager))
    }

    /// Ends it as Ctrl-C does and returns how long that took, once its exit code was 0.
    pub fn stop(&mut self) -> anyhow::Result<Duration> {
        let asked = Instant::now();
        self.child.interrupt()?;
        let ended = self.child.finish(Duration::from_secs(30))?;
        let took = asked.elapsed();
        ended.success().context("mesh up ended badly")?;
        Ok(took)
    }
}

/// Whether a directory and everything in it is kept from other users.
pub fn is_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = dir.metadata()?.mode() & 0o777;
    anyhow::ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", dir.display());
    Ok(())
}
