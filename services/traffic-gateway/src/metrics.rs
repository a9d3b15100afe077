//! What the gateway counts and times, and what makes its spans.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Response;
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
/// What is counted apart: an answer's class of status, and whether it is of [`WorkerOffline`],
/// which goes with one class only.
const SORTS: [(&str, bool); 6] = [
    ("1xx", false),
    ("2xx", false),
    ("3xx", false),
    ("4xx", false),
    ("5xx", false),
    ("5xx", true),
];
/// The place of [`WorkerOffline`] in [`SORTS`].
const OFFLINE: usize = 5;

/// In the extensions of an answer: the gateway gives it because the worker is not there, and the
/// coordinator had said that it is offline. An error to who asked, and none to who runs the mesh:
/// whether that worker should be there at this hour is the coordinator's to know, and to tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerOffline;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sort {
    class: &'static str,
    worker_offline: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteSort {
    route: String,
    class: &'static str,
    worker_offline: bool,
}

/// The figures of one worker. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RouteFigures {
    requests: [BusyCounter; SORTS.len()],
    /// Until the head of the answer.
    latency: Latency,
}

impl RouteFigures {
    /// Counts one answer that took so long to begin.
    pub(crate) fn answered<B>(&self, answer: &Response<B>, took: Duration) {
        let sort = sort_of(answer);
        self.requests[sort].inc();
        // How long a dial in vain may take says nothing of how fast anybody is.
        if sort != OFFLINE {
            self.latency.observe(took);
        }
    }
}

/// What there is of each worker with requests.
#[derive(Debug, Clone, Default)]
struct Routes {
    requests: Family<RouteSort, BusyCounter>,
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
        let counter = |(class, worker_offline)| {
            self.requests.get_or_create_owned(&RouteSort {
                route: route.clone(),
                class,
                worker_offline,
            })
        };
        RouteFigures {
            requests: SORTS.map(counter),
            latency: self.latency.get_or_create_owned(&Route {
                route: route.clone(),
            }),
        }
    }
}

/// The place of an answer in [`SORTS`].
fn sort_of<B>(answer: &Response<B>) -> usize {
    if answer.extensions().get::<WorkerOffline>().is_some() {
        return OFFLINE;
    }
    usize::from(answer.status().as_u16() / 100).clamp(1, 5) - 1
}

/// The gateway's counters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GatewayMetrics {
    /// By [`SORTS`]; made once, so that counting takes no look-up.
    answers: [BusyCounter; SORTS.len()],
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
            let answers = Family::<Sort, BusyCounter>::default();
            let counter = |(class, worker_offline)| {
                answers.get_or_create_owned(&Sort {
                    class,
                    worker_offline,
                })
            };
            let ours = Self {
                answers: SORTS.map(counter),
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
                "Answers by class of status, and whether the worker was known to be offline",
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
                "Answers by worker, class of status, and whether it was known to be offline",
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
    pub(crate) fn answered<B>(&self, answer: &Response<B>) {
        self.answers[sort_of(answer)].inc();
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

    fn answer(status: StatusCode) -> Response<()> {
        let mut answer = Response::new(());
        *answer.status_mut() = status;
        answer
    }

    #[test]
    fn what_an_offline_worker_gets_is_no_failure_and_no_slowness() {
        let metrics = Metrics::default();
        let figures = GatewayMetrics::new(&metrics);
        let node = "asleep".parse().expect("a name");
        let route = figures.route(&NetworkName::default_network(), &node);
        let failed = answer(StatusCode::SERVICE_UNAVAILABLE);
        let mut offline = answer(StatusCode::SERVICE_UNAVAILABLE);
        offline.extensions_mut().insert(WorkerOffline);
        for answer in [&failed, &offline, &offline] {
            route.answered(answer, Duration::from_secs(5));
            figures.answered(answer);
        }
        let text = metrics.encode();
        for line in [
            "mesh_gateway_answers_total{class=\"5xx\",worker_offline=\"false\"} 1",
            "mesh_gateway_answers_total{class=\"5xx\",worker_offline=\"true\"} 2",
            "mesh_gateway_requests_total{route=\"asleep\",class=\"5xx\",worker_offline=\"false\"} 1",
            "mesh_gateway_requests_total{route=\"asleep\",class=\"5xx\",worker_offline=\"true\"} 2",
            "mesh_gateway_duration_seconds_count{route=\"asleep\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing");
        }
    }

    #[test]
    fn workers_beyond_the_limit_share_one_series() {
        let metrics = Metrics::default();
        let figures = GatewayMetrics::new(&metrics);
        let default = NetworkName::default_network();
        for number in 0..MAX_ROUTES + 3 {
            let node = format!("w{number}").parse().expect("a name");
            let route = figures.route(&default, &node);
            route.answered(&answer(StatusCode::BAD_GATEWAY), Duration::from_millis(3));
        }
        // One that is known stays itself.
        let first = figures.route(&default, &"w0".parse().expect("a name"));
        first.answered(&answer(StatusCode::OK), Duration::from_millis(3));
        let other = "lab".parse().expect("a name");
        let elsewhere = figures.route(&other, &"w0".parse().expect("a name"));
        elsewhere.answered(&answer(StatusCode::OK), Duration::from_millis(3));
        let text = metrics.encode();
        for line in [
            "mesh_gateway_requests_total{route=\"w0\",class=\"2xx\",worker_offline=\"false\"} 1",
            "mesh_gateway_requests_total{route=\"w0\",class=\"5xx\",worker_offline=\"false\"} 1",
            "mesh_gateway_requests_total{route=\"other\",class=\"5xx\",worker_offline=\"false\"} 3",
            "mesh_gateway_requests_total{route=\"other\",class=\"2xx\",worker_offline=\"false\"} 1",
            "mesh_gateway_duration_seconds_count{route=\"other\"} 4",
        ] {
            assert!(text.contains(line), "{line} is missing");
        }
        let routes = text.matches("mesh_gateway_duration_seconds_count{").count();
        assert_eq!(routes, MAX_ROUTES + 1);
    }
}
