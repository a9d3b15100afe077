//! The cores: one thread each, with a runtime, a listener and upstream connections of its own.
//!
//! The listeners share one port (`SO_REUSEPORT`), so the kernel spreads connections and no core
//! ever waits for another one. What it spreads unevenly is put right once, when a connection comes
//! in (see [`crate::admission`]).

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1::UpgradeableConnection;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_reverse_proxy::{Client, Connector, GuardedIo, Inbound, Limits, ReverseProxy, Scheme};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_daemon::BindError;
use rustls::ServerConfig as TlsConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admitted, Door, Handed, Place, Placed};
use crate::config::ServerConfig;
use crate::idle_timer::IdleTimer;
use crate::proxy::{Gateway, Refused, Shared, Visitor};
use crate::route_table::Target;

/// How long a client may take for the head of a request, and how long a connection may wait for
/// the next one.
const HEAD_LIMIT: Duration = Duration::from_secs(75);
/// How often unused upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(10);
/// Connections beyond the limit that one core answers at a time, to say so; more are just closed.
const TURNED_AWAY: usize = 64;
/// How long such an answer may take.
const TURN_AWAY_LIMIT: Duration = Duration::from_secs(5);
/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// The public port, once for each core.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<std::net::TcpListener>,
    addr: SocketAddr,
}

impl Listeners {
    /// Binds `addr` for `threads` cores; 0 is one for each core of the machine.
    pub fn bind(addr: SocketAddr, threads: usize) -> Result<Self, ListenError> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            some => some,
        };
        // Sockets that share a port would quietly share it with another gateway as well, so the
        // port is first asked for without sharing.
        let probe = mesh_daemon::bind_tcp(addr, "HTTP", "--listen")?;
        let addr = probe.local_addr().map_err(ListenError::Share)?;
        drop(probe);
        let sockets = (0..threads)
            .map(|_| shared(addr))
            .collect::<io::Result<_>>()
            .map_err(ListenError::Share)?;
        Ok(Self { sockets, addr })
    }

    /// The address, with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Why the public port cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It is taken or may not be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Several sockets cannot share it.
    #[error("the port cannot be shared between cores")]
    Share(#[source] io::Error),
}

fn shared(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(addr);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it. A client that went away without a word must not keep its place.
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What each core needs.
#[derive(Debug, Clone)]
pub struct CoreConfig<C> {
    /// Dials workers.
    pub connector: C,
    /// How long workers may take.
    pub limits: Limits,
    /// The public side.
    pub server: Arc<ServerConfig>,
    /// For TLS outside.
    pub tls: Option<Arc<TlsConfig>>,
    /// How long open requests may take when it ends.
    pub grace: Duration,
}

/// The running cores. Ends them when dropped.
#[derive(Debug)]
pub struct Cores {
    ends: JoinSet<io::Result<()>>,
    stop: tokio_util::sync::DropGuard,
}

impl Cores {
    /// Starts one thread for each listener. They end when `shared.stop` is cancelled.
    pub fn start<C>(
        listeners: Listeners,
        config: &CoreConfig<C>,
        shared: &Shared,
    ) -> io::Result<Self>
    where
        C: Connector<Target = Target> + Clone,
    {
        let mut ends = JoinSet::new();
        let limit = config.server.max_connections;
        let doors = Door::open(listeners.sockets.len(), limit, &shared.metrics);
        for (at, (socket, door)) in listeners.sockets.into_iter().zip(doors).enumerate() {
            let (config, shared) = (config.clone(), shared.clone());
            let (told, end) = oneshot::channel();
            std::thread::Builder::new()
                .name(format!("gateway-{at}"))
                .spawn(move || {
                    let result = run_core(socket, door, config, shared);
                    // Nobody is left to be told when the gateway was dropped.
                    drop(told.send(result));
                })?;
            ends.spawn(async move {
                end.await
                    .unwrap_or_else(|_| Err(io::Error::other("a core of the gateway panicked")))
            });
        }
        Ok(Self {
            ends,
            stop: shared.stop.clone().drop_guard(),
        })
    }

    /// Waits until all cores have ended; the first fault ends the others too.
    pub async fn finished(mut self) -> io::Result<()> {
        let mut result = Ok(());
        while let Some(end) = self.ends.join_next().await {
            let end = end.unwrap_or_else(|err| Err(io::Error::other(err)));
            if end.is_err() && result.is_ok() {
                result = end;
                self.stop = self.stop.disarm().drop_guard();
                break;
            }
        }
        result
    }
}

fn run_core<C>(
    socket: std::net::TcpListener,
    door: Door,
    config: CoreConfig<C>,
    shared: Shared,
) -> io::Result<()>
where
    C: Connector<Target = Target>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(socket)?;
        serve_door(listener, door, config, shared).await;
        Ok(())
    })
}

/// One core by itself, on the runtime that this is called on: accepts until it is stopped, then
/// lets open requests finish.
pub async fn serve<C>(listener: TcpListener, config: CoreConfig<C>, shared: Shared)
where
    C: Connector<Target = Target>,
{
    let door = Door::open(1, config.server.max_connections, &shared.metrics).pop();
    let door = door.expect("as many doors as cores");
    serve_door(listener, door, config, shared).await;
}

async fn serve_door<C>(listener: TcpListener, mut door: Door, config: CoreConfig<C>, shared: Shared)
where
    C: Connector<Target = Target>,
{
    let stop = shared.stop.clone();
    let client = Client::with_limits(config.connector, config.limits);
    let core = Arc::new(Core {
        gateway: Gateway::new(shared, ReverseProxy::new(client)),
        server: config.server,
        tls: config.tls,
        stop: Stop::default(),
    });
    let mut connections = JoinSet::new();
    let mut turned_away = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            (stream, peer) = mesh_daemon::accept(&listener) => match door.admit(stream, peer) {
                Ok(Admitted::Here(stream, place)) => {
                    connections.spawn(Arc::clone(&core).connection(stream, peer, place));
                }
                Ok(Admitted::Elsewhere) => {}
                Ok(Admitted::Full(stream)) => {
                    // A handshake costs more than anything else here, so none for an answer.
                    if core.tls.is_none() && turned_away.len() < TURNED_AWAY {
                        turned_away.spawn(Arc::clone(&core).turn_away(stream, peer));
                    }
                }
                Err(err) => tracing::debug!(error = %err, "a connection was lost"),
            },
            Some(Handed { stream, peer, place }) = door.handed() => {
                match TcpStream::from_std(stream) {
                    Ok(stream) => {
                        connections.spawn(Arc::clone(&core).connection(stream, peer, place));
                    }
                    Err(err) => tracing::debug!(error = %err, "a connection was lost"),
                }
            }
            Some(end) = connections.join_next() => log_panic(end),
            Some(end) = turned_away.join_next() => log_panic(end),
            _ = sweep.tick() => core.gateway.sweep(),
            () = stop.cancelled() => break,
        }
    }
    drop((listener, door, turned_away));
    core.stop.now();
    let drained = async {
        while let Some(end) = connections.join_next().await {
            log_panic(end);
        }
    };
    if tokio::time::timeout(config.grace, drained).await.is_err() {
        tracing::info!(open = connections.len(), "requests cut off at shutdown");
    }
    core.gateway.proxy().close_tunnels();
}

/// Tells the connections of one core to end.
///
/// A connection looks at a plain flag whenever it has something to do, and asks the token once,
/// which then wakes it: asking takes locks, and asking one token from all cores would make them
/// wait for each other with every request.
#[derive(Debug, Default)]
struct Stop {
    said: AtomicBool,
    token: CancellationToken,
}

impl Stop {
    fn now(&self) {
        self.said.store(true, Ordering::Relaxed);
        self.token.cancel();
    }

    /// Runs `connection`, after `end` was called with it once this stops.
    async fn end<F: Future>(&self, connection: F, end: impl FnOnce(Pin<&mut F>)) -> F::Output {
        let mut connection = pin!(connection);
        let mut stopped = pin!(self.token.cancelled());
        let mut end = Some(end);
        // INVARIANT: a task keeps its waker, so the one that was left with the token stays good.
        let mut asked = false;
        poll_fn(|cx| {
            if end.is_some() && (!asked || self.said.load(Ordering::Relaxed)) {
                asked = true;
                if stopped.as_mut().poll(cx).is_ready()
                    && let Some(end) = end.take()
                {
                    end(connection.as_mut());
                }
            }
            connection.as_mut().poll(cx)
        })
        .await
    }
}

fn log_panic(end: Result<(), tokio::task::JoinError>) {
    if let Err(err) = end
        && err.is_panic()
    {
        tracing::error!(error = %err, "a connection's task panicked");
    }
}

struct Core<C: Connector<Target = Target>> {
    gateway: Gateway<C>,
    server: Arc<ServerConfig>,
    tls: Option<Arc<TlsConfig>>,
    stop: Stop,
}

impl<C: Connector<Target = Target>> Core<C> {
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, place: Place) {
        let local = stream
            .local_addr()
            .ok()
            .map(|addr| addr.ip().to_canonical());
        let visitor = |scheme| self.visitor(peer.ip(), local, scheme);
        match &self.tls {
            None => {
                self.http1(Placed::new(stream, place), visitor(Scheme::Http))
                    .await
            }
            Some(config) => match mesh_daemon::tls::handshake(config, stream).await {
                Ok(stream) => {
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(mesh_daemon::tls::ALPN_H2);
                    let stream = Placed::new(stream, place);
                    if h2 {
                        self.http2(stream, visitor(Scheme::Https)).await;
                    } else {
                        self.http1(stream, visitor(Scheme::Https)).await;
                    }
                }
                Err(err) => tracing::debug!(error = %err, "TLS handshake failed"),
            },
        }
    }

    /// Answers that there are too many connections already, and no more than that.
    async fn turn_away(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let mut visitor = self.visitor(peer.ip(), None, Scheme::Http);
        visitor.refused = Some(Refused::Full);
        let told = self.http1(stream, visitor);
        if tokio::time::timeout(TURN_AWAY_LIMIT, told).await.is_err() {
            tracing::debug!("a client was told nothing in time");
        }
    }

    fn visitor(&self, peer: IpAddr, local: Option<IpAddr>, scheme: Scheme) -> Visitor {
        Visitor {
            inbound: Inbound::new(peer, scheme, self.server.trusts(peer)),
            refused: (scheme == Scheme::Http && self.server.refuses_plain(peer))
                .then_some(Refused::Plain),
            // Nobody reaches a mapped port by the container's own address.
            local: local.filter(|_| !self.server.published_on_loopback),
            framing: None,
        }
    }

    async fn http1<S>(&self, stream: S, mut visitor: Visitor)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, framing) = GuardedIo::new(stream);
        visitor.framing = Some(framing);
        let visitor = &visitor;
        let service = service_fn(async |request| {
            Ok::<_, std::convert::Infallible>(self.gateway.serve(visitor, request).await)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(IdleTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_header_size(self.server.max_head)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let end = |connection: Pin<&mut _>| UpgradeableConnection::graceful_shutdown(connection);
        log_end(self.stop.end(connection, end).await);
    }

    async fn http2<S>(self: &Arc<Self>, stream: S, visitor: Visitor)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (core, visitor) = (Arc::clone(self), Arc::new(visitor));
        let service = service_fn(move |request| {
            let (core, visitor) = (Arc::clone(&core), Arc::clone(&visitor));
            async move { Ok::<_, std::convert::Infallible>(core.gateway.serve(&visitor, request).await) }
        });
        // Extended CONNECT stays off, so browsers open WebSockets over HTTP/1.1.
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(HEAD_LIMIT))
            .max_header_list_size(u32::try_from(self.server.max_head).unwrap_or(u32::MAX))
            .serve_connection(TokioIo::new(stream), service);
        let end = |connection: Pin<&mut _>| http2::Connection::graceful_shutdown(connection);
        log_end(self.stop.end(connection, end).await);
    }
}

fn log_end(end: hyper::Result<()>) {
    if let Err(err) = end {
        tracing::debug!(
            error = &err as &dyn std::error::Error,
            "client connection ended"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use hyper_reverse_proxy::ConnectError;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::fleet::{Fleet, Snapshot};
    use crate::metrics::GatewayMetrics;
    use crate::origin::Hosts;
    use crate::watch::Table;

    struct Nobody;

    impl Connector for Nobody {
        type Target = Target;
        type Stream = DuplexStream;

        async fn connect(&self, _: &Target) -> Result<DuplexStream, ConnectError> {
            Err(io::Error::from(io::ErrorKind::ConnectionRefused).into())
        }
    }

    /// A core that listens for a proxy in 10.0.0.0/8.
    fn behind_a_proxy() -> Core<Nobody> {
        let table = Table::default();
        let fleet = Snapshot::new(Fleet::new(&table.current(), &HashMap::new()));
        let shared = Shared {
            table: table.subscribe(),
            fleet: tokio::sync::watch::channel(Arc::new(fleet)).1,
            hosts: Arc::new(Hosts::new(&[], &[], [127, 0, 0, 1].into())),
            metrics: GatewayMetrics::new(&mesh_daemon::Metrics::default()),
            stop: CancellationToken::new(),
        };
        let client = Client::with_limits(Nobody, Limits::default());
        let server = ServerConfig {
            trusted_proxies: vec!["10.0.0.0/8".parse().expect("a net")],
            ..ServerConfig::default()
        };
        Core {
            gateway: Gateway::new(shared, ReverseProxy::new(client)),
            server: Arc::new(server),
            tls: None,
            stop: Stop::default(),
        }
    }

    /// All that `peer` gets for asking for `path` and then for `/`, on one connection.
    async fn ask(core: &Core<Nobody>, peer: IpAddr, scheme: Scheme, path: &str) -> String {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n\
             GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        client.write_all(text.as_bytes()).await.expect("written");
        let visitor = core.visitor(peer, None, scheme);
        core.http1(server, visitor).await;
        let mut all = String::new();
        client.read_to_string(&mut all).await.expect("read");
        all
    }

    #[tokio::test]
    async fn plain_http_past_the_proxy_is_refused_before_anything_is_looked_up() {
        let core = behind_a_proxy();
        let statuses = |answers: &str| -> Vec<String> {
            let heads = answers.split("HTTP/1.1 ").skip(1);
            heads.map(|head| head[..3].to_owned()).collect()
        };
        let stranger = IpAddr::from([192, 0, 2, 7]);
        for path in ["/", "/nobody/", "/_mesh/events"] {
            let answers = ask(&core, stranger, Scheme::Http, path).await;
            assert_eq!(statuses(&answers), ["403"], "{path}: {answers}");
            assert!(answers.contains("connection: close\r\n"), "{answers}");
        }
        let answers = ask(&core, stranger, Scheme::Http, "/health").await;
        assert_eq!(statuses(&answers), ["200", "403"], "{answers}");
        for (peer, scheme) in [
            (stranger, Scheme::Https),
            ([10, 1, 2, 3].into(), Scheme::Http),
            ([127, 0, 0, 1].into(), Scheme::Http),
        ] {
            let answers = ask(&core, peer, scheme, "/nobody/").await;
            assert_eq!(statuses(&answers), ["404", "200"], "{peer}: {answers}");
        }
    }
}
