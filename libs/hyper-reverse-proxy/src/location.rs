//! `Location` and `Content-Location` of upstreams behind a prefix (RFC 9110, 10.2.2).

use http::HeaderValue;

use crate::mount::Mount;

/// The redirect as the browser may follow it, or `None` when it stays as it is.
///
/// A path outside the mount's prefix is moved under it. An absolute URL that names this very
/// origin (`host`, the request's `Host`) or the upstream's own address (`upstream`, or any
/// loopback address) is treated as the path in it; URLs of other sites stay.
pub fn rewrite_location(
    value: &HeaderValue,
    mount: &Mount,
    host: Option<&str>,
    upstream: Option<&str>,
) -> Option<HeaderValue> {
    let Ok(text) = std::str::from_utf8(value.as_bytes()) else {
        return header(mount.outer()).filter(|_| mount.shares_origin());
    };
    // Browsers read a URL without its tabs (WHATWG URL, 4.4), so do the same.
    let text = &*text.trim().replace('\t', "");
    if let Some((authority, path)) = split_authority(text) {
        let ours = host.is_some_and(|host| authority.eq_ignore_ascii_case(host));
        let theirs = upstream.is_some_and(|own| authority.eq_ignore_ascii_case(own))
            || is_loopback(authority);
        if ours && mount.contains(path) || !ours && !theirs {
            return None;
        }
        return header(&moved(path, mount));
    }
    if text.starts_with(['/', '\\']) {
        return if mount.contains(text) {
            None
        } else {
            header(&moved(text, mount))
        };
    }
    // A relative reference: only one that climbs can leave the prefix, and then not by intent.
    let climbs = text.contains("..") || text.to_ascii_lowercase().contains("%2e");
    if mount.shares_origin() && climbs && !text.contains(':') {
        let joined = format!("{}{text}", mount.outer());
        if !mount.contains(&joined) {
            return header(mount.outer());
        }
    }
    None
}

/// Authority and path of an absolute or scheme-relative http URL.
fn split_authority(text: &str) -> Option<(&str, &str)> {
    let rest = ["http://", "https://", "//"].iter().find_map(|scheme| {
        let head = text.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme)
            .then(|| &text[scheme.len()..])
    })?;
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    Some((authority, if path.is_empty() { "/" } else { path }))
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// The path under the mount's prefix.
fn moved(path: &str, mount: &Mount) -> String {
    let path = crate::mount::normalised(path);
    let path = path.trim_start_matches(['/', '\\']);
    let whole = format!("/{path}");
    if mount.contains(&whole) {
        whole
    } else {
        format!("{}{path}", mount.outer())
    }
}

fn header(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_bytes(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(location: &str) -> String {
        let mount = Mount::keep("/w1/").expect("a prefix");
        let value = HeaderValue::from_str(location).expect("a value");
        rewrite_location(
            &value,
            &mount,
            Some("gw.test:8081"),
            Some("100.64.0.3:9090"),
        )
        .unwrap_or(value)
        .to_str()
        .expect("ASCII")
        .to_owned()
    }

    #[test]
    fn redirects_stay_with_their_worker() {
        let table = [
            ("/w1/login?x=1", "/w1/login?x=1"),
            ("/login?x=1", "/w1/login?x=1"),
            ("/", "/w1/"),
            ("/w10/", "/w1/w10/"),
            ("/w2/", "/w1/w2/"),
            ("/w1/../w2/", "/w1/w2/"),
            ("sub/page", "sub/page"),
            ("?q", "?q"),
            ("../w2/", "/w1/"),
            ("http://gw.test:8081/w1/a", "http://gw.test:8081/w1/a"),
            ("http://gw.test:8081/a", "/w1/a"),
            ("HTTP://100.64.0.3:9090/a", "/w1/a"),
            ("http://localhost:9090", "/w1/"),
            ("//127.0.0.1:9090/w1/a", "/w1/a"),
            ("http://[::1]:9090/w1/a", "/w1/a"),
            (
                "https://login.example.org/w2/",
                "https://login.example.org/w2/",
            ),
            ("//login.example.org/", "//login.example.org/"),
            ("mailto:a@b", "mailto:a@b"),
        ];
        for (given, wanted) in table {
            assert_eq!(followed(given), wanted, "{given}");
        }
    }
}
