//! An answer by HTTP/2 is under way until its client has taken the last of it.
//!
//! Over HTTP/1.1 that is the kernel's to know. Here a client that is alive and reads what concerns
//! the connection may give an answer no room at all (RFC 9113, 5.2): its last pieces wait for it
//! when the worker, and the body, are done long since.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use mesh_daemon::UnderWay;

use super::{Offer, Stream};

/// The body of an answer.
#[derive(Debug)]
pub(in super::super) struct Answer<B> {
    body: B,
    request: Arc<Request>,
    /// The worker is not behind: what there is waits for the client. (That the body is asked for
    /// more does not mean that the client took anything.)
    offer: Option<Offer>,
}

/// What is held while a request is under way.
#[derive(Debug)]
struct Request {
    stream: Stream,
    _under_way: UnderWay,
}

impl<B> Answer<B> {
    pub(in super::super) fn new(body: B, under_way: UnderWay, mut stream: Stream) -> Self {
        stream.answered();
        Self {
            body,
            offer: Some(stream.offer()),
            request: Arc::new(Request {
                stream,
                _under_way: under_way,
            }),
        }
    }
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match polled {
            Poll::Pending => self.offer = None,
            Poll::Ready(_) if self.offer.is_none() => {
                self.offer = Some(self.request.stream.offer());
            }
            Poll::Ready(_) => {}
        }
        let piece = |data| Piece {
            data,
            _offer: self.request.stream.offer(),
            request: Arc::clone(&self.request),
        };
        polled.map_ok(|frame| frame.map_data(piece))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of an answer, until it was written.
#[derive(Debug)]
pub(in super::super) struct Piece<D> {
    data: D,
    _offer: Offer,
    request: Arc<Request>,
}

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(dst)
    }

    fn advance(&mut self, count: usize) {
        self.request.stream.taken();
        self.data.advance(count);
    }
}
