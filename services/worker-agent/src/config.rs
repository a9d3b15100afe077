//! The agent's settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mesh_daemon::{AdminConfig, Faults, LogConfig, Settings, ShutdownConfig};
use mesh_node::RelayMode;
use mesh_node::tun::is_device_name;
use serde::{Deserialize, Serialize};

mesh_daemon::settings! {
    /// Everything that can be set.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Where this machine's identity is kept; absent: `/var/lib/mesh/worker-agent` for root, else
        /// `mesh/worker-agent` under the XDG data directory.
        pub state_dir: Option<PathBuf>,
        /// File with a join token, read when this machine has not joined yet.
        #[setting(secret_file)]
        pub token_file: Option<PathBuf>,
        /// Where the coordinator is, `host:port` each; empty: as the join token said.
        pub coordinators: Vec<String>,
        /// Who is on the mesh: the whole machine by a network device (`tun`, which needs root or
        /// CAP_NET_ADMIN), or this program alone (`userspace`).
        pub net: NetMode,
        /// The `[tun]` section.
        pub tun: TunConfig,
        /// The `[wireguard]` section.
        pub wireguard: WireGuardConfig,
        /// The `[console]` section.
        pub console: ConsoleConfig,
        /// The `[ssh]` section.
        pub ssh: SshConfig,
        /// The `[admin]` section; absent in a process that has an admin endpoint already.
        pub admin: Option<AdminConfig>,
        /// The `[log]` section.
        pub log: LogConfig,
        /// The `[shutdown]` section.
        pub shutdown: ShutdownConfig,
    }
}

mesh_daemon::settings! {
    /// Who is on the mesh.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum NetMode {
        /// This program alone: no root, no device, no route.
        Userspace,
        /// The whole machine, by a network device.
        Tun,
    }
}

mesh_daemon::settings! {
    /// The network device, where there is one.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct TunConfig {
        /// Its name, which no other device may have.
        pub device: String,
    }
}

mesh_daemon::settings! {
    /// How packets of the overlay travel.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct WireGuardConfig {
        /// UDP addresses to bind; port 0 takes any free one.
        pub listen: Vec<SocketAddr>,
        /// Further underlay addresses at which peers may try this machine.
        pub endpoints: Vec<SocketAddr>,
        /// Whether relays are used: `auto`, `only` or `off`.
        #[setting(form = "\"auto\", \"only\" or \"off\"")]
        pub relay: RelayMode,
    }
}

mesh_daemon::settings! {
    /// What is served as this machine's console.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct ConsoleConfig {
        /// Cockpit when it answers, or always one of the two.
        pub mode: ConsoleMode,
        /// Where Cockpit is looked for; loopback only.
        pub cockpit: SocketAddr,
        /// How often it is looked for again.
        #[serde(with = "mesh_daemon::config::duration")]
        pub recheck: Duration,
        /// Cockpit's own configuration, which `console configure` writes.
        pub cockpit_conf: PathBuf,
    }
}

mesh_daemon::settings! {
    /// Which console.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum ConsoleMode {
        /// Cockpit when it answers, else the agent's own page.
        Auto,
        /// The agent's own page.
        Page,
        /// Cockpit, or a page that says that it does not answer.
        Cockpit,
    }
}

mesh_daemon::settings! {
    /// How this machine is reached by SSH.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct SshConfig {
        /// Who answers.
        pub mode: SshMode,
        /// The machine's sshd; loopback only.
        pub sshd_addr: SocketAddr,
        /// Public key files of the machine's sshd; empty: those in `/etc/ssh`, or what it presents.
        pub host_keys: Vec<PathBuf>,
        /// The local user to log in as when the caller names none; empty: the agent's own.
        pub user: String,
    }
}

mesh_daemon::settings! {
    /// Who answers SSH.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum SshMode {
        /// The agent's own server.
        Agent,
        /// The machine's sshd.
        Sshd,
        /// Nobody.
        Off,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: None,
            token_file: None,
            coordinators: Vec::new(),
            net: NetMode::Userspace,
            tun: TunConfig::default(),
            wireguard: WireGuardConfig::default(),
            console: ConsoleConfig::default(),
            ssh: SshConfig::default(),
            admin: Some(AdminConfig::at(ADMIN_PORT)),
            log: LogConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

/// The admin endpoint's port unless set otherwise.
const ADMIN_PORT: u16 = 9467;
/// WireGuard's port unless set otherwise.
const WIREGUARD_PORT: u16 = 51820;

impl Default for TunConfig {
    fn default() -> Self {
        Self {
            device: "mesh0".to_owned(),
        }
    }
}

impl Default for WireGuardConfig {
    fn default() -> Self {
        let any = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        Self {
            listen: any.map(|ip| SocketAddr::new(ip, WIREGUARD_PORT)).to_vec(),
            endpoints: Vec::new(),
            relay: RelayMode::default(),
        }
    }
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            mode: ConsoleMode::Auto,
            cockpit: SocketAddr::from(([127, 0, 0, 1], 9090)),
            recheck: Duration::from_secs(10),
            cockpit_conf: "/etc/cockpit/cockpit.conf".into(),
        }
    }
}

impl Default for SshConfig {
    fn default() -> Self {
        Self {
            mode: SshMode::Agent,
            sshd_addr: SocketAddr::from(([127, 0, 0, 1], 22)),
            host_keys: Vec::new(),
            user: String::new(),
        }
    }
}

impl Settings for Config {
    fn validate(&self, faults: &mut Faults) {
        faults.require(
            is_device_name(&self.tun.device),
            "tun.device",
            "give a network device's name: up to 15 letters, digits and dashes, such as mesh0",
        );
        faults.require(
            !self.wireguard.listen.is_empty(),
            "wireguard.listen",
            "give at least one UDP address, such as 0.0.0.0:51820",
        );
        faults.require(
            self.console.cockpit.ip().is_loopback(),
            "console.cockpit",
            "Cockpit is reached on loopback only, such as 127.0.0.1:9090",
        );
        faults.require(
            self.console.recheck >= Duration::from_secs(1),
            "console.recheck",
            "looking for Cockpit more often than once a second helps nobody: use 1s or more",
        );
        faults.require(
            self.ssh.sshd_addr.ip().is_loopback(),
            "ssh.sshd_addr",
            "sshd is reached on loopback only, such as 127.0.0.1:22",
        );
        if let Some(admin) = &self.admin {
            admin.validate(faults);
        }
    }

    fn admin(&self) -> Option<&AdminConfig> {
        self.admin.as_ref()
    }
}

impl Config {
    /// The network device to make, if any.
    pub(crate) fn device(&self) -> Option<&str> {
        (self.net == NetMode::Tun).then_some(self.tun.device.as_str())
    }

    /// The state directory in force.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir
            .clone()
            .unwrap_or_else(|| mesh_daemon::default_state_dir("worker-agent"))
    }
}

#[cfg(test)]
mod tests {
    use mesh_daemon::config::load_from;
    use mesh_daemon::{ConfigArgs, Overrides};

    use super::*;

    fn load(sets: &[&str]) -> Result<Config, mesh_daemon::ConfigFaults> {
        let args = ConfigArgs {
            config: Some("/dev/null".into()),
            set: sets.iter().map(|set| (*set).to_owned()).collect(),
            ..ConfigArgs::default()
        };
        load_from("worker-agent", &args, Overrides::new(), std::iter::empty())
    }

    #[test]
    fn the_defaults_are_good() {
        let config = load(&[]).expect("good");
        assert_eq!(config.ssh.mode, SshMode::Agent);
        assert_eq!(config.admin.expect("an endpoint").listen.port(), ADMIN_PORT);
    }

    #[test]
    fn nothing_outside_of_loopback_can_be_published_as_console_or_ssh() {
        let faults = load(&[
            "console.cockpit=10.0.0.1:9090",
            "ssh.sshd_addr=192.0.2.1:22",
        ]);
        let faults = faults.expect_err("two faults");
        let keys: Vec<&str> = faults.keys().collect();
        assert_eq!(keys, ["console.cockpit", "ssh.sshd_addr"]);
    }

    #[test]
    fn every_key_can_be_set_by_a_flag() {
        let config = load(&[
            "state_dir=/x",
            "wireguard.listen=127.0.0.1:0",
            "wireguard.relay=only",
            "console.mode=page",
            "ssh.mode=sshd",
            "net=tun",
            "tun.device=mesh7",
            "ssh.host_keys=/a.pub,/b.pub",
            "admin.listen=127.0.0.1:0",
        ]);
        let config = config.expect("good");
        assert_eq!(config.state_dir(), PathBuf::from("/x"));
        assert_eq!(config.ssh.host_keys.len(), 2);
        assert_eq!(config.console.mode, ConsoleMode::Page);
        assert_eq!(config.wireguard.listen.len(), 1);
        assert_eq!(config.device(), Some("mesh7"));
    }
}
