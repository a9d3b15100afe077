//! Traces: who caused what, across processes.
//!
//! A process that is given a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`) makes one [`Exporter`] and
//! hands each of its services a [`Tracer`] of its own; without one every tracer is off, and a span
//! costs one branch. Spans travel by `traceparent` (W3C Trace Context, level 1): in gRPC metadata,
//! in HTTP headers and in SSH's environment.
//!
//! Nothing here is global but the thread's current span, which [`Span::scope`] sets while a future
//! is polled: it is what [`inject`] writes into requests and what log lines name.
//!
//! Spans carry ids, names of methods and results: never secrets, never what a command says.

mod export;
mod parent;
mod span;

pub use export::{ExportError, Exporter, FLUSH};
pub use parent::{TRACEPARENT, TraceParent};
pub use span::{
    CurrentIds, Kind, Scoped, Span, Tracer, Value, current_ids, current_parent, in_current, inject,
    note, propagate,
};
