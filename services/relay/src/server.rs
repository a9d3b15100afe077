//! The TLS listener: the upgrade to DERP, and `/health`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_daemon::{Shutdown, Tasks, accept, tls};
use mesh_tunnel::derp;
use mesh_types::key::SecretKey;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::clients::Clients;
use crate::connection;

/// How long a request's head may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Connections at most, upgraded or not.
const MAX_CONNECTIONS: usize = 65_536;

/// What every connection needs.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) derp_key: SecretKey,
    pub(crate) clients: Arc<Clients>,
}

/// Accepts connections until the shutdown begins, then lets them end within the grace period.
pub(crate) async fn run(listener: TcpListener, service: Service, shutdown: Shutdown) {
    let mut connections = Tasks::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = shutdown.draining() => break,
        };
        if connections.reap() >= MAX_CONNECTIONS {
            tracing::info!("too many connections: one was refused");
            continue;
        }
        let service = service.clone();
        let shutdown = shutdown.clone();
        connections.spawn("connection", async move {
            if let Err(error) = serve(stream, service, shutdown).await {
                let error = mesh_daemon::report::chain(&*error);
                tracing::debug!(%peer, error, "connection ended");
            }
        });
    }
    drop(listener);
    // Clients connect again as soon as they read this.
    let mut restarting = Vec::new();
    derp::Frame::Restarting {
        reconnect_in: Duration::ZERO,
        try_for: Duration::from_secs(60),
    }
    .encode(&mut restarting);
    service.clients.close_all(&restarting);
    connections
        .join_all(shutdown.grace().min(Duration::from_secs(2)))
        .await;
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn serve(stream: TcpStream, service: Service, shutdown: Shutdown) -> Result<(), BoxError> {
    let stream = tls::handshake(&service.tls, stream).await?;
    let (upgraded, upgrade) = oneshot::channel();
    let upgraded = std::sync::Mutex::new(Some(upgraded));
    let answer = service_fn(|request: Request<Incoming>| {
        let answer = answer(request, &upgraded);
        async move { Ok::<_, Infallible>(answer) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades()
        .await?;
    drop(upgraded);
    let Ok(upgrade) = upgrade.await else {
        return Ok(());
    };
    let stream = TokioIo::new(upgrade.await?);
    let mut seed = [0; 32];
    SystemRandom::new()
        .fill(&mut seed)
        .map_err(|_| "the system gave no randomness")?;
    let Service {
        derp_key, clients, ..
    } = &service;
    connection::serve(stream, derp_key, seed, clients, shutdown).await?;
    Ok(())
}

type UpgradeSlot = std::sync::Mutex<Option<oneshot::Sender<hyper::upgrade::OnUpgrade>>>;

fn answer(mut request: Request<Incoming>, upgraded: &UpgradeSlot) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::GET, derp::PATH) if wants_derp(&request) => {
            let slot = upgraded
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .take();
            let Some(slot) = slot else {
                return text(StatusCode::BAD_REQUEST, "one upgrade per connection\n");
            };
            // Nobody waits for it any more only when the connection is ending.
            drop(slot.send(hyper::upgrade::on(&mut request)));
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, http::HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, http::HeaderValue::from_static(derp::UPGRADE));
            response
        }
        (&Method::GET, derp::PATH) => {
            let mut response = text(
                StatusCode::UPGRADE_REQUIRED,
                "this is a mesh relay: it speaks DERP, by 'Upgrade: DERP'\n",
            );
            let derp = http::HeaderValue::from_static(derp::UPGRADE);
            response.headers_mut().insert(UPGRADE, derp);
            response
        }
        (&Method::GET | &Method::HEAD, "/health") => text(StatusCode::OK, "OK"),
        (_, derp::PATH | "/health") => text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"),
        _ => text(StatusCode::NOT_FOUND, "this is a mesh relay: see /health\n"),
    }
}

fn wants_derp(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case(derp::UPGRADE))
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
