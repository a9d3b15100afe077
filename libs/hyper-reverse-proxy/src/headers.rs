//! Pure header rules: what a proxy takes off, puts on and refuses, for requests and responses.
//!
//! One pass over the names finds out what there is to do, so that an ordinary message costs no
//! look-ups for headers it does not have.

use std::net::IpAddr;

use http::header::{
    ALT_SVC, CONNECTION, CONTENT_LENGTH, CONTENT_LOCATION, COOKIE, EXPECT, FORWARDED, HOST,
    HeaderMap, HeaderName, HeaderValue, LOCATION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Uri, Version, request, uri};

use crate::cookie::rewrite_set_cookie;
use crate::error::BadRequest;
use crate::location::rewrite_location;
use crate::mount::Mount;

/// `X-Forwarded-For`: the client's address.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`: the scheme outside.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `X-Forwarded-Host`: the host outside, with its port.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `X-Forwarded-Prefix`: the path prefix outside, without its last slash.
pub const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_REAL_IP: &str = "x-real-ip";
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const SERVICE_WORKER_ALLOWED: HeaderName = HeaderName::from_static("service-worker-allowed");
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");

/// The scheme that clients use outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What is known of the connection that requests arrive over. Make it once per connection.
#[derive(Debug, Clone)]
pub struct Inbound {
    client: HeaderValue,
    scheme: Scheme,
    trusted: bool,
}

impl Inbound {
    /// A connection from `client`. The `X-Forwarded-*` headers of a `trusted` peer (another proxy
    /// of ours) are believed and continued; those of everybody else are thrown away.
    pub fn new(client: IpAddr, scheme: Scheme, trusted: bool) -> Self {
        let text = client.to_canonical().to_string();
        Self {
            client: HeaderValue::from_str(&text).expect("addresses are printed in ASCII"),
            scheme,
            trusted,
        }
    }

    /// Whether it comes from another proxy of ours.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// The scheme outside for this request: the connection's, or what a trusted peer says.
    pub fn outer_scheme(&self, headers: &HeaderMap) -> Scheme {
        if !self.trusted {
            return self.scheme;
        }
        match headers.get(X_FORWARDED_PROTO).map(HeaderValue::as_bytes) {
            Some(proto) if proto.eq_ignore_ascii_case(b"https") => Scheme::Https,
            Some(proto) if proto.eq_ignore_ascii_case(b"http") => Scheme::Http,
            _ => self.scheme,
        }
    }
}

/// What one pass over the names found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Found(u16);

impl Found {
    const CONNECTION: u16 = 1;
    const HOP: u16 = 2;
    const UPGRADE: u16 = 4;
    const FORWARDED: u16 = 8;
    const LENGTH: u16 = 16;
    const ENCODING: u16 = 32;
    const COOKIE: u16 = 64;
    const LOCATION: u16 = 128;
    const SITE: u16 = 256;
    const HOST: u16 = 512;

    fn has(self, bit: u16) -> bool {
        self.0 & bit != 0
    }

    fn of(headers: &HeaderMap) -> Self {
        let mut bits = 0;
        for name in headers.keys() {
            bits |= match *name {
                CONNECTION => Self::CONNECTION,
                UPGRADE => Self::UPGRADE,
                CONTENT_LENGTH => Self::LENGTH,
                TRANSFER_ENCODING => Self::ENCODING,
                HOST => Self::HOST,
                COOKIE | SET_COOKIE => Self::COOKIE,
                LOCATION | CONTENT_LOCATION => Self::LOCATION,
                TE | TRAILER | PROXY_AUTHENTICATE | PROXY_AUTHORIZATION | EXPECT => Self::HOP,
                ALT_SVC | STRICT_TRANSPORT_SECURITY => Self::SITE,
                FORWARDED => Self::FORWARDED,
                _ => Self::of_custom(name.as_str()),
            };
        }
        Self(bits)
    }

    fn of_custom(name: &str) -> u16 {
        match name {
            "keep-alive" | "proxy-connection" | "http2-settings" => Self::HOP,
            "service-worker-allowed" | "clear-site-data" => Self::SITE,
            _ if says_who_asks(name) => Self::FORWARDED,
            _ => 0,
        }
    }
}

/// Whether `name` is one of `Forwarded`, `X-Real-IP` and `X-Forwarded-*`, with `_` read as `-`:
/// behind CGI (RFC 3875, 4.1.18) and what follows it the two cannot be told apart.
fn says_who_asks(name: &str) -> bool {
    let starts_with = |wanted: &str| {
        name.len() >= wanted.len()
            && name
                .bytes()
                .zip(wanted.bytes())
                .all(|(a, b)| a == b || (a == b'_' && b == b'-'))
    };
    name == "forwarded"
        || starts_with("x-forwarded-")
        || (name.len() == X_REAL_IP.len() && starts_with(X_REAL_IP))
}

/// Takes off everything that concerns one hop only (RFC 9110, 7.6.1): `Connection`, whatever it
/// nominates, and the headers that are hop-by-hop by their meaning.
///
/// `Host` is never taken off, whoever nominates it: a request without it would be malformed.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    remove_found_hop_by_hop(headers, Found::of(headers));
}

fn remove_found_hop_by_hop(headers: &mut HeaderMap, found: Found) {
    if found.has(Found::CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter(|token| !is_connection_word(token))
            .filter_map(|token| HeaderName::from_bytes(token).ok())
            .filter(|name| *name != HOST)
            .collect();
        headers.remove(CONNECTION);
        for name in nominated {
            headers.remove(name);
        }
    }
    if found.has(Found::UPGRADE) {
        headers.remove(UPGRADE);
    }
    if found.has(Found::ENCODING) {
        headers.remove(TRANSFER_ENCODING);
    }
    if found.has(Found::HOP) {
        for name in [
            TE,
            TRAILER,
            EXPECT,
            PROXY_AUTHENTICATE,
            PROXY_AUTHORIZATION,
            KEEP_ALIVE,
            PROXY_CONNECTION,
            HTTP2_SETTINGS,
        ] {
            headers.remove(name);
        }
    }
}

/// The comma-separated tokens of one header line.
fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

fn is_connection_word(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"keep-alive")
        || token.eq_ignore_ascii_case(b"close")
        || token.eq_ignore_ascii_case(b"upgrade")
}

/// The protocol that the request wants to switch to, when it asks for one properly (RFC 9110,
/// 7.8). HTTP/2 by upgrade is never offered to an upstream: it would hide requests from the proxy.
pub fn wanted_upgrade<B>(request: &http::Request<B>) -> Option<HeaderValue> {
    upgrade_of(request.version(), request.headers())
}

fn upgrade_of(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let mut protocols = headers.get_all(UPGRADE).iter();
    let protocol = protocols.next()?;
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let plain = protocol.len() <= 64 && protocol.as_bytes().iter().all(|&b| b != b',');
    let h2 = protocol
        .as_bytes()
        .trim_ascii()
        .get(..2)
        .is_some_and(|s| s.eq_ignore_ascii_case(b"h2"));
    (asks && plain && !h2 && protocols.next().is_none()).then(|| protocol.clone())
}

/// Makes the request fit for an HTTP/1.1 upstream, or says why it is not forwarded.
///
/// Returns the protocol it wants to switch to, if any. After this the request has its target in
/// origin-form, exactly one `Host`, no hop-by-hop header and our own `X-Forwarded-*`.
pub fn prepare_request(
    head: &mut request::Parts,
    inbound: &Inbound,
    mount: &Mount,
) -> Result<Option<HeaderValue>, BadRequest> {
    let (upgrade, forwarded) = prepare(head, inbound, mount)?;
    if let Some(forwarded) = forwarded {
        forwarded.set(&mut head.headers);
    }
    Ok(upgrade)
}

/// [`prepare_request`], which leaves the `X-Forwarded-*` headers to be written beside the others
/// where it can.
pub(crate) fn prepare<'a>(
    head: &mut request::Parts,
    inbound: &'a Inbound,
    mount: &'a Mount,
) -> Result<(Option<HeaderValue>, Option<Forwarded<'a>>), BadRequest> {
    let found = Found::of(&head.headers);
    if head.method == Method::CONNECT {
        return Err(BadRequest::Target);
    }
    check_length(&head.headers, found)?;
    settle_host(head, found)?;
    let target = head.uri.path_and_query().ok_or(BadRequest::Target)?;
    match mount.rewrite(target)? {
        Some(target) => head.uri = origin_form(target)?,
        None if head.uri.authority().is_some() => {
            let target = target.clone();
            head.uri = origin_form(target)?;
        }
        None => {}
    }
    let upgrade = if found.has(Found::UPGRADE) {
        upgrade_of(head.version, &head.headers)
    } else {
        None
    };
    if head.version == Version::HTTP_2 && found.has(Found::COOKIE) {
        join_cookies(&mut head.headers);
    }
    head.version = Version::HTTP_11;
    let scheme = inbound.outer_scheme(&head.headers);
    remove_found_hop_by_hop(&mut head.headers, found);
    let forwarded = Forwarded {
        client: &inbound.client,
        scheme,
        prefix: mount.forwarded_prefix(),
    };
    let forwarded = if found.has(Found::FORWARDED) {
        replace_forwarded(&mut head.headers, inbound, forwarded);
        None
    } else {
        Some(forwarded)
    };
    if let Some(protocol) = &upgrade {
        head.headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol.clone());
    }
    Ok((upgrade, forwarded))
}

/// Our own `X-Forwarded-*` headers, for a request that has none yet.
#[derive(Debug, Clone, Copy)]
pub struct Forwarded<'a> {
    client: &'a HeaderValue,
    scheme: Scheme,
    prefix: Option<&'a HeaderValue>,
}

impl<'a> Forwarded<'a> {
    fn set(self, headers: &mut HeaderMap) {
        headers.insert(X_FORWARDED_FOR, self.client.clone());
        headers.insert(
            X_FORWARDED_PROTO,
            HeaderValue::from_static(self.scheme.as_str()),
        );
        if let Some(host) = headers.get(HOST).cloned() {
            headers.insert(X_FORWARDED_HOST, host);
        }
        if let Some(prefix) = self.prefix {
            headers.insert(X_FORWARDED_PREFIX, prefix.clone());
        }
    }

    /// Names and values, for a request to `host`.
    pub(crate) fn lines(
        self,
        host: Option<&'a HeaderValue>,
    ) -> impl Iterator<Item = (HeaderName, &'a [u8])> {
        [
            (X_FORWARDED_FOR, Some(self.client.as_bytes())),
            (X_FORWARDED_PROTO, Some(self.scheme.as_str().as_bytes())),
            (X_FORWARDED_HOST, host.map(HeaderValue::as_bytes)),
            (X_FORWARDED_PREFIX, self.prefix.map(HeaderValue::as_bytes)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}

fn check_length(headers: &HeaderMap, found: Found) -> Result<(), BadRequest> {
    if found.has(Found::ENCODING) {
        if found.has(Found::LENGTH) {
            return Err(BadRequest::AmbiguousLength);
        }
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        return match (codings.next(), codings.next()) {
            (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
            _ => Err(BadRequest::TransferEncoding),
        };
    }
    if !found.has(Found::LENGTH) {
        return Ok(());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let digits = |value: &HeaderValue| {
        !value.is_empty() && value.len() <= 19 && value.as_bytes().iter().all(u8::is_ascii_digit)
    };
    match (lengths.next(), lengths.next()) {
        (Some(length), None) if digits(length) => Ok(()),
        _ => Err(BadRequest::ContentLength),
    }
}

/// Exactly one `Host`; that of the target wins when the target has one (RFC 9112, 3.2.2).
fn settle_host(head: &mut request::Parts, found: Found) -> Result<(), BadRequest> {
    if let Some(authority) = head.uri.authority() {
        if authority.as_str().contains('@') {
            return Err(BadRequest::Target);
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BadRequest::Host)?;
        head.headers.insert(HOST, host);
        return Ok(());
    }
    if !found.has(Found::HOST) {
        return Err(BadRequest::Host);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), None) => Ok(()),
        _ => Err(BadRequest::Host),
    }
}

fn origin_form(target: uri::PathAndQuery) -> Result<Uri, BadRequest> {
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).map_err(|_| BadRequest::Target)
}

/// HTTP/2 may send one cookie per header line; HTTP/1.1 wants one line (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    let Some(first) = lines.next() else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    let mut more = false;
    for line in lines {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(line.as_bytes());
        more = true;
    }
    if more && let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

fn replace_forwarded(headers: &mut HeaderMap, inbound: &Inbound, forwarded: Forwarded<'_>) {
    // No proxy of ours writes `_`: such a name comes from the client behind it.
    let spoofed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| says_who_asks(name.as_str()))
        .filter(|name| !inbound.trusted || name.as_str().contains('_'))
        .cloned()
        .collect();
    for name in spoofed {
        headers.remove(name);
    }
    // A trusted peer knows more than we do: its list is continued and its host stays.
    let list = inbound.trusted.then(|| continued(headers, &inbound.client));
    let host = headers.get(X_FORWARDED_HOST).cloned();
    forwarded.set(headers);
    if let Some(list) = list {
        headers.insert(X_FORWARDED_FOR, list);
    }
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// The list of a trusted peer with the peer itself at its end.
fn continued(headers: &HeaderMap, peer: &HeaderValue) -> HeaderValue {
    let mut list = Vec::new();
    for line in headers.get_all(X_FORWARDED_FOR) {
        list.extend_from_slice(line.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(peer.as_bytes());
    HeaderValue::from_bytes(&list).unwrap_or_else(|_| peer.clone())
}

/// What the rules for a response need to know of its request.
#[derive(Debug, Clone, Copy)]
pub struct ResponseRules<'a> {
    /// Where the upstream appears.
    pub mount: &'a Mount,
    /// The path that was asked for outside, without its query: relative redirects go on from it.
    pub asked: &'a str,
    /// The scheme outside.
    pub scheme: Scheme,
    /// The request's `Host`.
    pub host: Option<&'a str>,
    /// The upstream's own `host:port`.
    pub upstream: Option<&'a str>,
}

/// Makes the response fit for the outside: no hop-by-hop headers, cookies and redirects confined
/// to the mount, nothing that would speak for the whole origin.
pub fn prepare_response(headers: &mut HeaderMap, rules: ResponseRules<'_>) {
    let found = Found::of(headers);
    remove_found_hop_by_hop(headers, found);
    if found.has(Found::SITE) {
        for name in [
            ALT_SVC,
            STRICT_TRANSPORT_SECURITY,
            SERVICE_WORKER_ALLOWED,
            CLEAR_SITE_DATA,
        ] {
            headers.remove(name);
        }
    }
    if found.has(Found::COOKIE) {
        let secure = rules.scheme == Scheme::Https;
        if let http::header::Entry::Occupied(mut cookies) = headers.entry(SET_COOKIE) {
            for cookie in cookies.iter_mut() {
                *cookie = rewrite_set_cookie(cookie, rules.mount, secure);
            }
        }
    }
    if found.has(Found::LOCATION) {
        for name in [LOCATION, CONTENT_LOCATION] {
            if let Some(location) = headers.get_mut(name)
                && let Some(moved) = rewrite_location(
                    location,
                    rules.mount,
                    rules.asked,
                    rules.scheme,
                    rules.host,
                    rules.upstream,
                )
            {
                *location = moved;
            }
        }
    }
}

#[cfg(test)]
mod tests;
