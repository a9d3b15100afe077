//! Which host names the gateway answers to, and which origins may open a WebSocket. Pure.
//!
//! Without this a page of any site could reach a gateway on loopback under a name of its own
//! (DNS rebinding), or open a WebSocket with the user's cookies.

use std::net::IpAddr;

use hyper_reverse_proxy::Scheme;

use crate::route_table::NodeHost;

/// The host names that are answered.
#[derive(Debug, Clone)]
pub struct Hosts {
    /// Lower case; with a port only when that port is meant.
    allowed: Vec<String>,
    /// Lower case, each with a leading dot.
    suffixes: Vec<String>,
}

/// What a `Host` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKind {
    /// The gateway itself.
    Gateway,
    /// A node.
    Node(NodeHost),
    /// Nothing of ours: 421.
    Unknown,
}

impl Hosts {
    /// `allowed` besides the loopback names and `bound`, the address that is listened on.
    pub fn new(allowed: &[String], suffixes: &[String], bound: IpAddr) -> Self {
        let lower = |text: &String| text.trim().trim_end_matches('.').to_ascii_lowercase();
        let mut allowed: Vec<String> = allowed.iter().map(lower).collect();
        allowed.extend(["localhost", "127.0.0.1", "[::1]"].map(str::to_owned));
        if !bound.is_unspecified() {
            allowed.push(host_of(bound));
        }
        let suffixes = suffixes.iter().map(|s| format!(".{}", lower(s))).collect();
        Self { allowed, suffixes }
    }

    /// What `host`, a `Host` header, stands for on a connection that came in at address `local`.
    pub fn classify(&self, host: &str, local: Option<IpAddr>) -> HostKind {
        let lowered;
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            lowered = host.to_ascii_lowercase();
            &lowered
        } else {
            host
        };
        let Some(name) = name_of(host) else {
            return HostKind::Unknown;
        };
        if self
            .allowed
            .iter()
            .any(|allowed| allowed == name || allowed == host)
        {
            return HostKind::Gateway;
        }
        for suffix in &self.suffixes {
            if let Some(labels) = name.strip_suffix(suffix.as_str()) {
                return node_of(labels).map_or(HostKind::Unknown, HostKind::Node);
            }
        }
        // An address as host name cannot be rebound, so the one the connection came in at is ours.
        let literal = name.trim_start_matches('[').trim_end_matches(']');
        match (literal.parse::<IpAddr>(), local) {
            (Ok(named), Some(local)) if named == local.to_canonical() => HostKind::Gateway,
            _ => HostKind::Unknown,
        }
    }
}

/// `worker` or `worker.network`.
fn node_of(labels: &str) -> Option<NodeHost> {
    let mut parts = labels.split('.');
    let node = parts.next().filter(|node| !node.is_empty())?;
    let network = parts.next();
    if parts.next().is_some() || network.is_some_and(str::is_empty) {
        return None;
    }
    Some(NodeHost {
        node: node.to_owned(),
        network: network.map(str::to_owned),
    })
}

/// The host as it stands in a URL.
pub(crate) fn host_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// The name without port and last dot; `None` when the text is no host at all.
fn name_of(host: &str) -> Option<&str> {
    let (name, port) = split_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    (!name.is_empty() && port.is_none_or(digits)).then_some(name)
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether `origin`, an `Origin` header (RFC 6454, 7), is that of a page from `host` itself.
pub fn origin_matches(origin: &[u8], host: &str, scheme: Scheme) -> bool {
    let Ok(origin) = std::str::from_utf8(origin) else {
        return false;
    };
    let Some((origin_scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let (default, other) = match scheme {
        Scheme::Http => ("80", "http"),
        Scheme::Https => ("443", "https"),
    };
    if !origin_scheme.eq_ignore_ascii_case(other) {
        return false;
    }
    let (name, port) = split_port(authority);
    let (host, host_port) = split_port(host);
    name.eq_ignore_ascii_case(host) && port.unwrap_or(default) == host_port.unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Hosts {
        Hosts::new(
            &["Gateway.Example.org".into(), "other.example:8443".into()],
            &["localhost".into(), "mesh.example.org".into()],
            [192, 0, 2, 1].into(),
        )
    }

    fn node(node: &str, network: Option<&str>) -> HostKind {
        HostKind::Node(NodeHost {
            node: node.into(),
            network: network.map(Into::into),
        })
    }

    #[test]
    fn hosts_are_ours_a_nodes_or_nobodys() {
        let cases = [
            ("localhost", HostKind::Gateway),
            ("LOCALHOST:8081", HostKind::Gateway),
            ("localhost.:8081", HostKind::Gateway),
            ("127.0.0.1:1", HostKind::Gateway),
            ("[::1]", HostKind::Gateway),
            ("[::1]:8081", HostKind::Gateway),
            ("192.0.2.1:8081", HostKind::Gateway),
            ("gateway.example.org", HostKind::Gateway),
            ("gateway.example.org:80", HostKind::Gateway),
            ("other.example:8443", HostKind::Gateway),
            ("other.example", HostKind::Unknown),
            ("other.example:80", HostKind::Unknown),
            ("worker-node-1.localhost:8081", node("worker-node-1", None)),
            (
                "Worker-Node-1.Mesh.Example.ORG",
                node("worker-node-1", None),
            ),
            ("w.lab.localhost", node("w", Some("lab"))),
            ("a.b.c.localhost", HostKind::Unknown),
            (".localhost", HostKind::Unknown),
            ("evil.example", HostKind::Unknown),
            ("localhost.evil.example", HostKind::Unknown),
            ("evil-localhost", HostKind::Unknown),
            ("localhost:8081:80", HostKind::Unknown),
            ("localhost:", HostKind::Unknown),
            ("198.51.100.1", HostKind::Unknown),
            ("", HostKind::Unknown),
            (":8081", HostKind::Unknown),
        ];
        for (host, wanted) in cases {
            assert_eq!(hosts().classify(host, None), wanted, "{host:?}");
        }
    }

    #[test]
    fn the_address_that_a_connection_came_in_at_is_ours() {
        let local = Some([10, 0, 0, 5].into());
        assert_eq!(hosts().classify("10.0.0.5:8081", local), HostKind::Gateway);
        assert_eq!(hosts().classify("10.0.0.6:8081", local), HostKind::Unknown);
    }

    #[test]
    fn only_a_page_from_the_same_origin_may_open_a_websocket() {
        let ok = |origin: &str, host, scheme| origin_matches(origin.as_bytes(), host, scheme);
        assert!(ok("http://localhost:8081", "localhost:8081", Scheme::Http));
        assert!(ok("http://LocalHost", "localhost:80", Scheme::Http));
        assert!(ok("https://gw.example", "gw.example", Scheme::Https));
        assert!(ok("https://gw.example:443", "gw.example", Scheme::Https));
        for bad in [
            "null",
            "",
            "http://localhost",
            "http://localhost:8082",
            "https://localhost:8081",
            "http://evil.example",
            "http://localhost:8081.evil.example",
            "localhost:8081",
            "http://worker-node-1.localhost:8081",
        ] {
            assert!(!ok(bad, "localhost:8081", Scheme::Http), "{bad}");
        }
    }
}
