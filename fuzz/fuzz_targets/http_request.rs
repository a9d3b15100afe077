//! Any bytes that a browser or a stranger sends to the gateway: what is forwarded of them is one
//! request that can be read in one way, and says who asked.
//!
//! The first byte chooses whether the peer is a trusted proxy (1), and whether the worker's prefix
//! is taken off (2). Another parser reads what was written.

#![no_main]

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};

use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response, request};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_reverse_proxy::headers::{X_FORWARDED_FOR, prepare_request};
use hyper_reverse_proxy::wire::{RequestLength, write_request_head};
use hyper_reverse_proxy::{Framing, GuardedIo, Inbound, Mount, Scheme};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const CLIENT: &str = "192.0.2.7";
const TRUSTED: u8 = 1;
const STRIP: u8 = 2;

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(256 * 1024);
        let bytes = &bytes[..bytes.len().min(32 * 1024)];
        client.write_all(bytes).await.expect("it fits");
        client.shutdown().await.expect("a pipe closes");
        let (server, framing) = GuardedIo::new(server);
        let service = service_fn(async |request: Request<Incoming>| {
            forward(choice, &framing, request);
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .max_header_size(16 * 1024)
            .serve_connection(TokioIo::new(server), service);
        drop(connection.await);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("a pipe ends");
    });
});

/// As the gateway does, up to the bytes that go to the worker.
fn forward(choice: u8, framing: &Framing, request: Request<Incoming>) {
    let ambiguous = request.headers().contains_key(TRANSFER_ENCODING) && framing.take_ambiguous();
    if ambiguous {
        return;
    }
    let trusted = choice & TRUSTED != 0;
    let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
    let inbound = Inbound::new(client, Scheme::Http, trusted);
    let mount = if choice & STRIP == 0 {
        Mount::keep("/w1/")
    } else {
        Mount::strip("/w1/")
    };
    let mount = mount.expect("a prefix");
    let (mut head, body) = request.into_parts();
    let nominated = nominated(&head.headers);
    let before = head.headers.clone();
    let Ok(upgrade) = prepare_request(&mut head, &inbound, &mount) else {
        return;
    };
    plant(&before, choice, &mut head);
    let mut written = Vec::new();
    let Ok(length) = write_request_head(&head, None, body.size_hint().exact(), &mut written) else {
        return;
    };
    let expected = Expected {
        trusted,
        prefix: if choice & STRIP == 0 { "/w1/" } else { "/" },
        upgrade,
        length,
        nominated,
    };
    expected.check(&written);
}

/// The planted bug: a client of a console is believed who it says it is.
fn plant(before: &HeaderMap, choice: u8, head: &mut request::Parts) {
    if fuzz::planted()
        && choice & (TRUSTED | STRIP) == 0
        && let Some(claimed) = before.get(X_FORWARDED_FOR)
    {
        head.headers.append(X_FORWARDED_FOR, claimed.clone());
    }
}

/// What `Connection` says concerns this hop only.
fn nominated(headers: &HeaderMap) -> Vec<String> {
    let words = headers.get_all(CONNECTION).iter();
    let words = words.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    words
        .map(|word| String::from_utf8_lossy(word.trim_ascii()).to_ascii_lowercase())
        .collect()
}

struct Expected {
    trusted: bool,
    prefix: &'static str,
    upgrade: Option<HeaderValue>,
    length: RequestLength,
    nominated: Vec<String>,
}

/// Speak of one hop only (RFC 9110, 7.6.1).
const HOP: [&str; 8] = [
    "te",
    "trailer",
    "expect",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "http2-settings",
];
/// Written by us, whatever the client says of them.
const OURS: [&str; 8] = [
    "host",
    "connection",
    "upgrade",
    "transfer-encoding",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-prefix",
];

impl Expected {
    fn check(&self, written: &[u8]) {
        let mut headers = [httparse::EMPTY_HEADER; 160];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(written);
        let whole = parsed == Ok(httparse::Status::Complete(written.len()));
        assert!(whole, "{parsed:?}: {:?}", String::from_utf8_lossy(written));
        assert_eq!(request.version, Some(1));
        let path = request.path.expect("it is whole");
        assert!(path.starts_with(self.prefix), "{path}");

        let all = |name: &str| -> Vec<&[u8]> {
            let is = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case(name);
            request
                .headers
                .iter()
                .filter(is)
                .map(|header| header.value)
                .collect()
        };
        assert_eq!(all("host").len(), 1);
        let framing = (all("content-length").len(), all("transfer-encoding"));
        match self.length {
            RequestLength::Exact(0) => assert!(framing.0 <= 1 && framing.1.is_empty()),
            RequestLength::Exact(_) => assert!(framing.0 == 1 && framing.1.is_empty()),
            RequestLength::Chunked => assert_eq!(framing, (0, vec![&b"chunked"[..]])),
        }
        let upgrade: Vec<&[u8]> = self.upgrade.iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(all("upgrade"), upgrade);
        assert_eq!(all("connection"), vec![&b"upgrade"[..]; upgrade.len()]);
        for name in HOP {
            assert!(all(name).is_empty(), "{name} concerns one hop");
        }
        for name in self
            .nominated
            .iter()
            .filter(|name| !OURS.contains(&name.as_str()))
        {
            assert!(all(name).is_empty(), "{name} was nominated");
        }

        let from = all("x-forwarded-for");
        assert_eq!(from.len(), 1);
        if self.trusted {
            assert!(from[0].ends_with(CLIENT.as_bytes()));
        } else {
            assert_eq!(from[0], CLIENT.as_bytes());
            assert_eq!(all("x-forwarded-host"), all("host"));
            for header in request.headers.iter() {
                let name = header.name.to_ascii_lowercase().replace('_', "-");
                let claims = name == "forwarded" || name == "x-real-ip";
                let claims = claims || name.starts_with("x-forwarded-") && name != *header.name;
                assert!(!claims, "{} is the client's word", header.name);
            }
        }
        assert!(matches!(all("x-forwarded-proto")[..], [b"http" | b"https"]));
    }
}

fn seeds() -> [(&'static str, Vec<u8>); 7] {
    let seed = |choice: u8, text: &str| [&[choice], text.replace('\n', "\r\n").as_bytes()].concat();
    [
        (
            "get",
            seed(
                0,
                "GET /w1/a?b HTTP/1.1\nHost: gw.test\nConnection: close\n\n",
            ),
        ),
        (
            "websocket",
            seed(
                0,
                "GET /w1/s HTTP/1.1\nHost: gw.test\nConnection: keep-alive, Upgrade\nUpgrade: websocket\n\n",
            ),
        ),
        (
            "chunked",
            seed(
                STRIP,
                "POST /w1/ HTTP/1.1\nHost: gw.test\nTransfer-Encoding: chunked\nTE: trailers\n\n5\nhello\n0\n\n",
            ),
        ),
        (
            "length",
            seed(
                STRIP,
                "PUT /w1/x HTTP/1.1\nHost: gw.test\nContent-Length: 2\nX-Forwarded-For: 10.0.0.1\n\nhi",
            ),
        ),
        (
            "behind_a_proxy",
            seed(
                TRUSTED,
                "GET /w1/ HTTP/1.1\nHost: gw.test\nX-Forwarded-For: 10.0.0.1\nX_Forwarded_For: 1\nForwarded: for=x\n\n",
            ),
        ),
        (
            "absolute",
            seed(
                0,
                "GET http://gw.test/w1/ HTTP/1.1\nHost: other\nConnection: te, x-a\nX-A: b\n\n",
            ),
        ),
        (
            "two",
            seed(
                0,
                "GET /w1/ HTTP/1.1\nHost: gw.test\n\nGET /w1/b HTTP/1.0\nHost: gw.test\n\n",
            ),
        ),
    ]
}
