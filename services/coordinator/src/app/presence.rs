//! What happens of itself: nodes come and go, and are noted as last seen.

use std::time::Duration;

use mesh_netmap::{Event, absence_expected};
use mesh_types::{NodeId, NodeState, RelayId, Timestamp, UptimeClass};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;

use super::Core;
use crate::error::Error;
use crate::metrics::{Presence, State, Uptime};
use crate::record::EventKind;

/// How often `last_seen` is written at most.
const LAST_SEEN_EVERY: Duration = Duration::from_secs(60);
/// How often nodes and relays are counted.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
/// How many engine events share a transaction.
const EVENT_BATCH: usize = 256;

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

impl Core {
    /// Records what the engine saw happening, until its owner is gone.
    pub(crate) async fn record_presence(&self, mut events: mpsc::Receiver<Event>) {
        let mut batch = Vec::with_capacity(EVENT_BATCH);
        while events.recv_many(&mut batch, EVENT_BATCH).await > 0 {
            if let Err(error) = self.again(|| self.record_batch(&batch)).await {
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
    pub(crate) async fn record_last_seen(&self) -> std::convert::Infallible {
        let mut written = self.now();
        loop {
            tokio::time::sleep(LAST_SEEN_EVERY).await;
            let now = self.now();
            match self.again(|| self.write_last_seen(written)).await {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
