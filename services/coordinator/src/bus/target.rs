//! Which Redis, and how it is reached.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisConnectionInfo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::BusConfig;

const PORT: u16 = 6379;
/// The certificates of public authorities on Debian and its like.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How long the server may take to answer as TLS has it.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Why there is no connection; the text is for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// Nobody answers, or the connection breaks off.
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
    /// It is not shown to be the right one.
    #[error(
        "it cannot be trusted ({0}): its certificate must be for that host, of an authority in bus.ca_file"
    )]
    Untrusted(rustls::Error),
    /// It speaks TLS and does not agree with us about it.
    #[error("TLS with it fails: {0}")]
    Refused(rustls::Error),
    /// It answers otherwise.
    #[error("it does not speak TLS, and bus.redis_url says rediss://")]
    NotTls,
    /// It takes connections and says nothing.
    #[error("it hangs, or does not speak TLS, and bus.redis_url says rediss://")]
    Silent,
}

impl DialError {
    /// Why TLS failed.
    fn of_tls(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
        match tls {
            Some(tls @ rustls::Error::InvalidCertificate(_)) => Self::Untrusted(tls.clone()),
            Some(rustls::Error::InvalidMessage(_)) => Self::NotTls,
            Some(tls) => Self::Refused(tls.clone()),
            None => Self::Unreachable(error),
        }
    }
}

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

    /// A new connection; how long reaching the server may take is the caller's business.
    pub(super) async fn dial(&self) -> Result<Box<dyn Duplex>, DialError> {
        self.dial_within(HANDSHAKE).await
    }

    async fn dial_within(&self, handshake: Duration) -> Result<Box<dyn Duplex>, DialError> {
        let at = (self.place.host.as_str(), self.place.port);
        let tcp = TcpStream::connect(at).await;
        let tcp = tcp.map_err(DialError::Unreachable)?;
        tcp.set_nodelay(true).map_err(DialError::Unreachable)?;
        let Some((config, name)) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        let connector = TlsConnector::from(Arc::clone(config));
        // A Redis without TLS waits for the end of what it takes for a command.
        match timeout(handshake, connector.connect(name.clone(), tcp)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(DialError::of_tls(error)),
            Err(_) => Err(DialError::Silent),
        }
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
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

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

    /// What connecting by TLS comes to, where the server says this to everybody and then nothing.
    async fn dialled(says: &'static [u8], handshake: Duration) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let ca = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a CA");
        let config = BusConfig {
            redis_url: format!("rediss://{}", listener.local_addr().expect("bound")),
            ca: ca.cert.pem(),
            ..BusConfig::default()
        };
        let target = Target::new(&config).expect("good").expect("a Redis");
        let served = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.write_all(says).await.expect("written");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            dialled = target.dial_within(handshake) => {
                dialled.err().expect("no connection").to_string()
            }
            () = served => unreachable!("it waits for ever"),
        }
    }

    #[tokio::test]
    async fn a_redis_without_tls_or_with_another_is_told_as_one() {
        let long = Duration::from_secs(60);
        let said = dialled(b"-ERR unknown command\r\n", long).await;
        assert_eq!(
            said,
            "it does not speak TLS, and bus.redis_url says rediss://"
        );
        // An alert: fatal, handshake_failure (RFC 8446, 6).
        let said = dialled(b"\x15\x03\x03\x00\x02\x02\x28", long).await;
        assert!(said.contains("TLS with it fails"), "{said}");
        let said = dialled(b"", Duration::from_millis(100)).await;
        assert!(said.contains("hangs, or does not speak TLS"), "{said}");
    }
}
