//! The one task that owns the netmap engine. Everybody else asks it over a bounded channel; each
//! session, route watch and relay watch gets its news over a bounded channel of its own.
//!
//! A slow reader holds nobody up: the engine merges its news until its channel has room again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use mesh_netmap::{Engine, Event, Opened, Output, Rejected, SessionId};
use mesh_types::{Cursor, NetworkId, NodeId, RelayId};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;

/// How many requests may wait for the owner.
const COMMANDS: usize = 1024;
/// How many requests are applied before news go out.
const BATCH: usize = 64;
/// How many parts of an update may wait for one session's stream.
const OUTPUTS: usize = 2;
/// How many engine events may wait to be stored.
pub(crate) const EVENTS: usize = 1024;

type Command = Box<dyn FnOnce(&mut Owner, Instant) + Send>;
/// Boxed, since a channel keeps room for 32 at least.
type Boxed = Box<Output>;
type Room = BoxFuture<'static, (SessionId, Option<mpsc::OwnedPermit<Boxed>>)>;

/// A handle to the owner task.
#[derive(Debug, Clone)]
pub(crate) struct Netmap {
    commands: mpsc::Sender<Command>,
    next_session: Arc<AtomicU64>,
}

/// What the owner task holds.
#[derive(Debug)]
pub(crate) struct Owner {
    /// The core.
    pub(crate) engine: Engine,
    sessions: HashMap<SessionId, mpsc::Sender<Boxed>>,
}

/// One open session or watch: its news. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    outputs: mpsc::Receiver<Boxed>,
    netmap: Netmap,
}

/// Whose news a session brings.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of {
    /// A node's netmap.
    Node(NodeId, Option<Cursor>),
    /// A relay's own stream, which only ever ends.
    Relay(RelayId),
    /// The routes of a network, until the gateway that watches is removed.
    Routes(NetworkId, NodeId),
    /// The clients of relays, until this relay is removed.
    Clients(RelayId),
}

impl Netmap {
    /// A handle, and the owner's future to spawn. Events of the engine go to `events`; when that
    /// channel is full they are dropped, since they only inform.
    pub(crate) fn new(
        engine: Engine,
        events: mpsc::Sender<Event>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let owner = Owner {
            engine,
            sessions: HashMap::new(),
        };
        let netmap = Self {
            commands,
            next_session: Arc::new(AtomicU64::new(1)),
        };
        (netmap, run(owner, inbox, events))
    }

    /// Runs `ask` on the engine, between two inputs.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] when the owner is gone.
    pub(crate) async fn with<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Engine, Instant) -> R + Send + 'static,
    ) -> Result<R, Error> {
        self.command(move |owner, now| ask(&mut owner.engine, now))
            .await
    }

    async fn command<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Owner, Instant) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |owner, now| {
            // The asker may have gone away meanwhile; then nobody needs the answer.
            drop(answer.send(ask(owner, now)));
        });
        self.commands
            .send(command)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answered.await.map_err(|_| Error::ShuttingDown)
    }

    /// Opens a session or watch, waiting for its turn when too many come at once.
    pub(crate) async fn open(&self, of: Of) -> Result<Session, Error> {
        loop {
            let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
            let (outputs, received) = mpsc::channel(OUTPUTS);
            let opened = self
                .command(move |owner, now| owner.open(id, of, outputs, now))
                .await?;
            match opened.map_err(gone)? {
                Opened::Admitted => {
                    return Ok(Session {
                        id,
                        outputs: received,
                        netmap: self.clone(),
                    });
                }
                Opened::Wait(turn) => tokio::time::sleep(turn).await,
            }
        }
    }
}

/// A caller that was let in and is unknown to the engine was removed in between.
fn gone(rejected: Rejected) -> Error {
    match rejected {
        Rejected::UnknownNode | Rejected::UnknownNetwork => Error::Removed("node"),
        Rejected::UnknownRelay => Error::Removed("relay"),
        other => other.into(),
    }
}

impl Session {
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// The next news; `None` when the session is over. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Output> {
        self.outputs.recv().await.map(|output| *output)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let id = self.id;
        let close: Command = Box::new(move |owner, _| owner.close(id));
        // When the inbox is full the owner finds the closed channel at the session's next news.
        drop(self.netmap.commands.try_send(close));
    }
}

impl Owner {
    fn open(
        &mut self,
        id: SessionId,
        of: Of,
        outputs: mpsc::Sender<Boxed>,
        now: Instant,
    ) -> Result<Opened, Rejected> {
        let engine = &mut self.engine;
        let opened = match of {
            Of::Node(node, cursor) => engine.session_open(id, node, cursor, now)?,
            Of::Relay(relay) => engine
                .relay_session_open(id, relay)
                .map(|()| Opened::Admitted)?,
            Of::Routes(network, by) => engine
                .watch_routes(id, network, Some(by))
                .map(|()| Opened::Admitted)?,
            Of::Clients(relay) => engine.watch_clients(id, relay).map(|()| Opened::Admitted)?,
        };
        if opened == Opened::Admitted {
            self.sessions.insert(id, outputs);
        }
        Ok(opened)
    }

    fn close(&mut self, id: SessionId) {
        self.engine.session_close(id);
        self.sessions.remove(&id);
    }

    /// Gives a session its news while there is room; answers the wait for room when there is not.
    fn deliver(&mut self, id: SessionId, first: Option<mpsc::OwnedPermit<Boxed>>) -> Option<Room> {
        let mut first = first;
        loop {
            let outputs = self.sessions.get(&id)?.clone();
            let permit = match first.take() {
                Some(permit) => permit,
                None => match outputs.try_reserve_owned() {
                    Ok(permit) => permit,
                    Err(TrySendError::Full(outputs)) => {
                        return Some(Box::pin(
                            async move { (id, outputs.reserve_owned().await.ok()) },
                        ));
                    }
                    Err(TrySendError::Closed(_)) => {
                        self.close(id);
                        return None;
                    }
                },
            };
            match self.engine.poll_session(id) {
                None => return None,
                Some(end @ Output::End(_)) => {
                    permit.send(Box::new(end));
                    self.sessions.remove(&id);
                    return None;
                }
                Some(output) => {
                    permit.send(Box::new(output));
                }
            }
        }
    }
}

async fn run(mut owner: Owner, mut inbox: mpsc::Receiver<Command>, events: mpsc::Sender<Event>) {
    let mut waiting: FuturesUnordered<Room> = FuturesUnordered::new();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let timeout = owner.engine.poll_timeout();
        let due = async {
            match timeout {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = inbox.recv_many(&mut batch, BATCH) => {
                if received == 0 {
                    return;
                }
                let now = now();
                for command in batch.drain(..) {
                    command(&mut owner, now);
                }
            }
            () = due => owner.engine.handle_timeout(now()),
            Some((id, room)) = waiting.next(), if !waiting.is_empty() => {
                match room {
                    Some(permit) => waiting.extend(owner.deliver(id, Some(permit))),
                    None => owner.close(id),
                }
            }
        }
        while let Some(event) = owner.engine.poll_event() {
            if events.try_send(event).is_err() {
                tracing::debug!(?event, "too many events at once: one is not recorded");
            }
        }
        while let Some(id) = owner.engine.poll_ready() {
            waiting.extend(owner.deliver(id, None));
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
