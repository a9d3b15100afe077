//! Connections to the coordinator, a relay's control side or a deploy-manager: TLS pinned, any of
//! several addresses, reconnecting by itself.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

/// How long one address may take to answer, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2 over TLS (RFC 9113, 3.3).
pub const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1 over TLS.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// How [`AttemptError::Name`] reads, for those who tell people what to do about it.
pub const NAME_UNKNOWN: &str = "its name leads to no address (DNS does not answer or know it)";
/// How [`AttemptError::Tcp`] reads.
const NOBODY: &str = "nothing answers there";
/// How [`AttemptError::Timeout`] begins.
const NO_ANSWER: &str = "no answer within";
/// How [`AttemptError::Broken`] begins.
const BREAKS_OFF: &str = "what answers there breaks off";
/// How [`AttemptError::WrongCa`] begins.
const OTHER_AUTHORITY: &str =
    "the server there does not belong to this mesh's certificate authority";
/// How [`AttemptError::OtherServer`] begins.
const OTHER_SERVER: &str = "what answers there is another server of this mesh";
/// How [`AttemptError::NotTls`] begins.
const NOT_TLS: &str = "what answers there does not speak TLS as a mesh server does";
/// How a clock that is off reads, here and where a node compares its own with the coordinator's.
pub const OWN_CLOCK: &str = "this machine's clock";

/// Why one address did not lead to the server.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// It is no address at all, such as a name without a port.
    #[error("that is no address: HOST:PORT is, such as mesh.example.org:8080")]
    Address(#[source] io::Error),
    /// Its name leads to no address; see [`NAME_UNKNOWN`].
    #[error("{}", NAME_UNKNOWN)]
    Name(#[source] io::Error),
    /// Nobody answers there.
    #[error("{NOBODY}")]
    Tcp(#[source] io::Error),
    /// No answer in time.
    #[error("{NO_ANSWER} {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    /// The connection ends as soon as it is there: of a server that is just starting or ending, or
    /// of a proxy that has none behind it.
    #[error("{BREAKS_OFF} (a proxy before a server that is down, or a wrong port?)")]
    Broken(#[source] io::Error),
    /// The server is not part of this mesh: another CA, or a TLS-intercepting proxy in between.
    #[error("{OTHER_AUTHORITY} (another installation, or a TLS-intercepting proxy in between)")]
    WrongCa(#[source] TlsError),
    /// The server is part of this mesh, and not the one that was looked for.
    #[error("{OTHER_SERVER} (wrong port?)")]
    OtherServer(#[source] TlsError),
    /// The certificate is not valid now: one of the two clocks is off.
    #[error(
        "the server's certificate is not valid at this time: check {}",
        OWN_CLOCK
    )]
    Clock(#[source] TlsError),
    /// The server refused this client's certificate.
    #[error("the server refused this client's certificate")]
    Refused(#[source] TlsError),
    /// Something that does not speak TLS.
    #[error("{NOT_TLS} (wrong port?)")]
    NotTls(#[source] io::Error),
}

/// No address led to the server.
#[derive(Debug)]
pub struct ConnectError {
    /// Each address with its reason, in the order tried; never empty.
    pub attempts: Vec<(String, AttemptError)>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot reach the server")?;
        for (addr, error) in &self.attempts {
            write!(f, "; {addr}: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}

/// Whether the text of a [`ConnectError`] tells of addresses that lead elsewhere: something
/// answers, and it is not what was looked for. Not so when an address may lead to a server that is
/// only away.
pub fn leads_elsewhere(text: &str) -> bool {
    let tells = |word: &&str| text.contains(*word);
    [OTHER_AUTHORITY, OTHER_SERVER, NOT_TLS].iter().any(tells)
        && ![NOBODY, NO_ANSWER, BREAKS_OFF, NAME_UNKNOWN]
            .iter()
            .any(tells)
}

fn classify(error: io::Error) -> AttemptError {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TlsError>())
        .cloned();
    match tls {
        Some(tls @ TlsError::InvalidCertificate(_)) if is_validity(&tls) => {
            AttemptError::Clock(tls)
        }
        Some(
            tls @ TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ),
        ) => AttemptError::OtherServer(tls),
        Some(tls @ TlsError::InvalidCertificate(_)) => AttemptError::WrongCa(tls),
        Some(tls @ TlsError::AlertReceived(alert)) if is_certificate_alert(alert) => {
            AttemptError::Refused(tls)
        }
        None if is_end(error.kind()) => AttemptError::Broken(error),
        _ => AttemptError::NotTls(error),
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        kind,
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe
    )
}

/// Why `addr` leads nowhere: it is no address, or nobody knows its name.
fn unresolved(addr: &str, error: io::Error) -> AttemptError {
    // An IPv6 address without brackets is taken apart at its last colon.
    let host = addr.rsplit_once(':').map_or("", |(host, _)| host);
    if error.kind() == io::ErrorKind::InvalidInput || host.is_empty() || host.contains(':') {
        AttemptError::Address(error)
    } else {
        AttemptError::Name(error)
    }
}

fn is_validity(error: &TlsError) -> bool {
    matches!(
        error,
        TlsError::InvalidCertificate(
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
        )
    )
}

fn is_certificate_alert(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// One TLS connection to the first of `addrs` (`host:port`) that belongs to the pinned CA and
/// carries `server_name`.
pub async fn connect_tls(
    addrs: &[String],
    server_name: &str,
    tls: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let (_, stream) = connect_from(addrs, 0, server_name, tls).await?;
    Ok(stream)
}

/// The same, beginning with another address than the first; also tells which one it was.
async fn connect_from(
    addrs: &[String],
    first: usize,
    server_name: &str,
    tls: &Arc<ClientConfig>,
) -> Result<(usize, TlsStream<TcpStream>), ConnectError> {
    let mut attempts = Vec::new();
    for offset in 0..addrs.len() {
        let at = (first + offset) % addrs.len();
        let addr = &addrs[at];
        match tokio::time::timeout(CONNECT_TIMEOUT, attempt(addr, server_name, tls)).await {
            Ok(Ok(stream)) => return Ok((at, stream)),
            Ok(Err(error)) => attempts.push((addr.clone(), error)),
            Err(_) => attempts.push((addr.clone(), AttemptError::Timeout)),
        }
    }
    Err(ConnectError { attempts })
}

async fn attempt(
    addr: &str,
    server_name: &str,
    tls: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, AttemptError> {
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|error| AttemptError::Tcp(io::Error::other(error)))?;
    let found = tokio::net::lookup_host(addr).await;
    let found = found.map_err(|error| unresolved(addr, error))?;
    let found: Vec<_> = found.collect();
    let tcp = TcpStream::connect(&found[..])
        .await
        .map_err(AttemptError::Tcp)?;
    tcp.set_nodelay(true).map_err(AttemptError::Tcp)?;
    TlsConnector::from(Arc::clone(tls))
        .connect(name, tcp)
        .await
        .map_err(classify)
}

/// A gRPC channel that reconnects by itself; the first connection is made here, so that its
/// failure has a reason.
///
/// `tls` must offer [`ALPN_H2`].
pub async fn connect(
    addrs: &[String],
    server_name: &str,
    tls: Arc<ClientConfig>,
) -> Result<Channel, ConnectError> {
    let first = connect_from(addrs, 0, server_name, &tls).await?;
    let connector = Connector::new(addrs, server_name, tls, Some(first));
    let channel = endpoint().connect_with_connector_lazy(connector);
    Ok(channel)
}

/// The same channel without a first connection: calls fail until the server is there.
pub fn connect_lazy(addrs: &[String], server_name: &str, tls: Arc<ClientConfig>) -> Channel {
    endpoint().connect_with_connector_lazy(Connector::new(addrs, server_name, tls, None))
}

fn endpoint() -> Endpoint {
    // The name only fills the :authority header; who the server is, TLS decides.
    Endpoint::from_static("http://coordinator.mesh.internal")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
}

/// Who answered and is lost again so soon is not asked first.
const LASTING: Duration = Duration::from_secs(5);

/// Dials for [`Channel`]: the addresses in turn, starting where the last success was.
struct Connector {
    shared: Arc<Target>,
    first: Option<TlsStream<TcpStream>>,
}

struct Target {
    addrs: Vec<String>,
    server_name: String,
    tls: Arc<ClientConfig>,
    last: Mutex<Option<Success>>,
}

/// Which address answered, and when.
#[derive(Debug, Clone, Copy)]
struct Success {
    at: usize,
    when: Instant,
}

/// Which address is asked first. One may take every connection and break it soon after, as a
/// balancer does whose server is away.
fn first(last: Option<Success>, now: Instant) -> usize {
    match last {
        None => 0,
        Some(last) if now.saturating_duration_since(last.when) < LASTING => last.at + 1,
        Some(last) => last.at,
    }
}

impl Connector {
    fn new(
        addrs: &[String],
        server_name: &str,
        tls: Arc<ClientConfig>,
        first: Option<(usize, TlsStream<TcpStream>)>,
    ) -> Self {
        let (at, first) = first.unzip();
        let last = at.map(|at| Success {
            at,
            when: Instant::now(),
        });
        let shared = Arc::new(Target {
            addrs: addrs.to_vec(),
            server_name: server_name.to_owned(),
            tls,
            last: Mutex::new(last),
        });
        Self { shared, first }
    }
}

impl Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        if let Some(stream) = self.first.take() {
            return Box::pin(std::future::ready(Ok(TokioIo::new(stream))));
        }
        let target = Arc::clone(&self.shared);
        Box::pin(async move {
            let Target {
                addrs,
                server_name,
                tls,
                last,
            } = &*target;
            let lock = || last.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = first(*lock(), Instant::now());
            let (at, stream) = connect_from(addrs, begin, server_name, tls).await?;
            let when = Instant::now();
            *lock() = Some(Success { at, when });
            Ok(TokioIo::new(stream))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_elsewhere_is_told_apart_from_a_server_that_is_away() {
        let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let tls = |error| classify(io::Error::new(io::ErrorKind::InvalidData, error));
        let unknown = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let name = TlsError::InvalidCertificate(CertificateError::NotValidForName);
        let garbage = TlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        let refused = || AttemptError::Tcp(io::ErrorKind::ConnectionRefused.into());
        for (attempts, elsewhere) in [
            (vec![tls(unknown.clone())], true),
            (vec![tls(name)], true),
            (vec![tls(garbage)], true),
            (vec![refused()], false),
            (vec![AttemptError::Timeout], false),
            // A published port of a container that is down.
            (vec![classify(eof())], false),
            // The one may be an old address, and the other only away.
            (vec![tls(unknown), refused()], false),
        ] {
            let attempts = attempts.into_iter().map(|error| ("a:1".to_owned(), error));
            let error = ConnectError {
                attempts: attempts.collect(),
            };
            assert_eq!(leads_elsewhere(&error.to_string()), elsewhere, "{error}");
        }
    }

    #[test]
    fn the_address_that_answered_last_is_asked_first_unless_it_was_lost_at_once() {
        let when = Instant::now();
        let last = Some(Success { at: 1, when });
        assert_eq!(first(None, when), 0);
        assert_eq!(first(last, when + LASTING), 1);
        assert_eq!(first(last, when + LASTING / 2), 2);
    }

    #[test]
    fn a_name_that_nobody_knows_is_told_apart_from_no_address() {
        let unknown = || io::Error::other("Name or service not known");
        for addr in ["mesh.example.org:8080", "localhost:1"] {
            assert!(matches!(unresolved(addr, unknown()), AttemptError::Name(_)));
        }
        for addr in ["fd00::1", "::1", ":8080"] {
            assert!(matches!(
                unresolved(addr, unknown()),
                AttemptError::Address(_)
            ));
        }
    }
}
