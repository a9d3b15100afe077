//! Bodies on their way through: the request's to the upstream, the response's to the client.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::connect::Connector;
use crate::error::{BoxError, UpstreamError};
use crate::pool::Lease;

/// A body that requests may have: hyper's own `Incoming`, or one made by the caller.
pub trait RequestBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static> RequestBody for B {}

/// A request's body, if it has one.
pub(crate) struct Outgoing<B>(Option<B>);

impl<B: Body> Outgoing<B> {
    pub(crate) fn new(body: B) -> Self {
        Self((!body.is_end_stream()).then_some(body))
    }

    pub(crate) fn empty() -> Self {
        Self(None)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Its length, when that is known.
    pub(crate) fn exact_len(&self) -> Option<u64> {
        self.0
            .as_ref()
            .map_or(Some(0), |body| body.size_hint().exact())
    }

    pub(crate) fn into_inner(self) -> Option<B> {
        self.0
    }
}

impl<B> From<Option<B>> for Outgoing<B> {
    fn from(body: Option<B>) -> Self {
        Self(body)
    }
}

/// A response body on its way to the client. Reading it drives the upstream connection, which goes
/// back to the pool when the body has ended and is closed when the body is dropped before that.
pub struct ProxyBody<C: Connector, B: RequestBody> {
    /// Until the body has ended.
    lease: Option<Lease<C, B>>,
}

impl<C: Connector, B: RequestBody> ProxyBody<C, B> {
    pub(crate) fn new(lease: Lease<C, B>) -> Self {
        let mut body = Self { lease: Some(lease) };
        body.release_if_done();
        body
    }

    pub(crate) fn empty() -> Self {
        Self { lease: None }
    }

    fn release_if_done(&mut self) {
        if let Some(mut lease) = self.lease.take() {
            if lease.link().is_body_done() {
                lease.release();
            } else {
                self.lease = Some(lease);
            }
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
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(None);
        };
        match std::task::ready!(lease.link().poll_data(cx)) {
            Some(Ok(data)) => {
                self.release_if_done();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(err)) => {
                self.lease = None;
                Poll::Ready(Some(Err(err)))
            }
            None => {
                if let Some(lease) = self.lease.take() {
                    lease.release();
                }
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.lease.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = match &self.lease {
            Some(lease) => lease.body_left(),
            None => Some(0),
        };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
