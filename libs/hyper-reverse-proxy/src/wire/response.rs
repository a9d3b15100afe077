//! Reads responses: head, then body.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::WireError;
use super::chunked::ChunkReader;
use super::request::length_of;

/// Header lines that a response may have.
const HEADERS: usize = 100;
/// Interim responses (1xx) that may come before the final one.
const INTERIM: u8 = 32;

/// How the end of a response's body is told (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// After this many bytes.
    Exact(u64),
    /// By an empty chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// The head of a final response, or of a protocol switch.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The reason, when it is not the usual one of the status.
    pub reason: Option<ReasonPhrase>,
    /// All headers as they came.
    pub headers: HeaderMap,
    /// How its body ends.
    pub length: Length,
    /// Whether another request may follow on the connection, as far as the upstream says.
    pub persistent: bool,
}

/// Reads one response after the other from one connection.
#[derive(Debug)]
pub struct ResponseReader {
    limit: usize,
    /// The request was a `HEAD`: its response has no body whatever it says.
    to_head: bool,
    interim: u8,
    /// Bytes of the present head that were looked at in vain.
    seen: usize,
    spans: Vec<Span>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Exact(u64),
    Chunked(ChunkReader),
    UntilClose,
}

/// One header line, by its places in the head.
#[derive(Debug, Clone)]
struct Span {
    name: Range<usize>,
    value: Range<usize>,
}

impl ResponseReader {
    /// Accepts heads of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            to_head: false,
            interim: 0,
            seen: 0,
            spans: Vec::new(),
            body: Body::Exact(0),
        }
    }

    /// The next response will be the one to a new request, a `HEAD` or another one.
    pub fn begin(&mut self, to_head: bool) {
        self.to_head = to_head;
        self.interim = 0;
        self.seen = 0;
        self.body = Body::Exact(0);
    }

    /// Takes the head from `input`, `None` when it has not come in whole yet. Interim responses
    /// are passed over. `headers` is filled and handed back within the head: one that was used
    /// before saves making a new one.
    pub fn head(
        &mut self,
        input: &mut BytesMut,
        headers: &mut HeaderMap,
    ) -> Result<Option<ResponseHead>, WireError> {
        loop {
            // Whoever sends its head in small pieces does not get it read from the start each time.
            if self.seen > 0 && memchr::memchr(b'\n', &input[self.seen..]).is_none() {
                return self.incomplete(input.len());
            }
            headers.clear();
            let Some(head) = self.parse(input, headers)? else {
                return self.incomplete(input.len());
            };
            self.seen = 0;
            let switch = head.status == StatusCode::SWITCHING_PROTOCOLS;
            if head.status.is_informational() && !switch {
                self.interim += 1;
                if self.interim > INTERIM {
                    return Err(WireError::Interim);
                }
                *headers = head.headers;
                continue;
            }
            self.body = match head.length {
                Length::Exact(length) => Body::Exact(length),
                Length::Chunked => Body::Chunked(ChunkReader::default()),
                Length::UntilClose => Body::UntilClose,
            };
            return Ok(Some(head));
        }
    }

    fn incomplete(&mut self, len: usize) -> Result<Option<ResponseHead>, WireError> {
        if len >= self.limit {
            return Err(WireError::HeadTooLong(self.limit));
        }
        self.seen = len;
        Ok(None)
    }

    fn parse(
        &mut self,
        input: &mut BytesMut,
        headers: &mut HeaderMap,
    ) -> Result<Option<ResponseHead>, WireError> {
        let mut lines = [const { MaybeUninit::uninit() }; HEADERS];
        let mut parsed = httparse::Response::new(&mut []);
        let status = ParserConfig::default()
            .parse_response_with_uninit_headers(&mut parsed, input, &mut lines)
            .map_err(WireError::Head)?;
        let Status::Complete(len) = status else {
            return Ok(None);
        };
        if len > self.limit {
            return Err(WireError::HeadTooLong(self.limit));
        }
        let code = parsed.code.unwrap_or_default();
        let status = StatusCode::from_u16(code).map_err(|_| WireError::Status)?;
        let is_http11 = parsed.version == Some(1);
        let reason = parsed
            .reason
            .filter(|reason| !reason.is_empty() && Some(*reason) != status.canonical_reason())
            .and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
        let base = input.as_ptr() as usize;
        let place = |text: &[u8]| {
            let at = text.as_ptr() as usize - base;
            at..at + text.len()
        };
        self.spans.clear();
        self.spans.extend(parsed.headers.iter().map(|line| Span {
            name: place(line.name.as_bytes()),
            value: place(line.value),
        }));
        let head = input.split_to(len).freeze();
        let mut lengths = Lengths::default();
        for Span { name, value } in &self.spans {
            let name = HeaderName::from_bytes(&head[name.clone()])
                .map_err(|_| WireError::Head(httparse::Error::HeaderName))?;
            let value = HeaderValue::from_maybe_shared(slice(&head, value.clone()))
                .map_err(|_| WireError::Head(httparse::Error::HeaderValue))?;
            lengths.note(&name, &value)?;
            headers.append(name, value);
        }
        let (length, persistent) = lengths.settle(status, is_http11, self.to_head)?;
        Ok(Some(ResponseHead {
            status,
            reason,
            headers: std::mem::take(headers),
            length,
            persistent,
        }))
    }

    /// The next piece of the body, never empty; `None` when there is none yet, or when the body
    /// has ended.
    pub fn data(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
        match &mut self.body {
            Body::Chunked(chunks) => chunks.next(input),
            Body::Exact(left) => {
                let here = usize::try_from(*left).map_or(input.len(), |n| n.min(input.len()));
                *left -= here as u64;
                Ok((here > 0).then(|| input.split_to(here).freeze()))
            }
            Body::UntilClose => Ok((!input.is_empty()).then(|| input.split().freeze())),
        }
    }

    /// Whether the body has ended. One that ends with its connection never has.
    pub fn is_done(&self) -> bool {
        match &self.body {
            Body::Exact(left) => *left == 0,
            Body::Chunked(chunks) => chunks.is_done(),
            Body::UntilClose => false,
        }
    }

    /// Whether the body may end where the connection does.
    pub fn may_end_here(&self) -> bool {
        matches!(self.body, Body::UntilClose) || self.is_done()
    }

    /// How many bytes of the body are still to come, when that is known.
    pub fn left(&self) -> Option<u64> {
        match &self.body {
            Body::Exact(left) => Some(*left),
            Body::Chunked(chunks) => chunks.is_done().then_some(0),
            Body::UntilClose => None,
        }
    }
}

fn slice(head: &Bytes, range: Range<usize>) -> Bytes {
    if range.is_empty() {
        Bytes::new()
    } else {
        head.slice(range)
    }
}

/// What the headers say of the message's length and of the connection's end.
#[derive(Debug, Default)]
struct Lengths {
    content: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Lengths {
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), WireError> {
        match *name {
            CONTENT_LENGTH => {
                let length = length_of(value).ok_or(WireError::ContentLength)?;
                if self.content.replace(length).is_some() {
                    return Err(WireError::ContentLength);
                }
            }
            TRANSFER_ENCODING => {
                // Any other coding would have to be undone; twice chunked is a fault.
                if self.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(WireError::TransferEncoding);
                }
                self.chunked = true;
            }
            CONNECTION => {
                for token in value.as_bytes().split(|&b| b == b',') {
                    let token = token.trim_ascii();
                    self.close |= token.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// RFC 9112, 6.3 and 9.3.
    fn settle(
        &self,
        status: StatusCode,
        is_http11: bool,
        to_head: bool,
    ) -> Result<(Length, bool), WireError> {
        if self.chunked && self.content.is_some() {
            return Err(WireError::AmbiguousLength);
        }
        if self.chunked && !is_http11 {
            return Err(WireError::TransferEncoding);
        }
        let persistent = !self.close && (is_http11 || self.keep_alive);
        let empty = to_head
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        if empty {
            // A body that must not be there and yet may be would be taken for the next response.
            let announced = status == StatusCode::NO_CONTENT
                && (self.chunked || self.content.is_some_and(|length| length > 0));
            return Ok((Length::Exact(0), persistent && !announced));
        }
        Ok(match (self.chunked, self.content) {
            (true, _) => (Length::Chunked, persistent),
            (false, Some(length)) => (Length::Exact(length), persistent),
            (false, None) => (Length::UntilClose, false),
        })
    }
}
