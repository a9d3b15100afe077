//! gRPC calls as they are answered: counted and timed per method, and each a span.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Extensions, HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use mesh_trace::{Span, TraceParent, Tracer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::handles::Handles;
use crate::latency::Latency;

/// The codes of gRPC by number ("Status codes and their use in gRPC").
const CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];
const CANCELLED: usize = 1;
const UNKNOWN: usize = 2;
/// Those that say something about the server: unknown, deadline exceeded, internal, unavailable,
/// data loss.
const FAULTS: [usize; 5] = [UNKNOWN, 4, 13, 14, 15];
/// What calls of methods that do not exist are counted as.
const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

/// A method of a gRPC service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcMethod {
    /// `/<package>.<service>/<method>`.
    pub path: &'static str,
    /// It lasts as long as the caller stays, so that its duration says nothing, and it is no span.
    pub endless: bool,
}

/// Counts, times and traces the calls of known methods: a [`tower::Layer`]. Method names come from
/// the table and never from a request, so there are no more series than methods times codes.
#[derive(Clone)]
pub struct GrpcCalls(Arc<Shared>);

/// Makes the series of a method's faults, so that the first fault of all is a rise that alerts see.
fn faultless(calls: &Family<Labels, Counter>, method: &'static str) {
    for code in FAULTS.map(|code| CODES[code]) {
        drop(calls.get_or_create(&Labels { method, code }));
    }
}

struct Shared {
    methods: HashMap<&'static str, Method>,
    calls: Family<Labels, Counter>,
    tracer: Tracer,
    trusts: fn(&Extensions) -> bool,
}

struct Method {
    /// Without the leading slash.
    name: &'static str,
    latency: Option<Latency>,
}

impl GrpcCalls {
    /// Registers `<prefix>_grpc_calls_total{method, code}` and
    /// `<prefix>_grpc_duration_seconds{method}`. `trusts` says from a request's extensions whether
    /// its caller is one whose `traceparent` is believed.
    pub fn register(
        handles: &Handles,
        prefix: &'static str,
        methods: impl IntoIterator<Item = GrpcMethod>,
        trusts: fn(&Extensions) -> bool,
    ) -> Self {
        let calls = Family::default();
        faultless(&calls, OTHER);
        let latencies = Family::<MethodLabel, Latency>::default();
        let methods = methods
            .into_iter()
            .map(|method| {
                let name = method.path.trim_start_matches('/');
                faultless(&calls, name);
                let label = MethodLabel { method: name };
                let latency = (!method.endless).then(|| latencies.get_or_create_owned(&label));
                (method.path, Method { name, latency })
            })
            .collect();
        handles.metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix(prefix);
            registry.register(
                "grpc_calls",
                "gRPC calls that ended, by code",
                calls.clone(),
            );
            registry.register(
                "grpc_duration_seconds",
                "How long gRPC calls took",
                latencies,
            );
        });
        Self(Arc::new(Shared {
            methods,
            calls,
            tracer: handles.tracer.clone(),
            trusts,
        }))
    }

    fn begin<B>(&self, request: &Request<B>) -> Call {
        let shared = &self.0;
        let method = shared.methods.get(request.uri().path());
        let latency = method.and_then(|method| method.latency.clone());
        let name = method.map_or(OTHER, |method| method.name);
        let span = if latency.is_some() {
            let span = shared.tracer.answer(name, || {
                (shared.trusts)(request.extensions())
                    .then(|| TraceParent::extract(request.headers()))
                    .flatten()
            });
            span.set("rpc.system", "grpc");
            span
        } else {
            Span::none()
        };
        Call {
            calls: shared.calls.clone(),
            name,
            latency,
            started: Instant::now(),
            span,
            code: CANCELLED,
        }
    }
}

impl fmt::Debug for GrpcCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GrpcCalls").field(&self.0.tracer).finish()
    }
}

/// A call under way; it is counted when it is dropped.
struct Call {
    calls: Family<Labels, Counter>,
    name: &'static str,
    latency: Option<Latency>,
    started: Instant,
    span: Span,
    code: usize,
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = CODES[self.code];
        let labels = Labels {
            method: self.name,
            code,
        };
        self.calls.get_or_create(&labels).inc();
        if let Some(latency) = &self.latency {
            latency.observe(self.started.elapsed());
        }
        self.span.set("rpc.response.status_code", code);
        if FAULTS.contains(&self.code) {
            self.span.fail(code);
        }
    }
}

/// The code that headers or trailers tell.
fn code(headers: &HeaderMap) -> Option<usize> {
    let status = headers.get("grpc-status")?;
    let number: usize = status.to_str().ok()?.parse().ok()?;
    Some(if number < CODES.len() {
        number
    } else {
        UNKNOWN
    })
}

impl<S> tower::Layer<S> for GrpcCalls {
    type Service = GrpcCallsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        GrpcCallsService {
            calls: self.clone(),
            inner,
        }
    }
}

/// A service whose calls are counted; made by [`GrpcCalls`].
#[derive(Debug, Clone)]
pub struct GrpcCallsService<S> {
    calls: GrpcCalls,
    inner: S,
}

type Answer<R, E> = Pin<Box<dyn Future<Output = Result<Response<WatchedBody<R>>, E>> + Send>>;

impl<S, B, R> tower::Service<Request<B>> for GrpcCallsService<S>
where
    S: tower::Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<WatchedBody<R>>;
    type Error = S::Error;
    type Future = Answer<R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut call = self.calls.begin(&request);
        let clone = self.inner.clone();
        // The one that is ready is used; the clone takes its place.
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let answer = async { inner.call(request).await };
            let response = call.span.scope(answer).await?;
            let ended = code(response.headers());
            if let Some(ended) = ended {
                call.code = ended;
            }
            Ok(response.map(|body| WatchedBody {
                body,
                call: ended.is_none().then_some(call),
            }))
        })
    }
}

/// A body that tells by its trailers how a call ended.
pub struct WatchedBody<B> {
    body: B,
    /// Until it has ended.
    call: Option<Call>,
}

impl<B: fmt::Debug> fmt::Debug for WatchedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WatchedBody").field(&self.body).finish()
    }
}

impl<B> WatchedBody<B> {
    fn end(&mut self, code: usize) {
        if let Some(mut call) = self.call.take() {
            call.code = code;
        }
    }
}

impl<B: Body + Unpin> Body for WatchedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let ended = code(trailers).unwrap_or(UNKNOWN);
                    self.end(ended);
                }
            }
            Poll::Ready(Some(Err(_)) | None) => self.end(UNKNOWN),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, ready};

    use axum::body::Body as AxumBody;
    use http::HeaderValue;
    use tower::{Layer as _, Service as _};

    use super::*;

    const METHODS: [GrpcMethod; 2] = [
        GrpcMethod {
            path: "/mesh.v1.Test/Ask",
            endless: false,
        },
        GrpcMethod {
            path: "/mesh.v1.Test/Watch",
            endless: true,
        },
    ];

    /// A body that ends with these trailers.
    struct Trailing(Option<HeaderMap>);

    impl Body for Trailing {
        type Data = bytes::Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<bytes::Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(|trailers| Ok(Frame::trailers(trailers))))
        }
    }

    fn status(code: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static(code));
        headers
    }

    fn answer(path: &str) -> Ready<Result<Response<Trailing>, Infallible>> {
        let mut response = Response::new(Trailing(Some(status("0"))));
        if path.ends_with("Refused") {
            *response.headers_mut() = status("7");
            response.body_mut().0 = None;
        }
        ready(Ok(response))
    }

    #[tokio::test]
    async fn calls_are_counted_by_how_they_ended() {
        let handles = Handles::default();
        let calls = GrpcCalls::register(&handles, "mesh_test", METHODS, |_| false);
        let ask = async |path: &'static str| {
            let service = tower::service_fn(move |_: Request<AxumBody>| answer(path));
            let mut service = calls.layer(service);
            let request = Request::builder().uri(path).body(AxumBody::empty());
            let asked = service.call(request.expect("a request")).await;
            asked.expect("never fails").into_body()
        };
        let mut read = ask("/mesh.v1.Test/Ask").await;
        let frame = std::future::poll_fn(|cx| Pin::new(&mut read).poll_frame(cx)).await;
        assert!(frame.is_some());
        drop(ask("/mesh.v1.Test/Ask").await);
        drop(ask("/mesh.v1.Test/Watch").await);
        drop(ask("/mesh.v1.Test/Refused").await);
        let text = handles.metrics.encode();
        for line in [
            "mesh_test_grpc_calls_total{method=\"mesh.v1.Test/Ask\",code=\"ok\"} 1",
            "mesh_test_grpc_calls_total{method=\"mesh.v1.Test/Ask\",code=\"cancelled\"} 1",
            "mesh_test_grpc_calls_total{method=\"mesh.v1.Test/Watch\",code=\"cancelled\"} 1",
            "mesh_test_grpc_calls_total{method=\"other\",code=\"permission_denied\"} 1",
            "mesh_test_grpc_duration_seconds_count{method=\"mesh.v1.Test/Ask\"} 2",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
        assert!(
            !text.contains("seconds_count{method=\"mesh.v1.Test/Watch\""),
            "{text}"
        );
    }
}
