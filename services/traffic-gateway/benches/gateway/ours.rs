//! The gateway's own cores, with plain TCP in place of the overlay.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper_reverse_proxy::{ConnectError, Connector, Limits};
use mesh_types::route::Route;
use mesh_types::{NetworkName, NodeId, NodeState, OverlayAddrs, Service, ServiceKind};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use traffic_gateway::config::ServerConfig;
use traffic_gateway::fleet::{Fleet, Snapshot};
use traffic_gateway::metrics::GatewayMetrics;
use traffic_gateway::origin::Hosts;
use traffic_gateway::proxy::Shared;
use traffic_gateway::route_table::{NetworkSlot, Target};
use traffic_gateway::server::{CoreConfig, Cores, Listeners};
use traffic_gateway::watch::Table;

#[derive(Clone)]
struct Upstream(SocketAddr);

impl Connector for Upstream {
    type Target = Target;
    type Stream = TcpStream;

    async fn connect(&self, _: &Target) -> Result<TcpStream, ConnectError> {
        let stream = TcpStream::connect(self.0).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A running gateway; its cores end when it is dropped.
pub(crate) struct Gateway {
    addr: SocketAddr,
    _cores: Cores,
    _runtime: tokio::runtime::Runtime,
}

impl Gateway {
    /// One worker, `name`, whose console is `upstream`.
    pub(crate) fn start(upstream: SocketAddr, name: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let inside = runtime.enter();
        let listeners = Listeners::bind("127.0.0.1:0".parse()?, 0)?;
        let addr = listeners.addr();
        let network = NetworkName::default_network();
        let table = Table::default();
        let route = Route {
            node: NodeId::from_bytes([1; 16]),
            network: network.clone(),
            name: name.parse()?,
            addrs: OverlayAddrs {
                v4: [100, 64, 0, 1].into(),
                v6: [0xfd7a, 0, 0, 0, 0, 0, 0, 1].into(),
            },
            services: vec![Service {
                name: "console".parse()?,
                kind: ServiceKind::Console,
                port: 9090,
            }],
            state: NodeState::Online,
        };
        table.change(|table| {
            table.add_network(&network, NetworkSlot(0));
            table.apply(&network, true, vec![route], &[]);
        });
        let fleet = Fleet::new(&table.current(), &HashMap::new());
        let (_fleet, shown) = watch::channel(Arc::new(Snapshot::new(fleet)));
        let shared = Shared {
            table: table.subscribe(),
            fleet: shown,
            hosts: Arc::new(Hosts::new(&[], &["localhost".to_owned()], addr.ip())),
            metrics: GatewayMetrics::new(&mesh_daemon::Metrics::default()),
            stop: CancellationToken::new(),
        };
        let config = CoreConfig {
            connector: Upstream(upstream),
            limits: Limits::default(),
            server: Arc::new(ServerConfig::default()),
            tls: None,
            grace: Duration::from_secs(1),
        };
        let cores = Cores::start(listeners, &config, &shared)?;
        drop(inside);
        Ok(Self {
            addr,
            _cores: cores,
            _runtime: runtime,
        })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}
