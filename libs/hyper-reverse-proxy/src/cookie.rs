//! `Set-Cookie` (RFC 6265) of upstreams that may share one origin.

use http::HeaderValue;

use crate::mount::Mount;

/// The cookie as the browser may have it: `Domain` dropped, `Path` forced into the mount's prefix
/// when the origin is shared, `Secure` added when the outside is TLS. Attribute names are compared
/// without regard to case (RFC 6265, 5.2).
///
/// A path that already lies inside the prefix stays. All other attributes stay in their order.
pub fn rewrite_set_cookie(value: &HeaderValue, mount: &Mount, secure: bool) -> HeaderValue {
    let mut parts = value.as_bytes().split(|&b| b == b';');
    let mut out = Vec::with_capacity(value.len() + mount.outer().len() + 16);
    out.extend_from_slice(parts.next().unwrap_or_default().trim_ascii_end());
    let mut path: Option<&[u8]> = None;
    let mut is_secure = false;
    for part in parts {
        let part = part.trim_ascii();
        let mut halves = part.splitn(2, |&b| b == b'=');
        let name = halves.next().unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"domain") {
            continue;
        }
        if name.eq_ignore_ascii_case(b"path") {
            // The last one counts (RFC 6265, 5.3), so only the last one may be looked at.
            path = Some(halves.next().unwrap_or_default().trim_ascii());
            continue;
        }
        is_secure |= name.eq_ignore_ascii_case(b"secure");
        out.extend_from_slice(b"; ");
        out.extend_from_slice(part);
    }
    let inside = path
        .and_then(|path| std::str::from_utf8(path).ok())
        // Browsers compare it letter by letter, so it must not only lead here, but also look so.
        .filter(|path| path.starts_with(mount.outer()) && mount.contains(path));
    let path = match inside {
        Some(path) => Some(path),
        None if mount.shares_origin() => Some(mount.outer()),
        None => None,
    };
    if let Some(path) = path {
        out.extend_from_slice(b"; Path=");
        out.extend_from_slice(path.as_bytes());
    }
    if secure && !is_secure {
        out.extend_from_slice(b"; Secure");
    }
    // Only bytes of a valid header value and of a checked prefix were put together.
    HeaderValue::from_bytes(&out).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(cookie: &str, prefix: &str, secure: bool) -> String {
        let value = HeaderValue::from_str(cookie).expect("a value");
        let mount = if prefix == "/" {
            Mount::root()
        } else {
            Mount::keep(prefix).expect("a prefix")
        };
        let out = rewrite_set_cookie(&value, &mount, secure);
        out.to_str().expect("ASCII").to_owned()
    }

    #[test]
    fn cookies_are_confined_to_their_worker() {
        let table = [
            ("cockpit=a; Path=/", "cockpit=a; Path=/w1/"),
            (
                "cockpit=deleted; PATH=/; Secure; HttpOnly",
                "cockpit=deleted; Secure; HttpOnly; Path=/w1/",
            ),
            ("a=b", "a=b; Path=/w1/"),
            (
                "a=b; path=/w1/sub; Max-Age=3",
                "a=b; Max-Age=3; Path=/w1/sub",
            ),
            ("a=b; path=/w2/; DOMAIN=.example.org", "a=b; Path=/w1/"),
            ("a=b; Path=/w1/; Path=/", "a=b; Path=/w1/"),
            ("a=b; Path=/w1/../w2/", "a=b; Path=/w1/"),
            ("a=b; Path=/w2/../w1/", "a=b; Path=/w1/"),
            ("a=b; Path", "a=b; Path=/w1/"),
            (
                "a=b;Path=/w10/ ;SameSite=Lax",
                "a=b; SameSite=Lax; Path=/w1/",
            ),
        ];
        for (given, wanted) in table {
            assert_eq!(rewritten(given, "/w1/", false), wanted, "{given}");
        }
    }

    #[test]
    fn the_last_of_several_paths_decides() {
        assert_eq!(
            rewritten("a=b; Path=/; Path=/w1/x", "/w1/", false),
            "a=b; Path=/w1/x"
        );
    }

    #[test]
    fn tls_outside_makes_cookies_secure_once() {
        assert_eq!(rewritten("a=b", "/w1/", true), "a=b; Path=/w1/; Secure");
        assert_eq!(
            rewritten("a=b; SECURE", "/w1/", true),
            "a=b; SECURE; Path=/w1/"
        );
    }

    #[test]
    fn an_origin_of_its_own_keeps_the_path_and_loses_the_domain() {
        assert_eq!(
            rewritten("a=b; Path=/x; Domain=example.org", "/", false),
            "a=b; Path=/x"
        );
        assert_eq!(rewritten("a=b", "/", false), "a=b");
    }
}
