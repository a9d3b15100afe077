//! The coordinator's figures.

use mesh_daemon::Metrics;
use mesh_types::heartbeat::HeartbeatRefusal;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::app::heartbeat::refusal_word;
use crate::error::Error;

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

/// A node's state and its uptime class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Presence {
    pub(crate) state: &'static str,
    pub(crate) uptime: &'static str,
}

/// A relay's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct State {
    pub(crate) state: &'static str,
}

/// An uptime class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Uptime {
    pub(crate) uptime: &'static str,
}

/// All figures; cloning shares them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) connections: Gauge,
    pub(crate) shed: Counter,
    pub(crate) handshake_failures: Counter,
    pub(crate) calls_refused: Family<Call, Counter>,
    pub(crate) enrolments: Counter,
    pub(crate) enrolment_refusals: Family<Refusal, Counter>,
    pub(crate) renewals: Counter,
    pub(crate) heartbeats: Counter,
    pub(crate) heartbeat_refusals: Family<Refusal, Counter>,
    pub(crate) sync_streams: Gauge,
    pub(crate) full_maps: Counter,
    pub(crate) nodes: Family<Presence, Gauge>,
    pub(crate) nodes_missing: Family<Uptime, Gauge>,
    pub(crate) relays: Family<State, Gauge>,
    pub(crate) ssh_certificates: Counter,
}

impl Figures {
    /// Makes and registers them.
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let figures = Self::default();
        // A series that is there from the start can be asked for before the first refusal.
        for refusal in HeartbeatRefusal::ALL {
            let reason = refusal_word(refusal);
            drop(
                figures
                    .heartbeat_refusals
                    .get_or_create(&Refusal { reason }),
            );
        }
        for error in [Error::TokenUnknown, Error::TokenUsed, Error::TokenExpired] {
            let (_, reason) = error.kind();
            drop(
                figures
                    .enrolment_refusals
                    .get_or_create(&Refusal { reason }),
            );
        }
        let of = figures.clone();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("mesh_coordinator");
            registry.register("connections", "Open TLS connections", of.connections);
            registry.register(
                "connections_shed",
                "Connections of no member, without a call, that made room for others",
                of.shed,
            );
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
            registry.register(
                "full_maps",
                "Netmaps sent whole, to nodes that could not be told what changed instead",
                of.full_maps,
            );
            registry.register("nodes", "Nodes by state and uptime class", of.nodes);
            registry.register(
                "nodes_missing",
                "Nodes that are offline and should not be at this hour, by uptime class",
                of.nodes_missing,
            );
            registry.register("relays", "Relays by state", of.relays);
            registry.register(
                "ssh_certificates",
                "SSH certificates issued",
                of.ssh_certificates,
            );
        });
        figures
    }
}
