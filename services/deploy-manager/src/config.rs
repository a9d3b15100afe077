//! What a deploy-manager can be configured with.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use mesh_daemon::{AdminConfig, Faults, LogConfig, Secret, Settings, ShutdownConfig};
use mesh_types::NetworkName;
use serde::{Deserialize, Serialize};

/// The admin endpoint's port unless configured otherwise.
const ADMIN_PORT: u16 = 9466;

mesh_daemon::settings! {
    /// The settings; every key has a default.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Holds one identity per network, in `network-<name>`.
        #[setting(default = "/var/lib/mesh/deploy-manager for root, else mesh/deploy-manager in $XDG_DATA_HOME")]
        pub state_dir: PathBuf,
        /// Files with join tokens, one for each network; read while fewer networks were joined.
        #[setting(secret_file)]
        pub token_file: Vec<PathBuf>,
        /// The gRPC listener.
        pub server: ServerConfig,
        /// The SOCKS5 listeners.
        pub socks: SocksConfig,
        /// The underlay sockets.
        pub wireguard: WireguardConfig,
        /// Health and metrics; absent in a process that has an admin endpoint already.
        pub admin: Option<AdminConfig>,
        /// The log.
        pub log: LogConfig,
        /// How it stops.
        pub shutdown: ShutdownConfig,
    }
}

mesh_daemon::settings! {
    /// The gRPC listener.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct ServerConfig {
        /// Where operators reach `DeployService`; port 0 takes any free one.
        pub listen: SocketAddr,
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8082).into(),
        }
    }
}

mesh_daemon::settings! {
    /// The SOCKS5 listeners: one per network.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct SocksConfig {
        /// Where the network `default` is served; port 0 takes any free one.
        pub listen: SocketAddr,
        /// Where other networks are served, by their names; those not listed here take any free port
        /// on the address of `listen`.
        pub networks: BTreeMap<String, SocketAddr>,
        /// Asked of every client when it is not empty; then any local user may connect who knows it.
        pub user: String,
        /// Goes with `user`.
        pub password: Secret,
    }
}

impl Default for SocksConfig {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 1080).into(),
            networks: BTreeMap::new(),
            user: String::new(),
            password: Secret::default(),
        }
    }
}

impl SocksConfig {
    /// Where `network` is to be served.
    pub fn listen_of(&self, network: &NetworkName) -> SocketAddr {
        if let Some(addr) = self.networks.get(network.as_str()) {
            return *addr;
        }
        if network.is_default() {
            return self.listen;
        }
        SocketAddr::new(self.listen.ip(), 0)
    }
}

mesh_daemon::settings! {
    /// The underlay sockets.
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct WireguardConfig {
        /// Where WireGuard is bound, for each network; empty: any free port on every address. A fixed
        /// port serves one network only.
        pub listen: Vec<SocketAddr>,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: mesh_daemon::default_state_dir("deploy-manager"),
            token_file: Vec::new(),
            server: ServerConfig::default(),
            socks: SocksConfig::default(),
            wireguard: WireguardConfig::default(),
            admin: Some(AdminConfig::at(ADMIN_PORT)),
            log: LogConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

impl Settings for Config {
    fn validate(&self, faults: &mut Faults) {
        let socks = &self.socks;
        let has_password = !socks.user.is_empty() && !socks.password.is_empty();
        if socks.user.is_empty() != socks.password.is_empty() {
            faults.push(
                "socks.user",
                "user and password go together: set both or neither",
            );
        }
        if socks.user.len() > 255 || socks.password.expose().len() > 255 {
            faults.push(
                "socks.password",
                "SOCKS5 carries at most 255 bytes each (RFC 1929)",
            );
        }
        let listeners = std::iter::once(("socks.listen".to_owned(), socks.listen)).chain(
            socks
                .networks
                .iter()
                .map(|(name, addr)| (format!("socks.networks.{name}"), *addr)),
        );
        for (key, addr) in listeners {
            faults.require_unless_dev(
                addr.ip().is_loopback() || has_password,
                &key,
                "an address that is not loopback needs socks.user and socks.password_file: \
                 whoever reaches it reaches the whole network",
            );
        }
        for name in socks.networks.keys() {
            if let Err(error) = name.parse::<NetworkName>() {
                faults.push(&format!("socks.networks.{name}"), error.to_string());
            }
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
    use mesh_daemon::config::{ConfigArgs, Overrides, load_from};

    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Config, String> {
        let environment = pairs
            .iter()
            .map(|(key, value)| (format!("MESH_DEPLOY_MANAGER__{key}"), (*value).to_owned()));
        load_from(
            "deploy-manager",
            &ConfigArgs::default(),
            Overrides::new(),
            environment,
        )
        .map_err(|faults| faults.to_string())
    }

    #[test]
    fn an_open_listener_is_refused_without_a_password() {
        let open = [("SOCKS__LISTEN", "0.0.0.0:1080")];
        assert!(load(&open).unwrap_err().contains("not loopback"));
        let closed = [
            ("SOCKS__LISTEN", "0.0.0.0:1080"),
            ("SOCKS__USER", "me"),
            ("SOCKS__PASSWORD", "q8Zr1xV0bM4tYw2L"),
        ];
        assert!(load(&closed).is_ok());
        let half = [("SOCKS__USER", "me")];
        assert!(load(&half).unwrap_err().contains("go together"));
    }

    #[test]
    fn each_network_has_its_own_listener() {
        let mut config = SocksConfig::default();
        config
            .networks
            .insert("home".into(), "127.0.0.1:1081".parse().unwrap());
        let of = |name: &str| config.listen_of(&name.parse().unwrap()).to_string();
        assert_eq!(of("default"), "127.0.0.1:1080");
        assert_eq!(of("home"), "127.0.0.1:1081");
        assert_eq!(of("work"), "127.0.0.1:0");
    }
}
