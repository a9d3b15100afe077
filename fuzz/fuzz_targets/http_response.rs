//! Any stream of bytes from an upstream, cut anywhere, is an HTTP/1.1 response or refused, and
//! reads the same wherever it was cut; its length is what a second reading of its head says.
//!
//! The first five bytes are whether the request was a HEAD, and where the stream is cut.

#![no_main]

use bytes::BytesMut;
use http::HeaderMap;
use hyper_reverse_proxy::wire::{Length, ResponseHead, ResponseReader};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 4096;

/// Status, length, body, whether it has ended, and what follows.
type Read = (u16, Length, Vec<u8>, bool, Vec<u8>);

fn read(parts: &[&[u8]], to_head: bool) -> Option<Read> {
    let mut reader = ResponseReader::new(LIMIT);
    reader.begin(to_head);
    let mut input = BytesMut::new();
    let mut head = None;
    let mut body = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let is_chunked = head
            .as_ref()
            .is_some_and(|head: &ResponseHead| head.length == Length::Chunked);
        // The first byte after a pause in the middle of the chunks is lost.
        let lost = fuzz::planted() && at > 0 && is_chunked && !part.is_empty();
        input.extend_from_slice(&part[usize::from(lost)..]);
        if head.is_none() {
            head = reader.head(&mut input, &mut HeaderMap::new()).ok()?;
        }
        while head.is_some()
            && let Some(data) = reader.data(&mut input).ok()?
        {
            assert!(!data.is_empty(), "no data is nothing");
            body.extend_from_slice(&data);
        }
    }
    let head = head?;
    if let Length::Exact(length) = head.length {
        assert!(body.len() as u64 <= length);
        assert!(reader.is_done() == (body.len() as u64 == length));
    }
    Some((
        head.status.as_u16(),
        head.length,
        body,
        reader.is_done(),
        input.to_vec(),
    ))
}

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let Some((&[to_head, a, b, c, d], bytes)) = input.split_first_chunk() else {
        return;
    };
    // The longest head counts from its first piece on, so pieces of an over-long one differ.
    if bytes.len() > LIMIT {
        return;
    }
    let to_head = to_head & 1 == 1;
    let at = |high, low| usize::from(u16::from_be_bytes([high, low])).min(bytes.len());
    let (first, second) = (at(a, b).min(at(c, d)), at(a, b).max(at(c, d)));
    let cut = [&bytes[..first], &bytes[first..second], &bytes[second..]];
    let whole = read(&[bytes], to_head);
    assert!(read(&cut, to_head) == whole);
    if let Some((status, length, ..)) = whole {
        check_length(bytes, to_head, status, length);
    }
});

/// Another parser's reading of the first final head (RFC 9112, 6.3).
fn check_length(bytes: &[u8], to_head: bool, status: u16, length: Length) {
    let mut rest = bytes;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(end)) = response.parse(rest) else {
            // It is the more forgiving of the two in nothing that matters here.
            return;
        };
        let code = response.code.unwrap_or_default();
        if (100..200).contains(&code) && code != 101 {
            rest = &rest[end..];
            continue;
        }
        assert_eq!(code, status);
        let named = |name: &str| {
            let is = move |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case(name);
            response.headers.iter().filter(is).count()
        };
        let empty = to_head || code == 101 || code == 204 || code == 304;
        match length {
            _ if empty => assert_eq!(length, Length::Exact(0)),
            Length::Exact(_) => assert_eq!(
                (named("content-length"), named("transfer-encoding")),
                (1, 0)
            ),
            Length::Chunked => assert_eq!(
                (named("content-length"), named("transfer-encoding")),
                (0, 1)
            ),
            Length::UntilClose => {
                assert_eq!(named("content-length") + named("transfer-encoding"), 0)
            }
        }
        return;
    }
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let seed =
        |first: u8, second: u8, text: &str| [&[0, 0, first, 0, second], text.as_bytes()].concat();
    [
        (
            "exact",
            seed(
                20,
                50,
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhelloHTTP",
            ),
        ),
        (
            "chunked",
            seed(
                10,
                20,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n",
            ),
        ),
        (
            "interim",
            seed(
                7,
                30,
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            ),
        ),
        (
            "until_close",
            seed(
                5,
                20,
                "HTTP/1.0 404 Nowhere\nConnection: keep-alive, x\n\nbody",
            ),
        ),
    ]
}
