//! `Location` and `Content-Location` of upstreams behind a prefix (RFC 9110, 10.2.2).

use http::HeaderValue;
use url::{Position, Url};

use crate::headers::Scheme;
use crate::mount::Mount;

/// Stands for the host when nobody knows which one it is; no host has this name (RFC 6761, 6.4).
const NO_HOST: &str = "none.invalid";

/// The redirect as the browser may follow it, or `None` when it stays as it is.
///
/// A path outside the mount's prefix is moved under it. An absolute URL that names this very
/// origin (`host`, the request's `Host`) or the upstream's own address (`upstream`, or any
/// loopback address) is treated as the path in it; URLs of other sites stay. A URL is read as
/// browsers read it (WHATWG URL, 4.4): without its tabs, `\` as `/`, and `http:/x` as the path `/x`.
pub fn rewrite_location(
    value: &HeaderValue,
    mount: &Mount,
    scheme: Scheme,
    host: Option<&str>,
    upstream: Option<&str>,
) -> Option<HeaderValue> {
    let Ok(text) = std::str::from_utf8(value.as_bytes()) else {
        return header(mount.outer()).filter(|_| mount.shares_origin());
    };
    let page = |host| Url::parse(&format!("{}://{host}{}", scheme.as_str(), mount.outer()));
    let page = host
        .and_then(|host| page(host).ok())
        .or_else(|| page(NO_HOST).ok())?;
    let Ok(target) = page.join(text) else {
        // Nobody knows where a browser goes with it.
        return header(mount.outer()).filter(|_| mount.shares_origin());
    };
    if !matches!(target.scheme(), "http" | "https") {
        return None;
    }
    let ours = target.host() == page.host() && target.port() == page.port();
    if !ours && !is_upstream(&target, upstream) {
        return None;
    }
    let path = &target[Position::BeforePath..];
    if ours && mount.contains(path) {
        return None;
    }
    if ours && is_relative(text) {
        // One that climbs out of the prefix, and not by intent.
        return header(mount.outer());
    }
    header(&moved(path, mount))
}

/// Whether it goes on from where the page is.
fn is_relative(text: &str) -> bool {
    let text = text.trim_start_matches(|c| c <= ' ');
    !text.starts_with(['/', '\\']) && Url::parse(text).is_err()
}

/// Whether it leads to where the upstream is for us, and to something else for the browser.
fn is_upstream(target: &Url, upstream: Option<&str>) -> bool {
    let loopback = match target.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    let own = upstream.and_then(|own| Url::parse(&format!("{}://{own}", target.scheme())).ok());
    loopback || own.is_some_and(|own| own.origin() == target.origin())
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
            Scheme::Http,
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

    /// What browsers take for this very origin, however it is written.
    #[test]
    fn no_spelling_leads_to_another_worker() {
        let table = [
            ("http:/w2/", "/w1/w2/"),
            ("http:w1/../../w2/", "/w1/w2/"),
            ("http:///gw.test:8081/w2/", "/w1/w2/"),
            ("///gw.test:8081/w2/", "/w1/"),
            ("\\\\gw.test:8081\\w2/", "/w1/w2/"),
            ("/\\gw.test:8081/w2/", "/w1/w2/"),
            ("http://anna@gw.test:8081/w2/", "/w1/w2/"),
            ("http://gw.test:08081/w2/", "/w1/w2/"),
            ("http://gw%2Etest:8081/w2/", "/w1/w2/"),
            ("ht\ttp://gw.test:8081/w2/", "/w1/w2/"),
            ("http://0x7f.1:9090/a", "/w1/a"),
        ];
        for (given, wanted) in table {
            assert_eq!(followed(given), wanted, "{given}");
        }
    }
}
