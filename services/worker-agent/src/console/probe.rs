//! Looks whether Cockpit answers on loopback, and for which path.
//!
//! Never asks for the prefix without its slash: that request aborts cockpit-ws 287.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ini;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(3);
/// More of an answer is not read.
const ANSWER_MAX: usize = 16 * 1024;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// Cockpit serves the prefix.
    Cockpit,
    /// Cockpit is there, and serves another path.
    OtherUrlRoot,
    /// Nothing is there, or something else.
    Absent,
}

/// Asks at `addr` for the prefix's `ping`, which Cockpit answers without a login.
pub(super) async fn probe(addr: SocketAddr, prefix: &str, conf: &Path) -> Probe {
    let Some(answer) = ask(addr, &format!("{prefix}ping")).await else {
        return Probe::Absent;
    };
    if answer.is_cockpit_ping() {
        return Probe::Cockpit;
    }
    if ask(addr, "/ping")
        .await
        .is_some_and(|answer| answer.is_cockpit_ping())
    {
        return Probe::OtherUrlRoot;
    }
    // For any path but its own, Cockpit only says 404: its own settings or manner give it away.
    let configured = tokio::fs::read_to_string(conf).await.ok();
    let other_root = configured
        .as_deref()
        .and_then(|text| ini::value(text, "WebService", "UrlRoot"))
        .is_some_and(|root| root.trim_matches('/') != prefix.trim_matches('/'));
    if answer.status == 404 && (other_root || answer.is_cockpit_refusal()) {
        return Probe::OtherUrlRoot;
    }
    Probe::Absent
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        Some(Self {
            status,
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        })
    }

    /// `{ "service": "cockpit" }`, however framed.
    fn is_cockpit_ping(&self) -> bool {
        let json = self.body.find('{').zip(self.body.rfind('}'));
        let json = json.and_then(|(from, to)| self.body.get(from..=to));
        let value: Option<serde_json::Value> =
            json.and_then(|json| serde_json::from_str(json).ok());
        self.status == 200 && value.is_some_and(|value| value["service"] == "cockpit")
    }

    /// The headers that cockpit-ws puts on everything.
    fn is_cockpit_refusal(&self) -> bool {
        [
            "x-dns-prefetch-control: off",
            "cross-origin-resource-policy: same-origin",
        ]
        .iter()
        .all(|header| self.head.contains(header))
    }
}

/// `None` when nobody answers, or not in HTTP.
async fn ask(addr: SocketAddr, path: &str) -> Option<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut bytes = Vec::new();
        // cockpit-ws leaves the connection open all the same after some answers.
        while bytes.len() < ANSWER_MAX && !is_whole(&bytes) {
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                break;
            }
        }
        Answer::parse(&bytes)
    };
    tokio::time::timeout(LIMIT, exchange).await.ok()?
}

/// Whether nothing more is worth reading: of refusals the head is enough.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(answer) = Answer::parse(bytes) else {
        return false;
    };
    let length = answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|text| text.trim().parse::<usize>().ok());
    answer.status != 200 || length.is_some_and(|length| answer.body.len() >= length)
}
