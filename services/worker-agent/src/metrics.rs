//! The agent's metrics: what its node counted.

use std::fmt;
use std::sync::Arc;

use mesh_daemon::Metrics;
use mesh_node::{ControlStatus, Counters};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

/// Reads the node's counters whenever they are asked for.
#[derive(Debug)]
struct NodeCounters(Arc<Counters>);

impl Collector for NodeCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in self.0.values() {
            let counter = ConstCounter::new(value);
            let help = format!("{} since the start", name.replace('_', " "));
            let name = format!("mesh_agent_{}", shown(name));
            let kind = counter.metric_type();
            let metric = encoder.encode_descriptor(&name, &help, None, kind)?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// The metric's noun and unit. What travels through the tunnel is the node's traffic; what carries
/// it is named apart, so that sums over `tx_bytes` count every byte once.
fn shown(name: &str) -> String {
    match name.strip_prefix("overlay_") {
        Some(rest) => rest.to_owned(),
        None => name
            .replace("tx_bytes", "sent_bytes")
            .replace("rx_bytes", "received_bytes"),
    }
}

/// When the certificate ends, as the control session knows it.
#[derive(Debug)]
struct Certificate(watch::Receiver<ControlStatus>);

impl Collector for Certificate {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let until = self.0.borrow().certificate_until.as_secs();
        let name = "mesh_agent_certificate_end_seconds";
        let help = "When the certificate ends, in seconds since 1970";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(until).encode(metric)
    }
}

/// Shows the counters as `mesh_agent_<noun>_<unit>_total`, and when the certificate ends.
pub(crate) fn register(
    metrics: &Metrics,
    counters: &Arc<Counters>,
    control: watch::Receiver<ControlStatus>,
) {
    let collector = NodeCounters(Arc::clone(counters));
    metrics.register(|registry| {
        registry.register_collector(Box::new(collector));
        registry.register_collector(Box::new(Certificate(control)));
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use mesh_node::ControlState;
    use mesh_types::Timestamp;

    use super::*;

    #[test]
    fn counters_show_their_present_value_under_the_agents_labels() {
        let metrics = Metrics::default();
        let counters = Arc::new(Counters::default());
        let (_control, status) = watch::channel(ControlStatus {
            state: ControlState::Connected,
            since: Timestamp::from_secs(1),
            last_error: None,
            stale_since: None,
            certificate_until: Timestamp::from_secs(951_782_400),
        });
        register(&metrics.scoped("part", "worker-node-1"), &counters, status);
        counters.overlay_tx_bytes.store(42, Ordering::Relaxed);
        let text = metrics.encode();
        let line = "mesh_agent_tx_bytes_total{part=\"worker-node-1\"} 42";
        assert!(text.contains(line), "{text}");
        let sums = text.lines().filter(|line| line.contains("tx_bytes_total{"));
        assert_eq!(sums.count(), 1, "{text}");
        let ends = "mesh_agent_certificate_end_seconds{part=\"worker-node-1\"} 951782400";
        assert!(text.contains(ends), "{text}");
    }
}
