//! The TLS port: accepts connections, finds out who is there, and serves gRPC and HTTPS on each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mesh_daemon::{Shutdown, Tasks};
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

use crate::caller::PeerCertificate;
use crate::metrics::Figures;
use crate::rate::ConnectionShare;

/// How long TLS, or the headers of a request, may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
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
    pub(crate) certificate: Option<Arc<PeerCertificate>>,
    pub(crate) share: Arc<ConnectionShare>,
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
    pub(crate) async fn run(self, router: Router, shutdown: Shutdown) {
        let acceptor = TlsAcceptor::from(self.tls);
        let room = Arc::new(Semaphore::new(
            self.max_connections.min(Semaphore::MAX_PERMITS),
        ));
        let mut connections = Tasks::new();
        loop {
            let next = async {
                // INVARIANT: the semaphore is never closed, so this only waits.
                let place = Arc::clone(&room).acquire_owned().await.ok();
                (place, mesh_daemon::accept(&self.listener).await)
            };
            let (place, (stream, addr)) = tokio::select! {
                next = next => next,
                () = shutdown.draining() => break,
            };
            let connection = Connection {
                addr,
                acceptor: acceptor.clone(),
                router: router.clone(),
                shutdown: shutdown.clone(),
                figures: self.figures.clone(),
                _place: place,
            };
            connections.reap();
            // Boxed, so that an ended connection's memory is given back before it is reaped.
            connections.spawn("connection", Box::pin(connection.serve(stream)));
        }
        drop(self.listener);
        connections.join_all(shutdown.grace()).await;
    }
}

struct Connection {
    addr: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: Shutdown,
    figures: Figures,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        self.figures.connections.inc();
        if let Err(reason) = self.converse(stream).await {
            tracing::debug!(addr = %self.addr, reason, "a connection ended early");
        }
        self.figures.connections.dec();
    }

    async fn converse(&self, stream: TcpStream) -> Result<(), String> {
        // Boxed apart, each in its exact size: thousands of connections are open, and what the
        // handshake needed would else be part of all that follows.
        let stream = Box::pin(self.handshake(stream)).await?;
        let peer = self.peer(&stream)?;
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            router.clone().oneshot(request.map(Body::new))
        });
        let builder = builder();
        let mut connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.draining() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        ended.map_err(|error| error.to_string())
    }

    async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let handshake = async {
            if speaks_plain_http(&stream).await {
                return Err((Some(stream), "plain HTTP on the TLS port".to_owned()));
            }
            let accepted = self.acceptor.accept(stream).await;
            accepted.map_err(|error| (None, format!("TLS: {error}")))
        };
        match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err((plain, reason))) => {
                self.figures.handshake_failures.inc();
                if let Some(stream) = plain {
                    refuse_plain_http(stream).await;
                }
                Err(reason)
            }
            Err(_) => {
                self.figures.handshake_failures.inc();
                Err("no TLS handshake in time".to_owned())
            }
        }
    }

    /// Who is on the other side.
    fn peer(&self, stream: &TlsStream<TcpStream>) -> Result<PeerInfo, String> {
        let shown = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first());
        let certificate = match shown {
            None => None,
            Some(der) => {
                let parsed = PeerCertificate::parse(der);
                Some(Arc::new(
                    parsed.ok_or("the certificate names nobody of this mesh")?,
                ))
            }
        };
        Ok(PeerInfo {
            addr: self.addr,
            certificate,
            share: Arc::default(),
        })
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
