//! The database's URL: which engine, and where.

use std::str::FromStr;

use sea_orm::sqlx::postgres::PgConnectOptions;

/// Why a URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidStoreUrl {
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
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|addr| addr.is_loopback())
}

impl StoreUrl {
    /// Whether the database is beyond this machine.
    pub(crate) fn is_remote(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(options) => !is_local(options),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{StoreConfig, StoreTls};

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
            let parsed: StoreUrl = url.parse().expect(url);
            assert!(matches!(parsed, StoreUrl::Postgres(_)), "{url}");
            assert_eq!(parsed.is_remote(), !local, "{url}");
            let tls = StoreConfig::default().tls_for(parsed.is_remote());
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
