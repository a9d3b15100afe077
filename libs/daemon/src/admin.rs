//! The admin endpoint: `/livez`, `/readyz`, `/metrics`, `/version`, on loopback.

use std::io;
use std::net::SocketAddr;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::build_info;
use crate::config::Faults;
use crate::handles::Handles;
use crate::net::{BindError, bind_tcp};
use crate::shutdown::Shutdown;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

crate::settings! {
    /// The `[admin]` section.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct AdminConfig {
        /// Where `/livez`, `/readyz` and `/metrics` are served; port 0 takes any free one.
        pub listen: SocketAddr,
        /// Accept an address that is not loopback: the endpoint asks nobody for a password.
        pub expose: bool,
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self::at(0)
    }
}

impl AdminConfig {
    /// The default of a service: this port on loopback.
    pub fn at(port: u16) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            expose: false,
        }
    }

    /// Adds a fault for an address that is not loopback, unless `expose` is set.
    pub fn validate(&self, faults: &mut Faults) {
        faults.require_unless_dev(
            self.expose || self.listen.ip().is_loopback(),
            "admin.listen",
            "the admin endpoint has no password, so it stays on loopback; \
             set admin.expose = true where a firewall guards it",
        );
    }
}

/// The bound admin endpoint.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    addr: SocketAddr,
    handles: Handles,
}

impl AdminServer {
    /// Binds the configured address.
    ///
    /// # Errors
    /// When it cannot be bound; the message names `admin.listen`.
    pub fn bind(config: &AdminConfig, handles: Handles) -> Result<Self, BindError> {
        const WHAT: (&str, &str) = ("the admin endpoint", "--set admin.listen=ADDRESS:PORT");
        let listener = bind_tcp(config.listen, WHAT.0, WHAT.1)?;
        let addr = listener
            .local_addr()
            .map_err(|source| BindError::new(config.listen, WHAT.0, WHAT.1, source))?;
        crate::vital::register(&handles);
        Ok(Self {
            listener,
            addr,
            handles,
        })
    }

    /// What was bound, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the drain is over: while it lasts `/readyz` says 503, so that a load balancer
    /// sends nothing more. A systemd that started the process hears the same (`Type=notify`).
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn run(self, shutdown: Shutdown) -> io::Result<()> {
        let readiness = self.handles.readiness.clone();
        let _systemd = crate::systemd::announce(readiness.clone(), shutdown.clone());
        let server = axum::serve(self.listener, router(self.handles)).into_future();
        let end = async {
            shutdown.draining().await;
            readiness.drain();
            shutdown.drained().await;
        };
        tokio::select! {
            served = server => served,
            () = end => Ok(()),
        }
    }
}

fn router(handles: Handles) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .with_state(handles)
}

async fn readyz(State(handles): State<Handles>, headers: HeaderMap) -> Response {
    let (waiting, degraded) = (handles.readiness.report(), handles.readiness.degraded());
    let status = if waiting.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let accepted = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    if accepted.is_some_and(|accepted| accepted.contains("application/json")) {
        let body = serde_json::json!({
            "ready": waiting.is_empty(),
            "waiting": waiting,
            "degraded": degraded,
        });
        return (status, Json(body)).into_response();
    }
    let mut text = String::new();
    for part in &waiting {
        text.push_str(&format!("{}: {}\n", part.name, part.reason));
    }
    if waiting.is_empty() {
        text.push_str("ok\n");
    }
    for part in &degraded {
        text.push_str(&format!("{}: degraded: {}\n", part.name, part.reason));
    }
    (status, text).into_response()
}

async fn version(State(handles): State<Handles>) -> Json<serde_json::Value> {
    Json(build_info::manifest(handles.program))
}

async fn metrics(State(handles): State<Handles>) -> Response {
    (
        [(header::CONTENT_TYPE, OPENMETRICS)],
        handles.metrics.encode(),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::shutdown::ShutdownTrigger;
    use crate::task::Task;

    async fn ask(addr: SocketAddr, path: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("connected");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn the_endpoint_tells_alive_ready_and_numbers() {
        let handles = Handles {
            program: "relay",
            ..Handles::default()
        };
        let latch = handles.readiness.latch("store", "opening");
        let admin = AdminServer::bind(&AdminConfig::at(0), handles.clone()).expect("bound");
        let addr = admin.local_addr();
        let (trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(10));
        let guard = shutdown.guard();
        let mut task = Task::spawn("admin", admin.run(shutdown));

        assert!(ask(addr, "/livez", "*/*").await.starts_with("HTTP/1.1 200"));
        let waiting = ask(addr, "/readyz", "*/*").await;
        assert!(waiting.starts_with("HTTP/1.1 503"), "{waiting}");
        assert!(waiting.ends_with("store: opening\n"), "{waiting}");
        let json = ask(addr, "/readyz", "application/json").await;
        assert!(json.contains("\"waiting\":[{\"name\":\"store\""), "{json}");
        latch.degraded("slow");
        let ready = ask(addr, "/readyz", "*/*").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        assert!(ready.ends_with("ok\nstore: degraded: slow\n"), "{ready}");
        latch.ready();
        assert!(
            ask(addr, "/readyz", "*/*")
                .await
                .starts_with("HTTP/1.1 200")
        );
        let numbers = ask(addr, "/metrics", "*/*").await;
        assert!(
            numbers.contains("openmetrics-text") && numbers.ends_with("# EOF\n"),
            "{numbers}"
        );

        let version = ask(addr, "/version", "*/*").await;
        let name_and_protocols = r#""name":"relay","protocols":{"derp":"2","#;
        assert!(version.contains(name_and_protocols), "{version}");
        assert!(version.contains(build_info::VERSION), "{version}");

        trigger.trigger("test");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while !ask(addr, "/readyz", "*/*").await.contains("shutting down") {
            assert!(tokio::time::Instant::now() < deadline, "never drained");
        }
        drop(guard);
        let end = tokio::time::timeout(Duration::from_secs(5), task.finished()).await;
        assert_eq!(end, Ok(crate::task::TaskEnd::Completed));
    }

    #[test]
    fn it_stays_on_loopback_unless_exposed() {
        let mut config = AdminConfig {
            listen: ([0, 0, 0, 0], 1).into(),
            expose: false,
        };
        let mut faults = Faults::default();
        config.validate(&mut faults);
        assert!(!faults.is_empty());
        config.expose = true;
        let mut faults = Faults::default();
        config.validate(&mut faults);
        assert!(faults.is_empty());
    }
}
