//! A gateway core with scripted workers, all on loopback.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_reverse_proxy::{ConnectError, Connector, Limits};
use mesh_daemon::Metrics;
use mesh_types::route::Route;
use mesh_types::{NetworkName, NodeId, NodeState, OverlayAddrs, Service, ServiceKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use traffic_gateway::config::ServerConfig;
use traffic_gateway::fleet::{Fleet, Snapshot};
use traffic_gateway::metrics::GatewayMetrics;
use traffic_gateway::origin::Hosts;
use traffic_gateway::proxy::Shared;
use traffic_gateway::route_table::{NetworkSlot, Target};
use traffic_gateway::server::{CoreConfig, serve};
use traffic_gateway::watch::Table;

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in good time")
}

/// Overlay addresses stand for loopback ones; what is not listed refuses.
#[derive(Clone, Default)]
struct Loopback(Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>);

/// In place of a real address: nothing answers there, as where a machine has lost its power.
const SILENT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

impl Connector for Loopback {
    type Target = Target;
    type Stream = TcpStream;

    async fn connect(&self, target: &Target) -> Result<TcpStream, ConnectError> {
        let real = self
            .0
            .lock()
            .expect("unpoisoned")
            .get(&target.addr)
            .copied();
        match real {
            Some(SILENT) => std::future::pending().await,
            Some(real) => Ok(TcpStream::connect(real).await?),
            None => Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()),
        }
    }
}

/// A fake console: answers everything, sets cookies as Cockpit does, echoes on its socket.
pub(crate) fn cockpit(path: &str, head: &str) -> String {
    if head
        .to_ascii_lowercase()
        .contains("\r\nupgrade: websocket\r\n")
    {
        return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Protocol: cockpit1\r\n\r\n"
            .to_owned();
    }
    let body = format!("asked {path}");
    let cookies = if path.ends_with("/login") {
        "Set-Cookie: cockpit=v; Path=/; HttpOnly\r\nSet-Cookie: gone=deleted; PATH=/\r\n"
    } else {
        ""
    };
    let len = body.len();
    format!("HTTP/1.1 200 OK\r\n{cookies}Content-Length: {len}\r\n\r\n{body}")
}

/// A worker's console on loopback.
pub(crate) struct Worker {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Answers each request with what `script` makes of path and head.
    pub(crate) async fn start(
        script: impl Fn(&str, &str) -> String + Clone + Send + 'static,
    ) -> Self {
        let (_open, gate) = watch::channel(true);
        Self::scripted(script, gate).await
    }

    /// Answers once `gate` is true.
    pub(crate) async fn gated(gate: watch::Receiver<bool>) -> Self {
        Self::scripted(cockpit, gate).await
    }

    async fn scripted(
        script: impl Fn(&str, &str) -> String + Clone + Send + 'static,
        gate: watch::Receiver<bool>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (noted, counted) = (Arc::clone(&seen), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (script, noted, gate) = (script.clone(), Arc::clone(&noted), gate.clone());
                open.spawn(worker_connection(stream, script, noted, gate));
            }
        });
        Self {
            addr,
            seen,
            connections,
            task,
        }
    }

    /// The heads of the requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().expect("unpoisoned").clone()
    }

    pub(crate) async fn wait_for_requests(&self, count: usize) {
        within(async {
            while self.requests().len() < count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

async fn worker_connection(
    mut stream: TcpStream,
    script: impl Fn(&str, &str) -> String,
    noted: Arc<Mutex<Vec<String>>>,
    mut gate: watch::Receiver<bool>,
) {
    loop {
        let head = read_head(&mut stream).await;
        if head.is_empty() {
            return;
        }
        noted.lock().expect("unpoisoned").push(head.clone());
        gate.wait_for(|open| *open).await.ok();
        let path = head.split(' ').nth(1).unwrap_or_default();
        let answer = script(path, &head);
        stream.write_all(answer.as_bytes()).await.expect("written");
        if answer.starts_with("HTTP/1.1 101") {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.ok();
            return;
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => return String::new(),
        }
    }
    String::from_utf8(text).expect("UTF-8")
}

/// Reads until `text` has come; gives everything.
pub(crate) async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    within(async {
        while !seen.contains(text) {
            let mut buf = [0; 4096];
            let n = stream.read(&mut buf).await.expect("read");
            assert!(n > 0, "ended after {seen}");
            seen.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
    })
    .await;
    seen
}

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) async fn head(stream: &mut TcpStream) -> Self {
        let head = within(read_head(stream)).await;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("a status in {head:?}")),
            head,
            body: String::new(),
        }
    }

    pub(crate) async fn read(stream: &mut TcpStream) -> Self {
        let mut reply = Self::head(stream).await;
        let len: usize = reply
            .maybe("content-length")
            .map_or(0, |l| l.parse().expect("a length"));
        let mut body = vec![0; len];
        within(stream.read_exact(&mut body))
            .await
            .expect("the body");
        reply.body = String::from_utf8(body).expect("UTF-8");
        reply
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    fn maybe(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.maybe(name)
            .unwrap_or_else(|| panic!("{name} in {}", self.head))
    }
}

pub(crate) struct Stage {
    pub(crate) addr: SocketAddr,
    pub(crate) metrics: Metrics,
    table: Table,
    loopback: Loopback,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
    fleet: JoinHandle<()>,
    root: Option<rustls::pki_types::CertificateDer<'static>>,
}

impl Stage {
    pub(crate) async fn start(workers: &[(&str, &Worker)]) -> Self {
        Self::build(workers, None, ServerConfig::default()).await
    }

    /// One that takes so many connections at a time.
    pub(crate) async fn small(workers: &[(&str, &Worker)], max_connections: usize) -> Self {
        let server = ServerConfig {
            max_connections,
            ..ServerConfig::default()
        };
        Self::build(workers, None, server).await
    }

    pub(crate) async fn tls(workers: &[(&str, &Worker)]) -> Self {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a key");
        Self::build(workers, Some(key), ServerConfig::default()).await
    }

    async fn build(
        workers: &[(&str, &Worker)],
        tls: Option<rcgen::CertifiedKey<rcgen::KeyPair>>,
        server: ServerConfig,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("an address");
        let table = Table::default();
        let network = NetworkName::default_network();
        table.change(|table| table.add_network(&network, NetworkSlot(0)));
        let loopback = Loopback::default();
        for (at, (name, worker)) in workers.iter().enumerate() {
            let host = u8::try_from(at + 1).expect("few workers");
            let overlay = SocketAddr::from(([100, 64, 0, host], 9090));
            loopback
                .0
                .lock()
                .expect("unpoisoned")
                .insert(overlay, worker.addr);
            add(&table, name, host, NodeState::Online);
        }
        let picture = |table: &Table| Snapshot::new(Fleet::new(&table.current(), &HashMap::new()));
        let (fleet, shown) = watch::channel(Arc::new(picture(&table)));
        let mut changes = table.subscribe();
        let shown_table = table.clone();
        let fleet = tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                fleet.send_replace(Arc::new(picture(&shown_table)));
            }
        });
        let stop = CancellationToken::new();
        let metrics = Metrics::default();
        let shared = Shared {
            table: table.subscribe(),
            fleet: shown,
            hosts: Arc::new(Hosts::new(&[], &["localhost".to_owned()], addr.ip())),
            metrics: GatewayMetrics::new(&metrics),
            stop: stop.clone(),
        };
        let root = tls.as_ref().map(|key| key.cert.der().clone());
        let tls = tls.map(|key| {
            let slot = mesh_daemon::tls::CertificateSlot::from_pem(
                &key.cert.pem(),
                &key.signing_key.serialize_pem(),
            )
            .expect("a slot");
            let alpn = [mesh_daemon::tls::ALPN_H2, mesh_daemon::tls::ALPN_HTTP11];
            mesh_daemon::tls::server_config(slot, mesh_daemon::tls::ClientAuth::None, &alpn, None)
                .expect("a configuration")
        });
        let config = CoreConfig {
            connector: loopback.clone(),
            limits: Limits {
                connect: Duration::from_millis(500),
                first_byte: Duration::from_millis(400),
                ..Limits::default()
            },
            server: Arc::new(server),
            tls,
            grace: Duration::from_secs(5),
        };
        let task = tokio::spawn(serve(listener, config, shared));
        Self {
            addr,
            metrics,
            table,
            loopback,
            stop,
            task: Some(task),
            fleet,
            root,
        }
    }

    /// The worker loses its power; what it had open is found out to be dead at once.
    pub(crate) fn vanish(&self, worker: &Worker) {
        for real in self.loopback.0.lock().expect("unpoisoned").values_mut() {
            if *real == worker.addr {
                *real = SILENT;
            }
        }
        worker.task.abort();
    }

    /// A worker where nothing listens.
    pub(crate) fn add_nobody(&self, name: &str, state: NodeState) {
        add(&self.table, name, 200, state);
    }

    /// A worker whose machine is off; the coordinator says of it what it knows so far.
    pub(crate) fn add_silent(&self, name: &str, state: NodeState) {
        const HOST: u8 = 201;
        let overlay = SocketAddr::from(([100, 64, 0, HOST], 9090));
        let mut places = self.loopback.0.lock().expect("unpoisoned");
        places.insert(overlay, SILENT);
        drop(places);
        add(&self.table, name, HOST, state);
    }

    pub(crate) fn stop(mut self) -> JoinHandle<()> {
        self.stop.cancel();
        self.task.take().expect("stopped once")
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("connect")
    }

    pub(crate) async fn send(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.expect("written");
        stream
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[]).await
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut text = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            text.push_str("Host: localhost\r\n");
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut stream = self.send(&format!("{text}\r\n")).await;
        if method == "HEAD" {
            Reply::head(&mut stream).await
        } else {
            Reply::read(&mut stream).await
        }
    }

    /// Status, cookies and version of an answer over TLS.
    pub(crate) async fn get_tls(&self, path: &str, alpn: &[u8]) -> (u16, Vec<String>, String) {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(self.root.clone().expect("a TLS stage"))
            .expect("a root");
        let mut config = rustls::ClientConfig::builder_with_provider(mesh_daemon::tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = "localhost".try_into().expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector
            .connect(name, self.connect().await)
            .await
            .expect("TLS");
        let io = hyper_util::rt::TokioIo::new(stream);
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let response = if alpn == b"h2" {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut send, driver) = hyper::client::conn::http2::handshake(executor, io)
                .await
                .expect("HTTP/2");
            let _driver = tokio::spawn(driver);
            let uri = format!("https://localhost{path}");
            let request = http::Request::get(uri).body(body).expect("a request");
            within(send.send_request(request)).await.expect("an answer")
        } else {
            let (mut send, driver) = hyper::client::conn::http1::handshake(io)
                .await
                .expect("HTTP/1");
            let _driver = tokio::spawn(driver);
            let request = http::Request::get(path)
                .header("host", "localhost")
                .body(body);
            within(send.send_request(request.expect("a request")))
                .await
                .expect("an answer")
        };
        let cookies = response
            .headers()
            .get_all("set-cookie")
            .iter()
            .map(|cookie| cookie.to_str().expect("ASCII").to_owned())
            .collect();
        let version = format!("{:?}", response.version());
        let status = response.status().as_u16();
        use http_body_util::BodyExt;
        response.into_body().collect().await.expect("the body");
        (status, cookies, version)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.fleet.abort();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn add(table: &Table, name: &str, host: u8, state: NodeState) {
    let network = NetworkName::default_network();
    let route = Route {
        node: NodeId::from_bytes([host; 16]),
        network: network.clone(),
        name: name.parse().expect("a name"),
        addrs: OverlayAddrs {
            v4: [100, 64, 0, host].into(),
            v6: [0xfd7a, 0, 0, 0, 0, 0, 0, host.into()].into(),
        },
        services: [
            ("console", ServiceKind::Console),
            ("web", ServiceKind::Http),
        ]
        .map(|(name, kind)| Service {
            name: name.parse().expect("a name"),
            kind,
            port: 9090,
        })
        .to_vec(),
        state,
    };
    table.change(|table| table.apply(&network, false, vec![route], &[]));
}
