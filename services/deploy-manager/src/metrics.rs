//! What this service counts.

use std::sync::Arc;

use mesh_daemon::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// Why something was refused; values come from a fixed list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// To whom a dial failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dialled {
    worker_offline: bool,
}

/// What the SOCKS5 listeners count.
#[derive(Debug, Clone, Default)]
pub struct SocksMetrics {
    open: Gauge,
    total: Counter,
    failed: Family<Dialled, Counter>,
    refused: Family<Reason, Counter>,
    shed: Counter,
    sent: Counter,
    received: Counter,
}

/// Counts a stream as open until it is dropped.
#[derive(Debug)]
pub struct OpenStream(Gauge);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl SocksMetrics {
    pub(crate) fn opened(&self) -> OpenStream {
        self.total.inc();
        self.open.inc();
        OpenStream(self.open.clone())
    }

    /// Counts a dial that failed. `worker_offline`: because the node is not there, as the coordinator
    /// had said. An error to who dialled, and none to who runs the mesh.
    pub(crate) fn failed(&self, worker_offline: bool) {
        let dialled = Dialled { worker_offline };
        self.failed.get_or_create(&dialled).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts clients that made room for others before they had said where to go.
    pub(crate) fn shed(&self) -> Counter {
        self.shed.clone()
    }

    pub(crate) fn bytes(&self, sent: u64, received: u64) {
        self.sent.inc_by(sent);
        self.received.inc_by(received);
    }
}

/// All that the service counts.
#[derive(Debug, Clone, Default)]
pub struct ServiceMetrics {
    pub(crate) socks: SocksMetrics,
    pub(crate) networks: Gauge,
    commands: Arc<CommandMetrics>,
}

#[derive(Debug, Default)]
struct CommandMetrics {
    ok: Counter,
    failed: Counter,
}

impl ServiceMetrics {
    /// Registered under `mesh_deploy_manager_…`.
    pub fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        let socks = &own.socks;
        // A rate needs to have seen them before the first one.
        for worker_offline in [false, true] {
            drop(socks.failed.get_or_create(&Dialled { worker_offline }));
        }
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("mesh_deploy_manager");
            registry.register("networks", "Networks served", own.networks.clone());
            registry.register(
                "socks_streams_open",
                "SOCKS5 streams now",
                socks.open.clone(),
            );
            registry.register(
                "socks_streams",
                "SOCKS5 streams so far",
                socks.total.clone(),
            );
            registry.register(
                "socks_dials_failed",
                "Failed overlay dials, and whether the node was known to be offline",
                socks.failed.clone(),
            );
            registry.register("socks_refused", "Refused requests", socks.refused.clone());
            registry.register(
                "socks_shed",
                "Clients that said nothing and made room for others",
                socks.shed.clone(),
            );
            registry.register("socks_sent_bytes", "From clients", socks.sent.clone());
            registry.register("socks_received_bytes", "To clients", socks.received.clone());
            let commands = &own.commands;
            registry.register(
                "ssh_commands_ok",
                "Commands that succeeded",
                commands.ok.clone(),
            );
            registry.register(
                "ssh_commands_failed",
                "Those that did not",
                commands.failed.clone(),
            );
        });
        own
    }

    pub(crate) fn command(&self, ok: bool) {
        let counter = if ok {
            &self.commands.ok
        } else {
            &self.commands.failed
        };
        counter.inc();
    }
}
