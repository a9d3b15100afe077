//! The gateway as a whole: binds, joins its networks' overlays, serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hyper_reverse_proxy::Limits;

use mesh_daemon::{AdminConfig, AdminServer, ControlSocket, Handles, Shutdown, Task};
use mesh_node::Node;
use mesh_types::NetworkName;
use rustls::ServerConfig as TlsConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, TlsFiles};
use crate::control;
use crate::fleet::{Fleet, Snapshot};
use crate::metrics::GatewayMetrics;
use crate::networks::Networks;
use crate::origin::{Hosts, host_of};
use crate::proxy::Shared;
use crate::server::{CoreConfig, Cores, Listeners};

/// How often the paths to workers are looked at for the page of the fleet.
const LOOK: Duration = Duration::from_secs(1);

/// The gateway, built and bound but not serving yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    listeners: Listeners,
    admin: Option<AdminServer>,
    control: ControlSocket,
    tls: Option<Arc<TlsConfig>>,
    networks: Arc<Networks>,
    metrics: GatewayMetrics,
}

impl App {
    /// Binds every listener and starts a mesh node for each network that was joined.
    pub async fn build(config: Config, handles: Handles) -> anyhow::Result<Self> {
        let mut faults = config.server.faults();
        if !config.server.dev {
            faults.extend(config.server.dangers());
        }
        if let Some((key, text)) = faults.first() {
            bail!("{key}: {text}");
        }
        mesh_daemon::private_dir(&config.state_dir)?;
        let control = ControlSocket::bind(&config.state_dir)
            .await
            .context("bind the control socket")?;
        let tls = load_tls(&config.server.tls)?;
        let listeners = Listeners::bind(config.server.listen, config.server.threads)?;
        let admin = match &config.admin {
            Some(admin) => Some(bind_admin(admin, &handles)?),
            None => None,
        };
        let metrics = GatewayMetrics::new(&handles.metrics).traced(handles.tracer.clone());
        let networks = Networks::new(config.state_dir.clone(), config.wireguard.node(), handles);
        networks.scan().await?;
        Ok(Self {
            config,
            listeners,
            admin,
            control,
            tls,
            networks: Arc::new(networks),
            metrics,
        })
    }

    /// Where browsers connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.listeners.addr()
    }

    /// The gateway's URL on this machine, without a last slash.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let addr = self.local_addr();
        let host = if addr.ip().is_unspecified() || addr.ip().is_loopback() {
            "localhost".to_owned()
        } else {
            host_of(addr.ip())
        };
        format!("{scheme}://{host}:{}", addr.port())
    }

    /// Where `/livez` and the rest are, when the gateway has an endpoint of its own.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(AdminServer::local_addr)
    }

    /// The mesh node in a network.
    pub fn node(&self, network: &NetworkName) -> Option<Node> {
        self.networks.node(network)
    }

    /// The networks that are served.
    pub fn networks(&self) -> Vec<NetworkName> {
        self.networks
            .nodes()
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }

    /// Serves until shutdown, then lets open requests finish within its grace.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let (addr, url) = (self.local_addr(), self.url());
        // Until the last request is answered `/readyz` says that the gateway is going.
        let draining = shutdown.guard();
        let stop = CancellationToken::new();
        let (fleet, shown) = watch::channel(Arc::new(Snapshot::new(picture(&self.networks))));
        let _fleet = Task::spawn(
            "gateway-fleet",
            watch_fleet(Arc::clone(&self.networks), fleet, self.metrics.clone()),
        );
        let networks = Arc::clone(&self.networks);
        let _watch = Task::spawn("gateway-networks", async move { networks.watch().await });
        let _control = Task::spawn(
            "gateway-control",
            self.control.serve({
                let (networks, url) = (Arc::clone(&self.networks), url.clone());
                move |request| {
                    let (networks, url) = (Arc::clone(&networks), url.clone());
                    async move { control::answer(&request, &networks, url).await }
                }
            }),
        );
        let _admin = self.admin.map(|admin| {
            tracing::info!(addr = %admin.local_addr(), "admin endpoint");
            Task::spawn("gateway-admin", admin.run(shutdown.clone()))
        });
        let shared = Shared {
            table: self.networks.table().subscribe(),
            fleet: shown,
            hosts: Arc::new(Hosts::new(
                &self.config.server.allowed_hosts,
                &self.config.server.host_suffixes,
                self.listeners.addr().ip(),
            )),
            metrics: self.metrics,
            stop: stop.clone(),
        };
        let limits = Limits {
            connect: self.config.limits.connect,
            first_byte: self.config.limits.first_byte,
            idle: self.config.limits.idle,
            ..Limits::default()
        };
        let core = CoreConfig {
            connector: self.networks.connector().clone(),
            limits,
            server: Arc::new(self.config.server),
            tls: self.tls,
            grace: shutdown.grace(),
        };
        if self.networks.nodes().is_empty() {
            tracing::info!(
                "in no network yet: 'traffic-gateway join --token-file FILE' with a token of \
                 'mesh token create --role gateway'"
            );
        }
        let cores = Cores::start(self.listeners, &core, &shared).context("start the cores")?;
        drop(shared);
        tracing::info!(addr = %addr, url, "HTTP: ready");
        let mut finished = std::pin::pin!(cores.finished());
        tokio::select! {
            end = finished.as_mut() => {
                end.context("serve")?;
                bail!("the gateway's cores ended by themselves");
            }
            () = shutdown.draining() => stop.cancel(),
        }
        finished.await.context("drain")?;
        drop(draining);
        self.networks.shutdown().await;
        Ok(())
    }
}

fn bind_admin(config: &AdminConfig, handles: &Handles) -> anyhow::Result<AdminServer> {
    Ok(AdminServer::bind(config, handles.clone())?)
}

fn load_tls(files: &TlsFiles) -> anyhow::Result<Option<Arc<TlsConfig>>> {
    let (Some(certificate), Some(key)) = (&files.certificate, &files.key) else {
        return Ok(None);
    };
    let read = |path: &std::path::Path| {
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    };
    let slot = mesh_daemon::tls::CertificateSlot::from_pem(&read(certificate)?, &read(key)?)
        .context("use server.tls")?;
    let alpn = [mesh_daemon::tls::ALPN_H2, mesh_daemon::tls::ALPN_HTTP11];
    let config =
        mesh_daemon::tls::server_config(slot, mesh_daemon::tls::ClientAuth::None, &alpn, None)?;
    Ok(Some(config))
}

fn picture(networks: &Networks) -> Fleet {
    Fleet::new(&networks.table().current(), &networks.paths())
}

/// Keeps the picture of the fleet up to date: at once when routes change, every second for the
/// paths, which nobody announces.
async fn watch_fleet(
    networks: Arc<Networks>,
    fleet: watch::Sender<Arc<Snapshot>>,
    metrics: GatewayMetrics,
) {
    let mut table = networks.table().subscribe();
    loop {
        let now = picture(&networks);
        metrics
            .routes
            .set(i64::try_from(now.nodes.len()).unwrap_or(i64::MAX));
        fleet.send_if_modified(|shown| {
            let changed = shown.fleet != now;
            if changed {
                *shown = Arc::new(Snapshot::new(now));
            }
            changed
        });
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
