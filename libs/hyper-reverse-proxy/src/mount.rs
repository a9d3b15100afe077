//! Where an upstream appears in the outside URL space, and how paths are mapped.

use std::borrow::Cow;

use http::HeaderValue;
use http::uri::PathAndQuery;

use crate::error::BadRequest;

/// Where an upstream appears: under `outer` outside, under `inner` at the upstream itself.
///
/// Upstreams that share an origin are kept apart by their outer prefix: cookies are confined to
/// it and redirects stay in it. With an origin of its own an upstream is mounted at `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    outer: Box<str>,
    inner: Box<str>,
    /// `X-Forwarded-Prefix`: the outer prefix without its last slash; `None` at the root.
    header: Option<HeaderValue>,
}

/// The text is not a path prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a path prefix: it has to start and end with '/' and to be plain ASCII")]
pub struct InvalidPrefix(String);

fn checked(prefix: &str) -> Result<Box<str>, InvalidPrefix> {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b';' | b',' | b'"');
    if prefix.starts_with('/') && prefix.ends_with('/') && prefix.bytes().all(plain) {
        Ok(prefix.into())
    } else {
        Err(InvalidPrefix(prefix.to_owned()))
    }
}

impl Mount {
    /// An upstream with an origin of its own; paths pass as they are.
    pub fn root() -> Self {
        Self {
            outer: "/".into(),
            inner: "/".into(),
            header: None,
        }
    }

    /// An upstream that knows its outside prefix and expects it in the path.
    pub fn keep(prefix: &str) -> Result<Self, InvalidPrefix> {
        Self::map(prefix, prefix)
    }

    /// An upstream that knows nothing of its outside prefix, which is taken off.
    pub fn strip(prefix: &str) -> Result<Self, InvalidPrefix> {
        Self::map(prefix, "/")
    }

    /// Takes `outer` off and puts `inner` in its place.
    pub fn map(outer: &str, inner: &str) -> Result<Self, InvalidPrefix> {
        let (outer, inner) = (checked(outer)?, checked(inner)?);
        let header = match outer.trim_end_matches('/') {
            "" => None,
            bare => {
                Some(HeaderValue::from_str(bare).map_err(|_| InvalidPrefix(outer.clone().into()))?)
            }
        };
        Ok(Self {
            outer,
            inner,
            header,
        })
    }

    /// The prefix outside; starts and ends with `/`.
    pub fn outer(&self) -> &str {
        &self.outer
    }

    /// Whether other upstreams live under the same origin.
    pub fn shares_origin(&self) -> bool {
        self.outer.len() > 1
    }

    /// The value of `X-Forwarded-Prefix`, when there is one to send.
    pub fn forwarded_prefix(&self) -> Option<&HeaderValue> {
        self.header.as_ref()
    }

    /// Whether `path` lies inside the outer prefix, once its dot segments are resolved.
    pub fn contains(&self, path: &str) -> bool {
        if self.outer.len() == 1 {
            return path.starts_with('/');
        }
        normalised(path).starts_with(&*self.outer)
    }

    /// The target to ask the upstream for, or `None` when the path passes as it is.
    ///
    /// Fails when the path does not lie under the outer prefix.
    pub fn rewrite(&self, target: &PathAndQuery) -> Result<Option<PathAndQuery>, BadRequest> {
        let rest = target
            .as_str()
            .strip_prefix(&*self.outer)
            .ok_or(BadRequest::Target)?;
        if self.outer == self.inner {
            return Ok(None);
        }
        let mut path = String::with_capacity(self.inner.len() + rest.len());
        path.push_str(&self.inner);
        path.push_str(rest);
        PathAndQuery::try_from(path)
            .map(Some)
            .map_err(|_| BadRequest::Target)
    }
}

/// `path` without dot segments (RFC 3986, 5.2.4), read as browsers do: `%2e` is a dot and `\` a
/// slash. Borrowed when there was nothing to resolve.
pub(crate) fn normalised(path: &str) -> Cow<'_, str> {
    let suspicious = path.contains("/.")
        || path.contains('\\')
        || path.contains("%2e")
        || path.contains("%2E")
        || path.contains(['\t', '\n', '\r']);
    if !suspicious {
        return Cow::Borrowed(path);
    }
    let end = path.find(['?', '#']).unwrap_or(path.len());
    let (path, rest) = path.split_at(end);
    let path = path
        .replace(['\t', '\n', '\r'], "")
        .replace('\\', "/")
        .replace("%2e", ".")
        .replace("%2E", ".");
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    Cow::Owned(format!("/{}{rest}", kept.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(mount: &Mount, target: &str) -> String {
        let target: PathAndQuery = target.parse().expect("a target");
        mount
            .rewrite(&target)
            .expect("inside the prefix")
            .unwrap_or(target)
            .to_string()
    }

    #[test]
    fn paths_keep_or_lose_their_prefix_and_always_keep_their_query() {
        let keep = Mount::keep("/w1/").expect("a prefix");
        assert_eq!(rewritten(&keep, "/w1/a?b=c=d&e"), "/w1/a?b=c=d&e");
        let strip = Mount::strip("/w1/s/app/").expect("a prefix");
        assert_eq!(rewritten(&strip, "/w1/s/app/x/y?q=/w1/"), "/x/y?q=/w1/");
        assert_eq!(rewritten(&strip, "/w1/s/app/?q"), "/?q");
        let map = Mount::map("/", "/w1/").expect("prefixes");
        assert_eq!(rewritten(&map, "/ping?x"), "/w1/ping?x");
    }

    #[test]
    fn a_path_outside_the_prefix_is_refused() {
        let keep = Mount::keep("/w1/").expect("a prefix");
        for path in ["/w10/", "/w1", "/", "/w2/w1/"] {
            let target: PathAndQuery = path.parse().expect("a target");
            assert_eq!(keep.rewrite(&target), Err(BadRequest::Target), "{path}");
        }
    }

    #[test]
    fn prefixes_must_begin_and_end_with_a_slash() {
        for text in ["", "w1", "/w1", "w1/", "/w 1/", "/w;1/", "/w\u{e9}/"] {
            assert!(Mount::keep(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn dot_segments_do_not_lead_out_of_the_prefix_unnoticed() {
        let mount = Mount::keep("/w1/").expect("a prefix");
        for inside in ["/w1/", "/w1/a/../b", "/w1/..a/", "/w1/?x=/../../w2/"] {
            assert!(mount.contains(inside), "{inside}");
        }
        for outside in [
            "/w1/..",
            "/w1/../w2/",
            "/w1/%2e%2E/w2/",
            "/w1/.%2e/w2",
            "/w1/..\\w2/",
            "/w1/a/../../w2/",
            "/w1/.\t./w2/",
            "/w1",
            "/w11/",
            "w1/",
        ] {
            assert!(!mount.contains(outside), "{outside}");
        }
    }
}
