//! A mesh node: identity, control session, data plane, published services.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use mesh_api::model::node::NodeReport;
use mesh_tunnel::{Device, DeviceConfig, PathKind};
use mesh_types::{Netmap, NodeId, OverlayAddrs, Service, ServiceName};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::Instrument as _;

use crate::control::{ControlConfig, ControlSession, ControlStatus, LeaveError, span};
use crate::counters::Counters;
use crate::directory::Resolved;
use crate::driver::{Driver, Parts, UdpPort};
use crate::keeper;
use crate::netstack::{
    DialError, ListenError, Netstack, OverlayListener, OverlayStream, OverlayUdp, StackConfig,
};
use crate::publish::{PublishError, Published, Services};
use crate::random;
use crate::state_dir::{Enrolled, StateDir};
use crate::status::{NodeStatus, ShellStatus};
use crate::tun::{Tun, TunError};

mod config;
mod files;
mod shared;

pub use config::{NodeConfig, NotReady, RelayMode, StartError};
pub(crate) use shared::{RelayFigures, Shared, Snapshot};

use config::bind_all;
use files::Files;

/// A running mesh node; a cheap handle, all clones are the same node.
///
/// Its tasks end at [`Node::shutdown`], or when the last clone is dropped.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: NodeConfig,
    state: StateDir,
    shared: Arc<Shared>,
    stack: Netstack,
    services: Services,
    ports: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    driver: Mutex<Option<JoinHandle<()>>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("enrolled", self.enrolled())
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in [&self.driver, &self.keeper] {
            if let Some(task) = task.lock().unwrap_or_else(PoisonError::into_inner).take() {
                task.abort();
            }
        }
        self.stack.close();
    }
}

impl Node {
    /// Starts the node of this state directory: binds its UDP sockets, makes its TUN device when one
    /// is asked for, uses the stored netmap when there is one, and connects to the coordinator in
    /// the background.
    ///
    /// Needs a tokio runtime.
    pub fn start(config: NodeConfig, state: StateDir) -> Result<Self, StartError> {
        let sane = (4096..=64 << 20).contains(&config.socket_buffer)
            && config.socket_buffer * 2 <= config.socket_memory;
        if !sane {
            return Err(StartError::Buffers);
        }
        let ports = bind_all(&config.udp)?;
        let control = ControlSession::start(
            ControlConfig {
                coordinators: config.coordinators.clone(),
                version: config.version.clone(),
            },
            &state,
        )?;
        if control.enrolled().relay().is_some() {
            return Err(StartError::IsRelay);
        }
        let now = Instant::now();
        let wake = Arc::new(Notify::new());
        let seed = random::word().ok_or(StartError::Random)?;
        let stack_config = StackConfig {
            socket_buffer: config.socket_buffer,
            socket_memory: config.socket_memory,
            seed,
            ..StackConfig::default()
        };
        let mtu = u16::try_from(stack_config.mtu).unwrap_or(mesh_tunnel::DEFAULT_MTU);
        let stack = Netstack::new(stack_config, Arc::clone(&wake), now);
        let device = Device::new(
            DeviceConfig {
                wg_key: state.wg_key().clone(),
                disco_key: state.disco_key().clone(),
                mtu,
                seed: random::seed().ok_or(StartError::Random)?,
            },
            now,
        );
        let start = |name: &str| start_device(name, mtu, &control, now);
        let tun = config.tun.as_deref().map(start).transpose()?;
        let has_device = tun.is_some();
        let greet = control
            .stored()
            .map(|stored| stored.active.clone())
            .unwrap_or_default();
        let netmap = control.netmap();
        let control_status = control.status();
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(Shared {
            wake,
            counters: Arc::clone(&counters),
            drop_overlay: AtomicBool::new(false),
            relay_mode: config.relay,
            extra_endpoints: config.extra_endpoints.clone(),
            directory: watch::Sender::new(None),
            control,
            report: Mutex::new(NodeReport::default()),
            snapshot: RwLock::new(Snapshot {
                at: now,
                wall: SystemTime::now(),
                peers: HashMap::new(),
                relays: BTreeMap::new(),
                home: None,
                endpoints: Vec::new(),
                shell: ShellStatus::default(),
                drops: Vec::new(),
                udp_heard: None,
            }),
            started: SystemTime::now(),
            unsaved: Mutex::new(None),
            files: Files::default(),
            aside: Mutex::new(None),
        });
        let bound = ports.iter().map(UdpPort::local).collect();
        let (stop, stopped) = watch::channel(false);
        let driver = Driver::new(Parts {
            shared: Arc::clone(&shared),
            state: state.clone(),
            device,
            stack: stack.clone(),
            tun,
            ports,
            netmap: netmap.clone(),
            control: control_status,
            stop: stopped.clone(),
            greet,
        });
        let span = span(shared.control().enrolled());
        let keeper = keeper::run(Arc::clone(&shared), state.clone(), netmap, stopped);
        Ok(Self {
            inner: Arc::new(Inner {
                services: Services::new(stack.clone(), has_device, counters),
                config,
                state,
                shared,
                stack,
                ports: bound,
                stop,
                driver: Mutex::new(Some(tokio::spawn(driver.run().instrument(span.clone())))),
                keeper: Mutex::new(Some(tokio::spawn(keeper.instrument(span)))),
            }),
        })
    }

    /// Who this node is since its enrolment.
    pub fn enrolled(&self) -> &Enrolled {
        self.inner.shared.control.enrolled()
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &StateDir {
        &self.inner.state
    }

    /// Where its UDP sockets are bound.
    pub fn udp_addrs(&self) -> &[SocketAddr] {
        &self.inner.ports
    }

    /// Waits until a netmap, fresh or stored, is in force: from then on [`Node::dial`] works.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), NotReady> {
        let mut directory = self.inner.shared.directory.subscribe();
        let ready = directory.wait_for(Option::is_some);
        match tokio::time::timeout(limit, ready).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let reason = self
                    .inner
                    .shared
                    .control
                    .status()
                    .borrow()
                    .last_error
                    .clone();
                Err(NotReady {
                    after: limit,
                    reason,
                })
            }
        }
    }

    /// Waits until the control stream is open.
    pub async fn wait_connected(&self, limit: Duration) -> Result<(), NotReady> {
        let mut status = self.inner.shared.control.status();
        let connected = status.wait_for(ControlStatus::is_connected);
        let reached = matches!(tokio::time::timeout(limit, connected).await, Ok(Ok(_)));
        if reached {
            return Ok(());
        }
        let reason = status.borrow().last_error.clone();
        Err(NotReady {
            after: limit,
            reason,
        })
    }

    /// Opens a TCP connection over the overlay; `to` must be a peer's overlay address.
    ///
    /// The wait ends after the configured time; see [`Node::dial_timeout`].
    pub async fn dial(&self, to: SocketAddr) -> Result<OverlayStream, DialError> {
        let limit = Duration::from_millis(self.inner.config.dial_timeout_ms);
        self.dial_timeout(to, limit).await
    }

    /// The same with a time limit of its own.
    pub async fn dial_timeout(
        &self,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<OverlayStream, DialError> {
        let dialled = self.open(to, limit, None).await;
        dialled.map_err(|error| self.or_removed(error, DialError::Removed))
    }

    /// [`Node::dial`] for connections that a vanished peer must not keep waiting: this one is
    /// reset when nothing at all comes from the peer for `silence` (and a third of that longer
    /// while sent data was not acknowledged), until [`OverlayStream::outlast_silence`]. It is
    /// probed meanwhile, three times within `silence`.
    pub async fn dial_watched(
        &self,
        to: SocketAddr,
        silence: Duration,
    ) -> Result<OverlayStream, DialError> {
        let limit = Duration::from_millis(self.inner.config.dial_timeout_ms);
        let dialled = self.open(to, limit, Some(silence)).await;
        dialled.map_err(|error| self.or_removed(error, DialError::Removed))
    }

    async fn open(
        &self,
        to: SocketAddr,
        limit: Duration,
        silence: Option<Duration>,
    ) -> Result<OverlayStream, DialError> {
        let directory = self.inner.shared.directory.borrow().clone();
        let directory = directory.ok_or(DialError::NotReady)?;
        let node = directory.owner_of(to.ip()).ok_or(DialError::NotAPeer(to))?;
        if !directory.is_peer(to.ip()) {
            return Err(DialError::OwnAddress(to));
        }
        match self.inner.stack.open(to, limit, silence).await {
            Err(DialError::TimedOut { to, after, .. }) => {
                let reason = self.why_silent(node);
                Err(DialError::TimedOut { to, after, reason })
            }
            result => result,
        }
    }

    fn why_silent(&self, node: NodeId) -> &'static str {
        match self.inner.shared.peer(node) {
            None => "nothing is known of the way there",
            Some(stats) if stats.path == PathKind::None => {
                "no way there is known, neither directly nor by relay; is the node running?"
            }
            Some(stats) if stats.last_handshake.is_none() => {
                "the node's tunnel does not answer; is it running?"
            }
            Some(_) => "the node is there, but its packet filter or the service let it wait",
        }
    }

    /// Accepts TCP connections to `port` (0: any free one) of both overlay addresses.
    ///
    /// What the packet filter does not let in never gets here.
    pub fn listen(&self, port: u16) -> Result<OverlayListener, ListenError> {
        let listener = self.inner.stack.listen(port);
        listener.map_err(|error| self.or_removed(error, ListenError::Removed))
    }

    /// A UDP socket on `port` (0: any free one) of both overlay addresses.
    pub fn bind_udp(&self, port: u16) -> Result<OverlayUdp, ListenError> {
        let socket = self.inner.stack.bind_udp(port);
        socket.map_err(|error| self.or_removed(error, ListenError::Removed))
    }

    /// That the node was removed is why whatever it is asked for fails from then on.
    fn or_removed<E>(&self, error: E, removed: E) -> E {
        let control = self.control();
        let is_removed = control.borrow().is_removed();
        if is_removed { removed } else { error }
    }

    /// Publishes a service, in place of one of the same name, and tells the coordinator.
    pub fn publish(&self, published: Published) -> Result<(), PublishError> {
        let added = self.inner.services.add(published);
        added.map_err(|error| match error {
            PublishError::Listen(error) => self.or_removed(error, ListenError::Removed).into(),
            error => error,
        })?;
        self.report_services();
        Ok(())
    }

    /// Takes a service back; `false` when there was none of that name.
    pub fn unpublish(&self, name: &ServiceName) -> bool {
        let removed = self.inner.services.remove(name);
        if removed {
            self.report_services();
        }
        removed
    }

    /// What is published.
    pub fn published(&self) -> Vec<Service> {
        self.inner.services.list()
    }

    fn report_services(&self) {
        let services = self.inner.services.list();
        self.inner
            .shared
            .report(|report| report.services = services);
    }

    /// Tells the coordinator about this node, now and on every new stream. Endpoints, home relay
    /// and services are the node's own and are filled in here.
    pub fn report(&self, own: NodeReport) {
        self.inner.shared.report(|report| {
            let NodeReport {
                endpoints: _,
                home_relay: _,
                services: _,
                ssh_host_keys,
                ssh_user,
                ssh_via_loopback,
                derp,
                stun,
            } = own;
            report.ssh_host_keys = ssh_host_keys;
            report.ssh_user = ssh_user;
            report.ssh_via_loopback = ssh_via_loopback;
            report.derp = derp;
            report.stun = stun;
        });
    }

    /// The newest netmap, the stored one at first; `None` until there is any.
    pub fn netmap(&self) -> watch::Receiver<Option<Arc<Netmap>>> {
        self.inner.shared.control.netmap()
    }

    /// A name of this network: `<node>` or `<node>.<network>[.mesh.local]`. No DNS is asked.
    pub fn resolve(&self, name: &str) -> Option<Resolved> {
        self.inner.shared.directory.borrow().as_ref()?.resolve(name)
    }

    /// Whose overlay address this is.
    pub fn owner_of(&self, ip: IpAddr) -> Option<NodeId> {
        self.inner.shared.directory.borrow().as_ref()?.owner_of(ip)
    }

    /// Its overlay addresses; `None` before the first netmap of all.
    pub fn addrs(&self) -> Option<OverlayAddrs> {
        self.inner.stack.addrs()
    }

    /// The state of the control session.
    pub fn control(&self) -> watch::Receiver<ControlStatus> {
        self.inner.shared.control.status()
    }

    /// A channel to the coordinator with this node's certificate, for RPCs of its role.
    pub fn channel(&self) -> Channel {
        self.inner.shared.control.channel()
    }

    /// What the data plane counted.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.inner.shared.counters
    }

    /// Has the process's file descriptors counted now and then, so that the coordinator is told when
    /// hardly any are left. `count` gives those in use, and the most there may be.
    pub fn watch_files(&self, count: fn() -> (u64, u64)) {
        self.inner.shared.files.watch(count);
    }

    /// Whether hardly any file descriptors were left when they were counted last.
    pub fn is_low_on_files(&self) -> bool {
        self.inner.shared.files.is_low()
    }

    /// Throws away every packet of the overlay, both ways, while it is on: what a dead tunnel looks
    /// like, for tests. Handshakes and probes go on.
    pub fn set_overlay_drop(&self, on: bool) {
        self.inner.shared.drop_overlay.store(on, Ordering::Relaxed);
    }

    /// How the node is doing. Figures of the tunnel are at most 100 ms old while there is traffic.
    pub fn status(&self) -> NodeStatus {
        self.inner.shared.status(
            self.addrs(),
            self.inner.ports.first().map_or(0, SocketAddr::port),
            self.published(),
        )
    }

    /// Leaves the network for good: tells the coordinator, stops, and removes keys, certificates
    /// and netmap. When the coordinator cannot be told, nothing is removed.
    pub async fn leave(&self) -> Result<(), LeaveNetworkError> {
        self.inner.shared.control.leave().await?;
        self.shutdown().await;
        self.inner.state.wipe()?;
        Ok(())
    }

    /// Stops: no new connections, those that were given back may end (1 s), the rest is reset; the
    /// netmap is stored. Other clones see [`DialError::Closed`] from then on, or
    /// [`DialError::Removed`].
    pub async fn shutdown(&self) {
        self.inner.services.clear();
        self.inner.stop.send_replace(true);
        for task in [&self.inner.driver, &self.inner.keeper] {
            let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task {
                // A panic of the task was reported when it happened; it has ended either way.
                let _ended = task.await;
            }
        }
        self.inner.shared.control.shutdown().await;
    }
}

/// Makes the machine's device, with the node's addresses as far as they are known: those of the
/// last netmap. The next one may have others.
fn start_device(
    name: &str,
    mtu: u16,
    control: &ControlSession,
    now: Instant,
) -> Result<Tun, TunError> {
    let mut tun = Tun::open(name, mtu, now)?;
    let netmap = control.netmap().borrow().clone();
    let addrs = netmap.map(|netmap| netmap.node.addrs);
    if let Some(addrs) = addrs.or(control.enrolled().addrs) {
        tun.start(addrs, now)?;
    }
    Ok(tun)
}

/// A node could not leave its network.
#[derive(Debug, thiserror::Error)]
pub enum LeaveNetworkError {
    /// The coordinator could not be told.
    #[error(transparent)]
    Leave(#[from] LeaveError),
    /// The coordinator was told, but files are left.
    #[error(transparent)]
    Wipe(#[from] crate::state_dir::StateDirError),
}

/// Resolves when the node is to stop, or nobody holds it any more. Cancel-safe.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _stop = stop.wait_for(|stop| *stop).await;
}
