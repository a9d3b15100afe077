//! The cores: one thread each, with a runtime, a listener and upstream connections of its own.
//!
//! The listeners share one port (`SO_REUSEPORT`), so the kernel spreads connections and no core
//! ever waits for another one. What it spreads unevenly is put right once, when a connection comes
//! in (see [`crate::admission`]).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_reverse_proxy::{Client, Connector, Limits, ReverseProxy};
use rustls::ServerConfig as TlsConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::admission::{Admitted, Door, Handed};
use crate::config::ServerConfig;
use crate::proxy::{Gateway, Shared};
use crate::route_table::Target;

mod answering;
mod connection;
mod http2;
mod listen;
mod stop;

use connection::Core;
pub use listen::{ListenError, Listeners};
use stop::Stop;

/// How long a client may take for the head of a request, and how long a connection may wait for
/// the next one.
const HEAD_LIMIT: Duration = Duration::from_secs(75);
/// How often unused upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(10);
/// Connections beyond the limit that one core answers at a time, to say so; more are just closed.
const TURNED_AWAY: usize = 64;

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
            let end = match end {
                Ok(end) => end,
                // The runtime was ended before this core could begin, and whoever waits here ends
                // with it: no fault to tell of.
                Err(err) if err.is_cancelled() => std::future::pending().await,
                Err(err) => Err(io::Error::other(err)),
            };
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
        head_limit: HEAD_LIMIT,
    });
    let mut connections = JoinSet::new();
    let mut turned_away = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            (stream, peer) = mesh_daemon::accept(&listener) => match door.admit(stream, peer) {
                Ok(Admitted::Here(stream, place)) => {
                    core.begin(&mut connections, stream, peer, place);
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
                    Ok(stream) => core.begin(&mut connections, stream, peer, place),
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

fn log_panic(end: Result<(), tokio::task::JoinError>) {
    if let Err(err) = end
        && err.is_panic()
    {
        tracing::error!(error = %err, "a connection's task panicked");
    }
}
