//! Writes the heads of requests.

use http::header::{CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use http::{HeaderValue, request};

use crate::error::BadRequest;
use crate::headers::Forwarded;

/// How the end of a request's body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestLength {
    /// After this many bytes.
    Exact(u64),
    /// By an empty chunk.
    Chunked,
}

/// Appends the head of a request to `output`, with what tells the body's length, and says how the
/// body has to be framed. `body` is its length as far as it is known: `Some(0)` without a body.
///
/// The target is written in origin-form. A `Content-Length` among the headers is believed when the
/// length is not known otherwise, and refused when it is known to be wrong. `forwarded` goes beside
/// the head's own headers.
pub fn write_request_head(
    head: &request::Parts,
    forwarded: Option<Forwarded<'_>>,
    body: Option<u64>,
    output: &mut Vec<u8>,
) -> Result<RequestLength, BadRequest> {
    let target = head.uri.path_and_query().ok_or(BadRequest::Target)?;
    for part in [head.method.as_str(), " ", target.as_str(), " HTTP/1.1\r\n"] {
        output.extend_from_slice(part.as_bytes());
    }
    let mut line = |name: &HeaderName, value: &[u8]| {
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            output.extend_from_slice(part);
        }
    };
    let (mut declared, mut host) = (None, None);
    for (name, value) in &head.headers {
        if *name == CONTENT_LENGTH {
            let length = length_of(value).ok_or(BadRequest::ContentLength)?;
            if declared.replace(length).is_some() {
                return Err(BadRequest::ContentLength);
            }
        } else if *name == TRANSFER_ENCODING {
            // That of another hop; ours follows.
            continue;
        } else if *name == HOST {
            host = Some(value);
        }
        line(name, value.as_bytes());
    }
    if let Some(forwarded) = forwarded {
        for (name, value) in forwarded.lines(host) {
            line(&name, value);
        }
    }
    let length = match (declared, body) {
        (Some(declared), Some(known)) if declared != known => {
            return Err(BadRequest::ContentLength);
        }
        (Some(length), _) => RequestLength::Exact(length),
        (None, Some(0)) => RequestLength::Exact(0),
        (None, Some(length)) => {
            output.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
            RequestLength::Exact(length)
        }
        (None, None) => {
            output.extend_from_slice(b"transfer-encoding: chunked\r\n");
            RequestLength::Chunked
        }
    };
    output.extend_from_slice(b"\r\n");
    Ok(length)
}

/// The number that a `Content-Length` is; nothing else than digits will do (RFC 9112, 6.3).
pub(super) fn length_of(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(number * 10 + digit)
    })
}
