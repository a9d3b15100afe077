//! Settings for this module's tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Faults, Settings, duration};
use crate::admin::AdminConfig;
use crate::secret::Secret;

crate::settings! {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Example {
        /// What is served.
        pub(super) server: Server,
        /// What is kept.
        pub(super) store: Store,
        /// Whom it knows.
        pub(super) peers: Vec<String>,
        /// Who answers.
        pub(super) mode: Mode,
    }
}

crate::settings! {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Server {
        /// Where browsers connect.
        pub(super) listen: SocketAddr,
        /// How many work.
        pub(super) workers: u16,
        /// How long nothing may happen.
        #[serde(with = "duration")]
        pub(super) idle: Duration,
    }
}

crate::settings! {
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Store {
        /// Where it lies.
        pub(super) path: Option<PathBuf>,
        /// Opens it.
        pub(super) password: Secret,
    }
}

crate::settings! {
    #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub(super) enum Mode {
        /// The first.
        Agent,
        /// The other.
        Sshd,
    }
}

impl Default for Example {
    fn default() -> Self {
        Self {
            // Differs from `Server::default`: the outer default must win for keys not given.
            server: Server {
                workers: 7,
                ..Server::default()
            },
            store: Store::default(),
            peers: Vec::new(),
            mode: Mode::Agent,
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        Self {
            listen,
            workers: 2,
            idle: Duration::from_secs(30),
        }
    }
}

impl Settings for Example {
    fn validate(&self, faults: &mut Faults) {
        faults.require(
            self.server.workers > 0,
            "server.workers",
            "must be at least 1",
        );
        let loopback = self.server.listen.ip().is_loopback();
        faults.require_unless_dev(loopback, "server.listen", "plain HTTP on all addresses");
    }

    fn admin(&self) -> Option<&AdminConfig> {
        None
    }
}
