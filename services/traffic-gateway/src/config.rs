//! What the gateway can be configured with.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use mesh_daemon::{AdminConfig, Faults, LogConfig, Settings, ShutdownConfig};
use mesh_node::{NodeConfig, RelayMode};
use serde::{Deserialize, Serialize};

mesh_daemon::settings! {
    /// The gateway's settings.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// One directory `network-<name>` for each network, and the control socket.
        #[setting(default = "/var/lib/mesh/traffic-gateway for root, else mesh/traffic-gateway in $XDG_DATA_HOME")]
        pub state_dir: PathBuf,
        /// Files with join tokens, one for each network; read while fewer networks were joined.
        #[setting(secret_file)]
        pub token_file: Vec<PathBuf>,
        /// The public side.
        pub server: ServerConfig,
        /// How long workers may take.
        pub limits: LimitsConfig,
        /// How packets of the overlays travel.
        pub wireguard: WireguardConfig,
        /// `/livez`, `/readyz`, `/metrics`; `None` when the process has an endpoint for all its roles.
        pub admin: Option<AdminConfig>,
        /// What is logged, and how.
        pub log: LogConfig,
        /// How long open requests may take to finish.
        pub shutdown: ShutdownConfig,
    }
}

mesh_daemon::settings! {
    /// The public side of the gateway.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct ServerConfig {
        /// Where browsers connect. Anything but loopback needs `tls`, a proxy of ours in front
        /// (`trusted_proxies`), or `published_on_loopback`: plain HTTP shows passwords to others.
        pub listen: SocketAddr,
        /// Threads that serve requests, each with its own upstream connections; 0 is one per core.
        pub threads: usize,
        /// Host names that are answered besides `localhost`, loopback addresses and the bound
        /// address: `gateway.example.org`, or with a port to allow that port only.
        pub allowed_hosts: Vec<String>,
        /// `<node>.<suffix>` and `<node>.<network>.<suffix>` lead to that node.
        pub host_suffixes: Vec<String>,
        /// Proxies of ours in front, whose `X-Forwarded-*` headers are believed: their own range.
        /// A public one wider than /8 (IPv6: /24) holds strangers as well and is refused.
        #[setting(form = "list of address ranges, such as 10.0.0.0/8")]
        pub trusted_proxies: Vec<IpNet>,
        /// Certificate and key, when the gateway is to speak TLS itself.
        pub tls: TlsFiles,
        /// In a container: `listen` is reached only through a port that is published on this
        /// machine's loopback, such as `127.0.0.1:8081:8081`. Plain HTTP is then answered, but only
        /// to private addresses and only for `localhost` and loopback addresses as host name, so
        /// that a port which is published for everybody by mistake answers nobody.
        pub published_on_loopback: bool,
        /// Set by `--dev`: plain HTTP for everybody.
        #[serde(skip)]
        pub dev: bool,
        /// The longest request head that is accepted, in bytes; at least 8192.
        pub max_head: usize,
        /// Client connections that may be open at a time, WebSockets included. When there are as many,
        /// those that have waited longest for a request make room for further ones; where all
        /// have one under way, those beyond are answered 503, or closed when the gateway speaks TLS
        /// itself. Each request under way and
        /// each WebSocket also takes a connection inside the worker's network, of 256 KiB; a
        /// network has memory for 2048 of them (512 MiB), and what is asked for beyond that is
        /// answered 503 `unreachable`. So more clients than that are for those who mostly wait.
        pub max_connections: usize,
    }
}

mesh_daemon::settings! {
    /// Certificate and key of the public side, both or none.
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct TlsFiles {
        /// PEM file with the certificate chain, own certificate first.
        pub certificate: Option<PathBuf>,
        /// PEM file with the private key.
        #[setting(secret_file)]
        pub key: Option<PathBuf>,
    }
}

mesh_daemon::settings! {
    /// How packets of the overlays travel; there is one mesh node for each network.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct WireguardConfig {
        /// UDP addresses to bind; port 0 takes any free one. The default network, or else the first
        /// one, gets the ports given here; further networks take any free port.
        pub listen: Vec<SocketAddr>,
        /// Further underlay addresses at which peers may try this machine.
        pub endpoints: Vec<SocketAddr>,
        /// Whether relays are used: `auto`, `only` or `off`.
        #[setting(form = "\"auto\", \"only\" or \"off\"")]
        pub relay: RelayMode,
    }
}

impl Default for WireguardConfig {
    fn default() -> Self {
        let node = NodeConfig::default();
        Self {
            listen: node.udp,
            endpoints: Vec::new(),
            relay: node.relay,
        }
    }
}

impl WireguardConfig {
    /// The node of one network.
    pub(crate) fn node(&self) -> NodeConfig {
        NodeConfig {
            udp: self.listen.clone(),
            extra_endpoints: self.endpoints.clone(),
            relay: self.relay,
            version: mesh_daemon::build_info::VERSION.to_owned(),
            ..NodeConfig::default()
        }
    }
}

mesh_daemon::settings! {
    /// How long workers may take.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct LimitsConfig {
        /// For answering a dial.
        #[serde(with = "mesh_daemon::config::duration")]
        pub connect: Duration,
        /// For beginning to answer a request. A stream that has begun has no deadline.
        #[serde(with = "mesh_daemon::config::duration")]
        pub first_byte: Duration,
        /// How long a connection to a worker is kept unused.
        #[serde(with = "mesh_daemon::config::duration")]
        pub idle: Duration,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: mesh_daemon::default_state_dir("traffic-gateway"),
            token_file: Vec::new(),
            server: ServerConfig::default(),
            limits: LimitsConfig::default(),
            wireguard: WireguardConfig::default(),
            admin: Some(AdminConfig::at(9465)),
            log: LogConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            threads: 0,
            allowed_hosts: Vec::new(),
            host_suffixes: vec!["localhost".to_owned()],
            trusted_proxies: Vec::new(),
            tls: TlsFiles::default(),
            published_on_loopback: false,
            dev: false,
            max_head: 64 * 1024,
            max_connections: 8192,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(60),
        }
    }
}

impl ServerConfig {
    /// Whether the gateway speaks TLS itself.
    pub fn has_tls(&self) -> bool {
        self.tls.certificate.is_some()
    }

    /// Whether `peer` is a proxy of ours.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|net| net.contains(&peer))
    }

    /// Whether plain HTTP is nothing for `peer`: from anywhere but loopback and the proxies of
    /// ours it sends passwords in the clear.
    pub(crate) fn refuses_plain(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        let mapped = self.published_on_loopback && is_private(peer);
        !self.dev && !peer.is_loopback() && !mapped && !self.trusts(peer)
    }

    /// What only `--dev` accepts, as (key, text).
    pub(crate) fn dangers(&self) -> Vec<(&'static str, String)> {
        let mut dangers = Vec::new();
        for net in self.trusted_proxies.iter().filter(|net| is_too_wide(net)) {
            let text = format!(
                "{net} holds strangers too, whose X-Forwarded-* headers would be believed: name \
                 the range that your proxies are in, such as 10.0.0.0/24"
            );
            dangers.push(("server.trusted_proxies", text));
        }
        if self.has_tls() || self.listen.ip().is_loopback() {
            return dangers;
        }
        if self.trusted_proxies.is_empty() && !self.published_on_loopback {
            let text = format!(
                "plain HTTP on {} would send passwords in the clear: set server.tls.certificate \
                 and server.tls.key, name the proxy in front in server.trusted_proxies, or in a \
                 container whose port is published on loopback set server.published_on_loopback",
                self.listen
            );
            dangers.push(("server.listen", text));
        }
        let named = self
            .host_suffixes
            .iter()
            .any(|suffix| suffix.trim() != "localhost");
        if self.published_on_loopback && (named || !self.allowed_hosts.is_empty()) {
            let text = "other names than localhost would be served in the clear: take \
                        server.allowed_hosts and server.host_suffixes away, or set \
                        server.tls.certificate and server.tls.key";
            dangers.push(("server.published_on_loopback", text.to_owned()));
        }
        dangers
    }

    /// What is wrong, as (key, text).
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            let text = "TLS needs both server.tls.certificate and server.tls.key".to_owned();
            faults.push(("server.tls", text));
        }
        if self.max_connections == 0 {
            faults.push(("server.max_connections", "must be at least 1".to_owned()));
        }
        if self.max_head < 8192 {
            faults.push(("server.max_head", "must be at least 8192".to_owned()));
        }
        let is_name = |text: &str| {
            !text.is_empty() && !text.contains(['/', '*', ' ', '@']) && !text.starts_with('.')
        };
        for host in &self.allowed_hosts {
            if !is_name(host) {
                let text = format!("{host:?} is not a host name: write gateway.example.org");
                faults.push(("server.allowed_hosts", text));
            }
        }
        for suffix in &self.host_suffixes {
            if !is_name(suffix) || suffix.contains(':') {
                let text = format!("{suffix:?} is not a domain: write mesh.example.org");
                faults.push(("server.host_suffixes", text));
            }
        }
        faults
    }
}

/// Whether a range of proxies is wider than anybody's own, and not private as a whole. The widest
/// that a provider publishes for its proxies are a /12 and an IPv6 /29.
fn is_too_wide(net: &IpNet) -> bool {
    let least = match net {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 24,
    };
    net.prefix_len() < least && !(is_private(net.network()) && is_private(net.broadcast()))
}

/// Whether an address is one that no router of the internet knows.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

impl Settings for Config {
    fn validate(&self, faults: &mut Faults) {
        for (key, text) in self.server.faults() {
            faults.push(key, text);
        }
        for (key, text) in self.server.dangers() {
            faults.require_unless_dev(false, key, text);
        }
        for (key, limit) in [
            ("limits.connect", self.limits.connect),
            ("limits.first_byte", self.limits.first_byte),
            ("limits.idle", self.limits.idle),
        ] {
            faults.require(!limit.is_zero(), key, "must be longer than nothing");
        }
        if let Some(admin) = &self.admin {
            admin.validate(faults);
        }
    }

    fn admin(&self) -> Option<&AdminConfig> {
        self.admin.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(listen: &str) -> ServerConfig {
        ServerConfig {
            listen: listen.parse().expect("an address"),
            ..ServerConfig::default()
        }
    }

    #[test]
    fn plain_http_for_everybody_has_to_be_asked_for() {
        assert!(server("127.0.0.1:80").dangers().is_empty());
        assert!(server("[::1]:80").dangers().is_empty());
        assert_eq!(server("0.0.0.0:80").dangers()[0].0, "server.listen");
        let mut behind = server("0.0.0.0:80");
        behind.trusted_proxies = vec!["10.0.0.0/8".parse().expect("a net")];
        assert!(behind.dangers().is_empty());
        assert!(behind.trusts([10, 1, 2, 3].into()));
        assert!(!behind.trusts([11, 1, 2, 3].into()));
        for (peer, refused) in [
            ("11.1.2.3", true),
            ("2001:db8::1", true),
            ("10.1.2.3", false),
            ("::ffff:10.1.2.3", false),
            ("127.0.0.2", false),
            ("::ffff:127.0.0.1", false),
            ("::1", false),
        ] {
            let peer = peer.parse().expect("an address");
            assert_eq!(behind.refuses_plain(peer), refused, "{peer}");
        }
        behind.dev = true;
        assert!(!behind.refuses_plain([11, 1, 2, 3].into()));
        let mut tls = server("0.0.0.0:443");
        tls.tls.certificate = Some("c".into());
        assert_eq!(tls.faults()[0].0, "server.tls");
        tls.tls.key = Some("k".into());
        assert!(tls.faults().is_empty() && tls.dangers().is_empty());
    }

    #[test]
    fn a_port_published_on_loopback_serves_private_addresses_and_loopback_names_only() {
        let mut mapped = server("0.0.0.0:8081");
        mapped.published_on_loopback = true;
        assert!(mapped.dangers().is_empty());
        for (peer, refused) in [
            ("172.18.0.1", false),
            ("::ffff:172.18.0.1", false),
            ("fd00::1", false),
            ("127.0.0.1", false),
            ("203.0.113.7", true),
            ("2001:db8::1", true),
        ] {
            let peer = peer.parse().expect("an address");
            assert_eq!(mapped.refuses_plain(peer), refused, "{peer}");
        }
        mapped.allowed_hosts = vec!["gateway.example.org".into()];
        assert_eq!(mapped.dangers()[0].0, "server.published_on_loopback");
        mapped.allowed_hosts.clear();
        mapped.host_suffixes = vec!["mesh.example.org".into()];
        assert_eq!(mapped.dangers()[0].0, "server.published_on_loopback");
    }

    #[test]
    fn proxies_are_named_by_their_own_range_and_not_by_everybodys() {
        for (range, refused) in [
            ("0.0.0.0/0", true),
            ("::/0", true),
            ("128.0.0.0/1", true),
            ("10.0.0.0/7", true),
            ("2000::/3", true),
            ("fc00::/6", true),
            ("10.0.0.0/8", false),
            ("100.64.0.0/10", false),
            ("203.0.113.7/32", false),
            ("fc00::/7", false),
            ("2a06:98c0::/29", false),
        ] {
            // Nothing else may excuse it: neither TLS nor a listener on loopback.
            for listen in ["0.0.0.0:80", "127.0.0.1:80"] {
                let mut behind = server(listen);
                behind.trusted_proxies = vec![range.parse().expect("a net")];
                let found: Vec<_> = behind.dangers().into_iter().map(|(key, _)| key).collect();
                let wanted: &[&str] = if refused {
                    &["server.trusted_proxies"]
                } else {
                    &[]
                };
                assert_eq!(found, wanted, "{range}");
            }
        }
    }

    #[test]
    fn hosts_that_are_no_names_are_faults() {
        let mut bad = server("127.0.0.1:80");
        bad.allowed_hosts = vec!["http://x".into(), String::new(), "ok.example:81".into()];
        bad.host_suffixes = vec![".example".into(), "example".into()];
        assert_eq!(bad.faults().len(), 3);
    }
}
