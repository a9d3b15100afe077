//! The separate binaries in a lab: five hosts, or all on one.
//!
//! ```text
//!  core 10.90.0.1      coordinator, relay        ┐
//!  edge 10.90.0.2      gateway, deploy-manager   ├ the mesh hosts' segment 10.90.0.0/24
//!  worker-node-1 .11, worker-node-2 .12, …       ┘
//!  edge 10.91.0.2, client 10.91.0.9              the clients' segment 10.91.0.0/24
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_testkit::{Child, Curl, CurlReply, Host, Lab, Segment, Spec, TestUser, eventually};
use serde_json::Value;

use crate::cli::{Cli, USUAL};

/// How long a service may take to be ready, in any test.
const START: Duration = Duration::from_secs(20);
const COORDINATOR_PORT: u16 = 8080;
const GATEWAY_PORT: u16 = 8081;
const DEPLOY_PORT: u16 = 8082;
const SOCKS_PORT: u16 = 1080;
const DERP_PORT: u16 = 8443;
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

/// A worker-agent with its host.
#[derive(Debug)]
pub struct Worker {
    name: String,
    cli: Cli,
    host: Host,
    addr: Ipv4Addr,
    state_dir: PathBuf,
    shares_host: bool,
    sets: Vec<String>,
    child: Option<Child>,
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
        Self::try_start(layout, user, further).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn try_start(
        layout: Layout,
        user: Option<&Arc<TestUser>>,
        further: &[&str],
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
        let mut operator = Cli::new()?.on(&edge);
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

    fn state_dir(&self, service: &str) -> PathBuf {
        self.operator.work(&format!("state-{service}"))
    }

    /// One of the binaries, on a host, with its state directory.
    fn program(&self, name: &str, host: &str) -> Spec {
        self.operator
            .product(name)
            .host(self.host(host))
            .arg("--set")
            .arg(format!("state_dir={}", self.state_dir(name).display()))
    }

    /// What a service needs to join at its first start: a token for each of its networks.
    fn tokens(&self, service: &str, role: &str) -> anyhow::Result<Vec<OsString>> {
        let networks: &[String] = match role {
            "relay" => &self.networks[..1],
            _ => &self.networks,
        };
        let mut args = Vec::new();
        for network in networks {
            let name = format!("{service}-{network}.token");
            // A second start of the same service needs none.
            if self.operator.work(&name).exists() {
                continue;
            }
            let token = self.operator.token(&["--role", role, "--network", network]);
            args.push("--token-file".into());
            args.push(self.operator.file(&name, &token)?.into());
        }
        Ok(args)
    }

    /// Starts the coordinator, for the first time or again.
    pub fn start_coordinator(&mut self) -> anyhow::Result<()> {
        let at = SocketAddr::from((self.addr("core"), COORDINATOR_PORT));
        let child = self
            .program("coordinator", "core")
            .args(["--set", &format!("server.listen={at}")])
            .args(["--set", &format!("server.advertise={at}")])
            .args(["--set", "admin.listen=127.0.0.1:9464"])
            .spawn()?;
        self.ready("coordinator", "core", 9464, child)
    }

    /// Starts the relay, for the first time or again.
    pub fn start_relay(&mut self) -> anyhow::Result<()> {
        let addr = self.addr("core");
        let derp = SocketAddr::from((addr, DERP_PORT));
        let stun = SocketAddr::from((addr, STUN_PORT));
        let child = self
            .program("relay", "core")
            .args(self.tokens("relay", "relay")?)
            .args(["--set", &format!("server.listen={derp}")])
            .args(["--set", &format!("stun.listen={stun}")])
            .args(["--set", "admin.listen=127.0.0.1:9468"])
            .spawn()?;
        self.ready("relay", "core", 9468, child)
    }

    /// Starts the gateway, for the first time or again.
    pub fn start_gateway(&mut self) -> anyhow::Result<()> {
        let child = self
            .program("traffic-gateway", "edge")
            .args(self.tokens("traffic-gateway", "gateway")?)
            .arg("--dev")
            .args(["--set", &format!("server.listen=0.0.0.0:{GATEWAY_PORT}")])
            .args(["--set", "server.allowed_hosts=gateway"])
            .args(["--set", "admin.listen=127.0.0.1:9465"])
            .spawn()?;
        self.ready("gateway", "edge", 9465, child)
    }

    /// Starts the deploy-manager, for the first time or again.
    pub fn start_deploy_manager(&mut self) -> anyhow::Result<()> {
        let grpc = SocketAddr::from((self.addr("edge"), DEPLOY_PORT));
        let mut spec = self
            .program("deploy-manager", "edge")
            .args(self.tokens("deploy-manager", "deployer")?)
            .args(["--set", &format!("server.listen={grpc}")])
            .args(["--set", "admin.listen=127.0.0.1:9466"]);
        let mut context = vec!["context".to_owned(), "set".to_owned()];
        for network in &self.networks {
            let socks = self.socks(network);
            let key = match network.as_str() {
                "default" => "socks.listen".to_owned(),
                other => format!("socks.networks.{other}"),
            };
            spec = spec.args(["--set", &format!("{key}={socks}")]);
            context.extend(["--socks".to_owned(), format!("{network}={socks}")]);
        }
        let child = spec.spawn()?;
        self.ready("deploy-manager", "edge", 9466, child)?;
        context.extend(["--deploy".to_owned(), grpc.to_string()]);
        let gateway = format!("http://localhost:{GATEWAY_PORT}/");
        context.extend(["--gateway".to_owned(), gateway]);
        let set = self.operator.product("mesh").args(context).run(USUAL)?;
        set.success().context("mesh context set")?;
        Ok(())
    }

    /// Waits for a service's readiness endpoint and keeps its process.
    fn ready(
        &mut self,
        name: &'static str,
        host: &str,
        admin: u16,
        mut child: Child,
    ) -> anyhow::Result<()> {
        let host = self.host(host).clone();
        eventually(&format!("{name} is ready"), START, || {
            // An end is final: there is nothing to wait for then.
            assert!(
                child.is_running(),
                "{name} ended:\n{}",
                child.log().tail(30)
            );
            let reply = Curl::new()
                .on(Some(&host))
                .get(format!("http://127.0.0.1:{admin}/readyz"))?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        });
        self.services.insert(name, child);
        Ok(())
    }

    /// Adds a worker to a network: its host (when spread), its join, its run with further settings
    /// (`key=value`).
    ///
    /// # Panics
    /// When it does not join.
    #[track_caller]
    pub fn add_worker(&mut self, name: &str, network: &str, sets: &[&str]) -> &mut Worker {
        self.join_worker(name, network, sets).start();
        self.worker_mut(name)
    }

    /// Adds a worker's host and joins it, without starting it.
    ///
    /// # Panics
    /// When it does not join.
    #[track_caller]
    pub fn join_worker(&mut self, name: &str, network: &str, sets: &[&str]) -> &mut Worker {
        self.try_join(name, network, sets)
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.worker_mut(name)
    }

    fn try_join(&mut self, name: &str, network: &str, sets: &[&str]) -> anyhow::Result<()> {
        let (host, addr) = match self.layout {
            Layout::Spread => {
                if !self.hosts.contains_key(name) {
                    self.prepare_host(name)?;
                }
                (self.host(name).clone(), self.addr(name))
            }
            Layout::Single => (self.host("core").clone(), self.addr("core")),
        };
        let mut cli = Cli::new()?.on(&host);
        if let Some(user) = &self.user {
            cli = cli.run_by(user)?;
        }
        let token = self
            .operator
            .token(&["--role", "worker", "--network", network]);
        let file = cli.file("join.token", &token)?;
        let worker = Worker {
            name: name.to_owned(),
            state_dir: cli.work("state"),
            cli,
            host,
            addr,
            shares_host: self.layout == Layout::Single,
            sets: sets.iter().map(|set| (*set).to_owned()).collect(),
            child: None,
        };
        let join = worker
            .agent("join")
            .arg("--token-file")
            .arg(file)
            .args(["--hostname", name]);
        join.run(USUAL)?.success().context("worker-agent join")?;
        self.workers.insert(name.to_owned(), worker);
        Ok(())
    }

    /// Makes a worker's host ahead of the worker, to start things on it.
    pub fn prepare_host(&mut self, name: &str) -> anyhow::Result<Host> {
        let number = u8::try_from(self.hosts.len()).context("a few hosts")?;
        let addr = Ipv4Addr::new(10, 90, 0, 9 + number);
        let host = self.lab.host_on(name, &self.mesh, addr)?;
        self.hosts.insert(name.to_owned(), (host.clone(), addr));
        Ok(host)
    }

    /// A worker by name.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn worker(&self, name: &str) -> &Worker {
        self.workers
            .get(name)
            .unwrap_or_else(|| panic!("no worker {name}"))
    }

    /// A worker by name, to change it.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn worker_mut(&mut self, name: &str) -> &mut Worker {
        self.workers
            .get_mut(name)
            .unwrap_or_else(|| panic!("no worker {name}"))
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

impl Worker {
    fn agent(&self, verb: &str) -> Spec {
        let spec = self
            .cli
            .product("worker-agent")
            .name(format!("{}-{verb}", self.name));
        let spec = spec.arg(verb).arg("--set");
        spec.arg(format!("state_dir={}", self.state_dir.display()))
    }

    /// Starts it, for the first time or again, and waits until it has a netmap.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn start(&mut self) {
        let mut spec = self.agent("run");
        if self.shares_host {
            // The usual ports can be had by one agent of a machine only.
            spec = spec.args(["--set", "wireguard.listen=0.0.0.0:0"]);
            spec = spec.args(["--set", "admin.listen=127.0.0.1:0"]);
        }
        for set in &self.sets {
            spec = spec.args(["--set", set]);
        }
        let child = spec.spawn().unwrap_or_else(|error| panic!("{error:#}"));
        child.wait_for_line(": ready ", START);
        self.child = Some(child);
    }

    /// Runs one of the agent's verbs.
    ///
    /// # Panics
    /// When it cannot be run.
    #[track_caller]
    pub fn run(&self, verb: &str, args: &[&str]) -> mesh_testkit::Finished {
        let spec = self.agent(verb).args(args);
        spec.run(USUAL).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Publishes a service of its loopback.
    #[track_caller]
    pub fn publish(&self, name: &str, port: u16) {
        self.run("publish", &[name, &port.to_string()])
            .expect_code(0);
    }

    /// What `worker-agent status --json` prints.
    pub fn status(&self) -> anyhow::Result<Value> {
        let ran = self.agent("status").arg("--json").run(USUAL)?.success()?;
        serde_json::from_str(&ran.stdout).with_context(|| format!("not JSON: {}", ran.stdout))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its address on the mesh hosts' segment.
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &std::path::Path {
        &self.state_dir
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn child(&self) -> &Child {
        self.child.as_ref().expect("the worker runs")
    }

    /// Takes its process away, to end it.
    ///
    /// # Panics
    /// When it does not run.
    pub fn take_child(&mut self) -> Child {
        self.child.take().expect("the worker runs")
    }
}

/// The overlay IPv4 address of a node, as the operator sees it.
///
/// # Panics
/// When there is no such node.
#[track_caller]
pub fn overlay_addr(cli: &Cli, network: &str, node: &str) -> Ipv4Addr {
    node_where(cli, network, |found| found["name"] == node)
}

/// The overlay IPv4 address of the first node of that role.
///
/// # Panics
/// When there is no such node.
#[track_caller]
pub fn overlay_addr_of_role(cli: &Cli, network: &str, role: &str) -> Ipv4Addr {
    node_where(cli, network, |found| found["role"] == role)
}

#[track_caller]
fn node_where(cli: &Cli, network: &str, wanted: impl Fn(&Value) -> bool) -> Ipv4Addr {
    let listed = cli.mesh_json(&["node", "list", "--network", network]);
    let nodes = listed["nodes"]
        .as_array()
        .unwrap_or_else(|| panic!("no nodes in {listed}"));
    let found = nodes.iter().find(|node| wanted(node));
    let addr = found
        .and_then(|node| node["addrs"][0].as_str())
        .and_then(|addr| addr.parse().ok());
    addr.unwrap_or_else(|| panic!("no such node with an overlay address in {listed}"))
}
