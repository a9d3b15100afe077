//! The separate binaries in a lab: five hosts, or all on one.
//!
//! ```text
//!  core 10.90.0.1      coordinator, relay        ┐
//!  edge 10.90.0.2      gateway, deploy-manager   ├ the mesh hosts' segment 10.90.0.0/24
//!  worker-node-1 .11, worker-node-2 .12, …       ┘
//!  edge 10.91.0.2, client 10.91.0.9              the clients' segment 10.91.0.0/24
//! ```

mod router;
mod services;
mod worker;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_testkit::{Child, Curl, CurlReply, Host, Lab, Segment, TestUser, eventually};
use serde_json::Value;

use crate::cli::{Cli, USUAL};

pub use router::Router;
pub use worker::Worker;

/// How long a service may take to be ready, in any test.
const START: Duration = Duration::from_secs(20);
const COORDINATOR_PORT: u16 = 8080;
const GATEWAY_PORT: u16 = 8081;
const DEPLOY_PORT: u16 = 8082;
const SOCKS_PORT: u16 = 1080;
/// The relay's TCP port.
pub const DERP_PORT: u16 = 8443;
const STUN_PORT: u16 = 3478;

/// Where the services run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Each on its host.
    Spread,
    /// All on one host.
    Single,
}

/// A running installation of separate binaries.
#[derive(Debug)]
pub struct Field {
    // Before the lab, so that processes end by themselves while their network is still there.
    services: BTreeMap<&'static str, Child>,
    workers: BTreeMap<String, Worker>,
    operator: Cli,
    layout: Layout,
    hosts: BTreeMap<String, (Host, Ipv4Addr)>,
    client: Host,
    mesh: Segment,
    user: Option<Arc<TestUser>>,
    networks: Vec<String>,
    lab: Lab,
}

impl Field {
    /// Coordinator, relay, gateway and deploy-manager, ready, with an operator logged in on `edge`.
    /// As `user`, or as root.
    #[track_caller]
    pub fn start(layout: Layout, user: Option<&Arc<TestUser>>) -> Self {
        Self::with_networks(layout, user, &[])
    }

    /// The same, with further networks that gateway and deploy-manager serve too.
    ///
    /// # Panics
    /// When something does not start.
    #[track_caller]
    pub fn with_networks(layout: Layout, user: Option<&Arc<TestUser>>, further: &[&str]) -> Self {
        Self::try_start(layout, user, further, &[]).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// As [`Field::start`], with these variables in the environment of everything that runs.
    ///
    /// # Panics
    /// When something does not start.
    #[track_caller]
    pub fn with_env(layout: Layout, user: Option<&Arc<TestUser>>, env: &[(&str, &str)]) -> Self {
        Self::try_start(layout, user, &[], env).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn try_start(
        layout: Layout,
        user: Option<&Arc<TestUser>>,
        further: &[&str],
        env: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let (mesh, clients) = (lab.segment(24)?, lab.segment(24)?);
        let core_addr = Ipv4Addr::new(10, 90, 0, 1);
        let edge_addr = match layout {
            Layout::Spread => Ipv4Addr::new(10, 90, 0, 2),
            Layout::Single => core_addr,
        };
        let core = lab.host_on("core", &mesh, core_addr)?;
        let edge = match layout {
            Layout::Spread => lab.host_on("edge", &mesh, edge_addr)?,
            Layout::Single => core.clone(),
        };
        lab.attach(&edge, &clients, Ipv4Addr::new(10, 91, 0, 2))?;
        let client = lab.host_on("client", &clients, Ipv4Addr::new(10, 91, 0, 9))?;
        let mut operator = Cli::new()?.on(&edge).with_env(env);
        if let Some(user) = user {
            operator = operator.run_by(user)?;
        }
        let hosts = BTreeMap::from([
            ("core".to_owned(), (core, core_addr)),
            ("edge".to_owned(), (edge, edge_addr)),
        ]);
        let networks = std::iter::once("default").chain(further.iter().copied());
        let mut field = Self {
            services: BTreeMap::new(),
            workers: BTreeMap::new(),
            operator,
            layout,
            hosts,
            client,
            mesh,
            user: user.cloned(),
            networks: networks.map(str::to_owned).collect(),
            lab,
        };
        field.start_coordinator()?;
        let state = field.state_dir("coordinator");
        let login = field
            .operator
            .product("mesh")
            .args(["login", "--coordinator-state"])
            .arg(state)
            .run(USUAL)?;
        login.success().context("mesh login")?;
        for network in further {
            field
                .operator
                .mesh(&["network", "create", network])
                .success()?;
        }
        field.start_relay()?;
        field.start_gateway()?;
        field.start_deploy_manager()?;
        Ok(field)
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The segment of the mesh hosts.
    pub fn mesh_segment(&self) -> &Segment {
        &self.mesh
    }

    /// A host by name: `core`, `edge`, or a worker's.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        &self
            .hosts
            .get(name)
            .unwrap_or_else(|| panic!("no host {name}"))
            .0
    }

    /// The address of a host on the mesh hosts' segment.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn addr(&self, name: &str) -> Ipv4Addr {
        self.hosts
            .get(name)
            .unwrap_or_else(|| panic!("no host {name}"))
            .1
    }

    /// A host of the clients' segment, which sees the gateway and nothing else.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// The gateway as the client sees it.
    pub fn gateway_addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 91, 0, 2), GATEWAY_PORT))
    }

    /// The gateway's URL for clients, of a path that starts with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://gateway:{GATEWAY_PORT}{path}")
    }

    /// A call of curl from the client's host.
    pub fn client_curl(&self) -> Curl {
        let resolve = format!("gateway:{GATEWAY_PORT}:10.91.0.2");
        Curl::new()
            .on(Some(&self.client))
            .args(["--resolve", &resolve])
    }

    /// Fetches a path of the gateway from the client's host.
    pub fn curl(&self, path: &str) -> anyhow::Result<CurlReply> {
        self.client_curl().get(self.url(path))
    }

    /// The operator, on the host of the deploy-manager.
    pub fn operator(&self) -> &Cli {
        &self.operator
    }

    /// The SOCKS5 listener of a network, on the loopback of `edge`.
    ///
    /// # Panics
    /// When the field does not serve the network.
    #[track_caller]
    pub fn socks(&self, network: &str) -> SocketAddr {
        let at = self.networks.iter().position(|name| name == network);
        let at = at.unwrap_or_else(|| panic!("no network {network}"));
        let offset = u16::try_from(at).expect("a few networks");
        SocketAddr::from((Ipv4Addr::LOCALHOST, SOCKS_PORT + offset))
    }

    /// A service's process: `coordinator`, `relay`, `gateway`, `deploy-manager`.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn service(&self, name: &str) -> &Child {
        self.services
            .get(name)
            .unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// Takes a service's process away, to end it.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn take_service(&mut self, name: &str) -> Child {
        self.services
            .remove(name)
            .unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// A service's metrics, as text.
    pub fn metrics(&self, service: &str) -> anyhow::Result<String> {
        let (host, port) = match service {
            "coordinator" => ("core", 9464),
            "gateway" => ("edge", 9465),
            "deploy-manager" => ("edge", 9466),
            "relay" => ("core", 9468),
            other => anyhow::bail!("{other} is no service"),
        };
        let url = format!("http://127.0.0.1:{port}/metrics");
        Curl::new().on(Some(self.host(host))).get(url)?.ok()
    }

    /// How the gateway reaches a worker, as its page for programs tells it: `direct` or `relay`.
    ///
    /// # Errors
    /// The gateway does not answer, or does not know the worker.
    pub fn path_to(&self, worker: &str) -> anyhow::Result<String> {
        let page = self
            .client_curl()
            .args(["-H", "Accept: application/json"])
            .get(self.url("/"))?;
        let page: Value = serde_json::from_str(&page.ok()?)?;
        let nodes = page["nodes"].as_array().context("nodes")?;
        let node = nodes.iter().find(|node| node["name"] == worker);
        let path = &node.context("the worker")?["path"];
        Ok(path.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a console answers 200 through the gateway.
    #[track_caller]
    pub fn wait_for_console(&self, path: &str, within: Duration) {
        eventually(&format!("the console at {path}"), within, || {
            self.curl(path)?.ok()
        });
    }

    /// Waits until a worker's console is Cockpit, which it looks for every few seconds.
    #[track_caller]
    pub fn wait_for_cockpit(&self, path: &str, within: Duration) {
        eventually(&format!("Cockpit at {path}"), within, || {
            let body = self.curl(&format!("{path}ping"))?.ok()?;
            ensure!(body.contains("cockpit"), "{body}");
            Ok(())
        });
    }

    /// Checks the logs of everything that runs.
    #[track_caller]
    pub fn assert_logs_clean(&self, allowed: &[&str]) {
        for child in self.services.values() {
            child.assert_log_clean(allowed);
        }
        for child in self
            .workers
            .values()
            .filter_map(|worker| worker.child.as_ref())
        {
            child.assert_log_clean(allowed);
        }
    }
}

/// The overlay IPv4 address of a node, as the operator sees it.
///
/// # Panics
/// When there is no such node.
#[track_caller]
pub fn overlay_addr(cli: &Cli, network: &str, node: &str) -> Ipv4Addr {
    addr_of(&node_where(cli, network, |found| found["name"] == node))
}

/// The overlay IPv4 address of the first node of that role.
///
/// # Panics
/// When there is no such node.
#[track_caller]
pub fn overlay_addr_of_role(cli: &Cli, network: &str, role: &str) -> Ipv4Addr {
    addr_of(&node_of_role(cli, network, role))
}

/// The first node of that role, as `mesh --json node list` shows it.
///
/// # Panics
/// When there is no such node.
#[track_caller]
pub fn node_of_role(cli: &Cli, network: &str, role: &str) -> Value {
    node_where(cli, network, |found| found["role"] == role)
}

#[track_caller]
fn addr_of(node: &Value) -> Ipv4Addr {
    let addr = node["addrs"][0].as_str().and_then(|addr| addr.parse().ok());
    addr.unwrap_or_else(|| panic!("no overlay address in {node}"))
}

#[track_caller]
fn node_where(cli: &Cli, network: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let listed = cli.mesh_json(&["node", "list", "--network", network]);
    let nodes = listed["nodes"]
        .as_array()
        .unwrap_or_else(|| panic!("no nodes in {listed}"));
    let found = nodes.iter().find(|node| wanted(node));
    found
        .unwrap_or_else(|| panic!("no such node in {listed}"))
        .clone()
}
