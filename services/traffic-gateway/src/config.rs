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
        /// Where browsers connect. Plain HTTP on anything but loopback needs `trusted_proxies` or
        /// `dev`.
        pub listen: SocketAddr,
        /// Threads that serve requests, each with its own upstream connections; 0 is one per core.
        pub threads: usize,
        /// Host names that are answered besides `localhost`, loopback addresses and the bound
        /// address: `gateway.example.org`, or with a port to allow that port only.
        pub allowed_hosts: Vec<String>,
        /// `<node>.<suffix>` and `<node>.<network>.<suffix>` lead to that node.
        pub host_suffixes: Vec<String>,
        /// Proxies of ours in front, whose `X-Forwarded-*` headers are believed.
        #[setting(form = "list of address ranges, such as 10.0.0.0/8")]
        pub trusted_proxies: Vec<IpNet>,
        /// Certificate and key, when the gateway is to speak TLS itself.
        pub tls: TlsFiles,
        /// Accepts what is unsafe in production: plain HTTP for everybody.
        pub dev: bool,
        /// The longest request head that is accepted, in bytes; at least 8192.
        pub max_head: usize,
        /// Client connections that may be open at a time, WebSockets included; those beyond are
        /// answered 503, or closed when the gateway speaks TLS itself.
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
        !self.dev && !peer.to_canonical().is_loopback() && !self.trusts(peer)
    }

    /// What is wrong, as (key, text).
    pub(crate) fn faults(&self, is_dev: bool) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let open = !self.listen.ip().is_loopback() && !self.has_tls();
        if open && self.trusted_proxies.is_empty() && !is_dev && !self.dev {
            let text = format!(
                "plain HTTP on {} would send passwords in the clear: set server.tls, name the \
                 proxy in front in server.trusted_proxies, or give --dev",
                self.listen
            );
            faults.push(("server.listen", text));
        }
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

impl Settings for Config {
    fn validate(&self, faults: &mut Faults) {
        for (key, text) in self.server.faults(faults.is_dev()) {
            faults.push(key, text);
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
        assert!(server("127.0.0.1:80").faults(false).is_empty());
        assert!(server("[::1]:80").faults(false).is_empty());
        assert_eq!(server("0.0.0.0:80").faults(false)[0].0, "server.listen");
        assert!(server("0.0.0.0:80").faults(true).is_empty());
        let mut behind = server("0.0.0.0:80");
        behind.trusted_proxies = vec!["10.0.0.0/8".parse().expect("a net")];
        assert!(behind.faults(false).is_empty());
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
        assert_eq!(tls.faults(false)[0].0, "server.tls");
        tls.tls.key = Some("k".into());
        assert!(tls.faults(false).is_empty());
    }

    #[test]
    fn hosts_that_are_no_names_are_faults() {
        let mut bad = server("127.0.0.1:80");
        bad.allowed_hosts = vec!["http://x".into(), String::new(), "ok.example:81".into()];
        bad.host_suffixes = vec![".example".into(), "example".into()];
        assert_eq!(bad.faults(false).len(), 3);
    }
}
