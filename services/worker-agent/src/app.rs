//! The running agent.

mod agent;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_daemon::{AdminServer, Handles, Latch, Shutdown, Tasks, build_info};
use mesh_node::{
    ControlState, ControlStatus, Enrolled, Node, NodeConfig, OverlayStream, Published, StateDir,
    Target, tun,
};
use mesh_types::route::console_prefix;
use mesh_types::service::CONSOLE_PORT;
use mesh_types::{NetworkName, Service, ServiceKind};
use tokio::sync::{mpsc, watch};

use self::agent::{Agent, Ended, Loops, refused};
use crate::config::Config;
use crate::console::{self, Console};
use crate::join::other_program;
use crate::local::{self, Answer, LocalSocket, Request};
use crate::services::{self, Services};
use crate::ssh::{self, Ssh};
use crate::{metrics, page};

/// Files that the agent keeps beside its identity; `leave` removes them.
const OWN_FILES: [&str; 2] = ["services.json", "ssh_host_ed25519_key"];

/// How long the device of an agent that was killed may take to go.
const DEVICE_LIMIT: Duration = Duration::from_secs(2);

/// An agent that is ready to run: identity open, WireGuard and control socket bound.
pub struct App {
    config: Config,
    state: StateDir,
    enrolled: Enrolled,
    node: Node,
    services: Services,
    ssh: Ssh,
    ssh_facts: ssh::Facts,
    socket: LocalSocket,
    socket_path: PathBuf,
    admin: Option<AdminServer>,
    latch: Latch,
    coordinator: Latch,
    tracer: mesh_trace::Tracer,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("node", &self.enrolled.node)
            .field("state_dir", &self.state.path())
            .finish_non_exhaustive()
    }
}

impl App {
    /// Opens the identity, starts the node and binds everything.
    ///
    /// # Errors
    ///
    /// The machine has not joined; the state directory is in use, damaged or somebody else's; a
    /// port is taken. The text says what to do.
    pub async fn build(config: Config, handles: Handles) -> anyhow::Result<Self> {
        let dir = config.state_dir();
        if !StateDir::is_enrolled_at(&dir)? {
            anyhow::bail!(
                "this machine has not joined a network (no identity in {}): get a token with \
                 'mesh token create --role worker', then run 'worker-agent join --token-file FILE'",
                dir.display()
            );
        }
        let latch = handles.readiness.latch("netmap", "no netmap yet");
        let coordinator = handles.readiness.latch("coordinator", "not tried yet");
        let state = local::open_for_running(&dir).await?;
        // Bound at once, so that whoever asks from now on waits for this agent.
        let socket = LocalSocket::bind(&dir).context("bind the control socket agent.sock")?;
        let enrolled = state
            .enrolment()?
            .context("the identity is incomplete: join again")?;
        if let Some(program) = other_program(enrolled.role) {
            anyhow::bail!(
                "{} belongs to a node of the role {}: run {program} with it",
                dir.display(),
                enrolled.role
            );
        }
        let services = Services::load(&state)?;
        let ssh = Ssh::prepare(
            &config.ssh,
            &state,
            enrolled.name.to_string(),
            handles.tracer.clone(),
        )
        .await?;
        let admin = config
            .admin
            .as_ref()
            .map(|admin| AdminServer::bind(admin, handles.clone()));
        let admin = admin.transpose()?;
        if let Some(device) = config.device() {
            tun::wait_until_free(device, DEVICE_LIMIT).await;
        }
        let node = Node::start(
            NodeConfig {
                tun: config.device().map(str::to_owned),
                udp: config.wireguard.listen.clone(),
                coordinators: config.coordinators.clone(),
                extra_endpoints: config.wireguard.endpoints.clone(),
                relay: config.wireguard.relay,
                version: build_info::VERSION.to_owned(),
                ..NodeConfig::default()
            },
            state.clone(),
        )?;
        node.watch_files(mesh_daemon::open_files);
        metrics::register(&handles.metrics, node.counters(), node.control());
        for addr in node.udp_addrs() {
            tracing::info!(%addr, "WireGuard");
        }
        Ok(Self {
            state,
            enrolled,
            node,
            services,
            ssh_facts: ssh.facts(),
            ssh,
            socket_path: socket.path().to_owned(),
            socket,
            admin,
            latch,
            coordinator,
            tracer: handles.tracer,
            config,
        })
    }

    /// Who this node is.
    pub fn enrolled(&self) -> &Enrolled {
        &self.enrolled
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where the admin endpoint listens.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(AdminServer::local_addr)
    }

    /// The local control socket.
    pub fn socket_path(&self) -> &Path {
        &self.socket_path
    }

    /// Serves until the shutdown begins, or the machine leaves its network.
    ///
    /// # Errors
    ///
    /// A part of the agent ended that must not.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut tasks = Tasks::new();
        let netmap = self.node.netmap();
        let trouble = move |status: &ControlStatus| {
            status.trouble(netmap.borrow().is_some().then_some("the netmap"))
        };
        // It ends when the node is removed, which is no fault of the agent's.
        let _coordinator = mesh_daemon::Task::spawn(
            "coordinator latch",
            self.coordinator.follow(self.node.control(), trouble),
        );
        let (facts, facts_seen) = watch::channel(facts(&self.enrolled, &self.node));
        let console = Arc::new(Console::new(&self.config.console, facts_seen, self.tracer));
        console.look().await;
        let mut agent = Agent {
            state: self.state,
            services: self.services,
            ssh_mode: self.config.ssh.mode,
            ssh: self.ssh_facts,
            console: console.state(),
            node: self.node,
        };

        let (handler, connections) = mpsc::channel(console::QUEUE);
        agent.serve(console_on(handler))?;
        tasks.spawn("console", Arc::clone(&console).serve(connections));
        // Without Cockpit to look for there is nothing to watch.
        if self.config.console.mode != crate::config::ConsoleMode::Page {
            tasks.spawn("console watch", console.watch());
        }
        let (published, served) = self.ssh.publish();
        if let Some(published) = published {
            agent.serve(published)?;
        }
        if let Some((server, connections)) = served {
            tasks.spawn("SSH", ssh::serve(server, connections, agent.node.clone()));
        }
        agent.publish_services();
        agent.node.report(agent.ssh.report());

        let (requests, asked) = mpsc::channel(local::QUEUE);
        let socket = mesh_daemon::Task::spawn("control socket", self.socket.serve(requests));
        if let Some(admin) = self.admin {
            tasks.spawn("admin", admin.run(shutdown.clone()));
        }
        let loops = Loops {
            asked,
            facts,
            latch: self.latch,
            ssh: self.config.ssh,
        };
        let ended = agent.run(loops, &mut tasks, &shutdown).await;

        tasks.abort_all();
        let node = agent.node;
        node.shutdown().await;
        if let Ok(Ended::Left(reply)) = ended {
            let answer = wipe(&agent.state).map_or_else(refused, |()| Answer::Done);
            tracing::info!("left the network");
            // The asker may be gone; the machine has left all the same.
            drop(reply.send(answer));
            let mut socket = socket;
            socket.finished().await;
            return Ok(());
        }
        ended.map(drop)
    }
}

/// The console as it is published.
fn console_on(handler: mpsc::Sender<(OverlayStream, SocketAddr)>) -> Published {
    let service = Service {
        name: "console".parse().expect("a label"),
        kind: ServiceKind::Console,
        port: CONSOLE_PORT,
    };
    Published {
        service,
        target: Target::Handler(handler),
    }
}

/// Removes the identity and everything that belonged to it.
pub(crate) fn wipe(state: &StateDir) -> Result<(), mesh_node::StateDirError> {
    state.wipe()?;
    for file in OWN_FILES {
        match std::fs::remove_file(state.path().join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(%error, file, "not removed");
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the agent's page tells.
fn facts(enrolled: &Enrolled, node: &Node) -> page::Facts {
    let netmap = node.netmap().borrow().clone();
    let own = netmap.as_deref().map(|netmap| &netmap.node);
    let control: ControlStatus = node.control().borrow().clone();
    let network = own
        .map(|own| own.network_name.clone())
        .or_else(|| enrolled.network.clone());
    let network = network.unwrap_or_else(NetworkName::default_network);
    let name = own.map_or(&enrolled.name, |own| &own.name).clone();
    page::Facts {
        prefix: own.map_or_else(
            || console_prefix(&network, &name),
            |own| own.console_prefix.clone(),
        ),
        id: enrolled.node,
        addrs: own.map(|own| own.addrs).or(enrolled.addrs),
        online: control.state == ControlState::Connected,
        version: build_info::VERSION,
        network,
        name,
    }
}

/// What a stopped agent would publish: changes the list without it.
pub(crate) fn change_services(
    state: &StateDir,
    request: &Request,
) -> Result<(), services::ServicesError> {
    let mut services = Services::load(state)?;
    match request {
        Request::Publish { service } => services.add(service.clone())?,
        Request::Unpublish { name } => services.remove(name)?,
        Request::Status | Request::Leave { .. } => return Ok(()),
    }
    services.store(state)
}
