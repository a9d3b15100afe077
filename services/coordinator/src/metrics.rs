//! The coordinator's figures.

use mesh_daemon::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// A gRPC method and how the call ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Call {
    /// From the table of methods, never from the request.
    pub(crate) method: &'static str,
    /// A gRPC code's name.
    pub(crate) code: &'static str,
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
}

/// A node state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct State {
    pub(crate) state: &'static str,
}

/// All figures; cloning shares them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) connections: Gauge,
    pub(crate) handshake_failures: Counter,
    pub(crate) calls_refused: Family<Call, Counter>,
    pub(crate) enrolments: Counter,
    pub(crate) enrolment_refusals: Family<Refusal, Counter>,
    pub(crate) renewals: Counter,
    pub(crate) heartbeats: Counter,
    pub(crate) heartbeat_refusals: Family<Refusal, Counter>,
    pub(crate) sync_streams: Gauge,
    pub(crate) nodes: Family<State, Gauge>,
    pub(crate) ssh_certificates: Counter,
}

impl Figures {
    /// Makes and registers them.
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let figures = Self::default();
        let of = figures.clone();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("mesh_coordinator");
            registry.register("connections", "Open TLS connections", of.connections);
            registry.register(
                "handshake_failures",
                "Connections that failed in TLS",
                of.handshake_failures,
            );
            registry.register(
                "calls_refused",
                "gRPC calls not let through",
                of.calls_refused,
            );
            registry.register("enrolments", "Nodes and relays enrolled", of.enrolments);
            registry.register(
                "enrolment_refusals",
                "Enrolments refused, by reason",
                of.enrolment_refusals,
            );
            registry.register("renewals", "Certificates renewed", of.renewals);
            registry.register("heartbeats", "Heartbeats accepted", of.heartbeats);
            registry.register(
                "heartbeat_refusals",
                "Heartbeats refused, by reason",
                of.heartbeat_refusals,
            );
            registry.register("sync_streams", "Open control streams", of.sync_streams);
            registry.register("nodes", "Nodes by state", of.nodes);
            registry.register(
                "ssh_certificates",
                "SSH certificates issued",
                of.ssh_certificates,
            );
        });
        figures
    }
}
