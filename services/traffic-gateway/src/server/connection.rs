//! One client connection: TLS or not, HTTP/1.1 or HTTP/2.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use hyper::server::conn::http1::UpgradeableConnection;
use hyper::service::service_fn;
use hyper_reverse_proxy::{Connector, GuardedIo, Inbound, Scheme};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_daemon::{Turn, UnderWay};
use rustls::ServerConfig as TlsConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answering::Answering;
use super::http2::{self, Answer, Patient, Requests, Streams};
use super::stop::Stop;
use crate::admission::{Place, Placed};
use crate::config::ServerConfig;
use crate::idle_timer::IdleTimer;
use crate::proxy::{Gateway, Refused, Visitor};
use crate::route_table::Target;

/// How long the answer to a client that is turned away may take.
const TURN_AWAY_LIMIT: Duration = Duration::from_secs(5);
/// For how long a handshake, and what comes after it, counts as a request under way: enough for those
/// who mean it, from the other side of the world too. Who fills all places by handshakes alone needs
/// as many more of them each time.
const HANDSHAKE_TURN: Duration = Duration::from_millis(500);

/// What the connections of one core have in common.
pub(super) struct Core<C: Connector<Target = Target>> {
    pub(super) gateway: Gateway<C>,
    pub(super) server: Arc<ServerConfig>,
    pub(super) tls: Option<Arc<TlsConfig>>,
    pub(super) stop: Stop,
    /// How long a client may take for a request's head, and may wait before the next one.
    pub(super) head_limit: Duration,
}

impl<C: Connector<Target = Target>> Core<C> {
    /// Serves a connection in a task of its own, which ends when its place is given to another one.
    pub(super) fn begin(
        self: &Arc<Self>,
        connections: &mut JoinSet<()>,
        stream: TcpStream,
        peer: SocketAddr,
        place: Place,
    ) {
        let turn = place.turn().clone();
        let coming = turn.request();
        // Boxed, since it would be twice as large as an argument that is pinned.
        let connection = Box::pin(Arc::clone(self).connection(stream, peer, place));
        turn.served_by(connections.spawn(keep_until_read(connection, coming)));
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, place: Place) {
        let local = stream
            .local_addr()
            .ok()
            .map(|addr| addr.ip().to_canonical());
        let visitor = |scheme| self.visitor(peer.ip(), local, scheme);
        let turn = place.turn().clone();
        match &self.tls {
            None => {
                self.http1(Placed::new(stream, place), visitor(Scheme::Http), turn)
                    .await
            }
            Some(config) => {
                let until = Instant::now() + HANDSHAKE_TURN;
                let handshake = mesh_daemon::tls::handshake(config, stream);
                let (stream, coming) = keep_for_handshake(&turn, until, handshake).await;
                match stream {
                    Ok(stream) => {
                        let alpn = stream.get_ref().1.alpn_protocol();
                        let h2 = alpn == Some(mesh_daemon::tls::ALPN_H2);
                        let (stream, visitor) =
                            (Placed::new(stream, place), visitor(Scheme::Https));
                        if h2 {
                            let served = Box::pin(self.http2(stream, visitor, turn));
                            keep_until(served, coming, until).await;
                        } else {
                            let served = Box::pin(self.http1(stream, visitor, turn));
                            keep_until(served, coming, until).await;
                        }
                    }
                    Err(err) => tracing::debug!(error = %err, "TLS handshake failed"),
                }
            }
        }
    }

    /// Answers that there are too many connections already, and no more than that.
    pub(super) async fn turn_away(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let mut visitor = self.visitor(peer.ip(), None, Scheme::Http);
        visitor.refused = Some(Refused::Full);
        let told = self.http1(stream, visitor, Turn::default());
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

    async fn http1<S>(&self, stream: S, mut visitor: Visitor, turn: Turn)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, framing) = GuardedIo::new(stream);
        visitor.framing = Some(framing);
        let (visitor, turn) = (&visitor, &turn);
        let service = service_fn(async |request| {
            let under_way = begin(turn).await;
            let response = self.gateway.serve(visitor, request).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                turn.settle();
            }
            Ok::<_, Infallible>(response.map(|body| Answering::new(body, under_way)))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(IdleTimer::new())
            .header_read_timeout(self.head_limit)
            .max_header_size(self.server.max_head)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let end = |connection: Pin<&mut _>| UpgradeableConnection::graceful_shutdown(connection);
        log_end(self.stop.end(connection, end).await);
    }

    async fn http2<S>(self: &Arc<Self>, stream: S, visitor: Visitor, turn: Turn)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (core, visitor) = (Arc::clone(self), Arc::new(visitor));
        let streams = Arc::new(Streams::default());
        let entered = Arc::clone(&streams);
        let service = service_fn(move |request| {
            let (core, visitor) = (Arc::clone(&core), Arc::clone(&visitor));
            let (stream, turn) = (entered.enter(), turn.clone());
            async move {
                let stream = stream.in_its_task();
                let under_way = begin(&turn).await;
                let response = core.gateway.serve(&visitor, request).await;
                Ok::<_, Infallible>(response.map(|body| Answer::new(body, under_way, stream)))
            }
        });
        let requests = Requests::default();
        // Extended CONNECT stays off, so browsers open WebSockets over HTTP/1.1.
        let connection = hyper::server::conn::http2::Builder::new(requests.runner())
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(self.head_limit))
            .max_concurrent_streams(http2::MAX_STREAMS)
            .max_header_list_size(u32::try_from(self.server.max_head).unwrap_or(u32::MAX))
            .max_send_buf_size(http2::SEND_BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        let patient = Patient::new(connection, streams, self.head_limit, |connection| {
            hyper::server::conn::http2::Connection::graceful_shutdown(connection);
        });
        log_end(
            self.stop
                .end(patient, |patient| patient.get_mut().end())
                .await,
        );
    }
}

/// Waits for a handshake; its connection keeps its place until this moment. Of newcomers beside
/// connections that are all at work each would else lose its place to the next one, before it could
/// ask for anything.
async fn keep_for_handshake<T>(
    turn: &Turn,
    until: Instant,
    handshake: impl Future<Output = T>,
) -> (T, Option<UnderWay>) {
    let coming = turn.request();
    let mut handshake = pin!(handshake);
    match tokio::time::timeout_at(until, handshake.as_mut()).await {
        Ok(done) => (done, coming),
        Err(_) => {
            drop(coming);
            (handshake.await, turn.request())
        }
    }
}

/// Serves a connection that keeps its place until this moment, or until what has come by then was
/// read: a client may send its request some time after the end of its handshake.
async fn keep_until(
    mut connection: Pin<Box<impl Future>>,
    coming: Option<UnderWay>,
    until: Instant,
) {
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = tokio::time::sleep_until(until) => {}
    }
    keep_until_read(connection, coming).await;
}

/// Serves a connection that keeps its place until what its client has sent so far was read: of many
/// that come at once each would else lose it to the next one, its request unread.
async fn keep_until_read(mut connection: Pin<Box<impl Future>>, coming: Option<UnderWay>) {
    // It asks for what has come, the runtime looks, and it asks once more.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = tokio::task::yield_now() => {}
    }
    // Whoever's request began meanwhile keeps its place by that.
    drop(coming);
    connection.await;
}

/// A request begins, unless the connection has given its place up.
async fn begin(turn: &Turn) -> UnderWay {
    match turn.request() {
        Some(under_way) => under_way,
        // INVARIANT: who gives its place up is aborted, so this is where it ends.
        None => std::future::pending().await,
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
mod tests;
