//! Bodies on their way through: the request's to the upstream, the response's to the client.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::connect::Connector;
use crate::error::BoxError;
use crate::pool::Lease;

/// A body that requests may have: hyper's own `Incoming`, or one made by the caller.
pub trait RequestBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static> RequestBody for B {}

/// Whose turn it is while a request body is under way. Shared with whoever watches the deadline.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    /// The proxy waits for the client: that is not the upstream being slow.
    waits_for_client: AtomicBool,
    /// Something moved since the deadline was looked at last.
    moved: AtomicBool,
}

impl Upload {
    /// Whether the upstream may be excused for not answering yet. Clears the note of movement.
    pub(crate) fn excuses_silence(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed) || self.waits_for_client.load(Ordering::Relaxed)
    }
}

/// A request body on its way to the upstream.
pub(crate) struct Outgoing<B> {
    body: Option<B>,
    upload: Option<Arc<Upload>>,
}

impl<B: Body> Outgoing<B> {
    /// No body at all.
    pub(crate) fn empty() -> Self {
        Self {
            body: None,
            upload: None,
        }
    }

    pub(crate) fn new(body: B) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self {
            body: Some(body),
            upload: Some(Arc::default()),
        }
    }

    pub(crate) fn upload(&self) -> Option<Arc<Upload>> {
        self.upload.clone()
    }
}

impl<B> fmt::Debug for Outgoing<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

impl<B: RequestBody> Body for Outgoing<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(body).poll_frame(cx);
        if let Some(upload) = &self.upload {
            upload
                .waits_for_client
                .store(frame.is_pending(), Ordering::Relaxed);
            if frame.is_ready() {
                upload.moved.store(true, Ordering::Relaxed);
            }
        }
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A response body on its way to the client. Reading it drives the upstream connection, which goes
/// back to the pool when the body has ended and is closed when the body is dropped before that.
pub struct ProxyBody<C: Connector, B: RequestBody> {
    incoming: Incoming,
    lease: Option<Lease<C, B>>,
}

impl<C: Connector, B: RequestBody> ProxyBody<C, B> {
    pub(crate) fn new(incoming: Incoming, lease: Lease<C, B>) -> Self {
        let mut body = Self {
            incoming,
            lease: Some(lease),
        };
        if body.incoming.is_end_stream() {
            body.release();
        }
        body
    }

    pub(crate) fn detached(incoming: Incoming) -> Self {
        Self {
            incoming,
            lease: None,
        }
    }

    fn release(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.release();
        }
    }
}

impl<C: Connector, B: RequestBody> fmt::Debug for ProxyBody<C, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyBody").finish_non_exhaustive()
    }
}

impl<C: Connector, B: RequestBody> Body for ProxyBody<C, B> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let mut frame = Pin::new(&mut this.incoming).poll_frame(cx);
        if frame.is_pending()
            && let Some(lease) = &mut this.lease
        {
            lease.drive(cx);
            frame = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match &frame {
            Poll::Ready(Some(Ok(_))) if this.incoming.is_end_stream() => this.release(),
            Poll::Ready(None) => this.release(),
            Poll::Ready(Some(Err(_))) => this.lease = None,
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
