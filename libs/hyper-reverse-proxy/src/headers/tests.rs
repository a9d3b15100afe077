//! Tables and properties of the header rules.

use http::Request;
use proptest::prelude::*;

use super::*;

fn request(version: Version, target: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().version(version).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn stranger() -> Inbound {
    Inbound::new([192, 0, 2, 7].into(), Scheme::Http, false)
}

fn friend() -> Inbound {
    Inbound::new([10, 0, 0, 1].into(), Scheme::Http, true)
}

fn w1() -> Mount {
    Mount::keep("/w1/").expect("a prefix")
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().expect("ASCII").to_owned())
        .collect()
}

#[test]
fn hop_by_hop_headers_go_and_end_to_end_headers_stay() {
    let mut head = request(
        Version::HTTP_11,
        "/w1/",
        &[
            ("host", "gw"),
            ("connection", "keep-alive, X-Secret"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("authorization", "Basic y"),
            ("cookie", "a=b"),
            ("origin", "http://gw"),
            ("accept", "a"),
            ("accept", "b"),
        ],
    );
    let upgrade = prepare_request(&mut head, &stranger(), &w1()).expect("fit");
    assert_eq!(upgrade, None);
    let mut left: Vec<&str> = head.headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(
        left,
        [
            "accept",
            "authorization",
            "cookie",
            "host",
            "origin",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-prefix",
            "x-forwarded-proto"
        ]
    );
    assert_eq!(values(&head.headers, "accept"), ["a", "b"]);
}

#[test]
fn a_client_cannot_nominate_our_headers_or_the_host_away() {
    let mut head = request(
        Version::HTTP_11,
        "/w1/",
        &[
            ("host", "gw:1"),
            (
                "connection",
                "close, host, x-forwarded-for, x-forwarded-proto",
            ),
        ],
    );
    prepare_request(&mut head, &stranger(), &w1()).expect("fit");
    assert_eq!(values(&head.headers, "host"), ["gw:1"]);
    assert_eq!(values(&head.headers, "x-forwarded-for"), ["192.0.2.7"]);
    assert_eq!(values(&head.headers, "x-forwarded-proto"), ["http"]);
}

#[test]
fn an_underscore_does_not_hide_a_forwarded_header() {
    let sent = [
        ("host", "gw:8081"),
        ("X_Forwarded_For", "1.2.3.4"),
        ("x_forwarded-proto", "https"),
        ("x-forwarded_port", "1"),
        ("X_Real_IP", "1.2.3.4"),
        ("x_forwarded", "stays"),
        ("x_real_ip_too", "stays"),
        ("my_own", "stays"),
    ];
    for inbound in [stranger(), friend()] {
        let mut head = request(Version::HTTP_11, "/w1/", &sent);
        prepare_request(&mut head, &inbound, &w1()).expect("fit");
        let mut left: Vec<&str> = head.headers.keys().map(HeaderName::as_str).collect();
        left.retain(|name| name.contains('_'));
        left.sort_unstable();
        assert_eq!(left, ["my_own", "x_forwarded", "x_real_ip_too"]);
        assert_eq!(values(&head.headers, "x-forwarded-proto"), ["http"]);
    }
}

#[test]
fn forwarded_headers_of_strangers_are_replaced() {
    let spoofed = [
        ("host", "gw:8081"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-for", "5.6.7.8"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil"),
        ("x-forwarded-prefix", "/evil"),
        ("x-forwarded-port", "1"),
        ("forwarded", "for=1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
    ];
    let mut head = request(Version::HTTP_11, "/w1/", &spoofed);
    prepare_request(&mut head, &stranger(), &w1()).expect("fit");
    let headers = &head.headers;
    assert_eq!(values(headers, "x-forwarded-for"), ["192.0.2.7"]);
    assert_eq!(values(headers, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(headers, "x-forwarded-host"), ["gw:8081"]);
    assert_eq!(values(headers, "x-forwarded-prefix"), ["/w1"]);
    for gone in ["x-forwarded-port", "forwarded", "x-real-ip"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
}

#[test]
fn forwarded_headers_of_a_trusted_peer_are_continued() {
    let given = [
        ("host", "gw:8081"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "outside.example"),
    ];
    let mut head = request(Version::HTTP_11, "/w1/", &given);
    prepare_request(&mut head, &friend(), &w1()).expect("fit");
    let headers = &head.headers;
    assert_eq!(values(headers, "x-forwarded-for"), ["1.2.3.4, 10.0.0.1"]);
    assert_eq!(values(headers, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(headers, "x-forwarded-host"), ["outside.example"]);
}

#[test]
fn requests_of_two_readings_are_refused() {
    let table: [(&[(&str, &str)], BadRequest); 8] = [
        (
            &[
                ("host", "a"),
                ("content-length", "1"),
                ("transfer-encoding", "chunked"),
            ],
            BadRequest::AmbiguousLength,
        ),
        (
            &[
                ("host", "a"),
                ("content-length", "1"),
                ("content-length", "2"),
            ],
            BadRequest::ContentLength,
        ),
        (
            &[("host", "a"), ("content-length", "+1")],
            BadRequest::ContentLength,
        ),
        (
            &[("host", "a"), ("content-length", "")],
            BadRequest::ContentLength,
        ),
        (
            &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
            BadRequest::TransferEncoding,
        ),
        (
            &[
                ("host", "a"),
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            BadRequest::TransferEncoding,
        ),
        (&[("host", "a"), ("host", "b")], BadRequest::Host),
        (&[], BadRequest::Host),
    ];
    for (headers, fault) in table {
        let mut head = request(Version::HTTP_11, "/w1/", headers);
        assert_eq!(
            prepare_request(&mut head, &stranger(), &w1()),
            Err(fault),
            "{headers:?}"
        );
    }
}

#[test]
fn the_target_may_name_the_host_and_then_it_wins() {
    let mut head = request(
        Version::HTTP_11,
        "http://real:81/w1/a?b",
        &[("host", "other")],
    );
    prepare_request(&mut head, &stranger(), &w1()).expect("fit");
    assert_eq!(values(&head.headers, "host"), ["real:81"]);
    assert_eq!(head.uri.to_string(), "/w1/a?b");
}

#[test]
fn an_http2_request_becomes_a_proper_http11_one() {
    let mut head = request(
        Version::HTTP_2,
        "https://gw/w1/",
        &[("cookie", "a=1"), ("cookie", "b=2")],
    );
    prepare_request(&mut head, &stranger(), &w1()).expect("fit");
    assert_eq!(head.version, Version::HTTP_11);
    assert_eq!(values(&head.headers, "host"), ["gw"]);
    assert_eq!(values(&head.headers, "cookie"), ["a=1; b=2"]);
}

#[test]
fn an_upgrade_is_passed_on_only_when_asked_for_properly() {
    let table: [(&[(&str, &str)], Option<&str>); 6] = [
        (
            &[("connection", "Upgrade"), ("upgrade", "websocket")],
            Some("websocket"),
        ),
        (
            &[
                ("connection", "keep-alive, upgrade"),
                ("upgrade", "WebSocket"),
            ],
            Some("WebSocket"),
        ),
        (&[("upgrade", "websocket")], None),
        (&[("connection", "upgrade")], None),
        (
            &[
                ("connection", "upgrade, http2-settings"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
            ],
            None,
        ),
        (
            &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
            None,
        ),
    ];
    for (headers, wanted) in table {
        let mut head = request(Version::HTTP_11, "/w1/", headers);
        head.headers.insert(HOST, HeaderValue::from_static("gw"));
        let upgrade = prepare_request(&mut head, &stranger(), &w1()).expect("fit");
        assert_eq!(
            upgrade.as_ref().map(|v| v.to_str().expect("ASCII")),
            wanted,
            "{headers:?}"
        );
        assert_eq!(
            head.headers.contains_key(UPGRADE),
            wanted.is_some(),
            "{headers:?}"
        );
        assert!(!head.headers.contains_key(HTTP2_SETTINGS));
    }
}

#[test]
fn a_response_speaks_only_for_its_own_worker() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("set-cookie", "a=1; Path=/"),
        ("set-cookie", "b=2; PATH=/; Domain=x"),
        ("set-cookie", "c=3"),
        ("location", "/login"),
        ("content-location", "/index"),
        ("service-worker-allowed", "/"),
        ("clear-site-data", "*"),
        ("alt-svc", "h3=\":1\""),
        ("strict-transport-security", "max-age=1"),
        ("connection", "x-gone"),
        ("x-gone", "1"),
        ("keep-alive", "timeout=5"),
        ("content-security-policy", "default-src 'self'"),
        ("x-frame-options", "sameorigin"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    let mount = w1();
    let rules = ResponseRules {
        mount: &mount,
        asked: "/w1/",
        scheme: Scheme::Https,
        host: Some("gw"),
        upstream: None,
    };
    prepare_response(&mut headers, rules);
    assert_eq!(
        values(&headers, "set-cookie"),
        [
            "a=1; Path=/w1/; Secure",
            "b=2; Path=/w1/; Secure",
            "c=3; Path=/w1/; Secure"
        ]
    );
    assert_eq!(values(&headers, "location"), ["/w1/login"]);
    assert_eq!(values(&headers, "content-location"), ["/w1/index"]);
    let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(
        left,
        [
            "content-location",
            "content-security-policy",
            "location",
            "set-cookie",
            "x-frame-options"
        ]
    );
}

fn any_value() -> impl Strategy<Value = HeaderValue> {
    proptest::collection::vec(any::<u8>(), 0..60).prop_filter_map("a header value", |bytes| {
        HeaderValue::from_bytes(&bytes).ok()
    })
}

/// Values made of the pieces that matter to the parsers.
fn tricky_value() -> impl Strategy<Value = HeaderValue> {
    let piece = prop_oneof![
        Just("/"),
        Just("/w1"),
        Just("/w2/"),
        Just(".."),
        Just("."),
        Just("%2e"),
        Just("\\"),
        Just("; "),
        Just("Path"),
        Just("PATH"),
        Just("="),
        Just("Domain=x"),
        Just("http://"),
        Just("gw"),
        Just("//"),
        Just("a"),
        Just("?"),
        Just("#"),
        Just("localhost"),
        Just(":"),
        Just("\t"),
        Just(" "),
    ];
    proptest::collection::vec(piece, 0..9).prop_filter_map("a header value", |v| {
        HeaderValue::from_str(&v.concat()).ok()
    })
}

fn either() -> impl Strategy<Value = HeaderValue> {
    prop_oneof![any_value(), tricky_value()]
}

proptest! {
    #[test]
    fn every_cookie_ends_up_inside_its_prefix(value in either(), secure: bool) {
        let mount = w1();
        let out = rewrite_set_cookie(&value, &mount, secure);
        // As a browser takes them apart (RFC 6265, 5.2): the name ends at the first '='.
        let attributes: Vec<(Vec<u8>, Vec<u8>)> = out
            .as_bytes()
            .split(|&b| b == b';')
            .skip(1)
            .map(|part| {
                let mut halves = part.splitn(2, |&b| b == b'=');
                let mut half = || halves.next().unwrap_or_default().trim_ascii();
                (half().to_ascii_lowercase(), half().to_vec())
            })
            .collect();
        let named = |wanted: &[u8]| attributes.iter().filter(|(name, _)| name == wanted).count();
        prop_assert_eq!(named(b"path"), 1);
        prop_assert!(attributes.iter().any(|(name, value)| name == b"path"
            && value.starts_with(b"/w1/")));
        prop_assert_eq!(named(b"domain"), 0);
        prop_assert!(!secure || named(b"secure") >= 1);
    }

    #[test]
    fn every_redirect_into_this_origin_ends_up_inside_its_prefix(
        value in either(),
        directory in proptest::sample::select(vec!["/w1/", "/w1/a/", "/w1/a/b/"]),
    ) {
        let mount = w1();
        let asked = format!("{directory}page");
        let out = rewrite_location(&value, &mount, &asked, Scheme::Http, Some("gw"), None)
            .unwrap_or(value);
        if let Some(path) = uri_join(directory, out.as_bytes()) {
            prop_assert!(mount.contains(&path), "{:?} leads to {}", out, path);
        }
    }

    #[test]
    fn no_header_makes_the_rules_panic_or_leaves_a_hop_by_hop_header(
        lines in proptest::collection::vec((0usize..12, either()), 0..12)
    ) {
        const NAMES: [&str; 12] = [
            "connection", "upgrade", "te", "host", "content-length", "cookie", "x-forwarded-for",
            "x-forwarded-proto", "forwarded", "keep-alive", "x-a", "origin",
        ];
        let mut head = request(Version::HTTP_11, "/w1/", &[]);
        for (at, value) in lines {
            head.headers.append(NAMES[at], value);
        }
        if let Ok(upgrade) = prepare_request(&mut head, &stranger(), &w1()) {
            prop_assert_eq!(head.headers.get_all(HOST).iter().count(), 1);
            prop_assert_eq!(head.headers.contains_key(CONNECTION), upgrade.is_some());
            prop_assert!(!head.headers.contains_key(TE));
            prop_assert!(!head.headers.contains_key(KEEP_ALIVE));
            prop_assert_eq!(values(&head.headers, "x-forwarded-for"), ["192.0.2.7"]);
        }
    }
}

/// The path a browser on a page in `directory` of `http://gw` would go to in this origin, by the
/// rules of RFC 3986; `None` when the reference leads to another origin or is no http reference.
fn uri_join(directory: &str, reference: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(reference)
        .ok()?
        .trim()
        .replace(['\t', '\n', '\r'], "");
    let text = text.replace('\\', "/");
    for scheme in ["http://gw", "//gw"] {
        if let Some(rest) = text.to_ascii_lowercase().strip_prefix(scheme) {
            return match rest.chars().next() {
                None | Some('?' | '#') => Some("/".to_owned()),
                Some('/') => Some(text[scheme.len()..].to_owned()),
                Some(_) => None,
            };
        }
    }
    if text.starts_with("//") || text.contains(':') {
        return None;
    }
    if text.starts_with('/') {
        return Some(text);
    }
    Some(format!("{directory}{text}"))
}
