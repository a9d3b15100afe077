//! The relay as a whole.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use mesh_daemon::tls::{self, CertificateSlot, ClientAuth};
use mesh_daemon::{
    AdminServer, ControlSocket, Handles, Latch, Shutdown, Task, TaskEnd, Tasks, bind_tcp, bind_udp,
    build_info,
};
use mesh_node::{ControlConfig, ControlSession, ControlStatus, NodeReport, StateDir};
use mesh_types::RelayId;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, UdpSocket};

use crate::clients::Clients;
use crate::config::{AdvertiseConfig, Config};
use crate::metrics::RelayMetrics;
use crate::server::Service;
use crate::status::Source;
use crate::{grpc, server, stun};

/// How long the way to the coordinator may take to be found out.
const LOOK_UP: Duration = Duration::from_secs(3);

/// The relay with its listeners bound and its identity loaded.
#[derive(Debug)]
pub struct App {
    id: RelayId,
    state: StateDir,
    session: ControlSession,
    slot: CertificateSlot,
    tls: Arc<ServerConfig>,
    listener: TcpListener,
    derp_addr: SocketAddr,
    stun: UdpSocket,
    stun_addr: SocketAddr,
    admin: Option<AdminServer>,
    report: NodeReport,
    clients: Arc<Clients>,
    known: bool,
    followed: Latch,
    coordinator: Latch,
    control: ControlSocket,
}

impl App {
    /// Binds every listener and opens the state directory, which must be enrolled already.
    ///
    /// # Errors
    /// For people: what is wrong and what to do.
    pub async fn build(config: Config, handles: Handles) -> anyhow::Result<Self> {
        let state = StateDir::open(&config.state_dir)?;
        let Some(enrolled) = state.enrolment()? else {
            bail!(
                "this relay has not joined yet: make a token with 'mesh token create --role \
                 relay', then run 'relay join --token-file FILE --state-dir {}'",
                config.state_dir.display()
            );
        };
        let Some(id) = enrolled.relay() else {
            bail!(
                "the identity in {} is a {}, not a relay: choose another directory with \
                 --state-dir, and join with a token of the role relay",
                config.state_dir.display(),
                enrolled.role
            );
        };
        let control = ControlSocket::bind(&config.state_dir)
            .await
            .context("bind the control socket")?;
        let slot = CertificateSlot::new(chain(&state)?, key(&state))
            .context("use the relay's certificate")?;
        let tls = tls::server_config(slot.clone(), ClientAuth::None, &[tls::ALPN_HTTP11], None)?;
        let listener = bind_tcp(config.server.listen, "DERP over TLS", "--listen")?;
        let stun = bind_udp(config.stun.listen, "STUN", "--stun-listen")?;
        let admin = match &config.admin {
            Some(admin) => Some(AdminServer::bind(admin, handles.clone())?),
            None => None,
        };
        let clients = Arc::new(Clients::new(RelayMetrics::new(&handles.metrics)));
        let followed = handles
            .readiness
            .latch("clients", "the list of clients is not there yet");
        let known = clients.load(&state)?;
        if known {
            followed.ready();
        }
        let coordinator = handles.readiness.latch("coordinator", "not tried yet");
        let session = ControlSession::start(
            ControlConfig {
                version: build_info::VERSION.to_owned(),
                ..ControlConfig::default()
            },
            &state,
        )?;
        let derp_addr = listener.local_addr().context("read the bound address")?;
        let stun_addr = stun.local_addr().context("read the bound address")?;
        let report = advertised(
            config.advertise,
            derp_addr,
            stun_addr,
            session.coordinators(),
        )
        .await;
        Ok(Self {
            derp_addr,
            stun_addr,
            report,
            id,
            state,
            session,
            slot,
            tls,
            listener,
            stun,
            admin,
            clients,
            known,
            followed,
            coordinator,
            control,
        })
    }

    /// Where DERP over TLS is served.
    pub fn derp_addr(&self) -> SocketAddr {
        self.derp_addr
    }

    /// Where STUN is answered.
    pub fn stun_addr(&self) -> SocketAddr {
        self.stun_addr
    }

    /// Where the admin endpoint is, if it has one of its own.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(AdminServer::local_addr)
    }

    /// Who this relay is.
    pub fn id(&self) -> RelayId {
        self.id
    }

    /// Serves until the shutdown is through.
    ///
    /// # Errors
    /// A part that should never end did.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        tracing::info!(
            relay = %self.id, addr = %self.derp_addr, advertised = ?self.report.derp,
            "DERP over TLS"
        );
        tracing::info!(addr = %self.stun_addr, advertised = ?self.report.stun, "STUN");
        let source = Source {
            enrolled: self.session.enrolled().clone(),
            id: self.id,
            derp_addr: self.derp_addr,
            stun_addr: self.stun_addr,
            advertised: self.report.clone(),
            control: self.session.status(),
            clients: Arc::clone(&self.clients),
            started: SystemTime::now().into(),
        };
        self.session.report(self.report);
        let mut tasks = Tasks::new();
        tasks.spawn("control socket", self.control.serve(source.answers()));
        let metrics = self.clients.metrics().clone();
        tasks.spawn("stun", stun::run(self.stun, metrics));
        tasks.spawn(
            "clients",
            grpc::follow(
                self.session.channel(),
                Arc::clone(&self.clients),
                self.state.clone(),
                self.followed,
                self.known,
            ),
        );
        let again = grpc::store_again(Arc::clone(&self.clients), self.state.clone());
        tasks.spawn("client list", again);
        let mut status = self.session.status();
        // A stored list is older than this process, and its time is not known.
        let mut held = None;
        let trouble = move |status: &ControlStatus| {
            if status.is_connected() {
                held = Some("the list of clients");
            }
            status.trouble(held)
        };
        // It ends with the session, which is no fault of the relay's.
        let _coordinator = Task::spawn(
            "coordinator latch",
            self.coordinator.follow(status.clone(), trouble),
        );
        let (slot, state) = (self.slot, self.state.clone());
        tasks.spawn("certificate", async move {
            let mut until = status.borrow_and_update().certificate_until;
            while status.changed().await.is_ok() {
                let fresh = status.borrow_and_update().certificate_until;
                if fresh != until {
                    until = fresh;
                    renew(&slot, &state);
                }
            }
            // The session is over; so is the relay's wish for certificates.
            std::future::pending::<()>().await;
        });
        if let Some(admin) = self.admin {
            tracing::info!(addr = %admin.local_addr(), "admin endpoint");
            tasks.spawn("admin", admin.run(shutdown.clone()));
        }
        let service = Service {
            tls: self.tls,
            derp_key: self.state.wg_key().clone(),
            clients: self.clients,
        };
        tracing::info!("relay ready");
        let serving = server::run(self.listener, service, shutdown.clone());
        tokio::pin!(serving);
        let ended = tokio::select! {
            () = &mut serving => None,
            ended = tasks.next_end() => Some(ended),
        };
        if let Some((name, end)) = ended {
            if !shutdown.is_draining() {
                let what = match end {
                    TaskEnd::Failed(error) => error,
                    TaskEnd::Panicked(_) => "it panicked".to_owned(),
                    TaskEnd::Completed | TaskEnd::Aborted => "it ended".to_owned(),
                };
                bail!("the relay's part {name} stopped: {what}");
            }
            serving.await;
        }
        tasks.abort_all();
        self.session.shutdown().await;
        shutdown.drained().await;
        Ok(())
    }
}

/// What nodes are told: what was configured, else the bound ports at the best address known.
async fn advertised(
    config: AdvertiseConfig,
    derp: SocketAddr,
    stun: SocketAddr,
    coordinators: &[String],
) -> NodeReport {
    let AdvertiseConfig {
        host,
        derp: derp_given,
        stun: stun_given,
    } = config;
    let way = if host.is_none() && (derp.ip().is_unspecified() || stun.ip().is_unspecified()) {
        tokio::time::timeout(LOOK_UP, way_to(coordinators))
            .await
            .ok()
            .flatten()
    } else {
        None
    };
    let at = |given: Vec<String>, bound: SocketAddr| {
        if !given.is_empty() {
            return given;
        }
        let shown = match (&host, bound.ip()) {
            (Some(host), _) => format!("{host}:{}", bound.port()),
            (None, ip) if !ip.is_unspecified() => bound.to_string(),
            (None, _) => {
                let ip = way.unwrap_or(IpAddr::from([127, 0, 0, 1]));
                SocketAddr::new(ip, bound.port()).to_string()
            }
        };
        vec![shown]
    };
    NodeReport {
        derp: at(derp_given, derp),
        stun: at(stun_given, stun),
        ..NodeReport::default()
    }
}

/// The address of ours from which a coordinator is reached: most likely nodes reach it too.
async fn way_to(coordinators: &[String]) -> Option<IpAddr> {
    for coordinator in coordinators {
        let Ok(addrs) = tokio::net::lookup_host(coordinator).await else {
            continue;
        };
        for addr in addrs {
            let any: SocketAddr = if addr.is_ipv4() {
                ([0, 0, 0, 0], 0).into()
            } else {
                ([0; 16], 0).into()
            };
            // Connecting a UDP socket sends nothing; it only chooses the source address.
            if let Ok(socket) = UdpSocket::bind(any).await
                && socket.connect(addr).await.is_ok()
                && let Ok(local) = socket.local_addr()
            {
                return Some(local.ip());
            }
        }
    }
    None
}

fn renew(slot: &CertificateSlot, state: &StateDir) {
    let replaced = chain(state).and_then(|chain| {
        slot.replace(chain, key(state))
            .context("use the renewed certificate")
    });
    match replaced {
        Ok(()) => tracing::info!("certificate renewed"),
        Err(error) => {
            let error = mesh_daemon::report::chain(&*error);
            tracing::warn!(error, "the renewed certificate cannot be used");
        }
    }
}

fn chain(state: &StateDir) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let (own, ca) = state
        .certificates()?
        .context("the relay has no certificate: join again")?;
    Ok(vec![own, ca])
}

fn key(state: &StateDir) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(state.identity().pkcs8().to_vec()))
}
