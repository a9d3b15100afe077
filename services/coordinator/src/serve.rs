//! The TLS port: accepts connections, finds out who is there, and serves gRPC and HTTPS on each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mesh_daemon::{Place, Places, Shutdown, Task, Tasks, Turn};
use prometheus_client::metrics::gauge::Gauge;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

use crate::app::Core;
use crate::caller::PeerCertificate;
use crate::known::{Entry, Known, Shown};
use crate::metrics::Figures;
use crate::rate::ConnectionShare;

/// How long TLS, or the headers of a request, may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection keeps its place although others wait for one, before it has shown who it
/// is and while it has nothing to ask for.
const GRACE: Duration = Duration::from_secs(2);
/// How long somebody may stay without a call before one has shown a member, give or take as much
/// again, and how long the goodbye may take: joining and renewing are a few calls one after the
/// other. A certificate alone shows nobody: it may be of a member that was removed.
const STRANGER: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(5);
/// How long the connection of a member that was removed stays, so that calls under way, and those that
/// follow at once, hear why they are refused instead of losing their connection.
const HEARS_WHY: Duration = Duration::from_secs(2);
/// How often an idle connection is asked whether it is alive, and how long the answer may take.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most requests at once on one connection.
const MAX_STREAMS: u32 = 128;
/// How much of an answer may wait in a stream's buffer, in bytes; the rest waits where it is made.
const SEND_BUFFER: usize = 32 * 1024;
/// The largest set of headers, in bytes.
const MAX_HEADERS: u32 = 16 * 1024;

/// Who is on the other side of a connection.
#[derive(Debug, Clone)]
pub(crate) struct PeerInfo {
    pub(crate) addr: SocketAddr,
    /// `None`: no certificate was shown.
    pub(crate) shown: Option<Arc<Shown>>,
    pub(crate) share: Arc<ConnectionShare>,
    /// The connection's; it is settled once a call was by a member.
    pub(crate) turn: Turn,
}

/// The bound port.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) max_connections: usize,
    pub(crate) figures: Figures,
}

impl Server {
    /// Serves until shutdown, then waits for the connections to finish, as long as the drain may
    /// take.
    pub(crate) async fn run(self, core: Arc<Core>, router: Router, shutdown: Shutdown) {
        let known = core.members.known().clone();
        let _watch = Task::spawn("member-watch", known.clone().watch(core));
        let shared = Arc::new(Shared {
            acceptor: TlsAcceptor::from(self.tls),
            router,
            builder: builder(),
            shutdown: shutdown.clone(),
            figures: self.figures.clone(),
            known,
        });
        let places = Places::new(self.max_connections, GRACE, self.figures.shed.clone());
        let mut connections = Tasks::new();
        loop {
            let (stream, addr, place) = tokio::select! {
                next = places.accept(&self.listener) => next,
                () = shutdown.draining() => break,
            };
            let turn = place.turn().clone();
            let connection = Connection {
                addr,
                place,
                shared: Arc::clone(&shared),
            };
            connections.reap();
            // Boxed, so that an ended connection's memory is given back before it is reaped. Lent,
            // since what an async function owns is there twice.
            let serve = Box::pin(async move { connection.serve(stream).await });
            connections.spawn_in_turn("connection", &turn, serve);
        }
        drop(self.listener);
        connections.join_all(shutdown.grace()).await;
    }
}

/// What all connections are served with.
struct Shared {
    acceptor: TlsAcceptor,
    router: Router,
    builder: auto::Builder<TokioExecutor>,
    shutdown: Shutdown,
    figures: Figures,
    known: Known,
}

struct Connection {
    addr: SocketAddr,
    place: Place,
    shared: Arc<Shared>,
}

impl Connection {
    async fn serve(&self, stream: TcpStream) {
        // Given back too when the task is aborted.
        let _open = Open::count(&self.shared.figures.connections);
        if let Err(reason) = self.converse(stream).await {
            tracing::debug!(addr = %self.addr, reason, "a connection ended early");
        }
    }

    async fn converse(&self, stream: TcpStream) -> Result<(), String> {
        // Boxed apart, each in its exact size: thousands of connections are open, and what the
        // handshake needed would else be part of all that follows. Nothing here borrows the TLS
        // stream, or there would be room for it besides that in the connection.
        let (stream, entry) = Box::pin(self.begin(stream)).await?;
        let peer = PeerInfo {
            addr: self.addr,
            shown: entry.as_ref().map(|entry| Arc::clone(entry.shown())),
            share: Arc::default(),
            turn: self.place.turn().clone(),
        };
        let turn = self.place.turn().clone();
        let router = self.shared.router.clone();
        let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            // Until the answer begins: what strangers may call is answered in one piece.
            let under_way = turn.request();
            // Boxed, or a call that lasts would keep room for it.
            let answer = Box::pin(router.clone().oneshot(request.map(Body::new)));
            async move {
                let answer = answer.await;
                drop(under_way);
                answer
            }
        });
        let io = TokioIo::new(stream);
        let mut connection = Box::pin(self.shared.builder.serve_connection(io, service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.place.turn().idle_for(STRANGER) => {
                connection.as_mut().graceful_shutdown();
                let ended = tokio::time::timeout(GOODBYE, connection).await;
                ended.map_err(|_| "a stranger without a call".to_owned())?
            }
            () = over(entry.as_ref()) => {
                // Its streams say why they end.
                connection.as_mut().graceful_shutdown();
                let ended = tokio::time::timeout(GOODBYE, connection).await;
                ended.map_err(|_| "a member no more".to_owned())?
            }
            () = self.shared.shutdown.draining() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        ended.map_err(|error| error.to_string())
    }

    /// Finds out who is on the other side.
    async fn begin(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Entry>), String> {
        let stream = self.handshake(stream).await?;
        let entry = self.enter(&stream)?;
        Ok((stream, entry))
    }

    async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let handshake = async {
            if speaks_plain_http(&stream).await {
                return Err((Some(stream), "plain HTTP on the TLS port".to_owned()));
            }
            let accepted = self.shared.acceptor.accept(stream).await;
            accepted.map_err(|error| (None, format!("TLS: {error}")))
        };
        match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err((plain, reason))) => {
                self.shared.figures.handshake_failures.inc();
                if let Some(stream) = plain {
                    refuse_plain_http(stream).await;
                }
                Err(reason)
            }
            Err(_) => {
                self.shared.figures.handshake_failures.inc();
                Err("no TLS handshake in time".to_owned())
            }
        }
    }

    /// Takes down who is on the other side, if they have shown it.
    fn enter(&self, stream: &TlsStream<TcpStream>) -> Result<Option<Entry>, String> {
        let shown = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first());
        let Some(der) = shown else {
            return Ok(None);
        };
        let certificate = PeerCertificate::parse(der);
        let certificate = certificate.ok_or("the certificate names nobody of this mesh")?;
        Ok(Some(self.shared.known.enter(certificate)))
    }
}

/// Ends some time after somebody who has shown a certificate is a member no more.
async fn over(entry: Option<&Entry>) {
    match entry {
        Some(entry) => {
            entry.shown().over().await;
            tokio::time::sleep(HEARS_WHY).await;
        }
        None => std::future::pending().await,
    }
}

/// Counts as one as long as it is there.
struct Open(Gauge);

impl Open {
    fn count(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADERS);
    builder
}

/// Whether the first byte is a letter of an HTTP method rather than a TLS record (RFC 8446, 5.1).
async fn speaks_plain_http(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase()
}

async fn refuse_plain_http(mut stream: TcpStream) {
    const ANSWER: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
        content-length: 51\r\nconnection: close\r\n\r\n\
        This port speaks HTTPS: use https:// in the address";
    let answer = async {
        stream.write_all(ANSWER.as_bytes()).await?;
        stream.shutdown().await?;
        // Reading on until the client closes keeps its request from resetting our answer.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    drop(tokio::time::timeout(Duration::from_secs(2), answer).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of what a function gives.
    fn size<'a, A: 'a, B, F>(_function: impl Fn(&'a A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_open_connection_takes_little_memory_beside_what_serves_it() {
        let task = size(Connection::serve) + size_of::<Connection>();
        assert!(task <= 896, "{task} bytes for each connection");
    }
}
