//! `Location` and `Content-Location` of upstreams behind a prefix (RFC 9110, 10.2.2).

use http::HeaderValue;
use url::{Position, Url};

use crate::headers::Scheme;
use crate::mount::Mount;

/// Stands for the host when nobody knows which one it is; no host has this name (RFC 6761, 6.4).
const NO_HOST: &str = "none.invalid";

/// The redirect as the browser may follow it, or `None` when it stays as it is.
///
/// A relative one goes on from `asked`, the path of the request outside (RFC 3986, 5.2). A path
/// outside the mount's prefix is moved under it: for the upstream the prefix is the root, and `..`
/// at the root stays there. An absolute URL that names this very origin (`host`, the request's
/// `Host`) or the upstream's own address (`upstream`, or any loopback address) is treated as the
/// path in it; URLs of other sites stay. A URL is read as browsers read it (WHATWG URL, 4.4):
/// without its tabs, `\` as `/`, and `http:/x` as the path `/x`.
pub fn rewrite_location(
    value: &HeaderValue,
    mount: &Mount,
    asked: &str,
    scheme: Scheme,
    host: Option<&str>,
    upstream: Option<&str>,
) -> Option<HeaderValue> {
    let Ok(text) = std::str::from_utf8(value.as_bytes()) else {
        return header(mount.outer()).filter(|_| mount.shares_origin());
    };
    let page = |host| Url::parse(&format!("{}://{host}{asked}", scheme.as_str()));
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
    header(&moved(path, mount))
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
    use proptest::prelude::*;

    use super::*;

    fn followed(location: &str) -> String {
        followed_from("/w1/", location)
    }

    /// What is left of a redirect in the answer to a request for `asked`.
    fn followed_from(asked: &str, location: &str) -> String {
        let mount = Mount::keep("/w1/").expect("a prefix");
        answered(&mount, asked, location)
    }

    fn answered(mount: &Mount, asked: &str, location: &str) -> String {
        let value = HeaderValue::from_str(location).expect("a value");
        rewrite_location(
            &value,
            mount,
            asked,
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
            ("../w2/", "/w1/w2/"),
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

    #[test]
    fn a_relative_redirect_goes_on_from_the_page_that_was_asked_for() {
        let table = [
            ("/w1/a/b/c", "../x", "../x"),
            ("/w1/a/b/c", "../../x?q=1#f", "../../x?q=1#f"),
            ("/w1/a", "./", "./"),
            // Out of the prefix: at the upstream's root `..` leads nowhere.
            ("/w1/a/b/c", "../../../x", "/w1/x"),
            ("/w1/a/b/c", "../../../../../x?q", "/w1/x?q"),
            ("/w1/a", "..", "/w1/"),
            ("/w1/a", "../w2/", "/w1/w2/"),
            // Out and in again.
            ("/w1/a", "../w1/x", "../w1/x"),
            // However the page itself was spelt.
            ("/w1/../w2/", "x", "/w1/w2/x"),
        ];
        for (asked, given, wanted) in table {
            assert_eq!(followed_from(asked, given), wanted, "{given} from {asked}");
        }
    }

    /// RFC 3986, 5.2.4, to the letter.
    fn without_dots(path: &str) -> String {
        let (mut input, mut output) = (path.to_owned(), String::new());
        while !input.is_empty() {
            if input.starts_with("/./") || input == "/." {
                input = format!("/{}", input.get(3..).unwrap_or_default());
            } else if input.starts_with("/../") || input == "/.." {
                input = format!("/{}", input.get(4..).unwrap_or_default());
                output.truncate(output.rfind('/').unwrap_or(0));
            } else {
                let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
                output.push_str(&input[..end]);
                input.replace_range(..end, "");
            }
        }
        output
    }

    /// The path that a relative path leads to from `page` (RFC 3986, 5.2.2 and 5.2.3).
    fn resolved(page: &str, relative: &str) -> String {
        if relative.starts_with('/') {
            return without_dots(relative);
        }
        let directory = page.rfind('/').map_or("/", |at| &page[..=at]);
        without_dots(&format!("{directory}{relative}"))
    }

    fn segments(of: &'static [&'static str]) -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(of), 0..6)
            .prop_map(|segments| segments.join("/"))
    }

    proptest! {
        /// The browser ends where the upstream means it to: what the redirect leads to from the
        /// page as the upstream sees it, below the prefix.
        #[test]
        fn a_relative_redirect_leads_where_it_leads_inside_the_mount(
            page in segments(&["a", "b", "c"]),
            relative in segments(&["..", ".", "a", "b", "w2", "..."]),
            slash: bool,
            keep: bool,
        ) {
            let relative = if slash { format!("{relative}/") } else { relative };
            prop_assume!(!relative.is_empty());
            let mount = if keep { Mount::keep("/w1/") } else { Mount::strip("/w1/") };
            let mount = mount.expect("a prefix");
            let asked = format!("/w1/{page}");
            let end = resolved(&asked, &answered(&mount, &asked, &relative));
            let inside = resolved(&format!("/{page}"), &relative);
            prop_assert_eq!(end, format!("/w1{inside}"), "{} from {}", relative, asked);
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
