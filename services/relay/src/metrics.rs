//! What the relay counts.

use mesh_daemon::Metrics;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// Why a packet was not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Drop {
    /// The receiver is not connected, or in another network.
    NoReceiver,
    /// It had to make room for younger ones.
    QueueFull,
}

/// Why a client was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Refusal {
    /// The coordinator has not named its key.
    UnknownKey,
    /// It does not speak DERP, or could not prove its key.
    Protocol,
    /// It took too long.
    Slow,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabel {
    reason: Drop,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    reason: Refusal,
}

/// The relay's counters. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RelayMetrics {
    pub(crate) forwarded_packets: Counter,
    pub(crate) forwarded_bytes: Counter,
    pub(crate) clients: Gauge,
    pub(crate) allowed: Gauge,
    pub(crate) stun_requests: Counter,
    dropped: Family<DropLabel, Counter>,
    refused: Family<RefusalLabel, Counter>,
}

impl RelayMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let ours = Self {
            forwarded_packets: Counter::default(),
            forwarded_bytes: Counter::default(),
            clients: Gauge::default(),
            allowed: Gauge::default(),
            stun_requests: Counter::default(),
            dropped: Family::default(),
            refused: Family::default(),
        };
        // A series that is there from the start can be asked for before the first of its kind.
        for reason in [Drop::NoReceiver, Drop::QueueFull] {
            let none = ours.dropped.get_or_create_owned(&DropLabel { reason });
            none.inc_by(0);
        }
        for reason in [Refusal::UnknownKey, Refusal::Protocol, Refusal::Slow] {
            let none = ours.refused.get_or_create_owned(&RefusalLabel { reason });
            none.inc_by(0);
        }
        metrics.register(|registry| {
            registry.register(
                "mesh_relay_forwarded_packets",
                "Packets given to their receiver's queue",
                ours.forwarded_packets.clone(),
            );
            registry.register(
                "mesh_relay_forwarded_bytes",
                "Bytes of these packets",
                ours.forwarded_bytes.clone(),
            );
            registry.register(
                "mesh_relay_dropped_packets",
                "Packets that were not forwarded, by reason",
                ours.dropped.clone(),
            );
            registry.register(
                "mesh_relay_refused_connections",
                "Connections that were not let in, by reason",
                ours.refused.clone(),
            );
            registry.register(
                "mesh_relay_clients",
                "Clients connected",
                ours.clients.clone(),
            );
            registry.register(
                "mesh_relay_allowed_clients",
                "Keys that may use the relay",
                ours.allowed.clone(),
            );
            registry.register(
                "mesh_relay_stun_requests",
                "STUN requests answered",
                ours.stun_requests.clone(),
            );
        });
        ours
    }

    pub(crate) fn drop(&self, reason: Drop, packets: usize) {
        if packets > 0 {
            self.dropped
                .get_or_create(&DropLabel { reason })
                .inc_by(packets as u64);
        }
    }

    pub(crate) fn refuse(&self, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabel { reason }).inc();
    }
}
