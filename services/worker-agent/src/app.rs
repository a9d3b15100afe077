//! The running agent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_daemon::{AdminServer, Handles, Latch, Shutdown, Tasks, build_info, report};
use mesh_node::{
    ControlState, ControlStatus, Enrolled, Node, NodeConfig, Published, StateDir, Target,
};
use mesh_types::route::console_prefix;
use mesh_types::service::CONSOLE_PORT;
use mesh_types::{Netmap, NetworkName, Service, ServiceKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::config::{Config, SshConfig, SshMode};
use crate::console::{self, Console};
use crate::join::{is_joined, other_program};
use crate::local::{self, Answer, Asked, LocalSocket, Request};
use crate::services::{self, Services, on_loopback};
use crate::ssh::{self, Ssh};
use crate::status::{AgentStatus, ConsoleStatus, SCHEMA, SshStatus};
use crate::{metrics, page};

/// Files that the agent keeps beside its identity; `leave` removes them.
const OWN_FILES: [&str; 2] = ["services.json", "ssh_host_ed25519_key"];
/// How often a missing host key of sshd is asked for again.
const HOST_KEY_RETRY: Duration = Duration::from_secs(10);
/// How often a known one is looked at again.
const HOST_KEY_RECHECK: Duration = Duration::from_secs(300);
/// How long leaving may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

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
        if !is_joined(&dir) {
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
        let node = Node::start(
            NodeConfig {
                udp: config.wireguard.listen.clone(),
                coordinators: config.coordinators.clone(),
                extra_endpoints: config.wireguard.endpoints.clone(),
                relay: config.wireguard.relay,
                version: build_info::VERSION.to_owned(),
                ..NodeConfig::default()
            },
            state.clone(),
        )?;
        metrics::register(&handles.metrics, node.counters());
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
        agent.publish_console(handler)?;
        tasks.spawn("console", Arc::clone(&console).serve(connections));
        // Without Cockpit to look for there is nothing to watch.
        if self.config.console.mode != crate::config::ConsoleMode::Page {
            tasks.spawn("console watch", console.watch());
        }
        let (published, served) = self.ssh.publish();
        if let Some(published) = published {
            agent.node.publish(published)?;
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

/// What the main loop listens to.
struct Loops {
    asked: mpsc::Receiver<Asked>,
    facts: watch::Sender<page::Facts>,
    latch: Latch,
    ssh: SshConfig,
}

/// Why the main loop ended.
enum Ended {
    Shutdown,
    Left(oneshot::Sender<Answer>),
}

/// The one owner of what the agent serves.
struct Agent {
    node: Node,
    state: StateDir,
    services: Services,
    ssh_mode: SshMode,
    ssh: ssh::Facts,
    console: watch::Receiver<console::ConsoleState>,
}

impl Agent {
    async fn run(
        &mut self,
        mut loops: Loops,
        tasks: &mut Tasks,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Ended> {
        let mut netmap = self.node.netmap();
        let mut control = self.node.control();
        let mut ready = false;
        let mut removed = false;
        let mut next_look = Instant::now() + HOST_KEY_RETRY;
        netmap.mark_changed();
        control.mark_changed();
        loop {
            tokio::select! {
                () = shutdown.draining() => return Ok(Ended::Shutdown),
                asked = loops.asked.recv() => {
                    let Some((request, reply)) = asked else { anyhow::bail!("the control socket ended") };
                    if let Request::Leave { force } = request {
                        match self.leave(force).await {
                            Ok(()) => return Ok(Ended::Left(reply)),
                            Err(answer) => drop(reply.send(answer)),
                        }
                    } else {
                        // Whoever asked may have gone meanwhile.
                        drop(reply.send(self.answer(request)));
                    }
                }
                changed = netmap.changed(), if !removed => {
                    ended_unless_removed(changed, &control)?;
                    let known = netmap.borrow_and_update().is_some();
                    loops.facts.send_replace(facts(self.node.enrolled(), &self.node));
                    if known && !ready {
                        ready = true;
                        loops.latch.ready();
                        let enrolled = self.node.enrolled();
                        tracing::info!(name = %enrolled.name, node = %enrolled.node, "ready");
                    }
                }
                changed = control.changed(), if !removed => {
                    ended_unless_removed(changed, &control)?;
                    let status = control.borrow_and_update().clone();
                    loops.facts.send_replace(facts(self.node.enrolled(), &self.node));
                    if status.is_removed() && !removed {
                        removed = true;
                        self.withdraw();
                        loops.latch.not_ready("removed from the network");
                        tracing::info!("removed from the network by an operator; to join again, run 'worker-agent leave' and 'worker-agent join'");
                    }
                }
                () = sleep_until(next_look), if self.ssh_mode == SshMode::Sshd && !removed => {
                    self.ask_host_key(&loops.ssh).await;
                    next_look = Instant::now() + self.host_key_pause(&loops.ssh);
                }
                // A removed node serves nothing, and what served it ends; so do some parts at a
                // shutdown, ahead of this loop.
                (name, end) = tasks.next_end(), if !removed => {
                    if shutdown.is_draining() {
                        return Ok(Ended::Shutdown);
                    }
                    anyhow::bail!("{name} ended: {end:?}")
                }
            }
        }
    }

    fn publish_console(
        &self,
        handler: mpsc::Sender<(mesh_node::OverlayStream, SocketAddr)>,
    ) -> anyhow::Result<()> {
        let service = Service {
            name: "console".parse().expect("a label"),
            kind: ServiceKind::Console,
            port: CONSOLE_PORT,
        };
        self.node.publish(Published {
            service,
            target: Target::Handler(handler),
        })?;
        Ok(())
    }

    fn publish_services(&self) {
        for service in self.services.iter() {
            if let Err(error) = self.node.publish(on_loopback(service.clone())) {
                let error = report::chain(&error);
                tracing::warn!(service = %service.name, error, "a service cannot be published");
            }
        }
    }

    /// Nothing is served any more: the node is nobody's peer now.
    fn withdraw(&self) {
        for service in self.node.published() {
            self.node.unpublish(&service.name);
        }
    }

    /// A key that is not known yet is looked for often; one that may have changed too where that
    /// means reading a file, and seldom where it means a line in sshd's log.
    fn host_key_pause(&self, config: &SshConfig) -> Duration {
        if self.ssh.host_keys.is_empty() || !config.host_keys.is_empty() {
            HOST_KEY_RETRY
        } else {
            HOST_KEY_RECHECK
        }
    }

    async fn ask_host_key(&mut self, config: &SshConfig) {
        match ssh::sshd_keys(config).await {
            Ok(keys) if !keys.is_empty() && keys != self.ssh.host_keys => {
                tracing::info!(addr = %config.sshd_addr, "reporting sshd's host keys");
                self.ssh.host_keys = keys;
                self.node.report(self.ssh.report());
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(error = report::chain(&error), "no host key of sshd"),
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Publish { service } => self.publish(service),
            Request::Unpublish { name } => {
                let mut services = self.services.clone();
                let stored = services
                    .remove(&name)
                    .and_then(|()| services.store(&self.state));
                match stored {
                    Ok(()) => {
                        self.services = services;
                        self.node.unpublish(&name);
                        Answer::Done
                    }
                    Err(error) => refused(error),
                }
            }
            Request::Leave { .. } => refused(Unanswerable),
        }
    }

    fn publish(&mut self, service: Service) -> Answer {
        let mut services = self.services.clone();
        if let Err(error) = services.add(service.clone()) {
            return refused(error);
        }
        if let Err(error) = self.node.publish(on_loopback(service)) {
            return refused(error);
        }
        if let Err(error) = services.store(&self.state) {
            return refused(error);
        }
        self.services = services;
        Answer::Done
    }

    /// Tells the coordinator; `force` leaves without it.
    async fn leave(&self, force: bool) -> Result<(), Answer> {
        let removed = self.node.control().borrow().is_removed();
        if removed {
            return Ok(());
        }
        let told = tokio::time::timeout(LEAVE_LIMIT, self.node.leave()).await;
        match told {
            Ok(Ok(())) => Ok(()),
            _ if force => Ok(()),
            Ok(Err(error)) => Err(refused(Leaving(error.into()))),
            Err(_) => Err(refused(Unanswered)),
        }
    }

    fn status(&self) -> AgentStatus {
        let netmap = self.node.netmap().borrow().clone();
        let node = netmap.as_deref().map(|netmap: &Netmap| &netmap.node);
        AgentStatus {
            schema: SCHEMA.to_owned(),
            version: build_info::VERSION.to_owned(),
            node: self.node.status(),
            console: ConsoleStatus {
                state: *self.console.borrow(),
                prefix: node
                    .map_or(&self.node.enrolled().console_prefix, |n| &n.console_prefix)
                    .clone(),
            },
            ssh: SshStatus {
                mode: self.ssh_mode,
                host_keys: self.ssh.host_keys.clone(),
                user: self.ssh.user.clone(),
                authority: node.map(|node| node.ssh_ca.clone()).unwrap_or_default(),
            },
        }
    }
}

/// A node that was removed ends of itself; any other end is a fault.
fn ended_unless_removed(
    changed: Result<(), watch::error::RecvError>,
    control: &watch::Receiver<ControlStatus>,
) -> anyhow::Result<()> {
    match changed {
        Err(error) if !control.borrow().is_removed() => Err(error).context("the node ended"),
        _ => Ok(()),
    }
}

/// `leave` is answered by the main loop alone.
#[derive(Debug, thiserror::Error)]
#[error("this request is not for here")]
struct Unanswerable;

/// The coordinator could not be told.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator was not told; 'worker-agent leave --force' leaves without it")]
struct Leaving(#[source] Box<dyn std::error::Error + Send + Sync>);

/// The coordinator did not answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "the coordinator does not answer; 'worker-agent leave --force' leaves without it, and an operator removes the node with 'mesh node remove'"
)]
struct Unanswered;

fn refused(error: impl std::error::Error + 'static) -> Answer {
    Answer::Refused {
        message: report::chain(&error),
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
