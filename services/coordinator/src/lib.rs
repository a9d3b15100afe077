//! The control plane: networks, join tokens, identities, netmaps, presence, events.
//!
//! One TLS port serves gRPC to nodes, relays and operators, and HTTPS to probes. Entry points:
//! [`App::build`] opens the state directory (making the certificate authority at first start) and
//! binds the listeners, [`App::run`] serves until shutdown.
//!
//! Inside: `grpc → app → {netmap, store, members}`. `store` alone speaks SQL, `netmap` owns the
//! engine, `app` holds the use-cases and the only transactions.
//!
//! What it does not: it carries no packets, dials no node, and keeps no private key of anybody but
//! its own authorities.

mod app;
mod bus;
mod ca;
mod caller;
mod clock;
mod config;
pub mod database;
mod error;
mod grpc;
pub mod grpc_message;
mod http_pages;
mod known;
mod kubernetes;
mod latches;
mod members;
mod metrics;
mod netmap;
mod rate;
mod record;
mod seal;
mod serve;
mod store;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_daemon::{
    AdminServer, GrpcCalls, Handles, Latch, Shutdown, Task, Tasks, bind_tcp,
    read_private_of_service,
};
use mesh_netmap::Event;
use mesh_types::OperatorId;
use tokio::sync::mpsc;

pub use crate::clock::{Clock, ManualClock, SystemClock};
pub use crate::config::{
    BusConfig, BusTls, Config, LimitsConfig, OverlayConfig, ServerConfig, StoreConfig, StoreTls,
};
pub use crate::error::REASON_KEY;
pub use crate::kubernetes::{
    ACCOUNT_DIR, NODES_NAMESPACE, PublishError, PublishOptions, Published, publish_secrets,
};
pub use crate::rate::RateConfig;

use crate::app::Core;
use crate::app::bootstrap::{Opened, open, operator_dir};
pub use crate::app::provision::{ProvisionOptions, Provisioned, ProvisionedToken};
use crate::grpc::Grpc;
use crate::grpc::auth;
use crate::grpc_message::ProtoEncoder;
use crate::latches::{try_store, watch_bus, watch_store};
use crate::record::EventRecord;
use crate::serve::Server;

/// How long each thing that is written down at the end may take. With the drain and [`CLOSE`] it
/// stays below the 30 s that Kubernetes grants.
const LAST_WRITE: Duration = Duration::from_secs(1);
/// How long changes under way may take at the end.
const CLOSE: Duration = Duration::from_secs(3);

/// A built coordinator: everything is open and bound, nothing is served yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    core: Arc<Core>,
    server: Server,
    admin: Option<AdminServer>,
    /// The owner of the engine: what was committed is applied there to the very end.
    engine: Task,
    events: mpsc::Receiver<Event>,
    happened: mpsc::Receiver<EventRecord>,
    local_addr: SocketAddr,
    serving: Latch,
    store_latch: Latch,
    bus_latch: Latch,
    calls: GrpcCalls,
}

/// The first operator's credential, as it lies in the state directory.
#[derive(Clone)]
pub struct OperatorFiles {
    /// The operator.
    pub id: OperatorId,
    /// The CA's certificate (PEM).
    pub ca_pem: String,
    /// The operator's certificate (PEM).
    pub cert_pem: String,
    /// The operator's private key (PKCS#8 PEM).
    pub key_pem: String,
    /// `host:port` of this coordinator, tried in order.
    pub addrs: Vec<String>,
}

impl std::fmt::Debug for OperatorFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorFiles")
            .field("id", &self.id)
            .field("addrs", &self.addrs)
            .finish_non_exhaustive()
    }
}

impl OperatorFiles {
    /// Reads the credential from a coordinator's state directory; the coordinator need not run.
    ///
    /// # Errors
    /// When the files are gone, damaged or of somebody else, unless we are root.
    pub fn read(state_dir: &Path) -> anyhow::Result<Self> {
        let dir = operator_dir(state_dir);
        let read = |name: &str| {
            let path = dir.join(name);
            let missing = || {
                format!(
                    "{} is missing: is this a coordinator's state directory?",
                    path.display()
                )
            };
            let bytes = read_private_of_service(&path)?.with_context(missing)?;
            String::from_utf8(bytes.to_vec()).with_context(|| format!("read {}", path.display()))
        };
        Ok(Self {
            id: read("id")?
                .trim()
                .parse()
                .context("read the operator's id")?,
            ca_pem: read("ca.crt")?,
            cert_pem: read("operator.crt")?,
            key_pem: read("operator.key")?,
            addrs: read("addrs")?.lines().map(str::to_owned).collect(),
        })
    }
}

/// Makes what services need before they start: CA, default network, first operator with its
/// context, and one join-token file per role. Binds nothing; safe to repeat.
///
/// # Errors
/// A sentence for people: as [`App::build`], or a file that cannot be written.
pub async fn provision(
    config: &Config,
    options: &ProvisionOptions,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Provisioned> {
    Ok(app::provision::provision(config, options, &clock).await?)
}

impl App {
    /// Opens the state directory and binds all listeners.
    ///
    /// # Errors
    /// A sentence for people: the port is taken, the directory is in use, of another user or of
    /// another version, the database or its master key is damaged.
    pub async fn build(config: Config, handles: Handles) -> anyhow::Result<Self> {
        Self::build_with_clock(config, handles, Arc::new(SystemClock)).await
    }

    /// Like [`Self::build`], with time from the caller.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub async fn build_with_clock(
        config: Config,
        handles: Handles,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let serving = handles
            .readiness
            .latch("serving", "the TLS port is not served yet");
        let store_latch = handles
            .readiness
            .latch("store", "the store was not tried yet");
        let bus_latch = handles.readiness.latch("bus", "the bus was not opened yet");
        // The state comes first: that another coordinator has it says more than a taken port.
        let encoder = Box::new(ProtoEncoder);
        let Opened {
            core,
            owner,
            events,
            happened,
        } = open(&config, Arc::clone(&clock), encoder, &handles.metrics).await?;
        let listener = bind_tcp(config.server.listen, "gRPC and HTTPS", "--listen")?;
        let local_addr = listener.local_addr().context("read the bound address")?;
        core.advertise(
            config::advertised(&config.server, local_addr),
            &config.state_dir,
        )?;
        let admin = config.admin.as_ref();
        let admin = admin
            .map(|admin| AdminServer::bind(admin, handles.clone()))
            .transpose()?;
        let engine = Task::spawn("netmap-owner", owner);
        let tls = tls::server_config(&core.ca, &clock)?;
        let server = Server {
            listener,
            tls,
            max_connections: config.server.max_connections,
            figures: core.figures.clone(),
        };
        Ok(Self {
            config,
            core,
            server,
            admin,
            engine,
            events,
            happened,
            local_addr,
            serving,
            store_latch,
            bus_latch,
            calls: auth::count_calls(&handles),
        })
    }

    /// Where gRPC and HTTPS are bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where the admin endpoint is bound, if this process has one of its own.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(AdminServer::local_addr)
    }

    /// The addresses that join tokens carry: `host:port`.
    pub fn advertised(&self) -> &[String] {
        self.core.advertised()
    }

    /// The CA's certificate (DER).
    pub fn ca_certificate(&self) -> Vec<u8> {
        self.core.ca.certificate().to_vec()
    }

    /// Where the first operator's credential is.
    pub fn operator_dir(&self) -> PathBuf {
        operator_dir(&self.config.state_dir)
    }

    /// The first operator's credential: what a command line's context needs.
    ///
    /// # Errors
    /// When the files are gone or not ours.
    pub fn operator(&self) -> anyhow::Result<OperatorFiles> {
        OperatorFiles::read(&self.config.state_dir)
    }

    /// A handle that holds all changes back, for maintenance and for tests of the write guard.
    pub fn write_guard(&self) -> WriteGuard {
        WriteGuard(Arc::clone(&self.core))
    }

    /// Serves until `shutdown`, then drains: streams say goodbye, calls under way finish.
    ///
    /// # Errors
    /// When a part that must run ended by itself.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self {
            config,
            core,
            server,
            admin,
            mut engine,
            events,
            happened,
            local_addr,
            serving,
            store_latch,
            bus_latch,
            calls,
        } = self;
        let grpc = Grpc::new(Arc::clone(&core), shutdown.clone(), calls);
        let router = grpc.router().merge(http_pages::router());
        let mut serving_tasks = Tasks::new();
        serving_tasks.spawn(
            "server",
            server.run(Arc::clone(&core), router, shutdown.clone()),
        );
        if let Some(admin) = admin {
            serving_tasks.spawn("admin", admin.run(shutdown.clone()));
        }
        let mut maintenance = Tasks::new();
        let keeper = Arc::clone(&core);
        maintenance.spawn("presence", async move {
            keeper.record_presence(events, happened).await
        });
        let keeper = Arc::clone(&core);
        maintenance.spawn("certificates", async move {
            keeper.watch_certificates().await;
        });
        let keeper = Arc::clone(&core);
        maintenance.spawn("last-seen", async move {
            keeper.record_last_seen().await;
        });
        let keeper = Arc::clone(&core);
        maintenance.spawn("forget-old", async move {
            keeper.forget_old(config.store).await;
        });
        let keeper = Arc::clone(&core);
        maintenance.spawn("figures", async move {
            keeper.keep_figures().await;
        });
        let keeper = Arc::clone(&core);
        maintenance.spawn("store-state", watch_store(keeper, store_latch));
        maintenance.spawn("store-trial", try_store(Arc::clone(&core)));
        let keeper = Arc::clone(&core);
        maintenance.spawn("bus-notices", async move {
            keeper.follow_bus().await;
        });
        let bus = core.bus.state();
        maintenance.spawn("bus-state", watch_bus(Arc::clone(&core), bus, bus_latch));
        let keeper = Arc::clone(&core);
        let _started = Task::spawn("started", async move { keeper.note_start().await });
        let keeper = Arc::clone(&core);
        let _audit_check = Task::spawn("audit-check", async move { keeper.check_audit().await });
        serving.ready();
        tracing::info!(addr = %local_addr, advertised = ?core.advertised(), "the coordinator is ready");

        let failure = tokio::select! {
            () = shutdown.draining() => None,
            (name, end) = maintenance.next_end() => Some(failure(&core, name, &end)),
            end = engine.finished() => Some(failure(&core, "netmap-owner", &end)),
        };
        serving.not_ready("shutting down");
        if let Some(failure) = failure {
            // Streams and connections are cut; what is being stored is stored.
            drop((serving_tasks, grpc));
            end_maintenance(maintenance).await;
            core.close(CLOSE).await;
            return Err(failure);
        }
        // Streams and connections share one drain.
        let end = tokio::time::Instant::now() + shutdown.grace();
        let left = || end.saturating_duration_since(tokio::time::Instant::now());
        grpc.finish(left()).await;
        serving_tasks.join_all(left()).await;
        core.note_end(LAST_WRITE).await;
        end_maintenance(maintenance).await;
        core.close(CLOSE).await;
        drop(engine);
        tracing::info!("the coordinator has ended");
        Ok(())
    }
}

/// Why the coordinator ends although nobody asked it to.
fn failure(core: &Core, name: &str, end: &mesh_daemon::TaskEnd) -> anyhow::Error {
    match core.end_reason() {
        Some(reason) => anyhow::anyhow!(reason),
        None => anyhow::anyhow!("the coordinator's task {name} ended by itself: {end:?}"),
    }
}

/// Ends what goes on in the background. What these tasks write is not theirs ([`Core::finish`]), so
/// no change is cut off half way.
async fn end_maintenance(mut tasks: Tasks) {
    tasks.abort_all();
    tasks.join_all(LAST_WRITE).await;
}

/// Holds all changes back while reads and streams go on.
#[derive(Debug, Clone)]
pub struct WriteGuard(Arc<Core>);

impl WriteGuard {
    /// Refuses every change with UNAVAILABLE and this reason.
    pub fn hold(&self, reason: &str) {
        self.0.guard_writes(Some(reason.to_owned()));
    }

    /// Lets changes through again.
    pub fn release(&self) {
        self.0.guard_writes(None);
    }
}
