//! What the relay can be configured with.

use std::net::SocketAddr;
use std::path::PathBuf;

use mesh_daemon::{AdminConfig, Faults, LogConfig, Settings, ShutdownConfig};
use serde::{Deserialize, Serialize};

mesh_daemon::settings! {
    /// The relay's settings.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// The relay's identity, its list of clients and its control socket.
        #[setting(default = "/var/lib/mesh/relay for root, else mesh/relay in $XDG_DATA_HOME")]
        pub state_dir: PathBuf,
        /// File with a join token, read when the relay has not joined yet.
        #[setting(secret_file)]
        pub token_file: Option<PathBuf>,
        /// DERP over TLS.
        pub server: ServerConfig,
        /// STUN.
        pub stun: StunConfig,
        /// Where nodes are told to find the relay.
        pub advertise: AdvertiseConfig,
        /// `/livez`, `/readyz`, `/metrics`; `None` when the process has an endpoint for all its roles.
        pub admin: Option<AdminConfig>,
        /// What is logged, and how.
        pub log: LogConfig,
        /// How a shutdown goes.
        pub shutdown: ShutdownConfig,
    }
}

mesh_daemon::settings! {
    /// DERP over TLS.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct ServerConfig {
        /// Where nodes connect.
        pub listen: SocketAddr,
    }
}

mesh_daemon::settings! {
    /// STUN (RFC 8489).
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct StunConfig {
        /// Where nodes ask for their public address.
        pub listen: SocketAddr,
    }
}

mesh_daemon::settings! {
    /// Where nodes are told to find the relay.
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct AdvertiseConfig {
        /// Host name or address; the ports are those that were bound. Without it the address that the
        /// relay listens on, or the one from which it reaches the coordinator.
        pub host: Option<String>,
        /// `host:port` of DERP, tried in order; instead of `host` where a port is mapped.
        pub derp: Vec<String>,
        /// `host:port` of STUN; instead of `host` where a port is mapped.
        pub stun: Vec<String>,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: mesh_daemon::default_state_dir("relay"),
            token_file: None,
            server: ServerConfig::default(),
            stun: StunConfig::default(),
            advertise: AdvertiseConfig::default(),
            admin: Some(AdminConfig::at(9468)),
            log: LogConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
        }
    }
}

impl Default for StunConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 3478)),
        }
    }
}

impl Settings for Config {
    fn validate(&self, faults: &mut Faults) {
        for (key, addrs) in [
            ("advertise.derp", &self.advertise.derp),
            ("advertise.stun", &self.advertise.stun),
        ] {
            for addr in addrs {
                let text = format!("{addr:?} is not host:port: write relay.example.org:8443");
                faults.require(is_host_and_port(addr), key, text);
            }
        }
        if let Some(host) = &self.advertise.host {
            let text = format!("{host:?} is not a host name or address");
            let plain = !host.is_empty() && !host.contains(['/', ' ', '@']);
            faults.require(plain, "advertise.host", text);
        }
        if let Some(admin) = &self.admin {
            admin.validate(faults);
        }
    }

    fn admin(&self) -> Option<&AdminConfig> {
        self.admin.as_ref()
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|p| p > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertised_addresses_need_host_and_port() {
        for good in [
            "relay.example.org:8443",
            "192.0.2.1:1",
            "[2001:db8::1]:8443",
        ] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in [
            "relay.example.org",
            ":8443",
            "relay:0",
            "https://relay:8443",
            "a b:1",
        ] {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
