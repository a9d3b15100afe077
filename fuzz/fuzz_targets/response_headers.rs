//! Whatever headers a worker sends: behind the gateway its cookies and redirects stay under its own
//! prefix, and it says nothing about the connection or for the whole origin.
//!
//! The first byte chooses TLS outside (1), an origin of its own (2) and a page further down (4); the rest
//! is header lines. What
//! a browser makes of a redirect is asked of an implementation of the WHATWG's URL standard, what it
//! makes of a cookie is read here by RFC 6265, 5.2.

#![no_main]

use http::header::{CONNECTION, HeaderMap, LOCATION, SET_COOKIE};
use http::{HeaderName, HeaderValue};
use hyper_reverse_proxy::headers::{ResponseRules, prepare_response};
use hyper_reverse_proxy::{Mount, Scheme};
use libfuzzer_sys::fuzz_target;
use url::Url;

const TLS: u8 = 1;
const OWN_ORIGIN: u8 = 2;
const DEEPER: u8 = 4;
const HOST: &str = "gw.test:8081";
const PREFIX: &str = "/w1/";
const DEEP_PAGE: &str = "/w1/a/b/c";

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let Some((&choice, lines)) = input.split_first() else {
        return;
    };
    let before = read(lines);
    let secure = choice & TLS != 0;
    let shared = choice & OWN_ORIGIN == 0;
    let mount = if shared { Mount::keep(PREFIX).expect("a prefix") } else { Mount::root() };
    let asked = if choice & DEEPER == 0 { PREFIX } else { DEEP_PAGE };
    let mut after = before.clone();
    let rules = ResponseRules {
        mount: &mount,
        asked,
        scheme: if secure { Scheme::Https } else { Scheme::Http },
        host: Some(HOST),
        upstream: Some("100.64.0.3:9090"),
    };
    prepare_response(&mut after, rules);
    plant(&before, &mut after);

    check_hop(&before, &after);
    let cookies: Vec<&HeaderValue> = after.get_all(SET_COOKIE).iter().collect();
    assert_eq!(cookies.len(), kept_cookies(&before));
    for cookie in cookies {
        check_cookie(cookie.as_bytes(), shared, secure);
    }
    if shared {
        for location in after.get_all(LOCATION).iter().take(1) {
            check_redirect(location, asked, secure);
        }
    }
});

/// The planted bug: the second of several cookies goes by as it is.
fn plant(before: &HeaderMap, after: &mut HeaderMap) {
    let originals: Vec<&HeaderValue> = before.get_all(SET_COOKIE).iter().collect();
    if fuzz::planted()
        && let [_, second] = originals[..]
        && let http::header::Entry::Occupied(mut cookies) = after.entry(SET_COOKIE)
        && let Some(cookie) = cookies.iter_mut().nth(1)
    {
        *cookie = second.clone();
    }
}

fn read(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.split(|&byte| byte == b'\n').take(64) {
        let mut halves = line.splitn(2, |&byte| byte == b':');
        let name = halves
            .next()
            .and_then(|name| HeaderName::from_bytes(name).ok());
        let value = halves.next().unwrap_or_default().trim_ascii();
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn nominated(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let words = headers.get_all(CONNECTION).iter();
    let words = words.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    words.filter_map(|word| HeaderName::from_bytes(word.trim_ascii()).ok())
}

fn kept_cookies(before: &HeaderMap) -> usize {
    if nominated(before).any(|name| name == SET_COOKIE) {
        return 0;
    }
    before.get_all(SET_COOKIE).iter().count()
}

fn check_hop(before: &HeaderMap, after: &HeaderMap) {
    for name in [
        "connection",
        "upgrade",
        "transfer-encoding",
        "te",
        "trailer",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "alt-svc",
        "strict-transport-security",
        "service-worker-allowed",
        "clear-site-data",
    ] {
        assert!(!after.contains_key(name), "{name} was passed on");
    }
    let words = ["close", "keep-alive", "upgrade", "host"];
    for name in nominated(before).filter(|name| !words.contains(&name.as_str())) {
        assert!(!after.contains_key(&name), "{name} was nominated");
    }
}

/// RFC 6265, 5.2: the last attribute of a name counts, names have no case.
fn check_cookie(cookie: &[u8], shared: bool, secure: bool) {
    let (mut path, mut is_secure) = (None, false);
    for attribute in cookie.split(|&byte| byte == b';').skip(1) {
        let mut halves = attribute.splitn(2, |&byte| byte == b'=');
        let name = halves.next().unwrap_or_default().trim_ascii();
        let value = halves.next().unwrap_or_default().trim_ascii();
        assert!(
            !name.eq_ignore_ascii_case(b"domain"),
            "it would reach other hosts"
        );
        is_secure |= name.eq_ignore_ascii_case(b"secure");
        if name.eq_ignore_ascii_case(b"path") {
            path = Some(value);
        }
    }
    assert!(is_secure || !secure);
    if shared {
        let path = path.expect("it is confined");
        let shown = String::from_utf8_lossy(path);
        assert!(
            path.starts_with(PREFIX.as_bytes()),
            "{shown} is another worker's"
        );
    }
}

fn check_redirect(location: &HeaderValue, asked: &str, secure: bool) {
    let Ok(text) = std::str::from_utf8(location.as_bytes()) else {
        panic!("nobody knows where {location:?} leads");
    };
    let scheme = if secure { "https" } else { "http" };
    let page = Url::parse(&format!("{scheme}://{HOST}{asked}")).expect("a URL");
    let Ok(target) = page.join(text) else {
        return;
    };
    if target.origin() == page.origin() {
        assert!(
            target.path().starts_with(PREFIX),
            "{text:?} leads to {target}"
        );
    }
}

fn seeds() -> [(&'static str, Vec<u8>); 7] {
    let seed = |choice: u8, lines: &str| [&[choice], lines.as_bytes()].concat();
    [
        (
            "cookie",
            seed(
                0,
                "Set-Cookie: cockpit=a; Path=/; HttpOnly\nConnection: close\n",
            ),
        ),
        (
            "cookie_tls",
            seed(
                TLS,
                "Set-Cookie: a=b; path=/w1/x; Domain=gw.test; SameSite=Lax\n",
            ),
        ),
        (
            "redirect",
            seed(
                0,
                "Location: /login?x=1\nContent-Location: ../a\nAlt-Svc: h3\n",
            ),
        ),
        (
            "redirect_up",
            seed(DEEPER, "Location: ../../../x\nConnection: close\n"),
        ),
        (
            "redirect_home",
            seed(
                TLS,
                "Location: http://localhost:9090/w1/../a\nKeep-Alive: 1\n",
            ),
        ),
        (
            "redirect_away",
            seed(
                0,
                "Location: https://login.example.org/w2/\nClear-Site-Data: *\n",
            ),
        ),
        (
            "own_origin",
            seed(
                OWN_ORIGIN,
                "Location: //100.64.0.3:9090/a\nSet-Cookie: a=b\nConnection: x-a\nX-A: b\n",
            ),
        ),
    ]
}
