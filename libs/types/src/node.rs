//! What a node is and how it is doing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a node, or a caller, is there for; decides what it may do and see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Offers its console, its SSH and its services.
    Worker,
    /// Serves consoles and services to browsers.
    Gateway,
    /// Advertises routes to networks behind it.
    Router,
    /// Runs commands on workers and carries SOCKS5.
    Deployer,
    /// Carries packets between nodes; belongs to the installation, not to a network.
    Relay,
    /// A person's machine.
    Client,
}

impl Role {
    /// Every role a join token can carry.
    pub const ALL: [Self; 6] = [
        Self::Worker,
        Self::Gateway,
        Self::Router,
        Self::Deployer,
        Self::Relay,
        Self::Client,
    ];

    /// The role's word on the wire, in tables and in flags.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Gateway => "gateway",
            Self::Router => "router",
            Self::Deployer => "deployer",
            Self::Relay => "relay",
            Self::Client => "client",
        }
    }

    /// The program that nodes of this role run.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Gateway => "traffic-gateway",
            Self::Deployer => "deploy-manager",
            Self::Relay => "relay",
            Self::Worker | Self::Router | Self::Client => "worker-agent",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: use worker, gateway, router, deployer, relay or client")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| InvalidRole(text.chars().take(40).collect()))
    }
}

/// Whether a node is there, by its heartbeats (every 15 s, time to live 45 s).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// A heartbeat within the time to live.
    Online,
    /// Up to 60 s past the time to live.
    Stale,
    /// Longer than that, or never seen.
    Offline,
}

impl NodeState {
    /// The state's word on the wire and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Stale => "stale",
            Self::Offline => "offline",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a node is expected to be there: an expected absence is not an alarm.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum UptimeClass {
    /// Expected to be there at all times.
    #[default]
    AlwaysOn,
    /// There when somebody uses it.
    OnDemand,
    /// There during working hours.
    WorkHours,
}

impl UptimeClass {
    /// The class's word on the wire and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AlwaysOn => "always-on",
            Self::OnDemand => "on-demand",
            Self::WorkHours => "work-hours",
        }
    }

    /// Every class.
    pub const ALL: [Self; 3] = [Self::AlwaysOn, Self::OnDemand, Self::WorkHours];
}

/// The text is no uptime class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown uptime class {0:?}: say always-on, on-demand or work-hours")]
pub struct InvalidUptimeClass(pub String);

impl FromStr for UptimeClass {
    type Err = InvalidUptimeClass;

    fn from_str(text: &str) -> Result<Self, InvalidUptimeClass> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| InvalidUptimeClass(text.to_owned()))
    }
}
