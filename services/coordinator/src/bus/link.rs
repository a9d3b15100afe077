//! The connections to Redis: one for commands, one for the channel. One task makes them, sees that
//! they are alive, and makes them anew when they are not.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use mesh_daemon::{Metrics, Task};
use mesh_types::{NetworkId, Timestamp};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use redis::AsyncConnectionConfig;
use redis::aio::{MultiplexedConnection, PubSub};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::message::Message;
use super::target::Target;
use super::{BusState, Change, NEWS, News, Replica, SEEN_LIFE};

/// How long making both connections may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an answer may take, where nobody waits for it.
const ANSWER: Duration = Duration::from_secs(1);
/// How often both ways are tried.
const TRIAL: Duration = Duration::from_secs(5);
/// How often sightings are written.
const FLUSH: Duration = Duration::from_secs(1);
/// The pause before the second try; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How many commands go out at once.
const BATCH: usize = 500;
/// How many sightings wait at most; members are fewer.
const CAPACITY: usize = 65_536;

/// The figures of the bus over Redis.
#[derive(Debug, Clone, Default)]
pub(super) struct BusFigures {
    up: Gauge,
    reconnects: Counter,
    pub(super) timeouts: Counter,
    pub(super) fallbacks: Counter,
    sent: Counter,
    received: Counter,
}

impl BusFigures {
    /// Makes and registers them.
    pub(super) fn register(metrics: &Metrics) -> Self {
        let figures = Self::default();
        let of = figures.clone();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("mesh_coordinator_bus");
            registry.register("up", "Whether Redis answers", of.up);
            registry.register("connects", "Connections made to Redis", of.reconnects);
            registry.register("timeouts", "Answers that came too late", of.timeouts);
            registry.register(
                "fallbacks",
                "Rates that this process counted for itself",
                of.fallbacks,
            );
            registry.register("notices_sent", "Notices of change sent", of.sent);
            registry.register(
                "notices_received",
                "Notices of change that came from others",
                of.received,
            );
        });
        figures
    }
}

/// The names that an installation uses in Redis.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    /// Names of this installation, told from others by its CA's fingerprint.
    pub(super) fn new(installation: [u8; 32]) -> Self {
        let id: String = installation[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            prefix: format!("mesh:{id}"),
        }
    }

    fn channel(&self) -> String {
        format!("{}:notices", self.prefix)
    }

    pub(super) fn seen(&self, id: &[u8; 16]) -> String {
        format!("{}:seen:{:032x}", self.prefix, u128::from_be_bytes(*id))
    }

    pub(super) fn rate(&self, key: &impl fmt::Display) -> String {
        format!("{}:rate:{key}", self.prefix)
    }
}

/// What waits to be sent; the newest of each counts.
#[derive(Debug, Default)]
struct Outbox {
    changes: HashMap<NetworkId, u64>,
    seen: HashMap<[u8; 16], Timestamp>,
}

/// Shared between the task and those who use the bus.
pub(super) struct Link {
    target: Target,
    pub(super) names: Names,
    replica: Replica,
    pub(super) figures: BusFigures,
    /// `None` while Redis is not to be asked.
    commands: watch::Sender<Option<MultiplexedConnection>>,
    pub(super) state: watch::Sender<BusState>,
    pub(super) news: broadcast::Sender<News>,
    outbox: Mutex<Outbox>,
    changed: Notify,
    suspect: Notify,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("target", &self.target)
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

/// Both connections.
struct Session {
    commands: MultiplexedConnection,
    channel: PubSub,
    /// Moves the bytes of `commands`.
    _driver: Task,
}

/// Why the link is down.
type Reason = String;

impl Link {
    pub(super) fn new(target: Target, names: Names, replica: Replica, figures: BusFigures) -> Self {
        Self {
            target,
            names,
            replica,
            figures,
            commands: watch::Sender::new(None),
            state: watch::Sender::new(BusState::NotTried),
            news: broadcast::Sender::new(NEWS),
            outbox: Mutex::default(),
            changed: Notify::new(),
            suspect: Notify::new(),
        }
    }

    /// The connection for commands, while Redis answers.
    pub(super) fn commands(&self) -> Option<MultiplexedConnection> {
        self.commands.borrow().clone()
    }

    /// Somebody waited in vain: nobody asks any more until a trial went well.
    pub(super) fn suspect(&self) {
        self.figures.timeouts.inc();
        self.commands
            .send_if_modified(|commands| commands.take().is_some());
        self.suspect.notify_one();
    }

    /// Has a change told to the others.
    pub(super) fn announce(&self, change: Change) {
        let mut outbox = self.outbox();
        let version = outbox.changes.entry(change.network).or_default();
        *version = change.version.max(*version);
        drop(outbox);
        self.changed.notify_one();
    }

    /// Has a sighting written, within a second.
    pub(super) fn note_seen(&self, id: [u8; 16], at: Timestamp) {
        let mut outbox = self.outbox();
        if outbox.seen.len() < CAPACITY || outbox.seen.contains_key(&id) {
            outbox.seen.insert(id, at);
        }
    }

    fn outbox(&self) -> std::sync::MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the link up; never returns.
    pub(super) async fn run(&self) -> std::convert::Infallible {
        let mut pause = FIRST_PAUSE;
        loop {
            let reason = match self.connect().await {
                Ok(session) => {
                    pause = FIRST_PAUSE;
                    self.up(&session);
                    self.serve(session).await
                }
                Err(reason) => reason,
            };
            self.down(reason);
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn connect(&self) -> Result<Session, Reason> {
        let connecting = async {
            let login = &self.target.login;
            let stream = self
                .target
                .dial()
                .await
                .map_err(|error| error.to_string())?;
            let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER));
            let (commands, driver) = MultiplexedConnection::new_with_config(login, stream, config)
                .await
                .map_err(|error| plain(&error))?;
            let driver: BoxFuture<'static, ()> = Box::pin(driver);
            let driver = Task::spawn("bus-commands", driver);
            let stream = self
                .target
                .dial()
                .await
                .map_err(|error| error.to_string())?;
            let mut channel = PubSub::new(login, stream)
                .await
                .map_err(|error| plain(&error))?;
            channel
                .subscribe(self.names.channel())
                .await
                .map_err(|error| plain(&error))?;
            Ok(Session {
                commands,
                channel,
                _driver: driver,
            })
        };
        match timeout(CONNECT, connecting).await {
            Ok(done) => done,
            Err(_) => Err(format!("no connection within {} s", CONNECT.as_secs())),
        }
    }

    fn up(&self, session: &Session) {
        self.figures.up.set(1);
        self.figures.reconnects.inc();
        self.commands.send_replace(Some(session.commands.clone()));
        let before = self.state.send_replace(BusState::Up);
        if before != BusState::Up {
            tracing::info!(redis = %self.target.place, "the bus is up");
        }
        // Nobody may be listening.
        drop(self.news.send(News::Gap));
    }

    fn down(&self, reason: Reason) {
        self.figures.up.set(0);
        self.commands.send_replace(None);
        let is_known = matches!(&*self.state.borrow(), BusState::Down(_));
        if !is_known {
            tracing::warn!(
                redis = %self.target.place,
                reason,
                "the bus is down; everything goes on without it"
            );
        }
        self.state.send_replace(BusState::Down(reason));
    }

    /// Works with both connections until one fails; answers why.
    async fn serve(&self, session: Session) -> Reason {
        let Session {
            mut commands,
            mut channel,
            _driver,
        } = session;
        let mut messages = channel.on_message();
        let mut trial = interval(TRIAL);
        trial.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flush = interval(FLUSH);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut echo_sent, mut echo_heard) = (0, 0);
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => {
                        let heard = Message::parse(message.get_payload_bytes());
                        if let Some(number) = self.hear(heard) {
                            echo_heard = number;
                        }
                    }
                    None => return "the channel was closed".to_owned(),
                },
                () = self.changed.notified() => {
                    if let Err(reason) = self.flush_changes(&mut commands).await {
                        return reason;
                    }
                }
                _ = flush.tick() => {
                    if let Err(reason) = self.flush_seen(&mut commands).await {
                        return reason;
                    }
                }
                () = self.suspect.notified() => {
                    if let Err(reason) = self.echo(&mut commands, echo_sent).await {
                        return reason;
                    }
                    self.commands.send_replace(Some(commands.clone()));
                }
                _ = trial.tick() => {
                    if echo_heard != echo_sent {
                        return "the channel is silent".to_owned();
                    }
                    echo_sent += 1;
                    if let Err(reason) = self.echo(&mut commands, echo_sent).await {
                        return reason;
                    }
                }
            }
        }
    }

    /// Passes on what others say; the number of an echo of ours.
    fn hear(&self, message: Option<(Replica, Message)>) -> Option<u64> {
        match message? {
            (from, Message::Echo(number)) => (from == self.replica).then_some(number),
            (from, Message::Changed(_)) if from == self.replica => None,
            (_, Message::Changed(change)) => {
                self.figures.received.inc();
                // Nobody may be listening.
                drop(self.news.send(News::Changed(change)));
                None
            }
        }
    }

    async fn echo(&self, commands: &mut MultiplexedConnection, number: u64) -> Result<(), Reason> {
        let line = Message::Echo(number).line(self.replica);
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.names.channel()).arg(line);
        let done: redis::RedisResult<()> = publish.query_async(commands).await;
        done.map_err(|error| plain(&error))
    }

    async fn flush_changes(&self, commands: &mut MultiplexedConnection) -> Result<(), Reason> {
        let changes = std::mem::take(&mut self.outbox().changes);
        let mut pipe = redis::pipe();
        for (network, version) in &changes {
            let change = Change {
                network: *network,
                version: *version,
            };
            let line = Message::Changed(change).line(self.replica);
            pipe.cmd("PUBLISH")
                .arg(self.names.channel())
                .arg(line)
                .ignore();
        }
        if changes.is_empty() {
            return Ok(());
        }
        let done: redis::RedisResult<()> = pipe.query_async(commands).await;
        match done {
            Ok(()) => {
                self.figures
                    .sent
                    .inc_by(u64::try_from(changes.len()).unwrap_or(u64::MAX));
                Ok(())
            }
            Err(error) => {
                // Told once more after the reconnect: to be told twice costs a look into the store.
                for (network, version) in changes {
                    self.announce(Change { network, version });
                }
                Err(plain(&error))
            }
        }
    }

    async fn flush_seen(&self, commands: &mut MultiplexedConnection) -> Result<(), Reason> {
        let seen: Vec<_> = std::mem::take(&mut self.outbox().seen)
            .into_iter()
            .collect();
        for batch in seen.chunks(BATCH) {
            let mut pipe = redis::pipe();
            for (id, at) in batch {
                pipe.cmd("SET")
                    .arg(self.names.seen(id))
                    .arg(at.as_micros())
                    .arg("PX")
                    .arg(u64::try_from(SEEN_LIFE.as_millis()).unwrap_or(u64::MAX))
                    .ignore();
            }
            let done: redis::RedisResult<()> = pipe.query_async(commands).await;
            done.map_err(|error| plain(&error))?;
        }
        Ok(())
    }
}

/// Half of it to all of it, so that coordinators do not come all at once.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [u8::MAX];
    // Without randomness the pause is a whole one.
    let _whole = SystemRandom::new().fill(&mut byte);
    pause.mul_f64(0.5 + f64::from(byte[0]) / 510.0)
}

/// The error as a person reads it; Redis' own errors name no secret.
fn plain(error: &redis::RedisError) -> Reason {
    if error.is_timeout() {
        return format!("no answer within {} s", ANSWER.as_secs());
    }
    error.to_string()
}
