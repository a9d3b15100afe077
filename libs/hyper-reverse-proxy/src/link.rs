//! One connection to an upstream, and the exchange that is under way on it.
//!
//! A connection has no task of its own. Whoever uses it drives it: the request while it waits for
//! the response's head, the body while it is read. An idle connection is driven by nobody.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::HeaderMap;
use http::{Method, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use crate::body::{Outgoing, RequestBody};
use crate::error::{ProxyError, UpstreamError};
use crate::headers::Forwarded;
use crate::pool::Limits;
use crate::wire::{RequestLength, ResponseHead, ResponseReader, write_request_head};

mod upload;

use upload::Upload;

/// Bytes that one read may take: enough for an ordinary response with its head.
const READ: usize = 8 * 1024;
/// The same while large bodies come in.
const READ_LARGE: usize = 80 * 1024;
/// A request's bytes are gathered up to here before they are written.
const GATHER: usize = 16 * 1024;
/// From here on a piece of a request's body is written from where it is instead of gathered.
const LARGE_PIECE: usize = 4 * 1024;

/// A connection to an upstream.
#[derive(Debug)]
pub(crate) struct Link<S, B> {
    io: S,
    reader: ResponseReader,
    input: BytesMut,
    /// What one read may take at present.
    read_size: usize,
    output: Vec<u8>,
    /// How much of `output` is written.
    sent: usize,
    /// A large piece of the request's body; it goes after `output`.
    piece: Bytes,
    /// The piece is a chunk, whose end is still to be written.
    piece_is_chunk: bool,
    unflushed: bool,
    upload: Option<Upload<B>>,
    /// The request has a body, sent already or not.
    has_body: bool,
    /// Something of the body moved since the deadline was looked at last.
    moved: bool,
    /// When the body was last seen to have moved.
    stands_since: Instant,
    /// Something of the present request has been written, or taken from its body.
    begun: bool,
    /// Something has been read since.
    answered: bool,
    /// Another request may follow.
    persistent: bool,
    /// The deadline of the request that is waited for. Kept with the connection, because moving a
    /// registered timer further away takes no lock.
    deadline: Pin<Box<Sleep>>,
    /// When its last request was sent, or when it was made.
    used_at: Instant,
}

/// Why the request's way out ended.
enum SendError {
    /// The upstream does not take it; it may have answered nevertheless.
    Upstream(io::Error),
    /// Its body broke off.
    Body(UpstreamError),
}

/// How an exchange failed, and what is left of the request.
pub(crate) struct Failed<B> {
    pub(crate) error: ProxyError,
    /// The body, when nothing of the request has reached the upstream.
    pub(crate) unsent: Option<Outgoing<B>>,
    /// The connection ended before anything came back.
    pub(crate) unanswered: bool,
}

impl<S, B> Link<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: RequestBody,
{
    /// `limit` is the longest response head, in bytes.
    pub(crate) fn new(io: S, limit: usize) -> Self {
        let now = Instant::now();
        Self {
            io,
            reader: ResponseReader::new(limit),
            input: BytesMut::new(),
            read_size: READ,
            output: Vec::with_capacity(1024),
            sent: 0,
            piece: Bytes::new(),
            piece_is_chunk: false,
            unflushed: false,
            upload: None,
            has_body: false,
            moved: false,
            stands_since: now,
            begun: false,
            answered: false,
            persistent: true,
            deadline: Box::pin(tokio::time::sleep_until(now)),
            used_at: now,
        }
    }

    /// When its last request was sent.
    pub(crate) fn used_at(&self) -> Instant {
        self.used_at
    }

    /// It gets another request now. Says how long it was unused before.
    pub(crate) fn take_up(&mut self, now: Instant) -> Duration {
        let idle_for = now.saturating_duration_since(self.used_at);
        self.used_at = now;
        idle_for
    }

    /// Whether the connection still stands while nothing is under way: a kept connection that says
    /// anything is on its way down. Looks at the socket without waiting for it.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.input.reserve(1);
        let mut cx = Context::from_waker(Waker::noop());
        poll_read_buf(Pin::new(&mut self.io), &mut cx, &mut self.input).is_pending()
    }

    /// Whether the exchange is over and another one may follow.
    pub(crate) fn is_reusable(&self) -> bool {
        self.persistent && self.reader.is_done() && self.input.is_empty() && !self.is_sending()
    }

    /// Gives back the memory that large bodies took.
    pub(crate) fn shrink(&mut self) {
        if self.read_size > READ {
            self.read_size = READ;
            self.input = BytesMut::new();
        }
    }

    /// Sends a request and waits for the head of its response, which takes over the memory of the
    /// request's headers: they are left as they were only when nothing was answered.
    pub(crate) async fn send(
        &mut self,
        head: &mut request::Parts,
        forwarded: Option<Forwarded<'_>>,
        body: Outgoing<B>,
        limits: &Limits,
    ) -> Result<ResponseHead, Failed<B>> {
        self.begin(head, forwarded, body).map_err(|error| Failed {
            error,
            unsent: None,
            unanswered: false,
        })?;
        self.deadline
            .as_mut()
            .reset(self.used_at + limits.first_byte);
        let mut broken = None;
        let sent =
            std::future::poll_fn(|cx| self.poll_answer(cx, &mut head.headers, limits, &mut broken))
                .await;
        sent.map_err(|error| Failed {
            error: match (error, broken) {
                // Why it went away says more than that it did.
                (ProxyError::Upstream(UpstreamError::Closed), Some(err)) => {
                    ProxyError::Upstream(UpstreamError::Io(err))
                }
                (error, _) => error,
            },
            unsent: (!self.begun).then(|| Outgoing::from(self.upload.take().map(|up| up.body))),
            unanswered: !self.answered,
        })
    }

    fn begin(
        &mut self,
        head: &request::Parts,
        forwarded: Option<Forwarded<'_>>,
        body: Outgoing<B>,
    ) -> Result<(), ProxyError> {
        self.output.clear();
        self.sent = 0;
        self.begun = false;
        self.answered = false;
        let length = write_request_head(head, forwarded, body.exact_len(), &mut self.output)?;
        self.upload = body.into_inner().map(|body| Upload {
            body,
            length,
            waits_for_client: false,
        });
        self.has_body = self.upload.is_some();
        self.moved = false;
        self.stands_since = self.used_at;
        self.reader.begin(head.method == Method::HEAD);
        Ok(())
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        headers: &mut HeaderMap,
        limits: &Limits,
        broken: &mut Option<io::Error>,
    ) -> Poll<Result<ResponseHead, ProxyError>> {
        match self.poll_send(cx) {
            Poll::Ready(Err(SendError::Body(err))) => {
                return Poll::Ready(Err(ProxyError::Upstream(err)));
            }
            Poll::Ready(Err(SendError::Upstream(err))) => {
                *broken = Some(err);
                if self.begun {
                    self.stop_sending();
                }
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match self.poll_head(cx, headers) {
            Poll::Ready(Ok(head)) => {
                if broken.is_some() {
                    self.stop_sending();
                }
                return Poll::Ready(Ok(head));
            }
            Poll::Ready(Err(err)) => return Poll::Ready(Err(ProxyError::Upstream(err))),
            Poll::Pending => {}
        }
        while self.deadline.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Err(error) = self.excuse_silence(now, limits) {
                return Poll::Ready(Err(error));
            }
            self.deadline.as_mut().reset(now + limits.first_byte);
        }
        Poll::Pending
    }

    /// The upstream is excused for not answering yet while the request's body moves, and while the
    /// client is waited for; which is not for ever. Clears the note of movement.
    fn excuse_silence(&mut self, now: Instant, limits: &Limits) -> Result<(), ProxyError> {
        let waits = |upload: &Upload<B>| upload.waits_for_client;
        if std::mem::take(&mut self.moved) {
            self.stands_since = now;
            Ok(())
        } else if !self.upload.as_ref().is_some_and(waits) {
            Err(ProxyError::FirstByte(limits.first_byte))
        } else if now.saturating_duration_since(self.stands_since) < limits.client_silence {
            Ok(())
        } else {
            let stalled = UpstreamError::RequestStalled(limits.client_silence);
            Err(ProxyError::Upstream(stalled))
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        headers: &mut HeaderMap,
    ) -> Poll<Result<ResponseHead, UpstreamError>> {
        loop {
            ready!(self.poll_read(cx))?;
            if !self.begun {
                // Said in farewell before it saw anything of this request.
                return Poll::Ready(Err(UpstreamError::Closed));
            }
            self.answered = true;
            let found = self.reader.head(&mut self.input, headers);
            if let Some(head) = found.map_err(UpstreamError::Response)? {
                self.persistent = head.persistent;
                return Poll::Ready(Ok(head));
            }
        }
    }

    /// Reads once, at least one byte.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        if self.input.capacity() - self.input.len() < READ / 4 {
            self.input.reserve(self.read_size);
        }
        let room = self.input.capacity() - self.input.len();
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input));
        match read.map_err(UpstreamError::Io)? {
            0 => Poll::Ready(Err(UpstreamError::Closed)),
            n => {
                if n == room {
                    self.read_size = READ_LARGE;
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The next piece of the response's body; `None` at its end. Meanwhile the rest of the request
    /// goes out.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        if let Err(err) = self.go_on_sending(cx) {
            return Poll::Ready(Some(Err(err)));
        }
        loop {
            match self.reader.data(&mut self.input) {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(None) if self.reader.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(err) => return Poll::Ready(Some(Err(UpstreamError::Response(err)))),
            }
            match ready!(self.poll_read(cx)) {
                Ok(()) => {}
                Err(UpstreamError::Closed) if self.reader.may_end_here() => {
                    return Poll::Ready(None);
                }
                Err(UpstreamError::Closed) => {
                    return Poll::Ready(Some(Err(UpstreamError::Truncated)));
                }
                Err(err) => return Poll::Ready(Some(Err(err))),
            }
        }
    }

    /// Sends what there is of the rest of the request, after its answer has begun. Fails when the
    /// client breaks off.
    pub(crate) fn go_on_sending(&mut self, cx: &mut Context<'_>) -> Result<(), UpstreamError> {
        if self.is_sending() {
            match self.poll_send(cx) {
                Poll::Ready(Err(SendError::Body(err))) => return Err(err),
                // An early answer need not wait for all of the request (RFC 9112, 9.3).
                Poll::Ready(Err(SendError::Upstream(_))) => self.stop_sending(),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// Whether some of the request is still on its way.
    pub(crate) fn is_sending(&self) -> bool {
        self.upload.is_some() || self.has_output()
    }

    /// Whether the response's body has been read.
    pub(crate) fn is_body_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Bytes of the response's body that are still to come.
    pub(crate) fn body_left(&self) -> Option<u64> {
        self.reader.left()
    }

    /// After a protocol switch: the stream, and what was read from it beyond the response's head.
    /// `None` when the request is still on its way.
    pub(crate) fn into_stream(mut self) -> Option<(S, Bytes)> {
        (!self.is_sending()).then(|| (self.io, self.input.split().freeze()))
    }

    fn has_output(&self) -> bool {
        self.sent < self.output.len() || !self.piece.is_empty() || self.unflushed
    }

    /// The rest of the request is not sent, so the connection cannot be used again.
    fn stop_sending(&mut self) {
        self.persistent = false;
        self.upload = None;
        self.output.clear();
        self.sent = 0;
        self.piece = Bytes::new();
        self.unflushed = false;
    }

    /// Writes what there is of the request, until all of it is written.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        loop {
            self.gather(cx).map_err(SendError::Body)?;
            if self.sent == self.output.len() && self.piece.is_empty() {
                if self.unflushed {
                    ready!(Pin::new(&mut self.io).poll_flush(cx)).map_err(SendError::Upstream)?;
                    self.unflushed = false;
                }
                return match self.upload {
                    Some(_) => Poll::Pending,
                    None => Poll::Ready(Ok(())),
                };
            }
            let rest = &self.output[self.sent..];
            let io = Pin::new(&mut self.io);
            let written = if self.piece.is_empty() {
                ready!(io.poll_write(cx, rest))
            } else {
                let both = [IoSlice::new(rest), IoSlice::new(&self.piece)];
                ready!(io.poll_write_vectored(cx, &both))
            };
            match written.map_err(SendError::Upstream)? {
                0 => return Poll::Ready(Err(SendError::Upstream(io::ErrorKind::WriteZero.into()))),
                n => self.note_written(n),
            }
        }
    }

    fn note_written(&mut self, n: usize) {
        self.begun = true;
        self.unflushed = true;
        self.moved |= self.has_body;
        let of_output = n.min(self.output.len() - self.sent);
        self.sent += of_output;
        self.piece.advance(n - of_output);
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            if self.piece.is_empty() && self.piece_is_chunk {
                self.piece_is_chunk = false;
                self.output.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Takes from the request's body what is there, as far as there is room for it.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(), UpstreamError> {
        while let Some(upload) = &mut self.upload {
            if self.output.len() >= GATHER || !self.piece.is_empty() || self.piece_is_chunk {
                return Ok(());
            }
            let Poll::Ready(frame) = Pin::new(&mut upload.body).poll_frame(cx) else {
                upload.waits_for_client = true;
                return Ok(());
            };
            upload.waits_for_client = false;
            self.moved = true;
            self.begun = true;
            let Some(frame) = frame else {
                let is_whole = match upload.length {
                    RequestLength::Exact(left) => left == 0,
                    RequestLength::Chunked => {
                        self.output.extend_from_slice(b"0\r\n\r\n");
                        true
                    }
                };
                self.upload = None;
                return is_whole.then_some(()).ok_or(UpstreamError::RequestLength);
            };
            let frame = frame.map_err(|err| UpstreamError::Request(err.into()))?;
            // Trailers may be dropped by any hop (RFC 9110, 6.5.1).
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if data.is_empty() {
                continue;
            }
            let is_last = upload.note(data.len())?;
            let is_chunk = upload.length == RequestLength::Chunked;
            if is_last {
                self.upload = None;
            }
            if is_chunk {
                let size = format!("{:x}\r\n", data.len());
                self.output.extend_from_slice(size.as_bytes());
            }
            if data.len() < LARGE_PIECE {
                self.output.extend_from_slice(&data);
                if is_chunk {
                    self.output.extend_from_slice(b"\r\n");
                }
            } else {
                self.piece = data;
                self.piece_is_chunk = is_chunk;
            }
        }
        Ok(())
    }
}
