//! What the gateway counts and times, and what makes its spans.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_daemon::{BusyCounter, Latency, Metrics};
use mesh_trace::Tracer;
use mesh_types::{NetworkName, NodeName};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// Workers that get series of their own; the rest of them share `other`.
const MAX_ROUTES: usize = 200;
const OTHER: &str = "other";
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteClass {
    route: String,
    class: &'static str,
}

/// The figures of one worker. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RouteFigures {
    requests: [BusyCounter; 5],
    /// Until the head of the answer.
    latency: Latency,
}

impl RouteFigures {
    /// Counts one answer that took so long to begin.
    pub(crate) fn answered(&self, status: http::StatusCode, took: Duration) {
        self.requests[class_of(status)].inc();
        self.latency.observe(took);
    }
}

/// What there is of each worker with requests.
#[derive(Debug, Clone, Default)]
struct Routes {
    requests: Family<RouteClass, BusyCounter>,
    latency: Family<Route, Latency>,
    known: Arc<Mutex<BTreeSet<String>>>,
}

impl Routes {
    fn of(&self, route: String) -> RouteFigures {
        let route = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.contains(&route) {
                route
            } else if known.len() < MAX_ROUTES {
                known.insert(route.clone());
                route
            } else {
                OTHER.to_owned()
            }
        };
        let counter = |class| {
            let route = route.clone();
            self.requests
                .get_or_create_owned(&RouteClass { route, class })
        };
        RouteFigures {
            requests: CLASSES.map(counter),
            latency: self.latency.get_or_create_owned(&Route {
                route: route.clone(),
            }),
        }
    }
}

fn class_of(status: http::StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(1, 5) - 1
}

/// The gateway's counters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GatewayMetrics {
    /// Answers by the first digit of their status; made once, so that counting takes no look-up.
    answers: [BusyCounter; 5],
    /// Requests whose worker did not answer as it should.
    pub(crate) upstream_failures: Counter,
    /// WebSockets and the like that were opened.
    pub(crate) tunnels: Counter,
    /// Client connections at present, tunnels included.
    pub(crate) connections: Gauge,
    /// Client connections that were refused because there were as many as there may be.
    pub(crate) refused: Counter,
    /// Client connections without a request that made room for others.
    pub(crate) shed: Counter,
    /// Workers with a route.
    pub(crate) routes: Gauge,
    by_route: Routes,
    /// Off unless [`GatewayMetrics::traced`] was called.
    pub(crate) tracer: Tracer,
}

impl GatewayMetrics {
    /// Registers everything.
    pub fn new(metrics: &Metrics) -> Self {
        metrics.register(|registry| {
            let answers = Family::<Class, BusyCounter>::default();
            let class = |class| answers.get_or_create_owned(&Class { class });
            let ours = Self {
                answers: CLASSES.map(class),
                upstream_failures: Counter::default(),
                tunnels: Counter::default(),
                connections: Gauge::default(),
                refused: Counter::default(),
                shed: Counter::default(),
                routes: Gauge::default(),
                by_route: Routes::default(),
                tracer: Tracer::off(),
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
                "Client connections at present, tunnels included",
                ours.connections.clone(),
            );
            registry.register(
                "mesh_gateway_connections_refused",
                "Client connections beyond server.max_connections",
                ours.refused.clone(),
            );
            registry.register(
                "mesh_gateway_connections_shed",
                "Client connections without a request that made room for others",
                ours.shed.clone(),
            );
            registry.register(
                "mesh_gateway_routes",
                "Workers with a route",
                ours.routes.clone(),
            );
            registry.register(
                "mesh_gateway_requests",
                "Answers by worker and class of status",
                ours.by_route.requests.clone(),
            );
            registry.register(
                "mesh_gateway_duration_seconds",
                "How long workers took to begin their answers",
                ours.by_route.latency.clone(),
            );
            ours
        })
    }

    /// Counts one answer.
    pub(crate) fn answered(&self, status: http::StatusCode) {
        self.answers[class_of(status)].inc();
    }

    /// The figures of a worker; looked up once for each route.
    pub(crate) fn route(&self, network: &NetworkName, node: &NodeName) -> RouteFigures {
        self.by_route.of(if network.is_default() {
            node.to_string()
        } else {
            format!("{network}/{node}")
        })
    }

    /// Makes a span of each request.
    #[must_use]
    pub fn traced(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn workers_beyond_the_limit_share_one_series() {
        let metrics = Metrics::default();
        let figures = GatewayMetrics::new(&metrics);
        let default = NetworkName::default_network();
        for number in 0..MAX_ROUTES + 3 {
            let node = format!("w{number}").parse().expect("a name");
            let route = figures.route(&default, &node);
            route.answered(StatusCode::BAD_GATEWAY, Duration::from_millis(3));
        }
        // One that is known stays itself.
        let first = figures.route(&default, &"w0".parse().expect("a name"));
        first.answered(StatusCode::OK, Duration::from_millis(3));
        let other = "lab".parse().expect("a name");
        let elsewhere = figures.route(&other, &"w0".parse().expect("a name"));
        elsewhere.answered(StatusCode::OK, Duration::from_millis(3));
        let text = metrics.encode();
        for line in [
            "mesh_gateway_requests_total{route=\"w0\",class=\"2xx\"} 1",
            "mesh_gateway_requests_total{route=\"w0\",class=\"5xx\"} 1",
            "mesh_gateway_requests_total{route=\"other\",class=\"5xx\"} 3",
            "mesh_gateway_requests_total{route=\"other\",class=\"2xx\"} 1",
            "mesh_gateway_duration_seconds_count{route=\"other\"} 4",
        ] {
            assert!(text.contains(line), "{line} is missing");
        }
        let routes = text.matches("mesh_gateway_duration_seconds_count{").count();
        assert_eq!(routes, MAX_ROUTES + 1);
    }
}
