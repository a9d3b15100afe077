//! How the coordinator is doing, in one answer.

use std::sync::Arc;

use mesh_netmap::Counts;
use mesh_types::{NetworkName, NodeState, Timestamp};

use super::Core;
use crate::error::Error;
use crate::record::RelayRecord;

/// The coordinator at a glance.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) started_at: Timestamp,
    pub(crate) server_time: Timestamp,
    pub(crate) ca_fingerprint: [u8; 32],
    pub(crate) ca_not_after: Timestamp,
    pub(crate) networks: Vec<NetworkFigures>,
    pub(crate) relays: Vec<RelayView>,
    /// Why changes are refused, if they are.
    pub(crate) store_problem: Option<String>,
    /// Why there is no Redis, if there should be one.
    pub(crate) bus_problem: Option<String>,
}

/// A network in figures.
#[derive(Debug, Clone)]
pub(crate) struct NetworkFigures {
    pub(crate) name: NetworkName,
    pub(crate) counts: Counts,
    pub(crate) version: u64,
}

/// A relay with its state.
#[derive(Debug, Clone)]
pub(crate) struct RelayView {
    pub(crate) record: Arc<RelayRecord>,
    pub(crate) state: NodeState,
}

impl Core {
    pub(crate) async fn status(&self) -> Result<Status, Error> {
        let names: Vec<_> = self
            .members
            .networks()
            .iter()
            .map(|info| (info.record.id, info.record.name.clone()))
            .collect();
        let relays = self.members.relays();
        let (networks, relays) = self
            .netmap
            .with(move |engine, _| {
                let figures = |(id, name)| NetworkFigures {
                    name,
                    counts: engine.counts(id),
                    version: engine.network(id).map_or(0, |row| row.version),
                };
                let networks: Vec<_> = names.into_iter().map(figures).collect();
                let view = |record: Arc<RelayRecord>| RelayView {
                    state: engine
                        .relay(record.id)
                        .map_or(NodeState::Offline, |r| r.state()),
                    record,
                };
                (networks, relays.into_iter().map(view).collect())
            })
            .await?;
        Ok(Status {
            started_at: self.started_at,
            server_time: self.now(),
            ca_fingerprint: self.ca.fingerprint(),
            ca_not_after: self.ca.not_after(),
            networks,
            relays,
            store_problem: self.store.refusal(),
            bus_problem: self.bus.state().borrow().problem(),
        })
    }

    /// Why changes are refused now, if they are.
    pub(crate) fn write_problem(&self) -> Option<String> {
        self.store.refusal()
    }

    /// Tries the store, so that readiness is true and an outage heals without a hand.
    pub(crate) async fn examine_store(&self) {
        self.store.examine().await;
    }

    /// Follows whether the store takes changes.
    pub(crate) fn watch_store(&self) -> crate::store::Watch {
        self.store.watch()
    }

    /// Why this process must end, if it must: the database is another coordinator's.
    pub(crate) fn end_reason(&self) -> Option<String> {
        self.store.end_reason()
    }

    /// Checks the audit chain from end to end and says so in the log when it does not hold.
    pub(crate) async fn check_audit(&self) {
        match self.store.audit_verify().await {
            Ok(Ok(links)) => tracing::debug!(links, "the audit chain holds"),
            Ok(Err(row)) => tracing::error!(
                row,
                "the audit chain is broken at this row: somebody changed or removed entries"
            ),
            Err(error) => {
                let error = mesh_daemon::report::chain(&error);
                tracing::info!(error, "the audit chain was not checked");
            }
        }
    }

    /// Holds all changes back (`Some`: why) or lets them through again.
    pub(crate) fn guard_writes(&self, reason: Option<String>) {
        self.store.guard_writes(reason);
    }

    /// How many nodes a network has.
    pub(crate) fn node_count(&self, network: mesh_types::NetworkId) -> usize {
        self.members.nodes(Some(network)).len()
    }
}
