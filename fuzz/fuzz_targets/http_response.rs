//! Any stream of bytes from an upstream, cut anywhere, is an HTTP/1.1 response or refused, and
//! reads the same wherever it was cut.

#![no_main]

use bytes::BytesMut;
use http::HeaderMap;
use hyper_reverse_proxy::wire::{Length, ResponseReader};
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
    for part in parts {
        input.extend_from_slice(part);
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

fuzz_target!(|input: (bool, u16, u16, &[u8])| {
    let (to_head, first, second, bytes) = input;
    // The longest head counts from its first piece on, so pieces of an over-long one differ.
    if bytes.len() > LIMIT {
        return;
    }
    let at = |cut: u16| usize::from(cut).min(bytes.len());
    let (first, second) = (at(first).min(at(second)), at(first).max(at(second)));
    let cut = [&bytes[..first], &bytes[first..second], &bytes[second..]];
    assert!(read(&cut, to_head) == read(&[bytes], to_head));
});
