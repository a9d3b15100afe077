//! What happens of itself: nodes come and go, and are noted as last seen.

use std::time::Duration;

use mesh_netmap::{Event, absence_expected};
use mesh_types::{NodeId, NodeState, RelayId, Timestamp};
use tokio::sync::mpsc;

use super::Core;
use crate::error::Error;
use crate::metrics::State;
use crate::record::EventKind;

/// How often `last_seen` is written at most.
const LAST_SEEN_EVERY: Duration = Duration::from_secs(60);
/// How many engine events share a transaction.
const EVENT_BATCH: usize = 256;

impl Core {
    /// Records what the engine saw happening, until its owner is gone.
    pub(crate) async fn record_presence(&self, mut events: mpsc::Receiver<Event>) {
        let mut batch = Vec::with_capacity(EVENT_BATCH);
        while events.recv_many(&mut batch, EVENT_BATCH).await > 0 {
            self.refresh_node_figures().await;
            if let Err(error) = self.record_batch(&batch).await {
                let error = mesh_daemon::report::chain(&error);
                tracing::debug!(error, "changes of presence were not recorded");
            }
            batch.clear();
        }
    }

    async fn record_batch(&self, batch: &[Event]) -> Result<(), Error> {
        let mut change = self.change("coordinator").await?;
        for event in batch {
            match *event {
                Event::NodeState {
                    node,
                    network,
                    from,
                    to,
                } => {
                    let (Some(node), Some(network)) =
                        (self.members.node(node), self.members.network(network))
                    else {
                        continue;
                    };
                    let expected = absence_expected(node.uptime_class, change.now);
                    let kind = match to {
                        NodeState::Online => EventKind::NodeOnline,
                        NodeState::Stale => EventKind::NodeStale,
                        NodeState::Offline if expected => EventKind::NodeAbsent,
                        NodeState::Offline => EventKind::NodeOffline,
                    };
                    tracing::info!(node = %node.id, name = %node.name, network = %network.record.name, state = %to, "a node changed state");
                    let detail = format!("was {from}");
                    change.event(Some(&network.record.name), kind, &node.name, detail);
                }
                Event::RelayState { relay, from, to } => {
                    let Some(relay) = self.members.relay(relay) else {
                        continue;
                    };
                    let kind = match to {
                        NodeState::Online => EventKind::RelayOnline,
                        NodeState::Stale => EventKind::RelayStale,
                        NodeState::Offline => EventKind::RelayOffline,
                    };
                    tracing::info!(relay = %relay.id, name = %relay.name, state = %to, "a relay changed state");
                    change.event(None, kind, &relay.name, format!("was {from}"));
                }
            }
        }
        change.commit().await.map(drop)
    }

    async fn refresh_node_figures(&self) {
        let networks: Vec<_> = self
            .members
            .networks()
            .iter()
            .map(|info| info.record.id)
            .collect();
        let counted = self
            .netmap
            .with(move |engine, _| {
                networks
                    .into_iter()
                    .fold([0usize; 3], |[online, stale, offline], id| {
                        let counts = engine.counts(id);
                        [
                            online + counts.online,
                            stale + counts.stale,
                            offline + counts.offline,
                        ]
                    })
            })
            .await;
        let Ok(counts) = counted else { return };
        let states = [NodeState::Online, NodeState::Stale, NodeState::Offline];
        for (state, count) in states.into_iter().zip(counts) {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.figures
                .nodes
                .get_or_create(&State {
                    state: state.as_str(),
                })
                .set(count);
        }
    }

    /// Writes down once a minute who was seen since; never returns.
    pub(crate) async fn record_last_seen(&self) -> std::convert::Infallible {
        let mut written = self.now();
        loop {
            tokio::time::sleep(LAST_SEEN_EVERY).await;
            let now = self.now();
            match self.write_last_seen(written).await {
                Ok(()) => written = now,
                Err(error) => {
                    let error = mesh_daemon::report::chain(&error);
                    tracing::debug!(error, "last-seen times were not written");
                }
            }
        }
    }

    /// Writes down who was seen since `since`.
    pub(crate) async fn write_last_seen(&self, since: Timestamp) -> Result<(), Error> {
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
