//! Use-cases: what callers may ask for, one public function per action. The only place with
//! transactions.
//!
//! Every change goes the same way: wait for the turn, write and commit, then apply to memory
//! (members and netmap engine) before the turn passes on. So memory follows the store in order.

pub(crate) mod bootstrap;
pub(crate) mod challenge;
mod deferred;
mod enrol;
mod event;
mod genuine;
pub(crate) mod happening;
pub(crate) mod heartbeat;
mod network;
mod node;
mod notice;
mod operator;
mod presence;
pub(crate) mod provision;
mod prune;
mod renew;
mod report;
mod ssh;
mod standing;
mod status;
#[cfg(test)]
pub(crate) mod tests;
mod token;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mesh_netmap::{NodeRow, RelayRow};
use mesh_types::{NetworkId, NetworkName, NodeName, Timestamp, TokenId};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{MutexGuard, broadcast, mpsc, oneshot};

pub(crate) use self::enrol::Enrolled;
pub(crate) use self::node::{NodeRefText, NodeSettings, NodeView};
pub(crate) use self::renew::Renewal;
pub(crate) use self::report::Party;
pub(crate) use self::ssh::SshRequest;
pub(crate) use self::status::{NetworkFigures, RelayView, Status};
pub(crate) use self::token::NewToken;

use self::challenge::{Challenge, Challenges};
use self::genuine::GenuineTokens;
use self::happening::TakeOvers;
use self::heartbeat::RefusalEvents;
use crate::bus::{self, Bus};
use crate::ca::Ca;
use crate::clock::Clock;
use crate::error::Error;
use crate::members::{Members, NetworkInfo};
use crate::metrics::Figures;
use crate::netmap::Netmap;
use crate::rate::{RateKey, Source};
use crate::record::{AuditEntry, EventKind, EventRecord, NodeRecord, RelayRecord};
use crate::seal::Sealer;
use crate::store::{Store, Txn};

/// How often a change is tried while the database gives way to other transactions.
const TRIES: u32 = 6;
/// About how long to wait before the second try; each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Everything that use-cases need.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ca: Arc<Ca>,
    pub(crate) members: Members,
    pub(crate) netmap: Netmap,
    pub(crate) figures: Figures,
    store: Store,
    sealer: Sealer,
    random: SystemRandom,
    /// Whose turn it is to change things.
    turn: tokio::sync::Mutex<()>,
    challenges: Mutex<Challenges>,
    pub(crate) bus: Arc<dyn Bus>,
    /// Tokens whose secret somebody knew lately.
    genuine: Mutex<GenuineTokens>,
    refusals: Mutex<RefusalEvents>,
    take_overs: Mutex<TakeOvers>,
    standings: Mutex<standing::Standings>,
    /// What happened of itself, on its way to the store.
    happened: mpsc::Sender<EventRecord>,
    feed: broadcast::Sender<Arc<EventRecord>>,
    writers: Mutex<mesh_daemon::Tasks>,
    /// Notes for the audit that wait for the store.
    deferred: deferred::Deferred,
    key_changes: Mutex<report::KeyChanges>,
    /// Set when the port is bound.
    advertised: OnceLock<Vec<String>>,
    started_at: Timestamp,
    /// This start has made the authorities.
    is_new: bool,
}

/// A change under way: dropped without [`Change::commit`] it changes nothing.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    core: &'a Core,
    txn: Txn,
    now: Timestamp,
    actor: String,
    events: Vec<EventRecord>,
    /// The networks changed, for the other coordinators.
    versions: Vec<bus::Change>,
    turn: MutexGuard<'a, ()>,
}

/// Held while a committed change is applied to memory.
#[must_use = "apply the change to memory while this is held"]
pub(crate) struct Turn<'a>(#[expect(dead_code, reason = "held for its Drop")] MutexGuard<'a, ()>);

/// Short text for the audit's before and after.
fn note(parts: &[(&str, &str)]) -> String {
    let map: serde_json::Map<_, _> = parts
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).into()))
        .collect();
    serde_json::Value::from(map).to_string()
}

impl Core {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// `host:port` of this coordinator, as join tokens carry it.
    pub(crate) fn advertised(&self) -> &[String] {
        self.advertised.get().map_or(&[], Vec::as_slice)
    }

    /// Runs a use-case to its end even when its caller goes away meanwhile, so that what was
    /// committed is always applied to memory.
    pub(crate) async fn finish<T: Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        action: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let answered = self.start(name, action);
        answered.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Like [`Self::finish`], for callers that have other things to do until the answer comes.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        name: &'static str,
        action: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, Error>> {
        let (answer, answered) = oneshot::channel();
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.reap();
        let action = mesh_trace::in_current(async move {
            // The caller may be gone; the action counts all the same.
            drop(answer.send(action.await));
        });
        writers.spawn(name, action);
        answered
    }

    /// Does an action, and does it again after a short random pause while the database gives way to
    /// somebody else's transaction. Nothing of an action that ends so has happened.
    pub(crate) async fn again<T, F>(&self, mut action: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            match action().await {
                Err(Error::StoreConflict) => {}
                outcome => return outcome,
            }
            let jitter = f64::from(u16::from_be_bytes(self.random()?)) / f64::from(u16::MAX);
            tokio::time::sleep(pause.mul_f64(0.5 + jitter)).await;
            pause *= 2;
        }
        action().await
    }

    /// Waits for the turn and begins a change in the name of `actor`.
    async fn change(&self, actor: impl Into<String>) -> Result<Change<'_>, Error> {
        let mut refusal = self.store.watch();
        let turn = tokio::select! {
            turn = self.turn.lock() => turn,
            // Whose turn it is may wait for the database; nobody else waits along.
            reason = refusal.refused() => return Err(Error::StoreUnavailable(reason)),
        };
        let txn = self.store.write().await?;
        let now = self.now();
        Ok(Change {
            core: self,
            txn,
            now,
            actor: actor.into(),
            events: Vec::new(),
            versions: Vec::new(),
            turn,
        })
    }

    fn random<const N: usize>(&self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.random
            .fill(&mut bytes)
            .map_err(|_| Error::internal("no randomness"))?;
        Ok(bytes)
    }

    /// The random part and the time of a new id.
    fn id_parts(&self, now: Timestamp) -> Result<(u64, [u8; 10]), Error> {
        Ok((now.as_unix_millis(), self.random()?))
    }

    /// Takes one call from a share.
    async fn take(&self, key: RateKey) -> Result<(), Error> {
        let taken = self.bus.take(key).await;
        taken.map_err(|wait| Error::RateLimited(wait.as_secs() + 1))
    }

    /// Lets a join through that names this token, or says when.
    pub(crate) async fn admit_enrolment(&self, from: IpAddr, token: TokenId) -> Result<(), Error> {
        let source = Source::from(from);
        let is_genuine = self.genuine_tokens().contains(token) || self.is_new_token(token).await;
        self.take(if is_genuine {
            RateKey::Token(token, source)
        } else {
            RateKey::Stranger(source)
        })
        .await
    }

    /// Lets a renewal through that names this member, or says when.
    pub(crate) async fn admit_renewal(&self, from: IpAddr, id: [u8; 16]) -> Result<(), Error> {
        let source = Source::from(from);
        let is_member = self.members.by_id(&id).is_some();
        self.take(if is_member {
            RateKey::Member(id, source)
        } else {
            RateKey::Stranger(source)
        })
        .await
    }

    /// Looks in the store whether somebody else has made this token meanwhile, such as `coordinator
    /// bootstrap`. Whoever asks for tokens that are not there costs at most one look a second, and
    /// each look learns of all that are.
    async fn is_new_token(&self, token: TokenId) -> bool {
        if !self.genuine_tokens().may_look(std::time::Instant::now()) {
            return false;
        }
        match self.store.token_live(self.now(), genuine::CAPACITY).await {
            Ok(live) => {
                let mut known = self.genuine_tokens();
                live.into_iter().rev().for_each(|id| known.insert(id));
                known.contains(token)
            }
            Err(error) => {
                let error = mesh_daemon::report::chain(&error);
                tracing::debug!(error, "tokens made elsewhere are not known yet");
                false
            }
        }
    }

    fn genuine_tokens(&self) -> std::sync::MutexGuard<'_, GenuineTokens> {
        self.genuine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fresh one-use nonce.
    pub(crate) fn challenge(&self) -> Result<(Challenge, Timestamp), Error> {
        let (random, now) = (self.random()?, self.now());
        let challenges = self
            .challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok((challenges.issue(random, now), now))
    }

    /// What a stream's heartbeats sign.
    pub(crate) fn nonce(&self) -> Result<[u8; 32], Error> {
        self.random()
    }

    fn take_challenge(&self, nonce: &[u8]) -> Result<challenge::Taken, Error> {
        let now = self.now();
        let mut challenges = self
            .challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        challenges.take(nonce, now).ok_or(Error::NonceUnknown)
    }

    /// The network of this name.
    pub(crate) fn network_named(&self, name: &str) -> Result<Arc<NetworkInfo>, Error> {
        const SEE: &str = "'mesh network list'";
        let parsed: NetworkName = if name.is_empty() {
            NetworkName::default_network()
        } else {
            name.parse()
                .map_err(|_| Error::not_found("network", name, SEE))?
        };
        self.members
            .network_by_name(&parsed)
            .ok_or_else(|| Error::not_found("network", name, SEE))
    }

    fn network_of(&self, id: NetworkId) -> Result<Arc<NetworkInfo>, Error> {
        self.members.network(id).ok_or(Error::Removed("network"))
    }

    /// Puts a node that was just committed into memory.
    async fn apply_node(&self, record: NodeRecord, is_new: bool) -> Result<(), Error> {
        let row = node_row(&record, None);
        self.members.put_node(record);
        self.netmap
            .with(move |engine, _| {
                if is_new {
                    engine.node_added(row)
                } else {
                    engine.node_changed(row)
                }
            })
            .await??;
        Ok(())
    }

    /// Waits for the use-cases under way, then closes the store.
    pub(crate) async fn close(&self, limit: Duration) {
        let mut writers =
            std::mem::take(&mut *self.writers.lock().unwrap_or_else(PoisonError::into_inner));
        let left = writers.join_all(limit).await;
        if left > 0 {
            tracing::warn!(left, "changes were still under way at the end");
        }
        drop(writers);
        let waiting = tokio::time::timeout(limit, self.write_waiting()).await;
        let problem = match waiting {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(mesh_daemon::report::chain(&error)),
            Err(_) => Some("the store does not answer".to_owned()),
        };
        if let Some(error) = problem {
            tracing::warn!(
                error,
                "the audit never got what it was owed; this log has it"
            );
        }
        self.store.close().await;
    }
}

impl Change<'_> {
    /// Raises a network's version; the other coordinators hear of it after the commit.
    async fn bump(&mut self, network: NetworkId) -> Result<u64, Error> {
        let version = self.txn.network_bump(network).await?;
        self.versions.push(bus::Change { network, version });
        Ok(version)
    }

    /// Notes an event; it is stored with the change and told after the commit.
    fn event(
        &mut self,
        network: Option<&NetworkName>,
        kind: EventKind,
        subject: impl ToString,
        detail: impl ToString,
    ) {
        self.events.push(EventRecord {
            id: 0,
            time: self.now,
            network: network.cloned(),
            kind,
            subject: subject.to_string(),
            detail: detail.to_string(),
        });
    }

    /// Adds the change to the audit chain.
    async fn audit(
        &self,
        action: &str,
        subject: impl ToString,
        before: &[(&str, &str)],
        after: &[(&str, &str)],
    ) -> Result<(), Error> {
        let side = |parts: &[(&str, &str)]| {
            if parts.is_empty() {
                String::new()
            } else {
                note(parts)
            }
        };
        let entry = AuditEntry {
            time: self.now,
            actor: self.actor.clone(),
            action: action.to_owned(),
            subject: subject.to_string(),
            before: side(before),
            after: side(after),
        };
        self.txn.audit_append(&entry).await?;
        Ok(())
    }
}

impl<'a> Change<'a> {
    /// Makes the change durable and tells its events.
    async fn commit(mut self) -> Result<Turn<'a>, Error> {
        for event in &mut self.events {
            event.id = self.txn.event_create(event).await?;
        }
        self.txn.commit().await?;
        for change in self.versions {
            self.core.bus.announce(change);
        }
        for event in self.events {
            // Nobody may be listening.
            drop(self.core.feed.send(Arc::new(event)));
        }
        Ok(Turn(self.turn))
    }
}

/// A node as the engine wants it. `now`: only at the start, to tell how long ago it was seen.
fn node_row(record: &NodeRecord, now: Option<Timestamp>) -> NodeRow {
    NodeRow {
        id: record.id,
        network: record.network,
        name: record.name.clone(),
        role: record.role,
        owner: record.owner.clone(),
        addrs: record.addrs,
        wg_key: record.wg_key,
        disco_key: record.disco_key,
        services: record.services.clone(),
        routes: Vec::new(),
        ssh_host_keys: record.ssh.pinned.clone(),
        ssh_user: record.ssh.user.clone(),
        uptime: record.uptime_class,
        changed_version: record.changed_version,
        last_seen: record.last_seen,
        seen_ago: now.zip(record.last_seen).map(|(now, seen)| now.since(seen)),
    }
}

fn relay_row(record: &RelayRecord, now: Option<Timestamp>) -> RelayRow {
    RelayRow {
        id: record.id,
        derp: record.derp.clone(),
        stun: record.stun.clone(),
        last_seen: record.last_seen,
        seen_ago: now.zip(record.last_seen).map(|(now, seen)| now.since(seen)),
    }
}

/// Names that the gateway needs for itself in the default network's part of its paths.
const GATEWAY_PATHS: [&str; 2] = ["n", "health"];

/// The wished name, or its first variant when the gateway could not tell it from its own paths.
fn usable_name(network: &NetworkName, wished: NodeName) -> NodeName {
    if network.is_default() && GATEWAY_PATHS.contains(&wished.as_str()) {
        wished.with_suffix(1)
    } else {
        wished
    }
}
