//! What the gateway counts.

use mesh_daemon::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: &'static str,
}

/// The gateway's counters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GatewayMetrics {
    /// Answers by the first digit of their status; made once, so that counting takes no look-up.
    answers: [Counter; 5],
    /// Requests whose worker did not answer as it should.
    pub(crate) upstream_failures: Counter,
    /// WebSockets and the like that were opened.
    pub(crate) tunnels: Counter,
    /// Client connections at present.
    pub(crate) connections: Gauge,
    /// Workers with a route.
    pub(crate) routes: Gauge,
}

impl GatewayMetrics {
    /// Registers everything.
    pub fn new(metrics: &Metrics) -> Self {
        metrics.register(|registry| {
            let answers = Family::<Class, Counter>::default();
            let class = |class| answers.get_or_create_owned(&Class { class });
            let ours = Self {
                answers: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(class),
                upstream_failures: Counter::default(),
                tunnels: Counter::default(),
                connections: Gauge::default(),
                routes: Gauge::default(),
            };
            registry.register(
                "mesh_gateway_answers",
                "Answers by class of status",
                answers,
            );
            registry.register(
                "mesh_gateway_upstream_failures",
                "Requests whose worker did not answer as it should",
                ours.upstream_failures.clone(),
            );
            registry.register(
                "mesh_gateway_tunnels_opened",
                "Protocol switches (WebSocket) that were carried",
                ours.tunnels.clone(),
            );
            registry.register(
                "mesh_gateway_connections",
                "Client connections at present",
                ours.connections.clone(),
            );
            registry.register(
                "mesh_gateway_routes",
                "Workers with a route",
                ours.routes.clone(),
            );
            ours
        })
    }

    /// Counts one answer.
    pub(crate) fn answered(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.answers[class].inc();
    }
}
