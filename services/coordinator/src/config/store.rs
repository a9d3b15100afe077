//! The `[store]` section.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use mesh_daemon::config::duration;
use mesh_daemon::{Faults, Secret};
use sea_orm::sqlx::postgres::PgConnectOptions;
use serde::{Deserialize, Serialize};

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
        /// How long events (what happened) are kept. The audit (who did what) is kept for ever.
        #[serde(with = "duration")]
        pub keep_events: Duration,
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
            keep_tokens: DAY * 7,
            keep_tombstones: DAY * 400,
        }
    }
}

/// Why a URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStoreUrl {
    /// It is for no engine that we know.
    #[error("give postgres://USER@HOST:PORT/DATABASE or sqlite:PATH")]
    Scheme,
    /// It shows a secret.
    #[error(
        "a password does not belong into the URL: put it into a file and name that in store.password_file"
    )]
    Password,
    /// It sets what has a key of its own.
    #[error("{0:?} cannot be set in the URL: use the keys of [store], such as store.tls")]
    Parameter(String),
    /// It does not say which database.
    #[error("the URL names no database: postgres://USER@HOST:PORT/DATABASE")]
    NoDatabase,
    /// It cannot be read.
    #[error("the URL cannot be read: {0}")]
    Unreadable(String),
}

/// A URL, taken apart.
#[derive(Debug, Clone)]
pub(crate) enum StoreUrl {
    /// `None`: the file in the state directory.
    Sqlite(Option<String>),
    Postgres(Box<PgConnectOptions>),
}

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(url: &str) -> Result<Self, InvalidStoreUrl> {
        if url.is_empty() {
            return Ok(Self::Sqlite(None));
        }
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" | ":memory:" => Err(InvalidStoreUrl::Scheme),
                path => Ok(Self::Sqlite(Some(path.to_owned()))),
            };
        }
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or(InvalidStoreUrl::Scheme)?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = place.split('/').next().unwrap_or_default();
        if let Some((user, _)) = authority.rsplit_once('@')
            && user.contains(':')
        {
            return Err(InvalidStoreUrl::Password);
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split('=').next().unwrap_or_default() {
                "host" | "port" | "user" | "dbname" => {}
                "password" => return Err(InvalidStoreUrl::Password),
                other => return Err(InvalidStoreUrl::Parameter(other.to_owned())),
            }
        }
        let options: PgConnectOptions = url.parse().map_err(|error: sea_orm::sqlx::Error| {
            InvalidStoreUrl::Unreadable(error.to_string())
        })?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err(InvalidStoreUrl::NoDatabase);
        }
        Ok(Self::Postgres(Box::new(options)))
    }
}

/// Whether packets to this server stay on the machine.
pub(crate) fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|addr| addr.is_loopback())
}

impl StoreConfig {
    /// How the connection is secured, given where it goes.
    pub(crate) fn tls_for(&self, options: &PgConnectOptions) -> StoreTls {
        self.tls.unwrap_or(if is_local(options) {
            StoreTls::Disable
        } else {
            StoreTls::VerifyFull
        })
    }

    pub(crate) fn validate(&self, faults: &mut Faults) {
        match self.url.parse::<StoreUrl>() {
            Err(error) => faults.require(false, "store.url", error.to_string()),
            Ok(StoreUrl::Sqlite(_)) => {}
            Ok(StoreUrl::Postgres(options)) => faults.require_unless_dev(
                is_local(&options)
                    || !matches!(
                        self.tls_for(&options),
                        StoreTls::Disable | StoreTls::Require
                    ),
                "store.tls",
                "anybody on the way could read or take over the database: say verify-full with \
                 store.ca_file, or private-network when only this installation is on that network",
            ),
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
        for (age, least, key) in [
            (self.keep_events, DAY, "store.keep_events"),
            (self.keep_tokens, DAY, "store.keep_tokens"),
            (self.keep_tombstones, DAY * 30, "store.keep_tombstones"),
        ] {
            let days = least.as_secs() / DAY.as_secs();
            faults.require(age >= least, key, format!("keep them for {days}d at least"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_both_engines_are_understood() {
        let sqlite = |url: &str| match url.parse() {
            Ok(StoreUrl::Sqlite(path)) => path,
            other => panic!("{url}: {other:?}"),
        };
        assert_eq!(sqlite(""), None);
        assert_eq!(sqlite("sqlite:mesh.db").as_deref(), Some("mesh.db"));
        assert_eq!(
            sqlite("sqlite:///var/mesh.db").as_deref(),
            Some("/var/mesh.db")
        );
        for (url, local) in [
            ("postgres://mesh@127.0.0.1:5433/mesh", true),
            ("postgres://mesh@[::1]/mesh", true),
            ("postgres://mesh@localhost/mesh", true),
            ("postgres:///mesh?host=/run/postgresql&user=mesh", true),
            ("postgresql://mesh@db.example.org/mesh", false),
            ("postgres://mesh@postgres:5432/mesh", false),
        ] {
            let Ok(StoreUrl::Postgres(options)) = url.parse() else {
                panic!("{url}");
            };
            assert_eq!(is_local(&options), local, "{url}");
            let tls = StoreConfig::default().tls_for(&options);
            let expected = if local {
                StoreTls::Disable
            } else {
                StoreTls::VerifyFull
            };
            assert_eq!(tls, expected, "{url}");
        }
    }

    #[test]
    fn urls_that_show_secrets_or_name_nothing_are_refused() {
        use InvalidStoreUrl::{NoDatabase, Password, Scheme};

        for (url, fault) in [
            ("mysql://a@b/c", Scheme),
            ("sqlite:", Scheme),
            ("sqlite::memory:", Scheme),
            ("postgres://mesh:hunter2@db/mesh", Password),
            ("postgres://db/mesh?password=hunter2", Password),
            ("postgres://mesh@db", NoDatabase),
            (
                "postgres://mesh@db/mesh?sslmode=disable",
                InvalidStoreUrl::Parameter("sslmode".into()),
            ),
        ] {
            assert_eq!(url.parse::<StoreUrl>().expect_err(url), fault, "{url}");
        }
    }
}
