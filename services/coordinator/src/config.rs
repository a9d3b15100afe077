//! What the coordinator can be configured with.

mod bus;
mod store;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_daemon::{AdminConfig, Faults, LogConfig, Secret, Settings, ShutdownConfig};
use mesh_types::addr::{DEFAULT_OVERLAY_V4, DEFAULT_OVERLAY_V6};
use serde::{Deserialize, Serialize};

pub use self::bus::{BusConfig, BusTls};
pub use self::store::{StoreConfig, StoreTls};
use crate::rate::RateConfig;
use crate::seal::Sealer;
use crate::store::StoreUrl;

/// How many coordinator addresses fit into a join token.
const MAX_ADVERTISED: usize = 8;

mesh_daemon::settings! {
    /// The coordinator's settings.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Database, master key, lock and the first operator's credential; 0700.
        #[setting(default = "/var/lib/mesh/coordinator for root, else mesh/coordinator in $XDG_DATA_HOME")]
        pub state_dir: PathBuf,
        /// Seals the secrets in the database: 64 hexadecimal digits, as a rule from `master_key_file`.
        /// Empty: `master.key` in the state directory, made (0600) at the first start.
        pub master_key: Secret,
        /// The database.
        pub store: StoreConfig,
        /// What several coordinators share besides the database.
        pub bus: BusConfig,
        /// The TLS port.
        pub server: ServerConfig,
        /// Overlay address ranges; a range may be widened later, never moved.
        pub overlay: OverlayConfig,
        /// What callers may do at most.
        pub limits: LimitsConfig,
        /// `/livez`, `/readyz`, `/metrics`; absent: this process has them elsewhere.
        pub admin: Option<AdminConfig>,
        /// The log.
        pub log: LogConfig,
        /// How the coordinator ends.
        pub shutdown: ShutdownConfig,
    }
}

mesh_daemon::settings! {
    /// The TLS port for gRPC and HTTPS.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct ServerConfig {
        /// Where gRPC and HTTPS are served; port 0 takes any free one.
        pub listen: SocketAddr,
        /// `host:port` under which nodes find this coordinator, written into join tokens; 1 to 8.
        /// Empty: the bound address, or for 0.0.0.0 the address of the default route.
        pub advertise: Vec<String>,
        /// The most connections at once. When there are as many, those that no call has shown to be a
        /// member's and that have waited longest without one make room for further ones, which wait
        /// otherwise.
        pub max_connections: usize,
    }
}

mesh_daemon::settings! {
    /// Overlay address ranges.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct OverlayConfig {
        /// IPv4 range.
        #[setting(form = "IPv4 range, such as 100.64.0.0/10")]
        pub v4: Ipv4Net,
        /// IPv6 range.
        #[setting(form = "IPv6 range of a /48")]
        pub v6: Ipv6Net,
    }
}

mesh_daemon::settings! {
    /// What callers may do at most.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
    #[serde(default, deny_unknown_fields)]
    pub struct LimitsConfig {
        /// Joins and renewals from one source address (for IPv6: /64) that name neither a token
        /// that there is nor a member.
        pub anonymous: RateConfig,
        /// Joins by one token, and renewals of one member, from one source address.
        pub known: RateConfig,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: mesh_daemon::default_state_dir("coordinator"),
            master_key: Secret::default(),
            store: StoreConfig::default(),
            bus: BusConfig::default(),
            server: ServerConfig::default(),
            overlay: OverlayConfig::default(),
            limits: LimitsConfig::default(),
            admin: Some(AdminConfig::at(9464)),
            log: LogConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::UNSPECIFIED, 8080).into(),
            advertise: Vec::new(),
            max_connections: 20_000,
        }
    }
}

impl Default for OverlayConfig {
    fn default() -> Self {
        let (v4, v4_len) = DEFAULT_OVERLAY_V4;
        let (v6, v6_len) = DEFAULT_OVERLAY_V6;
        Self {
            v4: Ipv4Net::new(v4, v4_len).expect("10 is a prefix length of IPv4"),
            v6: Ipv6Net::new(v6, v6_len).expect("48 is a prefix length of IPv6"),
        }
    }
}

impl Settings for Config {
    fn validate(&self, faults: &mut Faults) {
        self.store.validate(faults);
        self.bus.validate(faults);
        let is_beside = matches!(self.store.url.parse(), Ok(StoreUrl::Postgres(_)));
        faults.require_unless_dev(
            !is_beside || !self.master_key.is_empty(),
            "master_key",
            "with Postgres the master key comes from outside: set master_key_file to a file made \
             with 'openssl rand -hex 32'",
        );
        let is_key =
            self.master_key.is_empty() || Sealer::from_text(self.master_key.expose()).is_ok();
        faults.require(
            is_key,
            "master_key",
            "64 hexadecimal digits are expected, as 'openssl rand -hex 32' gives them",
        );
        let addresses = &self.server.advertise;
        faults.require(
            addresses.len() <= MAX_ADVERTISED,
            "server.advertise",
            "at most 8 addresses fit into a join token",
        );
        for address in addresses {
            faults.require(
                is_host_and_port(address),
                "server.advertise",
                format!("{address:?} is not host:port, such as mesh.example.org:8080"),
            );
        }
        faults.require(
            self.server.max_connections > 0,
            "server.max_connections",
            "at least one connection is needed",
        );
        for (key, rate) in [
            ("limits.anonymous", self.limits.anonymous),
            ("limits.known", self.limits.known),
        ] {
            faults.require(
                rate.burst > 0 && rate.per_second > 0,
                key,
                "with 0 nobody could ever join",
            );
        }
        if let Some(admin) = &self.admin {
            admin.validate(faults);
        }
    }

    fn admin(&self) -> Option<&AdminConfig> {
        self.admin.as_ref()
    }
}

pub(crate) fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && text.len() <= 255
            && (host.starts_with('[') == host.contains(':'))
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// The addresses that join tokens carry, given what was bound.
pub(crate) fn advertised(config: &ServerConfig, bound: SocketAddr) -> Vec<String> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    let addr = if bound.ip().is_unspecified() {
        SocketAddr::new(default_route_address(bound.is_ipv6()), bound.port())
    } else {
        bound
    };
    vec![addr.to_string()]
}

/// The same before anything is bound; `None` when that takes a port which is not known yet.
pub(crate) fn advertised_unbound(config: &ServerConfig) -> Option<Vec<String>> {
    let is_known = !config.advertise.is_empty() || config.listen.port() != 0;
    is_known.then(|| advertised(config, config.listen))
}

/// The address that packets to the outside would leave from; nothing is sent. Loopback when
/// there is no route.
fn default_route_address(v6: bool) -> std::net::IpAddr {
    // Documentation addresses (RFC 5737, RFC 3849): connecting a UDP socket only asks for a route.
    let (from, to) = if v6 {
        ("[::]:0", "[2001:db8::1]:9")
    } else {
        ("0.0.0.0:0", "192.0.2.1:9")
    };
    let ask = |from: &str, to: &str| {
        let socket = std::net::UdpSocket::bind(from)?;
        socket.connect(to)?;
        socket.local_addr()
    };
    match ask(from, to).or_else(|_| ask("0.0.0.0:0", "192.0.2.1:9")) {
        Ok(addr) if !addr.ip().is_unspecified() => addr.ip(),
        _ if v6 => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_address_is_advertised_unless_others_are_given() {
        let bound = "127.0.0.1:4000".parse().expect("an address");
        assert_eq!(
            advertised(&ServerConfig::default(), bound),
            ["127.0.0.1:4000"]
        );
        let given = vec!["mesh.example.org:8080".to_owned()];
        let config = ServerConfig {
            advertise: given.clone(),
            ..ServerConfig::default()
        };
        assert_eq!(advertised(&config, bound), given);
    }

    #[test]
    fn an_unspecified_address_is_never_advertised() {
        for bound in ["0.0.0.0:4000", "[::]:4000"] {
            let bound = bound.parse().expect("an address");
            let addr: SocketAddr = advertised(&ServerConfig::default(), bound)[0]
                .parse()
                .expect("an address");
            assert!(!addr.ip().is_unspecified());
            assert_eq!(addr.port(), 4000);
        }
    }

    fn faults(sets: &[&str]) -> Vec<String> {
        let args = mesh_daemon::ConfigArgs {
            config: Some("/dev/null".into()),
            set: sets.iter().map(|set| (*set).to_owned()).collect(),
            ..mesh_daemon::ConfigArgs::default()
        };
        let environment = std::iter::empty();
        let loaded = mesh_daemon::config::load_from::<Config>(
            "coordinator",
            &args,
            mesh_daemon::Overrides::new(),
            environment,
        );
        let faults = loaded.err();
        let keys = faults.iter().flat_map(|faults| faults.keys());
        keys.map(str::to_owned).collect()
    }

    #[test]
    fn postgres_needs_a_master_key_from_outside_and_every_key_must_be_one() {
        let url = "store.url=postgres://mesh@127.0.0.1/mesh";
        let key = format!("master_key={}", "0123456789abcdef".repeat(4));
        assert_eq!(faults(&[url]), ["master_key"]);
        assert_eq!(faults(&[url, &key]), [""; 0]);
        assert_eq!(
            faults(&["master_key=abc"]).first().map(String::as_str),
            Some("master_key")
        );
    }

    #[test]
    fn a_bus_in_the_clear_stays_on_loopback_unless_that_is_meant() {
        for good in [
            &["bus.redis_url=redis://127.0.0.1:7000/1"][..],
            &["bus.redis_url=redis://redis", "bus.tls=private-network"],
            &["bus.redis_url=rediss://redis", "bus.tls=verify-full"],
        ] {
            assert_eq!(faults(good), [""; 0], "{good:?}");
        }
        for bad in [
            &["bus.redis_url=redis://redis"][..],
            &["bus.redis_url=redis://redis", "bus.tls=disable"],
            &["bus.redis_url=redis://127.0.0.1", "bus.tls=verify-full"],
            &["bus.redis_url=rediss://redis", "bus.tls=private-network"],
        ] {
            assert_eq!(faults(bad), ["bus.tls"], "{bad:?}");
        }
        assert_eq!(faults(&["bus.redis_url=http://redis"]), ["bus.redis_url"]);
        assert_eq!(faults(&["bus.tls=disable"]), ["bus.redis_url"]);
    }

    #[test]
    fn hosts_need_a_port() {
        for good in ["a:1", "mesh.example.org:8080", "[::1]:8080", "10.0.0.1:80"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in ["a", ":1", "a:0", "a:x", "::1:8080", "a:70000"] {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
