//! Which Redis, and how it is reached.

use std::fmt;
use std::io;
use std::sync::Arc;

use redis::RedisConnectionInfo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::BusConfig;

const PORT: u16 = 6379;
/// The certificates of public authorities on Debian and its like.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why a configured Redis cannot be used; the text is for people.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidTarget {
    /// No URL of ours.
    #[error("{0:?} is not redis://HOST:PORT/DATABASE or rediss://HOST:PORT/DATABASE (TLS)")]
    Url(String),
    /// A secret in the URL.
    #[error("user and password do not belong into the URL: set bus.user and bus.password_file")]
    Credential,
    /// TLS wanted and no authority known.
    #[error(
        "rediss:// needs the authority of Redis' certificate: set bus.ca_file (there is no {SYSTEM_ROOTS})"
    )]
    NoRoots(#[source] io::Error),
    /// The authorities cannot be used.
    #[error("bus.ca holds no usable certificate (PEM)")]
    Roots(#[source] mesh_daemon::tls::TlsError),
    /// TLS cannot be set up.
    #[error("TLS to Redis cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// A URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) host: String,
    pub(crate) port: u16,
    database: i64,
    pub(crate) is_tls: bool,
}

impl Place {
    /// Reads `redis://…` or `rediss://…`.
    pub(crate) fn parse(url: &str) -> Result<Self, InvalidTarget> {
        let invalid = || InvalidTarget::Url(url.chars().take(200).collect());
        let (is_tls, rest) = match url.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            _ => return Err(invalid()),
        };
        if rest.contains('@') {
            return Err(InvalidTarget::Credential);
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(invalid)?;
                let port = match port.strip_prefix(':') {
                    Some(port) => Some(port),
                    None if port.is_empty() => None,
                    None => return Err(invalid()),
                };
                (host, port)
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.map_or(Ok(PORT), str::parse).map_err(|_| invalid())?;
        let database = if path.is_empty() {
            0
        } else {
            path.parse::<u16>().map_err(|_| invalid())?.into()
        };
        let is_name = !host.is_empty() && ServerName::try_from(host).is_ok();
        if port == 0 || !is_name {
            return Err(invalid());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            database,
            is_tls,
        })
    }

    /// Whether it is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        let ip = self.host.parse::<std::net::IpAddr>();
        self.host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Everything that it takes to connect.
pub(crate) struct Target {
    pub(super) place: Place,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) login: RedisConnectionInfo,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// A connection's bytes, with or without TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Target {
    /// The Redis of the configuration; `None` when there is none.
    pub(crate) fn new(config: &BusConfig) -> Result<Option<Self>, InvalidTarget> {
        if config.redis_url.is_empty() {
            return Ok(None);
        }
        let place = Place::parse(&config.redis_url)?;
        let tls = if place.is_tls {
            let name = ServerName::try_from(place.host.clone())
                .map_err(|_| InvalidTarget::Url(config.redis_url.clone()))?;
            Some((client_config(&config.ca)?, name))
        } else {
            None
        };
        let mut login = RedisConnectionInfo::default().set_db(place.database);
        if !config.user.is_empty() {
            login = login.set_username(&config.user);
        }
        if !config.password.is_empty() {
            login = login.set_password(config.password.expose());
        }
        Ok(Some(Self { place, tls, login }))
    }

    /// A new connection; how long that may take is the caller's business.
    pub(super) async fn dial(&self) -> io::Result<Box<dyn Duplex>> {
        let tcp = TcpStream::connect((self.place.host.as_str(), self.place.port)).await?;
        tcp.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name.clone(), tcp).await?)
            }
        })
    }
}

fn client_config(ca: &str) -> Result<Arc<ClientConfig>, InvalidTarget> {
    let system;
    let pem = if ca.is_empty() {
        system = std::fs::read_to_string(SYSTEM_ROOTS).map_err(InvalidTarget::NoRoots)?;
        system.as_str()
    } else {
        ca
    };
    let roots = mesh_daemon::tls::roots_from_pem(pem).map_err(InvalidTarget::Roots)?;
    let config = ClientConfig::builder_with_provider(mesh_daemon::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(InvalidTarget::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let place = |host: &str, port, database, is_tls| Place {
            host: host.to_owned(),
            port,
            database,
            is_tls,
        };
        for (url, wanted) in [
            ("redis://redis", place("redis", 6379, 0, false)),
            ("rediss://redis:7000", place("redis", 7000, 0, true)),
            (
                "rediss://r.example.org:7000/3",
                place("r.example.org", 7000, 3, true),
            ),
            ("redis://[::1]:7000/", place("::1", 7000, 0, false)),
            ("redis://127.0.0.1", place("127.0.0.1", 6379, 0, false)),
        ] {
            assert_eq!(Place::parse(url).expect(url), wanted);
        }
        assert!(Place::parse("redis://[::1]").expect("good").is_local());
        assert!(!Place::parse("redis://redis").expect("good").is_local());
    }

    #[test]
    fn other_urls_and_secrets_in_them_are_refused() {
        for bad in [
            "redis",
            "http://redis",
            "redis://",
            "redis://:6379",
            "redis://h:0",
            "redis://h:x",
            "redis://h/x",
            "redis://h/-1",
            "redis://[::1",
            "redis://[::1]x",
            "redis://a b",
            "unix:///run/redis.sock",
        ] {
            let refused = Place::parse(bad);
            assert!(matches!(refused, Err(InvalidTarget::Url(_))), "{bad}");
        }
        let refused = Place::parse("redis://:hunter2@h").expect_err("a secret");
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }
}
