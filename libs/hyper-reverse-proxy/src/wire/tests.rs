//! The codec against models that see whole messages at once.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Request};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::error::BadRequest;

const LIMIT: usize = 64 * 1024;
/// Values of 64 bytes and of one more.
const LONG: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const LONGER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdefX";

/// What became of a response that came in piece by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    status: u16,
    headers: HeaderMap,
    length: Length,
    persistent: bool,
    body: Vec<u8>,
    done: bool,
    rest: Vec<u8>,
}

/// Reads `bytes` cut at `cuts`. `None` while there is no whole head.
fn read(bytes: &[u8], cuts: &[Index], to_head: bool) -> Result<Option<Read>, WireError> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.extend([0, bytes.len()]);
    ends.sort_unstable();
    let mut reader = ResponseReader::new(LIMIT);
    reader.begin(to_head);
    let mut input = BytesMut::new();
    let mut head: Option<ResponseHead> = None;
    let mut body = Vec::new();
    for window in ends.windows(2) {
        input.put_slice(&bytes[window[0]..window[1]]);
        if head.is_none() {
            head = reader.head(&mut input, &mut HeaderMap::new())?;
        }
        while head.is_some()
            && let Some(data) = reader.data(&mut input)?
        {
            assert!(!data.is_empty());
            body.extend_from_slice(&data);
        }
    }
    Ok(head.map(|head| Read {
        status: head.status.as_u16(),
        headers: head.headers,
        length: head.length,
        persistent: head.persistent,
        body,
        done: reader.is_done(),
        rest: input.to_vec(),
    }))
}

fn read_whole(text: &str) -> Result<Option<Read>, WireError> {
    read(text.as_bytes(), &[], false)
}

/// Data and what follows the body, when `bytes` begin with a whole chunked body.
fn whole_chunked(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let end = bytes.windows(2).position(|two| two == b"\r\n")?;
        let line = &bytes[..end];
        *bytes = &bytes[end + 2..];
        let text = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
        line.iter().all(text).then_some(line)
    }
    let mut data = Vec::new();
    loop {
        let size = std::str::from_utf8(line(&mut bytes)?.split(|&b| b == b';').next()?).ok()?;
        let size = size.trim_end_matches([' ', '\t']);
        if size.is_empty() || size.len() > 16 || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            while !line(&mut bytes)?.is_empty() {}
            return Some((data, bytes));
        }
        data.extend_from_slice(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
}

/// One chunked body in one of the ways to write it.
fn chunked() -> impl Strategy<Value = Vec<u8>> {
    let size = select(vec!["", ";a", ";a=b", " ;x=\"y\"", "\t", ";;"]);
    let chunk = (vec(any::<u8>(), 1..40), any::<bool>(), 0_usize..3, size);
    let trailers = select(vec!["", "a: b\r\n", "a: b\r\nContent-Length: 5\r\n"]);
    (vec(chunk, 0..5), trailers).prop_map(|(chunks, trailers)| {
        let mut body = Vec::new();
        for (data, upper, zeros, beside) in chunks {
            let digits = if upper {
                format!("{:X}", data.len())
            } else {
                format!("{:x}", data.len())
            };
            let size = format!("{}{digits}{beside}\r\n", "0".repeat(zeros));
            body.extend_from_slice(size.as_bytes());
            body.extend_from_slice(&data);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        body
    })
}

const FRAMING: &[&str] = &[
    "Content-Length: 7",
    "content-length: 0",
    "Content-Length: 7, 7",
    "Content-Length: +7",
    "Content-Length: 18446744073709551616",
    "Content-Length:",
    "Transfer-Encoding: chunked",
    "transfer-encoding: Chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity",
    "Connection: close",
    "Connection: keep-alive",
    "connection: x, Close",
    "Server: nginx",
    "Set-Cookie: a=b",
];

/// RFC 9112, 6.3 and 9.3, from the lines themselves.
fn framing_of(lines: &[&str], status: u16, http11: bool, to_head: bool) -> Option<(Length, bool)> {
    let values = |wanted: &str| -> Vec<String> {
        let pairs = lines.iter().filter_map(|line| line.split_once(':'));
        pairs
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim().to_ascii_lowercase())
            .collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let length = match lengths.as_slice() {
        [] => None,
        [one] if one.bytes().all(|b| b.is_ascii_digit()) => Some(one.parse::<u64>().ok()?),
        _ => return None,
    };
    let is_chunked = match codings.as_slice() {
        [] => false,
        [one] if one == "chunked" && http11 && length.is_none() => true,
        _ => return None,
    };
    let said = values("connection").join(",");
    let says = |word: &str| said.split(',').any(|token| token.trim() == word);
    let persistent = !says("close") && (http11 || says("keep-alive"));
    Some(if to_head || matches!(status, 101 | 204 | 304) {
        let odd = status == 204 && (is_chunked || length > Some(0));
        (Length::Exact(0), persistent && !odd)
    } else if is_chunked {
        (Length::Chunked, persistent)
    } else if let Some(length) = length {
        (Length::Exact(length), persistent)
    } else {
        (Length::UntilClose, false)
    })
}

proptest! {
    #[test]
    fn heads_are_framed_as_the_model_says(
        lines in vec(select(FRAMING), 0..4),
        status in select(vec![101_u16, 200, 204, 206, 304, 404, 500, 999]),
        http11 in any::<bool>(),
        to_head in any::<bool>(),
        cuts in vec(any::<Index>(), 0..4),
        interim in 0_usize..3,
    ) {
        let mut text = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(interim);
        text.push_str(&format!("HTTP/1.{} {status} Word\r\n", u8::from(http11)));
        for line in &lines {
            text.push_str(&format!("{line}\r\n"));
        }
        text.push_str("\r\n");
        let got = read(text.as_bytes(), &cuts, to_head);
        match framing_of(&lines, status, http11, to_head) {
            None => prop_assert!(got.is_err(), "{text}: {got:?}"),
            Some(wanted) => {
                let got = got.expect("a readable head").expect("a whole head");
                prop_assert_eq!((got.length, got.persistent), wanted, "{}", text);
                prop_assert_eq!(got.status, status);
                let is_plain = |line: &str| {
                    let said = line.to_ascii_lowercase();
                    said == "connection: close" || said == "connection: keep-alive"
                };
                let kept = lines.iter().filter(|line| !is_plain(line)).count();
                prop_assert_eq!(got.headers.len(), kept);
                prop_assert!(got.rest.is_empty() && got.body.is_empty());
            }
        }
    }

    #[test]
    fn chunks_are_taken_apart_as_the_model_says_wherever_they_are_cut(
        mut body in chunked(),
        damage in proptest::option::weighted(0.5, (any::<Index>(), select(b"0a;\r\n x\0\x80".to_vec()))),
        after in select(vec!["", "HTTP/1.1 200 OK\r\n\r\n"]),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        if let Some((at, byte)) = damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body.extend_from_slice(after.as_bytes());
        let mut text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        text.extend_from_slice(&body);
        let got = read(&text, &cuts, false);
        match whole_chunked(&body) {
            Some((data, rest)) => {
                let got = got.expect("readable").expect("a whole head");
                prop_assert!(got.done);
                prop_assert_eq!(got.body, data);
                prop_assert_eq!(got.rest, rest);
            }
            None => {
                let is_done = matches!(&got, Ok(Some(got)) if got.done);
                prop_assert!(!is_done, "{:?}", got);
            }
        }
    }

    #[test]
    fn any_bytes_read_the_same_wherever_they_are_cut(
        start in select(vec!["", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0 200 OK\nA: b\n"]),
        bytes in vec(select(b"HTP/1.0: 2\r\n;ab\xff\0".to_vec()), 0..60),
        cuts in vec(any::<Index>(), 0..6),
        to_head in any::<bool>(),
    ) {
        let mut text = start.as_bytes().to_vec();
        text.extend_from_slice(&bytes);
        // A head that is no good may be refused before it is whole, or only then.
        let read = |cuts: &[Index]| read(&text, cuts, to_head).ok().flatten();
        prop_assert_eq!(read(&cuts), read(&[]));
    }

    #[test]
    fn heads_are_taken_apart_as_another_parser_does(
        start in select(vec!["HTTP/1.1 200 OK\r\n", "HTTP/1.1 200\n", "HTTP/1.0 404 \t x\r\n", "HTTP/1.1 2"]),
        lines in vec("[ \t]?[A-Za-z-]{0,4}[ :]?[:]?[ \t]{0,2}[!-~ \r\u{80}-\u{ff}]{0,6}[ \t]?\r?\n", 0..4),
        end in select(vec!["\r\n", "\n", ""]),
    ) {
        let text = format!("{start}{}{end}", lines.concat());
        let mut known = [httparse::EMPTY_HEADER; 100];
        let mut parsed = httparse::Response::new(&mut known);
        let other = parsed.parse(text.as_bytes());
        let mut reader = ResponseReader::new(LIMIT);
        reader.begin(false);
        let mut input = BytesMut::from(text.as_str());
        let ours = reader.head(&mut input, &mut HeaderMap::new());
        // Framing is not what that one looks at.
        if let Ok(Some(head)) = ours {
            let used = text.len() - input.len();
            prop_assert_eq!(other, Ok(httparse::Status::Complete(used)));
            prop_assert_eq!(Some(head.status.as_u16()), parsed.code);
            let theirs: Vec<_> = parsed
                .headers
                .iter()
                .map(|line| (line.name.to_ascii_lowercase(), line.value.to_vec()))
                .collect();
            prop_assert_eq!(head.headers.len(), theirs.len());
            for (name, value) in &theirs {
                let mut values = head.headers.get_all(name.as_str()).iter();
                prop_assert!(values.any(|got| got.as_bytes() == value.as_slice()), "{}", name);
            }
        } else if other.is_ok_and(|status| status.is_complete()) {
            prop_assert!(false, "refused: {:?} {:?}", text, ours);
        }
    }

    #[test]
    fn what_came_before_changes_nothing(
        heads in vec(vec((select(vec!["Date", "date", "X-A", "Content-Type", "Set-Cookie"]),
            select(vec!["a", "b", "", "a,b", "\u{7f}", LONG, LONGER])), 0..6), 1..24),
    ) {
        let mut reader = ResponseReader::new(LIMIT);
        for lines in heads {
            let mut text = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_owned();
            for (name, value) in lines {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str("\r\n");
            let fresh = read_whole(&text);
            reader.begin(false);
            let again = reader.head(&mut BytesMut::from(text.as_str()), &mut HeaderMap::new());
            let headers = |head: ResponseHead| head.headers;
            prop_assert_eq!(
                again.map(|head| head.map(headers)),
                fresh.map(|head| head.map(|head| head.headers))
            );
        }
    }

    #[test]
    fn requests_that_were_written_can_be_read(
        path in "/[a-z0-9/%?=&.]{0,20}",
        names in vec("[a-z][a-z0-9-]{0,10}", 0..5),
        value in "[ -~]{0,20}",
        body in proptest::option::of(0_u64..1000),
    ) {
        let mut request = Request::get(path.as_str());
        for name in &names {
            request = request.header(name, value.trim());
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        prop_assume!(!names.iter().any(|name| name == "content-length" || name == "transfer-encoding"));
        let mut output = Vec::new();
        let length = write_request_head(&head, None, body, &mut output).expect("a good head");
        let mut lines = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Request::new(&mut lines);
        prop_assert_eq!(parsed.parse(&output), Ok(httparse::Status::Complete(output.len())));
        prop_assert_eq!(parsed.method, Some("GET"));
        prop_assert_eq!(parsed.path, Some(path.as_str()));
        let of = |wanted: &str| parsed.headers.iter().find(|line| line.name == wanted).map(|line| line.value.to_vec());
        match body {
            None => {
                prop_assert_eq!(length, RequestLength::Chunked);
                prop_assert_eq!(of("transfer-encoding"), Some(b"chunked".to_vec()));
            }
            Some(len) => {
                prop_assert_eq!(length, RequestLength::Exact(len));
                let said = (len > 0).then(|| len.to_string().into_bytes());
                prop_assert_eq!(of("content-length"), said);
            }
        }
        prop_assert_eq!(parsed.headers.len(), names.len() + usize::from(body != Some(0)));
    }
}

#[test]
fn a_length_that_is_known_to_be_wrong_is_not_written() {
    let head = |lines: &[&str]| {
        let mut request = Request::post("/");
        for line in lines {
            request = request.header("content-length", *line);
        }
        request.body(()).expect("a request").into_parts().0
    };
    let written =
        |lines: &[&str], body| write_request_head(&head(lines), None, body, &mut Vec::new());
    assert_eq!(written(&["5"], Some(5)), Ok(RequestLength::Exact(5)));
    assert_eq!(written(&["5"], None), Ok(RequestLength::Exact(5)));
    for (lines, body) in [
        (&["5"][..], Some(0)),
        (&["5"], Some(6)),
        (&["5", "5"], Some(5)),
        (&["5 "], None),
        (&["5,5"], None),
        (&["0x5"], None),
    ] {
        assert_eq!(
            written(lines, body),
            Err(BadRequest::ContentLength),
            "{lines:?}"
        );
    }
}

#[test]
fn the_reason_is_kept_when_it_says_more_than_the_status() {
    let reason = |text: &str| {
        let mut reader = ResponseReader::new(LIMIT);
        reader.begin(false);
        let head = reader.head(&mut BytesMut::from(text), &mut HeaderMap::new());
        let head = head.expect("readable").expect("whole");
        head.reason.map(|reason| reason.as_bytes().to_vec())
    };
    assert_eq!(reason("HTTP/1.1 401 Unauthorized\r\n\r\n"), None);
    assert_eq!(reason("HTTP/1.1 401\r\n\r\n"), None);
    let words = reason("HTTP/1.1 401 authentication-failed\r\n\r\n");
    assert_eq!(words, Some(b"authentication-failed".to_vec()));
}

#[test]
fn what_never_ends_is_given_up() {
    let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(LIMIT));
    assert_eq!(read_whole(&endless), Err(WireError::HeadTooLong(LIMIT)));
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(33);
    assert_eq!(read_whole(&interim), Err(WireError::Interim));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for beside in [
        format!("1;{}", "x".repeat(20_000)),
        format!("0\r\n{}", "a: b\r\n".repeat(5_000)),
        "1;a\r\nx\r\n".repeat(20_000),
        "11111111111111111\r\n".to_owned(),
    ] {
        let text = format!("{chunked}{beside}");
        assert_eq!(read_whole(&text), Err(WireError::Chunk), "{beside:.20}");
    }
    let lines = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
    assert_eq!(read_whole(&lines), Err(WireError::Head));
}

#[test]
fn what_is_no_http_1_response_is_refused() {
    for text in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: \u{1}\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 O\u{1}K\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
        "\u{16}\u{3}\u{1}",
    ] {
        assert!(read_whole(text).is_err(), "{text:?}");
    }
}
