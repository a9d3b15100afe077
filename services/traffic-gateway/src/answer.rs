//! The body of what the gateway answers: a worker's, its own page, or a stream of events.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_reverse_proxy::{BoxError, Connector, ProxyBody};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fleet::Snapshot;

/// How often a quiet event stream says that it is still there, so that nothing on the way takes
/// it for dead.
const STILL_HERE: Duration = Duration::from_secs(15);

/// The body of an answer.
pub enum Answer<C: Connector> {
    /// A worker's.
    Proxied(ProxyBody<C, Incoming>),
    /// The gateway's own.
    Page(Full<Bytes>),
    /// The fleet as it changes.
    Events(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl<C: Connector> fmt::Debug for Answer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proxied(_) => "Proxied",
            Self::Page(_) => "Page",
            Self::Events(_) => "Events",
        })
    }
}

impl<C: Connector> Body for Answer<C> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Proxied(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Page(page) => Pin::new(page).poll_frame(cx).map_err(Into::into),
            Self::Events(events) => events
                .as_mut()
                .poll_next(cx)
                .map(|event| event.map(|event| Ok(Frame::data(event)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Proxied(body) => body.is_end_stream(),
            Self::Page(page) => page.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Proxied(body) => body.size_hint(),
            Self::Page(page) => page.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// The fleet as server-sent events: at once, and then whenever it changes, until `stop`.
pub(crate) fn events<C: Connector>(
    fleet: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
) -> Response<Answer<C>> {
    let events = stream::unfold((fleet, stop, true), |(mut fleet, stop, first)| async move {
        let event = if first {
            fleet.borrow_and_update().event.clone()
        } else {
            tokio::select! {
                changed = fleet.changed() => {
                    changed.ok()?;
                    fleet.borrow_and_update().event.clone()
                }
                () = tokio::time::sleep(STILL_HERE) => Bytes::from_static(b": still here\n\n"),
                () = stop.cancelled() => return None,
            }
        };
        Some((event, (fleet, stop, false)))
    });
    let retry = stream::once(async { Bytes::from_static(b"retry: 1000\n\n") });
    let events = stream::StreamExt::chain(retry, events);
    let mut response = Response::new(Answer::Events(Box::pin(events)));
    for (name, value) in [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}
