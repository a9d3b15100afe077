//! The roles of this process: started in order, stopped in reverse.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use mesh_api::context::{Context as CliContext, Contexts, DeployManager};
use mesh_daemon::{
    AdminConfig, AdminServer, BindError, Handles, Shutdown, ShutdownTrigger, Task, TaskEnd,
};
use mesh_node::{Enrolled, Node};
use mesh_trace::{Exporter, FLUSH};
use mesh_types::{NetworkName, NodeName, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;
use traffic_gateway::server::ListenError;

use super::GRACE;
use super::joining::Joiner;
use super::networks::Members;
use super::report::{Facts, NodeFacts};
use crate::args::UpArgs;
use crate::commands::first_operator;

/// The context that `mesh up` writes and makes the current one.
const CONTEXT: &str = "up";
/// The demo's workers.
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];

/// One running role.
#[derive(Debug)]
pub(super) struct RunningRole {
    name: String,
    trigger: ShutdownTrigger,
    task: Task,
}

/// Everything that runs, in the order it was started.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) roles: Vec<RunningRole>,
    /// Owned so that it ends with this process.
    networks: Task,
    traces: Exporter,
    pub(super) facts: Parts,
}

/// What is known of what runs.
#[derive(Debug)]
pub(super) struct Parts {
    handles: Handles,
    state_dir: PathBuf,
    coordinator: SocketAddr,
    relay: RelayAddrs,
    gateway: GatewayFacts,
    deploy: DeployFacts,
    admin: Option<SocketAddr>,
    workers: Vec<(Enrolled, Node, PathBuf)>,
}

#[derive(Debug)]
struct RelayAddrs {
    derp: SocketAddr,
    stun: SocketAddr,
}

#[derive(Debug)]
struct GatewayFacts {
    addr: SocketAddr,
    url: String,
    enrolled: Enrolled,
    node: Node,
    state: PathBuf,
}

#[derive(Debug)]
struct DeployFacts {
    grpc: SocketAddr,
    networks: deploy_manager::Networks,
    enrolled: Enrolled,
    state: PathBuf,
}

impl Running {
    /// Starts every role. What started is stopped again when a later one fails.
    pub(super) async fn start(args: &UpArgs, state_dir: &Path) -> Result<Self> {
        let handles = Handles {
            program: "mesh",
            ..Handles::default()
        };
        let traces = Exporter::from_env()?;
        let bind = Bind::of(args);
        let mut roles = Vec::new();
        let default = NetworkName::default_network();

        let coordinator = start_coordinator(
            args,
            &bind,
            state_dir,
            traced(&handles, &traces, "coordinator", "coordinator")?,
            &mut roles,
        )
        .await?;
        let mut context = first_operator(&coordinator.operator)?;
        let joiner = Joiner::new(
            context
                .coordinator()
                .await
                .context("reach our coordinator")?,
        );

        let relay = start_relay(args, &bind, state_dir, &joiner, &handles, &mut roles).await?;
        let members = Members {
            joiner: joiner.clone(),
            gateway: state_dir.join("traffic-gateway"),
            deploy_manager: state_dir.join("deploy-manager"),
        };
        members.join_all().await?;
        let gateway = start_gateway(
            args,
            &bind,
            &members,
            traced(&handles, &traces, "traffic-gateway", "traffic-gateway")?,
            &mut roles,
        )
        .await?;
        let deploy = start_deploy_manager(
            args,
            &bind,
            &members,
            traced(&handles, &traces, "deploy-manager", "deploy-manager")?,
            &mut roles,
        )
        .await?;
        let mut workers = Vec::new();
        for name in WORKERS.iter().filter(|_| args.demo) {
            let dir = state_dir.join("demo").join(name);
            let enrolled = joiner.join(&dir, Role::Worker, &default, name).await?;
            let part = traced(&handles, &traces, "worker-agent", name)?;
            let node = start_worker(&dir, name, part, &mut roles).await?;
            workers.push((enrolled, node, dir));
        }
        let admin = start_admin(args, &handles, &mut roles)?;

        context.gateway = Some(gateway.url.clone());
        context.deploy = Some(DeployManager {
            addr: deploy.grpc.to_string(),
            node: deploy.enrolled.node,
        });
        for (network, opened) in deploy.networks.borrow().iter() {
            context
                .socks
                .insert(network.to_string(), opened.socks.to_string());
        }
        save_context(&context)?;
        let networks = Task::spawn(
            "networks",
            keep_context(members.clone(), context, deploy.networks.clone()),
        );
        let facts = Parts {
            handles,
            state_dir: state_dir.to_owned(),
            coordinator: coordinator.addr,
            relay,
            gateway,
            deploy,
            admin,
            workers,
        };
        Ok(Self {
            roles,
            networks,
            traces,
            facts,
        })
    }

    /// Stops what depends on others first; `grace` bounds each role's drain.
    pub(super) async fn stop(mut self, grace: Duration) {
        self.networks.abort();
        while let Some(mut role) = self.roles.pop() {
            role.trigger.trigger("mesh up is stopping");
            if tokio::time::timeout(grace, role.task.finished())
                .await
                .is_err()
            {
                tracing::info!(role = role.name, "did not finish in time and is cut");
            }
        }
        self.traces.shutdown(FLUSH).await;
    }
}

/// Resolves when a role ends although nobody asked it to.
pub(super) async fn failed(roles: &mut [RunningRole]) -> anyhow::Error {
    let ends = roles.iter_mut().map(|role| {
        Box::pin(async {
            let end = role.task.finished().await;
            anyhow!("{} ended: {}", role.name, describe(&end))
        })
    });
    futures_util::future::select_all(ends).await.0
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

fn describe(end: &TaskEnd) -> String {
    match end {
        TaskEnd::Completed => "without a reason".to_owned(),
        TaskEnd::Failed(error) => error.clone(),
        TaskEnd::Panicked(text) => format!("it panicked: {text}"),
        TaskEnd::Aborted => "it was aborted".to_owned(),
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

/// Where the roles listen: loopback only, unless other machines are to reach this one.
#[derive(Debug)]
struct Bind {
    ip: IpAddr,
    advertise: Option<String>,
}

impl Bind {
    fn of(args: &UpArgs) -> Self {
        let ip = match args.advertise {
            Some(_) => Ipv4Addr::UNSPECIFIED,
            None => Ipv4Addr::LOCALHOST,
        };
        Self {
            ip: ip.into(),
            advertise: args.advertise.clone(),
        }
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// `host:port` as others say it.
    fn shown(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            Some(host) => format!("{host}:{}", bound.port()),
            None => bound.to_string(),
        }
    }
}

/// A role that did not start. When a port was taken, the flag of `mesh up` that moves it is named
/// in place of the flag that the role has as a program of its own.
fn not_started(name: &str, flags: &[(&str, u16)], mut error: anyhow::Error) -> anyhow::Error {
    if let Some(bind) = error.downcast_mut::<BindError>() {
        let port = bind.addr.port();
        if let Some((flag, _)) = flags.iter().find(|(_, asked)| *asked == port) {
            bind.flag = (*flag).to_owned();
        }
    }
    error.context(format!("start the {name}"))
}

/// Starts a role's task under a shutdown of its own.
fn spawn<F>(roles: &mut Vec<RunningRole>, name: &str, run: impl FnOnce(Shutdown) -> F)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (trigger, shutdown) = ShutdownTrigger::new(GRACE);
    let task = Task::spawn("role", run(shutdown));
    roles.push(RunningRole {
        name: name.to_owned(),
        trigger,
        task,
    });
}

/// What a role of this process is handed: its own part of the figures, and spans under the name of
/// its own program.
fn traced(
    handles: &Handles,
    traces: &Exporter,
    program: &'static str,
    part: &str,
) -> Result<Handles> {
    Ok(handles.scoped(part).traced(traces.tracer(program, part)?))
}

#[derive(Debug)]
struct StartedCoordinator {
    addr: SocketAddr,
    operator: coordinator::OperatorFiles,
}

async fn start_coordinator(
    args: &UpArgs,
    bind: &Bind,
    state_dir: &Path,
    handles: Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<StartedCoordinator> {
    let mut config = coordinator::Config {
        state_dir: state_dir.join("coordinator"),
        ..Default::default()
    };
    config.server.listen = bind.at(args.coordinator_port);
    if let Some(host) = &bind.advertise {
        config.server.advertise = vec![format!("{host}:{}", args.coordinator_port)];
    }
    config.admin = None;
    let app = coordinator::App::build(config, handles)
        .await
        .map_err(|error| {
            let flags = [("--coordinator-port", args.coordinator_port)];
            not_started("coordinator", &flags, error)
        })?;
    let started = StartedCoordinator {
        addr: app.local_addr(),
        operator: app.operator()?,
    };
    spawn(roles, "coordinator", |shutdown| app.run(shutdown));
    Ok(started)
}

async fn start_relay(
    args: &UpArgs,
    bind: &Bind,
    state_dir: &Path,
    joiner: &Joiner,
    handles: &Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<RelayAddrs> {
    let dir = state_dir.join("relay");
    joiner
        .join(&dir, Role::Relay, &NetworkName::default_network(), "relay")
        .await?;
    let mut config = relay::Config {
        state_dir: dir,
        ..Default::default()
    };
    config.server.listen = bind.at(args.relay_port);
    config.stun.listen = bind.at(args.stun_port);
    config.advertise.host = bind.advertise.clone();
    config.admin = None;
    let app = relay::App::build(config, handles.scoped("relay"))
        .await
        .context("start the relay")?;
    let addrs = RelayAddrs {
        derp: app.derp_addr(),
        stun: app.stun_addr(),
    };
    spawn(roles, "relay", |shutdown| app.run(shutdown));
    Ok(addrs)
}

async fn start_gateway(
    args: &UpArgs,
    bind: &Bind,
    members: &Members,
    handles: Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<GatewayFacts> {
    let default = NetworkName::default_network();
    let mut config = traffic_gateway::Config {
        state_dir: members.gateway.clone(),
        ..Default::default()
    };
    config.server.listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), args.gateway_port);
    config.wireguard.listen = vec![bind.at(args.wg_port)];
    config.admin = None;
    let state = members.gateway.join(format!("network-{default}"));
    let enrolled = enrolment(&state)?;
    let app = traffic_gateway::App::build(config, handles)
        .await
        .map_err(|error| {
            let error = match error.downcast::<ListenError>() {
                Ok(ListenError::Bind(bind)) => bind.into(),
                Ok(other) => other.into(),
                Err(error) => error,
            };
            let flags = [
                ("--gateway-port", args.gateway_port),
                ("--wg-port", args.wg_port),
            ];
            not_started("traffic-gateway", &flags, error)
        })?;
    let node = app
        .node(&default)
        .context("the gateway has no default network")?;
    let facts = GatewayFacts {
        addr: app.local_addr(),
        url: format!("{}/", app.url().trim_end_matches('/')),
        enrolled,
        node,
        state,
    };
    spawn(roles, "traffic-gateway", |shutdown| app.run(shutdown));
    Ok(facts)
}

async fn start_deploy_manager(
    args: &UpArgs,
    bind: &Bind,
    members: &Members,
    handles: Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<DeployFacts> {
    let default = NetworkName::default_network();
    let mut config = deploy_manager::Config {
        state_dir: members.deploy_manager.clone(),
        ..Default::default()
    };
    let loopback = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    config.server.listen = loopback(args.deploy_port);
    config.socks.listen = loopback(args.socks_port);
    config.wireguard.listen = vec![bind.at(0)];
    config.admin = None;
    let state = members.deploy_manager.join(format!("network-{default}"));
    let enrolled = enrolment(&state)?;
    let app = deploy_manager::App::build(config, handles)
        .await
        .map_err(|error| {
            let flags = [
                ("--deploy-port", args.deploy_port),
                ("--socks-port", args.socks_port),
            ];
            not_started("deploy-manager", &flags, error)
        })?;
    let facts = DeployFacts {
        grpc: app.grpc_addr(),
        networks: app.networks(),
        enrolled,
        state,
    };
    spawn(roles, "deploy-manager", |shutdown| app.run(shutdown));
    Ok(facts)
}

async fn start_worker(
    dir: &Path,
    name: &str,
    handles: Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<Node> {
    let mut config = worker_agent::Config {
        state_dir: Some(dir.to_owned()),
        admin: None,
        ..Default::default()
    };
    config.wireguard.listen = vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)];
    // The demo's workers are this machine: they show their own page, not its Cockpit.
    config.console.mode = worker_agent::config::ConsoleMode::Page;
    let app = worker_agent::App::build(config, handles)
        .await
        .with_context(|| format!("start {name}"))?;
    let node = app.node().clone();
    spawn(roles, name, |shutdown| app.run(shutdown));
    Ok(node)
}

fn start_admin(
    args: &UpArgs,
    handles: &Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<Option<SocketAddr>> {
    let server =
        AdminServer::bind(&AdminConfig::at(args.admin_port), handles.clone()).map_err(|error| {
            not_started(
                "health endpoint",
                &[("--admin-port", args.admin_port)],
                error.into(),
            )
        })?;
    let bound = server.local_addr();
    spawn(roles, "health endpoint", |shutdown| async move {
        Ok(server.run(shutdown).await?)
    });
    Ok(Some(bound))
}

/// Who an identity is, from its directory, before a role locks it.
fn enrolment(state: &Path) -> Result<Enrolled> {
    let dir = mesh_node::StateDir::open(state)?;
    dir.enrolment()?
        .with_context(|| format!("{} is not enrolled", state.display()))
}

fn save_context(context: &CliContext) -> Result<()> {
    Contexts::of_user()?
        .save(CONTEXT, context, true)
        .context("write the context of this mesh")
}

/// Joins networks as they are made, and keeps the context's SOCKS addresses up to date.
async fn keep_context(
    members: Members,
    mut context: CliContext,
    mut networks: deploy_manager::Networks,
) -> Result<()> {
    let _follow = Task::spawn("follow networks", members.follow());
    while networks.changed().await.is_ok() {
        let socks = networks
            .borrow_and_update()
            .iter()
            .map(|(network, opened)| (network.to_string(), opened.socks.to_string()))
            .collect();
        if context.socks != socks {
            context.socks = socks;
            save_context(&context)?;
        }
    }
    Ok(())
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
