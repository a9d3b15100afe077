//! Bodies on their way through: the request's to the upstream, the response's to the client.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

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
    source: Option<Source<C, B>>,
}

/// What drives the upstream connection.
enum Source<C: Connector, B: RequestBody> {
    /// Whoever reads the body.
    Reader(Lease<C, B>),
    /// A task: the request is still on its way, and must not wait for the client to read.
    Pump(Pump),
}

impl<C: Connector, B: RequestBody> ProxyBody<C, B> {
    pub(crate) fn new(mut lease: Lease<C, B>) -> Self {
        let link = lease.link();
        let source = if link.is_body_done() {
            lease.release();
            None
        } else if link.is_sending() {
            Some(Source::Pump(Pump::start(lease)))
        } else {
            Some(Source::Reader(lease))
        };
        Self { source }
    }

    pub(crate) fn empty() -> Self {
        Self { source: None }
    }

    fn release(&mut self) {
        if let Some(Source::Reader(lease)) = self.source.take() {
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
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let (data, is_done) = match &mut self.source {
            None => return Poll::Ready(None),
            Some(Source::Reader(lease)) => {
                let link = lease.link();
                (ready!(link.poll_data(cx)), link.is_body_done())
            }
            Some(Source::Pump(pump)) => (ready!(pump.poll_data(cx)), pump.left == Some(0)),
        };
        match data {
            Some(Ok(data)) => {
                if is_done {
                    self.release();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(err)) => {
                self.source = None;
                Poll::Ready(Some(Err(err)))
            }
            None => {
                self.release();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = match &self.source {
            Some(Source::Reader(lease)) => lease.body_left(),
            Some(Source::Pump(pump)) => pump.left,
            None => Some(0),
        };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Drives an exchange whose answer began before all of the request was sent: a client that sends
/// everything before it reads anything would otherwise wait for itself. Ends when dropped.
struct Pump {
    pieces: mpsc::Receiver<Result<Bytes, UpstreamError>>,
    /// How many bytes are still to come, when that is known.
    left: Option<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Pump {
    fn start<C: Connector, B: RequestBody>(lease: Lease<C, B>) -> Self {
        let left = lease.body_left();
        let (sender, pieces) = mpsc::channel(1);
        Self {
            pieces,
            left,
            _task: AbortOnDropHandle::new(tokio::spawn(pump(lease, sender))),
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        let piece = ready!(self.pieces.poll_recv(cx));
        if let (Some(Ok(data)), Some(left)) = (&piece, &mut self.left) {
            *left = left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(piece)
    }
}

async fn pump<C: Connector, B: RequestBody>(
    mut lease: Lease<C, B>,
    pieces: mpsc::Sender<Result<Bytes, UpstreamError>>,
) {
    loop {
        let mut broken = None;
        let mut room = pin!(pieces.reserve());
        let room = poll_fn(|cx| {
            if broken.is_none() {
                broken = lease.link().go_on_sending(cx).err();
            }
            room.as_mut().poll(cx)
        });
        let Ok(room) = room.await else {
            return;
        };
        let piece = match broken {
            Some(err) => Some(Err(err)),
            None => poll_fn(|cx| lease.link().poll_data(cx)).await,
        };
        match piece {
            Some(Ok(data)) if lease.link().is_body_done() => {
                // Before the reader is done, who then ends this.
                lease.release();
                return room.send(Ok(data));
            }
            Some(Ok(data)) => room.send(Ok(data)),
            Some(Err(err)) => return room.send(Err(err)),
            None => return lease.release(),
        }
    }
}
