//! This machine's console on the overlay: Cockpit when it answers, else the agent's own page.
//!
//! Connections to Cockpit are copied byte by byte, WebSockets included; the page is served here.
//! Which of the two it is, is looked at again and again, and at once when Cockpit stops answering.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_daemon::Tasks;
use mesh_node::OverlayStream;
use mesh_trace::{TRACEPARENT, TraceParent, Tracer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};

use crate::config::{ConsoleConfig, ConsoleMode};
use crate::page::{self, Facts, Notice};

mod configure;
mod probe;

pub(crate) use configure::{Configured, configure};
use probe::Probe;

/// How long Cockpit may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How much of a connection is looked at for the trace that it belongs to, in bytes.
const FIRST: usize = 16 * 1024;
/// Connections at the same time; more are reset.
const CONNECTIONS: usize = 512;
/// Connections that wait to be taken.
pub(crate) const QUEUE: usize = 64;

/// What is served as the console now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleState {
    /// The agent's own page.
    Page,
    /// Cockpit.
    Cockpit,
    /// An error page: Cockpit runs for another path. Mended by `worker-agent console configure`.
    UrlRootMismatch,
    /// An error page: Cockpit is wanted and does not answer.
    NoCockpit,
}

impl ConsoleState {
    fn notice(self) -> Option<Notice> {
        match self {
            Self::Page | Self::Cockpit => None,
            Self::UrlRootMismatch => Some(Notice::UrlRootMismatch),
            Self::NoCockpit => Some(Notice::NoCockpit),
        }
    }

    fn of(mode: ConsoleMode, probe: Probe) -> Self {
        match (mode, probe) {
            (ConsoleMode::Page, _) => Self::Page,
            (_, Probe::Cockpit) => Self::Cockpit,
            (_, Probe::OtherUrlRoot) => Self::UrlRootMismatch,
            (ConsoleMode::Auto, Probe::Absent) => Self::Page,
            (ConsoleMode::Cockpit, Probe::Absent) => Self::NoCockpit,
        }
    }
}

/// Serves the console's connections.
pub(crate) struct Console {
    mode: ConsoleMode,
    cockpit: SocketAddr,
    conf: PathBuf,
    recheck: Duration,
    facts: watch::Receiver<Facts>,
    state: watch::Sender<ConsoleState>,
    tracer: Tracer,
    /// Cockpit did not accept: look again now.
    look: Arc<Notify>,
}

impl Console {
    /// A console that shows the agent's own page until [`Console::watch`] has looked for Cockpit.
    pub(crate) fn new(
        config: &ConsoleConfig,
        facts: watch::Receiver<Facts>,
        tracer: Tracer,
    ) -> Self {
        Self {
            mode: config.mode,
            cockpit: config.cockpit,
            conf: config.cockpit_conf.clone(),
            recheck: config.recheck,
            facts,
            state: watch::channel(ConsoleState::Page).0,
            tracer,
            look: Arc::new(Notify::new()),
        }
    }

    /// What is served, as it changes.
    pub(crate) fn state(&self) -> watch::Receiver<ConsoleState> {
        self.state.subscribe()
    }

    /// Looks for Cockpit once.
    pub(crate) async fn look(&self) {
        let probe = if self.mode == ConsoleMode::Page {
            Probe::Absent
        } else {
            let prefix = self.facts.borrow().prefix.clone();
            probe::probe(self.cockpit, &prefix, &self.conf).await
        };
        let state = ConsoleState::of(self.mode, probe);
        let changed = self
            .state
            .send_if_modified(|before| std::mem::replace(before, state) != state);
        if changed {
            tracing::info!(console = ?state, "console");
        }
    }

    /// Looks for Cockpit again and again.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut facts = self.facts.clone();
        loop {
            self.look().await;
            tokio::select! {
                () = tokio::time::sleep(self.recheck) => {}
                () = self.look.notified() => {}
                changed = facts.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes the console's connections; all end with this future.
    pub(crate) async fn serve(
        self: Arc<Self>,
        mut connections: mpsc::Receiver<(OverlayStream, SocketAddr)>,
    ) {
        let mut open = Tasks::new();
        while let Some((stream, _)) = connections.recv().await {
            open.reap();
            if open.len() >= CONNECTIONS {
                tracing::debug!("too many console connections: one is dropped");
                continue;
            }
            let console = Arc::clone(&self);
            open.spawn("console connection", async move {
                console.connection(stream).await
            });
        }
    }

    async fn connection<S>(&self, mut stream: S)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        if *self.state.borrow() == ConsoleState::Cockpit {
            match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(self.cockpit)).await {
                Ok(Ok(mut cockpit)) => {
                    // Fails only on a socket that is gone, which the copy notices.
                    drop(cockpit.set_nodelay(true));
                    if let Err(error) = self.copy(&mut stream, &mut cockpit).await {
                        tracing::debug!(%error, "console connection broke");
                    }
                    return;
                }
                Ok(Err(_)) | Err(_) => {
                    self.look().await;
                    self.look.notify_one();
                }
            }
        }
        self.page(stream).await;
    }

    /// Copies a connection both ways until its end. It is a span for as long as its first request
    /// takes to be handed on; what follows on the same connection is not looked at.
    async fn copy<S>(&self, stream: &mut S, cockpit: &mut TcpStream) -> io::Result<()>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        if self.tracer.is_on() {
            let mut head = vec![0; FIRST];
            let read = stream.read(&mut head).await?;
            let head = &head[..read];
            let span = self.tracer.answer("console connection", || parent_in(head));
            span.set("mesh.node", self.facts.borrow().name.to_string());
            cockpit.write_all(head).await?;
        }
        copy_bidirectional(stream, cockpit).await.map(drop)
    }

    /// Serves the page until the other side goes, or something else is to be served.
    async fn page<S>(&self, stream: S)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let mut state = self.state.subscribe();
        let shown = *state.borrow_and_update();
        let answer = service_fn(|request: http::Request<hyper::body::Incoming>| {
            let facts = self.facts.borrow();
            let (method, path) = (request.method(), request.uri().path());
            let headers = request.headers();
            let span = self.tracer.answer("page", || TraceParent::extract(headers));
            let response: Response<String> =
                page::respond(&facts, shown.notice(), method, path, headers);
            if self.tracer.is_on() {
                span.set("mesh.node", facts.name.to_string());
                let status = i64::from(response.status().as_u16());
                span.set("http.response.status_code", status);
            }
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), answer);
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            // The next request is to see the change: keep-alive ends here.
            _ = state.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "console connection broke");
        }
    }
}

/// The `traceparent` of a request, as far as its head has come.
fn parent_in(head: &[u8]) -> Option<TraceParent> {
    let head = std::str::from_utf8(head).ok()?;
    // What follows the empty line is no header.
    let (head, _) = head.split_once("\r\n\r\n")?;
    let mut values = head.lines().skip(1).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(TRACEPARENT).then(|| value.trim())
    });
    let value = values.next()?;
    // Two are none (W3C Trace Context, section 3.2).
    values.next().is_none().then(|| TraceParent::parse(value))?
}

#[cfg(test)]
mod tests;
