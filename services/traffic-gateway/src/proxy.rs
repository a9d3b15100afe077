//! One request: who may ask, where it goes, what is answered when it goes nowhere.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::header::{HOST, LOCATION, ORIGIN, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_reverse_proxy::headers::wanted_upgrade;
use hyper_reverse_proxy::{BadRequest, Connector, Framing, Inbound, ReverseProxy};
use mesh_trace::TraceParent;
use mesh_types::ServiceKind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, events};
use crate::cookies::drop_console_sessions;
use crate::fleet::Snapshot;
use crate::metrics::{GatewayMetrics, WorkerOffline};
use crate::origin::{HostKind, Hosts, origin_matches};
use crate::pages::{self, Form, Problem};
use crate::problems;
use crate::request_id::{RequestIds, X_REQUEST_ID};
use crate::route_table::{Destination, Resolved, RouteTable, Target};

/// Goes with a `traceparent` (W3C Trace Context, section 3.3).
const TRACESTATE: &str = "tracestate";

/// What all cores share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Where requests go.
    pub table: watch::Receiver<Arc<RouteTable>>,
    /// What `/` shows.
    pub fleet: watch::Receiver<Arc<Snapshot>>,
    /// Which host names are answered.
    pub hosts: Arc<Hosts>,
    /// What is counted.
    pub metrics: GatewayMetrics,
    /// Ends event streams.
    pub stop: CancellationToken,
}

/// What is known of a client's connection.
#[derive(Debug)]
pub struct Visitor {
    /// Who it is, for the workers.
    pub inbound: Inbound,
    /// Why all it asks for is refused, if it is.
    pub refused: Option<Refused>,
    /// Our address that it came in at.
    pub local: Option<IpAddr>,
    /// Whether requests of two lengths were seen on it; HTTP/2 cannot have them.
    pub framing: Option<Framing>,
}

/// Why a whole connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Plain HTTP from a machine that is no proxy of ours; it may ask for `/health` only.
    Plain,
    /// There are as many connections as there may be.
    Full,
}

/// The route table as one core holds it. Its own count of references, which no other core writes.
type Routes = Arc<Arc<RouteTable>>;

/// The gateway as one core sees it: shared knowledge, upstream connections of its own.
#[derive(Debug)]
pub struct Gateway<C: Connector<Target = Target>> {
    routes: Mutex<(watch::Receiver<Arc<RouteTable>>, Routes)>,
    shared: Shared,
    proxy: ReverseProxy<C>,
    ids: RequestIds,
}

impl<C: Connector<Target = Target>> Gateway<C> {
    /// A gateway over `proxy`.
    pub fn new(shared: Shared, proxy: ReverseProxy<C>) -> Self {
        let mut table = shared.table.clone();
        let routes = Arc::new(Arc::clone(&table.borrow_and_update()));
        Self {
            routes: Mutex::new((table, routes)),
            shared,
            proxy,
            ids: RequestIds::default(),
        }
    }

    /// The proxy with its upstream connections.
    pub fn proxy(&self) -> &ReverseProxy<C> {
        &self.proxy
    }

    /// What all cores share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The routes as they are now.
    fn routes(&self) -> Routes {
        let mut held = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let (table, routes) = &mut *held;
        // Without a sender there is nothing new either.
        if table.has_changed().unwrap_or(false) {
            *routes = Arc::new(Arc::clone(&table.borrow_and_update()));
        }
        Arc::clone(routes)
    }

    /// Closes upstream connections that are too old or that no route leads to any more.
    pub fn sweep(&self) {
        let table = self.routes();
        self.proxy.client().sweep(|target| table.leads_to(target));
    }

    /// Answers one request.
    pub async fn serve(
        &self,
        visitor: &Visitor,
        request: Request<Incoming>,
    ) -> Response<Answer<C>> {
        let id = self.ids.take_over(request.headers().get(X_REQUEST_ID));
        let mut response = if self.shared.metrics.tracer.is_on() {
            // Boxed, so that requests are no larger where nothing is traced.
            Box::pin(self.answer_traced(visitor, request, &id)).await
        } else {
            self.answer(visitor, request, &id).await
        };
        self.shared.metrics.answered(&response);
        response.headers_mut().insert(X_REQUEST_ID, id);
        response
    }

    /// [`Gateway::answer`] in a span. What a stranger says of traces is not believed, and not
    /// handed on.
    async fn answer_traced(
        &self,
        visitor: &Visitor,
        mut request: Request<Incoming>,
        id: &HeaderValue,
    ) -> Response<Answer<C>> {
        let trusted = visitor.inbound.is_trusted();
        let span = self.shared.metrics.tracer.answer("gateway request", || {
            trusted
                .then(|| TraceParent::extract(request.headers()))
                .flatten()
        });
        span.set("http.request.method", request.method().to_string());
        span.set(
            "mesh.request_id",
            id.to_str().unwrap_or_default().to_owned(),
        );
        if !trusted {
            request.headers_mut().remove(TRACESTATE);
        }
        let response = span
            .scope(async {
                mesh_trace::inject(request.headers_mut());
                self.answer(visitor, request, id).await
            })
            .await;
        let status = response.status();
        span.set("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.fail("server error");
        }
        response
    }

    async fn answer(
        &self,
        visitor: &Visitor,
        mut request: Request<Incoming>,
        id: &HeaderValue,
    ) -> Response<Answer<C>> {
        if request.headers().contains_key(TRANSFER_ENCODING)
            && visitor
                .framing
                .as_ref()
                .is_some_and(Framing::take_ambiguous)
        {
            let problem = problems::bad_request(BadRequest::AmbiguousLength);
            return closing(refusal(&problem, &request, id));
        }
        if visitor.refused == Some(Refused::Full) {
            return closing(refusal(&problems::full(), &request, id));
        }
        if request.uri().path() == "/health" {
            return health(&request, id);
        }
        if visitor.refused.is_some() {
            return closing(refusal(&problems::plain_http(), &request, id));
        }
        let table = self.routes();
        let resolved = match self.resolve(visitor, &request, &table) {
            Ok(resolved) => resolved,
            Err(problem) => return refusal(&problem, &request, id),
        };
        match resolved {
            Step::Events => events(self.shared.fleet.clone(), self.shared.stop.clone()),
            Step::Go(Resolved::Forward { destination, own }) => {
                if own && is_page_visit(&request) {
                    // A console builds its links from its prefix, so a browser has to be there.
                    return redirect(
                        StatusCode::TEMPORARY_REDIRECT,
                        destination.shared.mount.outer(),
                        &request,
                    );
                }
                request.headers_mut().insert(X_REQUEST_ID, id.clone());
                self.forward(visitor, destination, own, request, id).await
            }
            Step::Go(Resolved::Redirect(path)) => {
                redirect(StatusCode::PERMANENT_REDIRECT, &path, &request)
            }
            Step::Go(Resolved::Fleet) => self.fleet(visitor, &request),
            Step::Go(nowhere) => match problems::unresolved(&nowhere) {
                Some(problem) => refusal(&problem, &request, id),
                None => health(&request, id),
            },
        }
    }

    /// Where the request goes, once its host name and its origin have been looked at.
    fn resolve<'t>(
        &self,
        visitor: &Visitor,
        request: &Request<Incoming>,
        table: &'t RouteTable,
    ) -> Result<Step<'t>, Problem> {
        let host = host_of(request).ok_or_else(|| problems::bad_request(BadRequest::Host))?;
        let kind = self.shared.hosts.classify(host, visitor.local);
        if kind == HostKind::Unknown {
            return Err(problems::unknown_host(host));
        }
        if wanted_upgrade(request).is_some()
            && let Some(origin) = request.headers().get(ORIGIN)
            && !origin_matches(
                origin.as_bytes(),
                host,
                visitor.inbound.outer_scheme(request.headers()),
            )
        {
            return Err(problems::foreign_origin());
        }
        let path = request.uri().path();
        Ok(match kind {
            HostKind::Node(node) => Step::Go(table.resolve(Some(&node), path)),
            HostKind::Gateway | HostKind::Unknown => match path {
                "/_mesh/events" if is_reading(request) => Step::Events,
                "/" | "/_mesh/events" if !is_reading(request) => return Err(problems::method()),
                _ => Step::Go(table.resolve(None, path)),
            },
        })
    }

    async fn forward(
        &self,
        visitor: &Visitor,
        destination: &Destination,
        own: bool,
        mut request: Request<Incoming>,
        id: &HeaderValue,
    ) -> Response<Answer<C>> {
        if destination.kind != ServiceKind::Console {
            drop_console_sessions(request.headers_mut());
        }
        let upstream = if own {
            &destination.own
        } else {
            &destination.shared
        };
        let form = Form::wanted(request.headers());
        let metrics = &self.shared.metrics;
        if metrics.tracer.is_on() {
            mesh_trace::note("mesh.network", destination.network.to_string());
            mesh_trace::note("mesh.node", destination.node.to_string());
            mesh_trace::note("mesh.service", destination.service.to_string());
        }
        let figures = destination
            .figures
            .get_or_init(|| metrics.route(&destination.network, &destination.node));
        let started = Instant::now();
        let forwarded = self
            .proxy
            .forward(&visitor.inbound, upstream, request)
            .await;
        let took = started.elapsed();
        let response = match forwarded {
            Ok(response) => {
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    self.shared.metrics.tunnels.inc();
                    if let Some(framing) = &visitor.framing {
                        framing.stop();
                    }
                }
                response.map(Answer::Proxied)
            }
            Err(error) => {
                if !error.is_clients() {
                    self.shared.metrics.upstream_failures.inc();
                    tracing::info!(
                        network = %destination.network,
                        node = %destination.node,
                        service = %destination.service,
                        request_id = id.to_str().unwrap_or_default(),
                        reason = mesh_daemon::report::chain(&error),
                        "worker did not answer",
                    );
                }
                let mut page = problems::upstream(&error, destination).response(form, id);
                if problems::is_offline(&error, destination) {
                    page.extensions_mut().insert(WorkerOffline);
                }
                own_page(page)
            }
        };
        figures.answered(&response, took);
        response
    }

    fn fleet(&self, visitor: &Visitor, request: &Request<Incoming>) -> Response<Answer<C>> {
        let scheme = visitor.inbound.outer_scheme(request.headers()).as_str();
        let base = format!("{scheme}://{}", host_of(request).unwrap_or_default());
        let snapshot = Arc::clone(&self.shared.fleet.borrow());
        let form = Form::wanted(request.headers());
        let nonce = format!("{:016x}", RandomState::new().hash_one(base.len()));
        own_page(pages::fleet(&snapshot, form, &base, &nonce))
    }
}

enum Step<'t> {
    Events,
    Go(Resolved<'t>),
}

/// The host that the client asks for, with its port.
fn host_of<B>(request: &Request<B>) -> Option<&str> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.as_str());
    }
    request.headers().get(HOST)?.to_str().ok()
}

fn is_reading<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

/// Somebody typed an address into a browser.
fn is_page_visit<B>(request: &Request<B>) -> bool {
    request.uri().path() == "/"
        && is_reading(request)
        && Form::wanted(request.headers()) == Form::Html
        && !request.headers().contains_key(header::UPGRADE)
}

fn own_page<C: Connector>(page: Response<Bytes>) -> Response<Answer<C>> {
    page.map(|body| Answer::Page(Full::new(body)))
}

fn refusal<C: Connector, B>(
    problem: &Problem,
    request: &Request<B>,
    id: &HeaderValue,
) -> Response<Answer<C>> {
    own_page(problem.response(Form::wanted(request.headers()), id))
}

/// The connection is closed after this answer: what comes next on it cannot be trusted.
fn closing<C: Connector>(mut response: Response<Answer<C>>) -> Response<Answer<C>> {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

fn health<C: Connector, B>(request: &Request<B>, id: &HeaderValue) -> Response<Answer<C>> {
    if !is_reading(request) {
        return refusal(&problems::method(), request, id);
    }
    let mut response = Response::new(Bytes::from_static(b"OK"));
    let kind = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    own_page(response)
}

fn redirect<C: Connector, B>(
    status: StatusCode,
    path: &str,
    request: &Request<B>,
) -> Response<Answer<C>> {
    let location = match request.uri().query() {
        Some(query) => HeaderValue::from_str(&format!("{path}?{query}")),
        None => HeaderValue::from_str(path),
    };
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    if let Ok(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    own_page(response)
}
