//! HTTP for tests: `curl` as a person would type it, and one request over a plain socket where the
//! time of a process start would count.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::child::Spec;
use crate::lab::Host;

const CODE: &str = "\nhttp-code: ";

/// A call of curl.
#[derive(Debug, Clone)]
pub struct Curl(Spec, Duration);

/// What curl got.
#[derive(Debug, Clone)]
pub struct CurlReply {
    /// curl's exit code; 0 when there was an HTTP answer.
    pub exit: Option<i32>,
    /// The HTTP status; 0 when there was none.
    pub status: u16,
    /// The body, and with `-i` the headers ahead of it.
    pub body: String,
    /// What curl complained about.
    pub stderr: String,
}

impl Curl {
    /// curl, silent but for errors, with a limit of 30 s.
    pub fn new() -> Self {
        let spec = Spec::new("curl")
            .args(["-sS", "--max-time", "30", "--noproxy", "", "-w"])
            .arg(format!("{CODE}%{{http_code}}"))
            .env_remove("http_proxy")
            .env_remove("all_proxy");
        Self(spec, Duration::from_secs(40))
    }

    /// One more argument.
    #[must_use]
    pub fn arg(self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        Self(self.0.arg(arg), self.1)
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<std::ffi::OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        Self(self.0.args(args), self.1)
    }

    /// Another time limit than 30 s.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        let seconds = limit.as_secs().max(1).to_string();
        Self(
            self.0.args(["--max-time", &seconds]),
            limit + Duration::from_secs(10),
        )
    }

    /// On a host of a lab.
    #[must_use]
    pub fn on(self, host: Option<&Host>) -> Self {
        match host {
            Some(host) => Self(self.0.host(host), self.1),
            None => self,
        }
    }

    /// The process to start, for callers that want it in the background.
    pub fn into_spec(self) -> Spec {
        self.0
    }

    /// Fetches `url`.
    pub fn get(self, url: impl AsRef<str>) -> anyhow::Result<CurlReply> {
        let ran = self.0.arg(url.as_ref()).run(self.1)?;
        let (body, code) = ran.stdout.rsplit_once(CODE).unwrap_or((&ran.stdout, "0"));
        Ok(CurlReply {
            exit: ran.code,
            status: code.trim().parse().unwrap_or(0),
            body: body.to_owned(),
            stderr: ran.stderr,
        })
    }
}

impl Default for Curl {
    fn default() -> Self {
        Self::new()
    }
}

impl CurlReply {
    /// The body of a 200.
    pub fn ok(self) -> anyhow::Result<String> {
        anyhow::ensure!(
            self.status == 200,
            "HTTP status {} (curl exit {:?}): {}{}",
            self.status,
            self.exit,
            self.stderr,
            self.body
        );
        Ok(self.body)
    }
}

/// The answer to [`http_get`].
#[derive(Debug, Clone)]
pub struct HttpReply {
    /// The status.
    pub status: u16,
    /// Header names in lower case, and values, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpReply {
    /// The first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One GET over a new connection (RFC 9112), without the start of a process.
pub fn http_get(
    addr: SocketAddr,
    host: &str,
    path: &str,
    limit: Duration,
) -> anyhow::Result<HttpReply> {
    let mut stream = TcpStream::connect_timeout(&addr, limit).context("connect")?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_nodelay(true)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .context("read the status line")?;
    let status = line
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("not a status line: {line:?}"))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).context("read a header")?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut reply = HttpReply {
        status,
        headers,
        body: Vec::new(),
    };
    if reply
        .header("transfer-encoding")
        .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    {
        reply.body = chunked(&mut reader)?;
    } else if let Some(length) = reply.header("content-length") {
        let length = length.parse().context("read Content-Length")?;
        reader.take(length).read_to_end(&mut reply.body)?;
        anyhow::ensure!(reply.body.len() as u64 == length, "the body was cut short");
    } else {
        reader.read_to_end(&mut reply.body)?;
    }
    Ok(reply)
}

fn chunked(reader: &mut impl std::io::BufRead) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let Ok(size) = u64::from_str_radix(size, 16) else {
            bail!("not a chunk size: {line:?}");
        };
        reader.take(size).read_to_end(&mut body)?;
        line.clear();
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(answer: &'static [u8]) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let addr = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).expect("reads");
            stream.write_all(answer).expect("writes");
        });
        addr
    }

    #[test]
    fn chunked_and_sized_bodies_are_read() {
        let limit = Duration::from_secs(5);
        let chunked: &[u8] =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let reply = http_get(served(chunked), "x", "/", limit).expect("answer");
        assert_eq!((reply.status, reply.text().as_str()), (200, "abcde"));
        let sized: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nX-A: b\r\n\r\nno";
        let reply = http_get(served(sized), "x", "/", limit).expect("answer");
        assert_eq!((reply.status, reply.header("x-a")), (404, Some("b")));
    }

    #[test]
    fn a_body_that_is_cut_short_is_an_error() {
        let short: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nno";
        assert!(http_get(served(short), "x", "/", Duration::from_secs(5)).is_err());
    }

    #[test]
    fn curl_tells_status_and_body_apart() {
        if !crate::needs(&[crate::Need::Program("curl")]) {
            return;
        }
        let addr = served(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        let body = Curl::new()
            .get(format!("http://{addr}/"))
            .and_then(CurlReply::ok);
        assert_eq!(body.expect("answer"), "hello");
        let refused = Curl::new().get("http://127.0.0.1:1/").expect("runs");
        assert_eq!((refused.exit, refused.status), (Some(7), 0));
    }
}
