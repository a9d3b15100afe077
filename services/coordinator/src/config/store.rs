//! The `[store]` section.

use std::fmt;
use std::time::Duration;

use mesh_daemon::config::duration;
use mesh_daemon::{Faults, Secret};
use serde::{Deserialize, Serialize};

use crate::store::StoreUrl;

mesh_daemon::settings! {
    /// Where the coordinator's database is, and how patient we are with it.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct StoreConfig {
        /// `postgres://USER@HOST:PORT/DATABASE`, or `sqlite:PATH` (relative to the state directory).
        /// Empty: SQLite in the state directory. A password never stands here.
        pub url: String,
        /// The password of Postgres; better from a file, by `password_file`.
        pub password: Secret,
        /// Whether the connection to Postgres is encrypted and checked. Absent: `verify-full`
        /// beyond loopback, `disable` on loopback and Unix sockets.
        pub tls: Option<StoreTls>,
        /// Certificates (PEM) of the authorities that may vouch for Postgres, besides the public
        /// ones; better from a file, by `ca_file`.
        pub ca: String,
        /// The most connections to Postgres at once, besides the one that holds the lock.
        pub max_connections: u32,
        /// How long to wait for a free connection, also for one that is being made.
        #[serde(with = "duration")]
        pub acquire_timeout: Duration,
        /// How long making the connection that holds the lock may take.
        #[serde(with = "duration")]
        pub connect_timeout: Duration,
        /// How long one statement may take.
        #[serde(with = "duration")]
        pub statement_timeout: Duration,
        /// How long a start waits for a database that does not answer yet.
        #[serde(with = "duration")]
        pub wait: Duration,
        /// How long events (what happened) are kept.
        #[serde(with = "duration")]
        pub keep_events: Duration,
        /// How long the audit (who did what) is kept; `0s`: for ever. What is left is still a whole
        /// chain, and says up to where it was cut.
        #[serde(with = "duration")]
        pub keep_audit: Duration,
        /// How long join tokens are kept after they expired or were revoked.
        #[serde(with = "duration")]
        pub keep_tokens: Duration,
        /// How long it is remembered that a node was removed, so that it is told so when it comes
        /// back.
        #[serde(with = "duration")]
        pub keep_tombstones: Duration,
    }
}

mesh_daemon::settings! {
    /// How the connection to Postgres is secured.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum StoreTls {
        /// Encrypted, by a certificate of a known authority for this host.
        VerifyFull,
        /// Encrypted, by a certificate of a known authority for any host.
        VerifyCa,
        /// Encrypted, but anybody may be on the other side.
        Require,
        /// In the clear, on a network that only this installation's containers are on.
        PrivateNetwork,
        /// In the clear.
        Disable,
    }
}

impl fmt::Display for StoreTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VerifyFull => "verify-full",
            Self::VerifyCa => "verify-ca",
            Self::Require => "require",
            Self::PrivateNetwork => "private-network",
            Self::Disable => "disable",
        })
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            password: Secret::default(),
            tls: None,
            ca: String::new(),
            max_connections: 10,
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            wait: Duration::from_secs(60),
            keep_events: DAY * 90,
            keep_audit: Duration::ZERO,
            keep_tokens: DAY * 7,
            keep_tombstones: DAY * 400,
        }
    }
}

impl StoreConfig {
    /// How the connection is secured, given whether it leaves the machine.
    pub(crate) fn tls_for(&self, is_remote: bool) -> StoreTls {
        self.tls.unwrap_or(if is_remote {
            StoreTls::VerifyFull
        } else {
            StoreTls::Disable
        })
    }

    /// How long the audit is kept; `None`: for ever.
    pub(crate) fn keep_audit(&self) -> Option<Duration> {
        Some(self.keep_audit).filter(|age| !age.is_zero())
    }

    pub(crate) fn validate(&self, faults: &mut Faults) {
        match self.url.parse::<StoreUrl>() {
            Err(error) => faults.require(false, "store.url", error.to_string()),
            Ok(url) => {
                let tls = self.tls_for(url.is_remote());
                faults.require_unless_dev(
                    !url.is_remote()
                        || !matches!(
                            tls,
                            StoreTls::Disable | StoreTls::Require | StoreTls::VerifyCa
                        ),
                    "store.tls",
                    "anybody on the way could read or take over the database: say verify-full \
                     with store.ca_file, or private-network when only this installation is on that \
                     network",
                );
            }
        }
        faults.require(
            self.max_connections >= 3,
            "store.max_connections",
            "at least 3 are needed: two to write by, one to read",
        );
        for (limit, key) in [
            (self.acquire_timeout, "store.acquire_timeout"),
            (self.connect_timeout, "store.connect_timeout"),
            (self.statement_timeout, "store.statement_timeout"),
        ] {
            faults.require(
                limit >= Duration::from_millis(100),
                key,
                "less than 100ms leaves no database time to answer",
            );
        }
        let audit = self.keep_audit().unwrap_or(Duration::MAX);
        for (age, least, key) in [
            (audit, DAY * 30, "store.keep_audit"),
            (self.keep_events, DAY, "store.keep_events"),
            (self.keep_tokens, DAY, "store.keep_tokens"),
            (self.keep_tombstones, DAY * 30, "store.keep_tombstones"),
        ] {
            let days = least.as_secs() / DAY.as_secs();
            faults.require(age >= least, key, format!("keep them for {days}d at least"));
        }
    }
}
