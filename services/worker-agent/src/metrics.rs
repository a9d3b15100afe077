//! The agent's metrics: what its node counted.

use std::fmt;
use std::sync::Arc;

use mesh_daemon::Metrics;
use mesh_node::Counters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;

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

/// Shows the counters as `mesh_agent_<noun>_<unit>_total`.
pub(crate) fn register(metrics: &Metrics, counters: &Arc<Counters>) {
    let collector = NodeCounters(Arc::clone(counters));
    metrics.register(|registry| registry.register_collector(Box::new(collector)));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn counters_show_their_present_value_under_the_agents_labels() {
        let metrics = Metrics::default();
        let counters = Arc::new(Counters::default());
        register(&metrics.scoped("part", "worker-node-1"), &counters);
        counters.overlay_tx_bytes.store(42, Ordering::Relaxed);
        let text = metrics.encode();
        let line = "mesh_agent_tx_bytes_total{part=\"worker-node-1\"} 42";
        assert!(text.contains(line), "{text}");
        let sums = text.lines().filter(|line| line.contains("tx_bytes_total{"));
        assert_eq!(sums.count(), 1, "{text}");
    }
}
