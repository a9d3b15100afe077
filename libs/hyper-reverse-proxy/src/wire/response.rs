//! Reads responses: head, then body.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode};
use hyper::ext::ReasonPhrase;

use super::WireError;
use super::chunked::ChunkReader;
use super::request::length_of;

/// Header lines that a response may have.
const HEADERS: usize = 100;
/// Header names that are remembered.
const NAMES: usize = 24;
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
    /// The headers, without a `Connection` that says nothing but `close` or `keep-alive`.
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
    names: Names,
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
            names: Names::default(),
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
        let Some((line, len)) = self.split(input)? else {
            return Ok(None);
        };
        if len > self.limit {
            return Err(WireError::HeadTooLong(self.limit));
        }
        let reason = input[line.reason].trim_ascii();
        let usual = line.status.canonical_reason().unwrap_or_default();
        let reason = (!reason.is_empty() && reason != usual.as_bytes())
            .then(|| ReasonPhrase::try_from(reason))
            .transpose()
            .map_err(|_| WireError::Head)?;
        let head = input.split_to(len).freeze();
        let mut lengths = Lengths::default();
        for (at, Span { name, value }) in self.spans.iter().enumerate() {
            let name = self.names.name(at, &head[name.clone()])?;
            let value = HeaderValue::from_maybe_shared(slice(&head, value.clone()))
                .map_err(|_| WireError::Head)?;
            if lengths.note(&name, &value)? {
                headers.append(name, value);
            }
        }
        let (length, persistent) = lengths.settle(line.status, line.is_http11, self.to_head)?;
        Ok(Some(ResponseHead {
            status: line.status,
            reason,
            headers: std::mem::take(headers),
            length,
            persistent,
        }))
    }

    /// Finds the lines of the head and its length; `None` while it is not whole. Names and values
    /// are still to be checked.
    fn split(&mut self, input: &[u8]) -> Result<Option<(StatusLine, usize)>, WireError> {
        let Some((end, mut at)) = line_at(input, 0) else {
            // What cannot become a response need not be waited for.
            let start = input.len().min(PROTOCOL.len());
            return if input[..start] == PROTOCOL[..start] {
                Ok(None)
            } else {
                Err(WireError::Head)
            };
        };
        let status = StatusLine::parse(&input[..end])?;
        self.spans.clear();
        loop {
            let Some((end, next)) = line_at(input, at) else {
                return Ok(None);
            };
            if end == at {
                return Ok(Some((status, next)));
            }
            let line = &input[at..end];
            // A line that begins with a blank would go on with the one before (RFC 9112, 5.2); no
            // name has a blank in it either.
            let colon = memchr::memchr(b':', line).ok_or(WireError::Head)?;
            if self.spans.len() == HEADERS {
                return Err(WireError::Head);
            }
            let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
            let value = &line[colon + 1..];
            let before = value.iter().take_while(|b| is_blank(b)).count();
            let after = value[before..]
                .iter()
                .rev()
                .take_while(|b| is_blank(b))
                .count();
            self.spans.push(Span {
                name: at..at + colon,
                value: at + colon + 1 + before..end - after,
            });
            at = next;
        }
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

/// What every response begins with, up to the minor version.
const PROTOCOL: &[u8] = b"HTTP/1.";

/// Where the line that begins at `at` ends, and where the next one begins. The return before the
/// line feed may be missing (RFC 9112, 2.2).
fn line_at(input: &[u8], at: usize) -> Option<(usize, usize)> {
    let end = at + memchr::memchr(b'\n', &input[at..])?;
    let bare = end > at && input[end - 1] == b'\r';
    Some((end - usize::from(bare), end + 1))
}

/// `HTTP/1.1 200 OK` (RFC 9112, 4).
struct StatusLine {
    is_http11: bool,
    status: StatusCode,
    /// Its place in the line.
    reason: Range<usize>,
}

impl StatusLine {
    fn parse(line: &[u8]) -> Result<Self, WireError> {
        let rest = line.strip_prefix(PROTOCOL).ok_or(WireError::Head)?;
        let (is_http11, rest) = match rest {
            [b'1', b' ', rest @ ..] => (true, rest),
            [b'0', b' ', rest @ ..] => (false, rest),
            _ => return Err(WireError::Head),
        };
        let (code, reason) = rest.split_at_checked(3).ok_or(WireError::Head)?;
        if !matches!(reason, [] | [b' ', ..]) {
            return Err(WireError::Head);
        }
        Ok(Self {
            is_http11,
            status: StatusCode::from_bytes(code).map_err(|_| WireError::Head)?,
            reason: line.len() - reason.len()..line.len(),
        })
    }
}

/// The header names of the response before, by their order: an upstream uses the same ones again,
/// and comparing them takes less than looking them up.
#[derive(Debug, Default)]
struct Names(Vec<(Box<[u8]>, HeaderName)>);

impl Names {
    /// The name of the header line at this place.
    fn name(&mut self, at: usize, text: &[u8]) -> Result<HeaderName, WireError> {
        if let Some((known, name)) = self.0.get(at)
            && **known == *text
        {
            return Ok(name.clone());
        }
        let name = HeaderName::from_bytes(text).map_err(|_| WireError::Head)?;
        let entry = (text.into(), name.clone());
        if at < self.0.len() {
            self.0[at] = entry;
        } else if at == self.0.len() && at < NAMES {
            self.0.push(entry);
        }
        Ok(name)
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
    /// Takes in one header line. Whether it says anything to others than this hop.
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<bool, WireError> {
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
                let mut is_plain = true;
                for token in value.as_bytes().split(|&b| b == b',') {
                    let token = token.trim_ascii();
                    let close = token.eq_ignore_ascii_case(b"close");
                    let keep_alive = token.eq_ignore_ascii_case(b"keep-alive");
                    self.close |= close;
                    self.keep_alive |= keep_alive;
                    is_plain &= close || keep_alive;
                }
                return Ok(!is_plain);
            }
            _ => {}
        }
        Ok(true)
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
