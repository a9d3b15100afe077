//! What happens of itself: nodes come and go, and are noted as last seen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mesh_netmap::{Event, absence_expected};
use mesh_types::{NodeId, NodeState, RelayId, Timestamp, UptimeClass};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Core;
use crate::error::Error;
use crate::metrics::{Presence, State, Uptime};
use crate::record::{EventKind, EventRecord};

/// How often `last_seen` is written at most.
const LAST_SEEN_EVERY: Duration = Duration::from_secs(60);
/// How often nodes and relays are counted.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
/// How many engine events share a transaction.
const EVENT_BATCH: usize = 256;
/// How many wait at most while the store takes no changes.
const EVENTS_WAITING: usize = 20_000;
/// How often it is tried again when nothing says that the store is better.
const EVENT_RETRY: Duration = Duration::from_secs(5);

const STATES: [NodeState; 3] = [NodeState::Online, NodeState::Stale, NodeState::Offline];
/// Where offline is among [`STATES`].
const OFFLINE: usize = 2;

/// How many there are, in the order of [`STATES`].
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    /// By uptime class, in the order of [`UptimeClass::ALL`].
    nodes: [[usize; 3]; 3],
    relays: [usize; 3],
}

impl Counted {
    fn of(
        nodes: impl Iterator<Item = (UptimeClass, NodeState)>,
        relays: impl Iterator<Item = NodeState>,
    ) -> Self {
        let mut counted = Self::default();
        for (class, state) in nodes {
            let of_class = UptimeClass::ALL.iter().position(|other| *other == class);
            if let Some(counts) = of_class.and_then(|at| counted.nodes.get_mut(at)) {
                counts[index(state)] += 1;
            }
        }
        for state in relays {
            counted.relays[index(state)] += 1;
        }
        counted
    }
}

const fn index(state: NodeState) -> usize {
    match state {
        NodeState::Online => 0,
        NodeState::Stale => 1,
        NodeState::Offline => OFFLINE,
    }
}

/// Changes of presence that are being stored.
struct Writing {
    answer: oneshot::Receiver<Result<(), Error>>,
    /// How many of those that wait.
    count: usize,
}

/// The answer of what is being stored; pending while nothing is. Cancel-safe.
async fn answer(writing: &mut Option<Writing>) -> Result<(), Error> {
    match writing {
        Some(writing) => {
            let answered = (&mut writing.answer).await;
            answered.map_err(|_| Error::ShuttingDown)?
        }
        None => std::future::pending().await,
    }
}

/// When the rest is over; pending while there is none. Cancel-safe.
async fn over(rest_until: Option<Instant>) {
    match rest_until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Core {
    /// Records what the engine saw happening, and what else happened of itself, until the engine's
    /// owner is gone. While the store takes no changes what happened waits, with its time, and is
    /// told once it does.
    pub(crate) async fn record_presence(
        self: &Arc<Self>,
        mut events: mpsc::Receiver<Event>,
        mut happened: mpsc::Receiver<EventRecord>,
    ) -> Result<(), Error> {
        let mut store = self.store.watch();
        let mut waiting = VecDeque::new();
        let mut writing: Option<Writing> = None;
        // After a failure nothing is tried until there is news of the store, or some time is over.
        let mut rest_until: Option<Instant> = None;
        let mut batch = Vec::with_capacity(EVENT_BATCH);
        let mut noted = Vec::new();
        loop {
            tokio::select! {
                received = events.recv_many(&mut batch, EVENT_BATCH) => {
                    if received == 0 {
                        return Ok(());
                    }
                    let now = self.now();
                    waiting.extend(batch.drain(..).filter_map(|event| self.told(&event, now)));
                }
                // INVARIANT: the core holds the sender, so this never ends.
                _ = happened.recv_many(&mut noted, EVENT_BATCH) => waiting.extend(noted.drain(..)),
                stored = answer(&mut writing) => {
                    let count = writing.take().map_or(0, |writing| writing.count);
                    match stored {
                        Ok(()) => drop(waiting.drain(..count)),
                        Err(error @ (Error::StoreUnavailable(_) | Error::StoreConflict)) => {
                            let error = mesh_daemon::report::chain(&error);
                            tracing::debug!(error, "changes of presence are recorded later");
                            rest_until = Some(Instant::now() + EVENT_RETRY);
                        }
                        Err(error) => return Err(error),
                    }
                }
                () = store.changed() => rest_until = None,
                () = over(rest_until) => rest_until = None,
            }
            let lost = waiting.len().saturating_sub(EVENTS_WAITING);
            if lost > 0 && writing.is_none() {
                waiting.drain(..lost);
                tracing::info!(lost, "the oldest of too many events are not recorded");
            }
            let idle = writing.is_none() && rest_until.is_none() && self.store.refusal().is_none();
            if idle && !waiting.is_empty() {
                let batch: Vec<_> = waiting.iter().take(EVENT_BATCH).cloned().collect();
                let (core, count) = (Arc::clone(self), batch.len());
                let answer = self.start("presence", async move {
                    core.again(|| core.store_events(&batch)).await
                });
                writing = Some(Writing { answer, count });
            }
        }
    }

    pub(super) async fn store_events(&self, events: &[EventRecord]) -> Result<(), Error> {
        let mut change = self.change("coordinator").await?;
        change.events.extend_from_slice(events);
        change.commit().await.map(drop)
    }

    /// What happened, as it is told; `None` when whom it happened to is gone.
    fn told(&self, event: &Event, now: Timestamp) -> Option<EventRecord> {
        let (network, kind, subject, from) = match *event {
            Event::NodeState {
                node,
                network,
                from,
                to,
            } => {
                let node = self.members.node(node)?;
                let network = self.members.network(network)?.record.name.clone();
                let expected = absence_expected(node.uptime_class, now);
                let kind = match to {
                    NodeState::Online => EventKind::NodeOnline,
                    NodeState::Stale => EventKind::NodeStale,
                    NodeState::Offline if expected => EventKind::NodeAbsent,
                    NodeState::Offline => EventKind::NodeOffline,
                };
                tracing::info!(node = %node.id, name = %node.name, network = %network, state = %to, "a node changed state");
                (Some(network), kind, node.name.to_string(), from)
            }
            Event::RelayState { relay, from, to } => {
                let relay = self.members.relay(relay)?;
                let kind = match to {
                    NodeState::Online => EventKind::RelayOnline,
                    NodeState::Stale => EventKind::RelayStale,
                    NodeState::Offline => EventKind::RelayOffline,
                };
                tracing::info!(relay = %relay.id, name = %relay.name, state = %to, "a relay changed state");
                (None, kind, relay.name.to_string(), from)
            }
        };
        Some(EventRecord {
            id: 0,
            time: now,
            network,
            kind,
            subject,
            detail: format!("was {from}"),
        })
    }

    /// Keeps the figures of nodes and relays true; never returns.
    ///
    /// They are counted anew each time: the hour changes what is missing, and so does an operator,
    /// without any node's doing.
    pub(crate) async fn keep_figures(&self) -> std::convert::Infallible {
        loop {
            self.count_presence().await;
            tokio::time::sleep(FIGURES_EVERY).await;
        }
    }

    async fn count_presence(&self) {
        let infos = self.members.networks();
        let networks: Vec<_> = infos.iter().map(|info| info.record.id).collect();
        let counted = self
            .netmap
            .with(move |engine, _| {
                let nodes = networks
                    .iter()
                    .flat_map(|id| engine.nodes(*id))
                    .map(|node| (node.row().uptime, node.state()));
                let relays = engine.relays().map(|relay| relay.state());
                Counted::of(nodes, relays)
            })
            .await;
        let Ok(counted) = counted else { return };
        let (figures, now) = (&self.figures, self.now());
        let set = |gauge: &Gauge, count: usize| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        for (of_state, state) in STATES.into_iter().enumerate() {
            let state = state.as_str();
            let relays = figures.relays.get_or_create_owned(&State { state });
            set(&relays, counted.relays[of_state]);
            for (of_class, class) in UptimeClass::ALL.into_iter().enumerate() {
                let uptime = class.as_str();
                let nodes = figures
                    .nodes
                    .get_or_create_owned(&Presence { state, uptime });
                set(&nodes, counted.nodes[of_class][of_state]);
            }
        }
        for (of_class, class) in UptimeClass::ALL.into_iter().enumerate() {
            let offline = if absence_expected(class, now) {
                0
            } else {
                counted.nodes[of_class][OFFLINE]
            };
            let uptime = class.as_str();
            let missing = figures
                .nodes_missing
                .get_or_create_owned(&Uptime { uptime });
            set(&missing, offline);
        }
    }

    /// Writes down once a minute who was seen since; never returns.
    pub(crate) async fn record_last_seen(self: &Arc<Self>) -> std::convert::Infallible {
        let mut written = self.now();
        loop {
            tokio::time::sleep(LAST_SEEN_EVERY).await;
            let now = self.now();
            match self.note_last_seen(written).await {
                Ok(()) => written = now,
                Err(error) => {
                    let error = mesh_daemon::report::chain(&error);
                    tracing::debug!(error, "last-seen times were not written");
                }
            }
        }
    }

    /// Writes down who was seen since `since`; to its end also when the caller is ended.
    pub(crate) async fn note_last_seen(self: &Arc<Self>, since: Timestamp) -> Result<(), Error> {
        let core = Arc::clone(self);
        let action = async move { core.again(|| core.write_last_seen(since)).await };
        self.finish("last-seen", action).await
    }

    async fn write_last_seen(&self, since: Timestamp) -> Result<(), Error> {
        let networks: Vec<_> = self
            .members
            .networks()
            .iter()
            .map(|info| info.record.id)
            .collect();
        let newer = move |seen: Option<Timestamp>| seen.filter(|at| *at >= since);
        let (nodes, relays) = self
            .netmap
            .with(move |engine, _| {
                let nodes: Vec<(NodeId, Timestamp)> = networks
                    .iter()
                    .flat_map(|id| engine.nodes(*id))
                    .filter_map(|node| Some((node.row().id, newer(node.last_seen())?)))
                    .collect();
                let relays: Vec<(RelayId, Timestamp)> = engine
                    .relays()
                    .filter_map(|relay| Some((relay.row().id, newer(relay.last_seen())?)))
                    .collect();
                (nodes, relays)
            })
            .await?;
        if nodes.is_empty() && relays.is_empty() {
            return Ok(());
        }
        let change = self.change("coordinator").await?;
        change.txn.node_set_last_seen(&nodes).await?;
        change.txn.relay_set_last_seen(&relays).await?;
        change.commit().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::tests as testing;

    #[test]
    fn nodes_are_counted_by_class_and_state() {
        let nodes = [
            (UptimeClass::AlwaysOn, NodeState::Online),
            (UptimeClass::OnDemand, NodeState::Offline),
            (UptimeClass::OnDemand, NodeState::Offline),
            (UptimeClass::WorkHours, NodeState::Stale),
        ];
        let relays = [NodeState::Offline];
        let counted = Counted::of(nodes.into_iter(), relays.into_iter());
        assert_eq!(counted.nodes, [[1, 0, 0], [0, 0, 2], [0, 1, 0]]);
        assert_eq!(counted.relays, [0, 0, 1]);
        for (at, state) in STATES.into_iter().enumerate() {
            assert_eq!(index(state), at);
        }
    }

    #[tokio::test]
    async fn what_happens_while_the_store_is_away_is_told_with_its_time_when_it_is_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let (core, happened) = testing::opened(&dir, testing::NOW).await;
        let relay = RelayId::from_bytes([7; 16]);
        core.members.put_relay(testing::relay(relay));
        let (seen, events) = mpsc::channel(8);
        let recorder = {
            let core = Arc::clone(&core);
            tokio::spawn(async move { core.record_presence(events, happened).await })
        };
        let mut feed = core.feed.subscribe();
        core.guard_writes(Some("away".to_owned()));
        let (online, stale) = (NodeState::Online, NodeState::Stale);
        for (from, to) in [(online, stale), (stale, online)] {
            let event = Event::RelayState { relay, from, to };
            seen.send(event).await.expect("is heard");
        }
        while seen.capacity() < seen.max_capacity() {
            tokio::task::yield_now().await;
        }
        assert!(
            feed.try_recv().is_err(),
            "nothing is told before it is stored"
        );
        core.guard_writes(None);
        for kind in [EventKind::RelayStale, EventKind::RelayOnline] {
            let told = tokio::time::timeout(Duration::from_secs(4), feed.recv()).await;
            let told = told.expect("told soon").expect("told");
            assert_eq!((&told.kind, told.time), (&kind, testing::NOW));
        }
        drop(seen);
        recorder.await.expect("no panic").expect("ends well");
        let kept = core.store.event_list(None, 0, 2).await.expect("reads");
        assert_eq!(kept.len(), 2);
    }
}
