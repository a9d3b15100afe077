//! Published services: what a node offers to the overlay.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::ServiceName;

/// What a published service is; decides who may reach it and how the gateway treats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    /// The node's web console: HTTP that keeps the gateway's path prefix.
    Console,
    /// SSH, the machine's or the agent's own.
    Ssh,
    /// Any other HTTP service; the gateway strips the prefix.
    Http,
    /// Any TCP service.
    Tcp,
}

impl ServiceKind {
    /// The kind's word on the wire and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Ssh => "ssh",
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A published service as other nodes see it. Where it leads on the node stays on the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Service {
    /// Unique on its node.
    pub name: ServiceName,
    /// What it is.
    pub kind: ServiceKind,
    /// TCP port on the node's overlay addresses; never 0.
    pub port: u16,
}

/// The overlay port of the console unless published otherwise.
pub const CONSOLE_PORT: u16 = 9090;
/// The overlay port of SSH.
pub const SSH_PORT: u16 = 22;
