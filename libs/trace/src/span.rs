//! Spans, and the one that a thread works in.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;

use futures_util::future::Either;
use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{
    FutureExt as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _, WithContext,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;

pub use opentelemetry::Value;

use crate::parent::{TRACEPARENT, TraceParent};

/// Which side of a request a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers a request.
    Server,
    /// Makes one.
    Client,
    /// Neither.
    Internal,
}

impl From<Kind> for SpanKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Server => Self::Server,
            Kind::Client => Self::Client,
            Kind::Internal => Self::Internal,
        }
    }
}

/// Makes a service's spans; off unless the process exports. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<SdkTracer>);

impl Tracer {
    pub(crate) fn new(tracer: SdkTracer) -> Self {
        Self(Some(tracer))
    }

    /// One that makes no spans.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Whether spans are made at all.
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Starts a span within the current one.
    pub fn start(&self, kind: Kind, name: impl Into<Cow<'static, str>>) -> Span {
        self.build(kind, name, Context::current)
    }

    /// Starts a span for a request that came in: within `parent`, or a new trace without one.
    pub fn answer(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: impl FnOnce() -> Option<TraceParent>,
    ) -> Span {
        self.build(Kind::Server, name, || match parent() {
            Some(parent) => Context::new().with_remote_span_context(parent.remote()),
            None => Context::new(),
        })
    }

    fn build(
        &self,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        parent: impl FnOnce() -> Context,
    ) -> Span {
        let Some(tracer) = &self.0 else {
            return Span(None);
        };
        let parent = parent();
        let builder = SpanBuilder::from_name(name).with_kind(kind.into());
        let span = tracer.build_with_context(builder, &parent);
        Span(Some(parent.with_span(span)))
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.is_on()).finish()
    }
}

/// A piece of work; it ends when this is dropped. Without a collector it is nothing.
pub struct Span(Option<Context>);

/// A future that is polled within a span.
pub type Scoped<F> = Either<F, WithContext<F>>;

impl Span {
    /// No span.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Adds what is known of the work: ids and results, no secrets.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Marks the work as failed; `reason` comes from a fixed list.
    pub fn fail(&self, reason: &'static str) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(reason));
        }
    }

    /// The future, polled with this span as the current one.
    pub fn scope<F: Future>(&self, future: F) -> Scoped<F> {
        match &self.0 {
            None => Either::Left(future),
            Some(context) => Either::Right(future.with_context(context.clone())),
        }
    }

    /// What to tell the next process; `None` when there is no span.
    pub fn parent(&self) -> Option<TraceParent> {
        parent_of(self.0.as_ref()?)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // Clones of the context may live on in tasks; the work is over all the same.
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parent = self.parent().map(|parent| parent.to_string());
        f.debug_tuple("Span").field(&parent).finish()
    }
}

fn parent_of(context: &Context) -> Option<TraceParent> {
    TraceParent::of(context.span().span_context())
}

/// What to tell the next process about the current span.
pub fn current_parent() -> Option<TraceParent> {
    Context::map_current(parent_of)
}

/// The current span's ids in hexadecimal, for log lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentIds {
    /// 32 digits.
    pub trace: String,
    /// 16 digits.
    pub span: String,
}

/// The ids of the current span.
pub fn current_ids() -> Option<CurrentIds> {
    Context::map_current(|context| {
        let span = context.span();
        let ids = span.span_context();
        ids.is_valid().then(|| CurrentIds {
            trace: ids.trace_id().to_string(),
            span: ids.span_id().to_string(),
        })
    })
}

/// Adds something to the current span: ids and results, no secrets.
pub fn note(key: &'static str, value: impl Into<Value>) {
    Context::map_current(|context| {
        if context.has_active_span() {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    });
}

/// A future that takes the current span along, into a task of its own.
pub fn in_current<F: Future>(future: F) -> Scoped<F> {
    let context = Context::current();
    if context.has_active_span() {
        Either::Right(future.with_context(context))
    } else {
        Either::Left(future)
    }
}

/// Writes the current span into a request's headers, in place of what is there; without a span the
/// headers stay as they are.
pub fn inject(headers: &mut HeaderMap) {
    if let Some(parent) = current_parent()
        && let Ok(value) = HeaderValue::try_from(parent.to_string())
    {
        headers.insert(TRACEPARENT, value);
    }
}

/// [`inject`] as an interceptor of gRPC clients.
///
/// # Errors
/// None; the type is the interceptor's.
pub fn propagate(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    if let Some(parent) = current_parent()
        && let Ok(value) = parent.to_string().parse()
    {
        request.metadata_mut().insert(TRACEPARENT, value);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

    use super::*;

    fn recording() -> (Tracer, InMemorySpanExporter, SdkTracerProvider) {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        (Tracer::new(provider.tracer("test")), exporter, provider)
    }

    #[test]
    fn a_tracer_that_is_off_makes_nothing() {
        let span = Tracer::off().start(Kind::Internal, "nothing");
        assert_eq!(span.parent(), None);
        futures_util::future::FutureExt::now_or_never(span.scope(async {
            assert_eq!(current_ids(), None);
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static("as it was"));
            inject(&mut headers);
            assert_eq!(headers[TRACEPARENT], "as it was");
        }))
        .expect("it never waits");
    }

    #[test]
    fn one_tree_spans_two_services() {
        let (caller, called_out, _keep) = recording();
        let (callee, answered, _keep_too) = recording();
        let root = caller.start(Kind::Internal, "root");
        let mut headers = HeaderMap::new();
        futures_util::future::FutureExt::now_or_never(root.scope(async {
            inject(&mut headers);
            assert_eq!(current_parent(), root.parent());
        }))
        .expect("it never waits");
        let answer = callee.answer("answer", || TraceParent::extract(&headers));
        answer.set("mesh.node", "n1");
        drop(answer);
        drop(root);
        let root = called_out.get_finished_spans().expect("kept").remove(0);
        let answer = answered.get_finished_spans().expect("kept").remove(0);
        assert_eq!(answer.span_context.trace_id(), root.span_context.trace_id());
        assert_eq!(answer.parent_span_id, root.span_context.span_id());
        assert!(answer.parent_span_is_remote);
    }

    #[test]
    fn a_span_ends_with_its_owner_even_when_a_task_still_has_it() {
        let (tracer, finished, _keep) = recording();
        let span = tracer.start(Kind::Internal, "work");
        let left_over = span.scope(std::future::pending::<()>());
        drop(span);
        assert_eq!(finished.get_finished_spans().expect("kept").len(), 1);
        drop(left_over);
    }

    #[test]
    fn a_request_without_a_parent_starts_a_trace_of_its_own() {
        let (tracer, finished, _keep) = recording();
        let outer = tracer.start(Kind::Internal, "outer");
        let answer = outer.scope(async { tracer.answer("answer", || None) });
        drop(futures_util::future::FutureExt::now_or_never(answer));
        drop(outer);
        let spans = finished.get_finished_spans().expect("kept");
        assert_ne!(
            spans[0].span_context.trace_id(),
            spans[1].span_context.trace_id()
        );
    }
}
