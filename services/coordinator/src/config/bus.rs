//! The `[bus]` section.

use mesh_daemon::{Faults, Secret};
use serde::{Deserialize, Serialize};

use crate::bus::Place;

mesh_daemon::settings! {
    /// What several coordinators share besides the database, over Redis. Without Redis, or while
    /// it does not answer, this process keeps it for itself.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct BusConfig {
        /// `redis://HOST:PORT/DATABASE`, or `rediss://…` for TLS. Empty: no Redis. User and
        /// password never stand here.
        pub redis_url: String,
        /// The user of Redis' access list; empty: its default user.
        pub user: String,
        /// The password of Redis; better from a file, by `password_file`.
        pub password: Secret,
        /// Whether the connection to Redis is encrypted and checked. Absent: `verify-full` with
        /// `rediss://`, `disable` with `redis://`.
        pub tls: Option<BusTls>,
        /// Certificates (PEM) of the authorities that may vouch for Redis; better from a file, by
        /// `ca_file`. Empty: the public ones that the system knows.
        pub ca: String,
    }
}

mesh_daemon::settings! {
    /// How the connection to Redis is secured.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum BusTls {
        /// Encrypted, by a certificate of a known authority for this host.
        VerifyFull,
        /// In the clear: nobody but this installation is on that network.
        PrivateNetwork,
        /// In the clear; on loopback, or for development.
        Disable,
    }
}

impl BusConfig {
    pub(crate) fn validate(&self, faults: &mut Faults) {
        if self.redis_url.is_empty() {
            let alone = self.user.is_empty() && self.password.is_empty() && self.tls.is_none();
            faults.require(
                alone,
                "bus.redis_url",
                "the other keys of [bus] say something about a Redis that is not named",
            );
            return;
        }
        let place = match Place::parse(&self.redis_url) {
            Ok(place) => place,
            Err(error) => return faults.push("bus.redis_url", error.to_string()),
        };
        match (place.is_tls, self.tls) {
            (true, None | Some(BusTls::VerifyFull)) => {}
            (true, Some(BusTls::PrivateNetwork | BusTls::Disable)) => faults.push(
                "bus.tls",
                "rediss:// means TLS: take redis://, or leave bus.tls away",
            ),
            (false, Some(BusTls::VerifyFull)) => {
                faults.push("bus.tls", "redis:// means no TLS: take rediss://");
            }
            (false, Some(BusTls::PrivateNetwork)) => {}
            (false, None | Some(BusTls::Disable)) => faults.require_unless_dev(
                place.is_local(),
                "bus.tls",
                "anybody on the way could read the password: take rediss:// with bus.ca_file, or \
                 say private-network when only this installation is on that network",
            ),
        }
        faults.require(
            self.user.is_empty() || !self.password.is_empty(),
            "bus.password",
            "a user of Redis' access list has a password: set bus.password_file",
        );
    }
}
