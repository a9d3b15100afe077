//! One HTTP request, taken apart.

use std::collections::BTreeMap;

/// The head of a request, and its body once that is read.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// Reads a head of HTTP/1.1; `None`: it is none.
    pub(super) fn parse(head: &str) -> Option<Self> {
        let mut lines = head.lines();
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?);
        if first.next()? != "HTTP/1.1" {
            return None;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let query = pairs.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), value.to_owned())
        });
        let headers = lines.take_while(|line| !line.is_empty()).map(|line| {
            let (key, value) = line.split_once(':')?;
            Some((key.to_ascii_lowercase(), value.trim().to_owned()))
        });
        Some(Self {
            method,
            path: path.to_owned(),
            query: query.collect(),
            headers: headers.collect::<Option<_>>()?,
            body: Vec::new(),
        })
    }

    /// A header by its name in small letters; empty: there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_taken_apart() {
        let head = "PATCH /a/b?x=1&y= HTTP/1.1\r\nContent-Type: a/b\r\nHOST:  h:1\r\n\r\n";
        let request = Request::parse(head).expect("a head");
        assert_eq!((&*request.method, &*request.path), ("PATCH", "/a/b"));
        assert_eq!(request.query["x"], "1");
        assert_eq!(request.query["y"], "");
        assert_eq!(request.header("content-type"), "a/b");
        assert_eq!(request.header("host"), "h:1");
        assert_eq!(request.header("other"), "");
        for bad in [
            "",
            "GET /",
            "GET / HTTP/2",
            "GET / HTTP/1.1\r\nno header\r\n\r\n",
        ] {
            assert!(Request::parse(bad).is_none(), "{bad}");
        }
    }
}
