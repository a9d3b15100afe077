//! SOCKS5 (RFC 1928, RFC 1929): the way into one network for programs on this machine.
//!
//! Every step is written out with the type-state API of fast-socks5: its convenient path resolves
//! names and dials on the host, and here both happen in the overlay or not at all.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fast_socks5::server::{
    AuthMethodSuccessState, NoAuthentication, PasswordAuthentication, Socks5ServerProtocol,
    SocksServerError, states,
};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command};
use mesh_daemon::Turn;
use mesh_types::{Netmap, NetworkName};
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::SocksConfig;
use crate::metrics::SocksMetrics;

pub mod owner;
pub mod policy;
mod udp;

use policy::{Refusal, decide, is_offline};

/// Who has not said where to go by then is disconnected.
const HANDSHAKE: Duration = Duration::from_secs(10);
const COPY_BUFFER: usize = 64 * 1024;

/// The overlay as this module needs it; a trait so that tests need no mesh.
pub trait Overlay: Send + Sync + 'static {
    /// A TCP stream on the overlay.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;
    /// A UDP socket on the overlay.
    type Datagrams: Datagrams;

    /// The network as it is now.
    fn netmap(&self) -> Option<Arc<Netmap>>;
    /// Dials an overlay address.
    fn dial(&self, to: SocketAddr) -> impl Future<Output = Result<Self::Stream, DialFault>> + Send;
    /// A UDP socket on any free port.
    fn bind_udp(&self) -> io::Result<Self::Datagrams>;
}

/// A UDP socket on the overlay.
pub trait Datagrams: Send + Sync + 'static {
    /// Sends one datagram.
    fn send_to(&self, data: &[u8], to: SocketAddr) -> impl Future<Output = io::Result<()>> + Send;
    /// Receives one datagram.
    fn recv_from(
        &self,
        buf: &mut [u8],
    ) -> impl Future<Output = io::Result<(usize, SocketAddr)>> + Send;
}

/// Why a dial failed, as far as SOCKS5 can tell its client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct DialFault {
    /// The reply's kind.
    pub kind: DialFaultKind,
    /// For the log.
    pub reason: String,
}

/// The kinds of [`DialFault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFaultKind {
    /// Nothing listens there.
    Refused,
    /// No answer in time.
    TimedOut,
    /// No way there, or not now.
    Unreachable,
    /// Nobody's address, or our own.
    NotAllowed,
    /// This side cannot.
    Failed,
}

impl DialFaultKind {
    fn reply(self) -> ReplyError {
        match self {
            Self::Refused => ReplyError::ConnectionRefused,
            Self::TimedOut => ReplyError::ConnectionTimeout,
            Self::Unreachable => ReplyError::HostUnreachable,
            Self::NotAllowed => ReplyError::ConnectionNotAllowed,
            Self::Failed => ReplyError::GeneralFailure,
        }
    }
}

/// Who may use a listener.
#[derive(Debug, Clone)]
pub enum Access {
    /// The user this process runs as, and root.
    OwnUser,
    /// Whoever knows these.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: mesh_daemon::Secret,
    },
}

impl Access {
    /// As configured.
    pub fn of(config: &SocksConfig) -> Self {
        if config.user.is_empty() {
            Self::OwnUser
        } else {
            Self::Password {
                user: config.user.clone(),
                password: config.password.clone(),
            }
        }
    }
}

/// Serves the clients of one network.
pub struct SocksServer<O> {
    network: NetworkName,
    overlay: O,
    access: Access,
    metrics: SocksMetrics,
    kernel: owner::Kernel,
    /// Where the kernel cannot be asked for one, one look at the table of all connections at a time:
    /// many at once would leave no processor to anybody else.
    lookup: Semaphore,
}

impl<O> std::fmt::Debug for SocksServer<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocksServer")
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// A request that was read, to be answered.
pub type Asked<S> = (
    Socks5ServerProtocol<S, states::CommandRead>,
    Socks5Command,
    TargetAddr,
);

impl<O: Overlay> SocksServer<O> {
    /// A server for `network`.
    pub fn new(network: NetworkName, overlay: O, access: Access, metrics: SocksMetrics) -> Self {
        Self {
            network,
            overlay,
            access,
            metrics,
            kernel: owner::Kernel::default(),
            lookup: Semaphore::new(1),
        }
    }

    pub(crate) fn metrics(&self) -> &SocksMetrics {
        &self.metrics
    }

    /// Serves one client to its end. Everything a client can do wrong is logged here. Once it has
    /// said where to go its place is its own.
    pub async fn serve(&self, stream: TcpStream, client: SocketAddr, turn: &Turn) {
        let network = self.network.as_str();
        if matches!(self.access, Access::OwnUser) && !self.is_own(&stream, client).await {
            self.metrics.refused("other-user");
            return;
        }
        let local = match stream.local_addr() {
            Ok(local) => local,
            Err(error) => {
                tracing::debug!(network, %error, "socks client gone");
                return;
            }
        };
        let request = timeout(HANDSHAKE, read_request(stream, &self.access)).await;
        if matches!(request, Ok(Ok(_))) {
            turn.settle();
        }
        match request {
            Ok(Ok((proto, Socks5Command::TCPConnect, target))) => {
                self.connect(proto, &target, client).await;
            }
            Ok(Ok((proto, Socks5Command::UDPAssociate, target))) => {
                self.associate(proto, &target, client, local).await;
            }
            Ok(Ok((proto, Socks5Command::TCPBind, _))) => {
                tracing::info!(network, "socks BIND refused: not offered");
                self.metrics.refused("bind");
                drop(proto.reply_error(&ReplyError::CommandNotSupported).await);
            }
            Ok(Err(SocksServerError::AuthenticationRejected)) => {
                tracing::info!(network, %client, "socks client refused: wrong user or password");
                self.metrics.refused("password");
            }
            Ok(Err(error)) => tracing::debug!(network, %error, "socks request not understood"),
            Err(_elapsed) => tracing::debug!(network, "socks client said nothing"),
        }
    }

    /// Whether the client is a process of our own user or of root.
    async fn is_own(&self, stream: &TcpStream, client: SocketAddr) -> bool {
        let network = self.network.as_str();
        match self.owner_of(stream, client).await {
            Ok(Some(uid)) if uid == 0 || uid == nix::unistd::geteuid().as_raw() => true,
            Ok(uid) => {
                tracing::info!(
                    network,
                    uid,
                    "socks client refused: it belongs to another user"
                );
                false
            }
            Err(error) => {
                tracing::warn!(network, %error, "socks client refused: its user cannot be found out");
                false
            }
        }
    }

    async fn owner_of(&self, stream: &TcpStream, client: SocketAddr) -> io::Result<Option<u32>> {
        let server = stream.local_addr()?;
        let error = match self.kernel.owner_of(client, server) {
            Ok(owner) => return Ok(owner),
            Err(error) => error,
        };
        tracing::debug!(network = self.network.as_str(), %error, "looking at all connections");
        // INVARIANT: the semaphore is never closed, so this only waits.
        let _turn = self.lookup.acquire().await;
        let looked_up = move || owner::in_tables(client, server);
        let owner = tokio::task::spawn_blocking(looked_up).await;
        owner.map_err(io::Error::other).flatten()
    }

    fn decide(&self, target: &TargetAddr) -> Result<SocketAddr, Refusal> {
        let netmap = self.overlay.netmap();
        decide(netmap.as_deref(), target)
    }

    fn log_refusal(&self, command: &str, target: &TargetAddr, refusal: Refusal) {
        let network = self.network.as_str();
        let target = shown(target);
        tracing::info!(network, command, target, reason = %refusal, "socks destination refused");
        self.metrics.refused(refusal.as_str());
    }

    async fn connect(
        &self,
        proto: Socks5ServerProtocol<TcpStream, states::CommandRead>,
        target: &TargetAddr,
        client: SocketAddr,
    ) {
        let network = self.network.as_str();
        let to = match self.decide(target) {
            Ok(to) => to,
            Err(refusal) => {
                self.log_refusal("CONNECT", target, refusal);
                drop(proto.reply_error(&refusal.reply()).await);
                return;
            }
        };
        let offline = is_offline(self.overlay.netmap().as_deref(), to.ip());
        let mut remote = match self.overlay.dial(to).await {
            Ok(remote) => remote,
            Err(fault) => {
                tracing::debug!(network, %to, reason = fault.reason, "socks dial failed");
                // Who refuses is there, and the rest are faults of this side.
                let worker_offline = offline && fault.kind == DialFaultKind::TimedOut;
                self.metrics.failed(worker_offline);
                drop(proto.reply_error(&fault.kind.reply()).await);
                return;
            }
        };
        // The bound address is of no use outside the overlay; zeros are the customary answer.
        let bound = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut stream = match proto.reply_success(bound).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(network, %client, %error, "socks client gone");
                return;
            }
        };
        let _open = self.metrics.opened();
        let copied =
            copy_bidirectional_with_sizes(&mut stream, &mut remote, COPY_BUFFER, COPY_BUFFER).await;
        match copied {
            Ok((sent, received)) => {
                self.metrics.bytes(sent, received);
                tracing::debug!(network, %to, sent, received, "socks stream ended");
            }
            Err(error) => tracing::debug!(network, %to, %error, "socks stream broke"),
        }
    }

    async fn associate(
        &self,
        proto: Socks5ServerProtocol<TcpStream, states::CommandRead>,
        target: &TargetAddr,
        client: SocketAddr,
        local: SocketAddr,
    ) {
        let network = self.network.as_str();
        let bound = udp::Association::bind(self, client, target, local).await;
        let association = match bound {
            Ok(association) => association,
            Err(error) => {
                tracing::info!(network, %error, "socks UDP ASSOCIATE failed");
                drop(proto.reply_error(&ReplyError::GeneralFailure).await);
                return;
            }
        };
        match proto.reply_success(association.local_addr()).await {
            Ok(stream) => {
                let _open = self.metrics.opened();
                association.run(stream).await;
            }
            Err(error) => tracing::debug!(network, %error, "socks client gone"),
        }
    }
}

/// Reads what a client asks for, from its first byte up to the destination (RFC 1928, sections 3
/// and 4; RFC 1929).
///
/// # Errors
///
/// When it does not speak SOCKS5, or has the wrong user or password.
pub async fn read_request<S>(stream: S, access: &Access) -> Result<Asked<S>, SocksServerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let opened = Socks5ServerProtocol::start(stream);
    let proto = match access {
        Access::OwnUser => {
            let state = opened.negotiate_auth(&[NoAuthentication]).await?;
            state.finish_auth()
        }
        Access::Password { user, password } => {
            let state = opened.negotiate_auth(&[PasswordAuthentication]).await?;
            let (given_user, given_password, state) = state.read_username_password().await?;
            let same = given_user.as_bytes().ct_eq(user.as_bytes())
                & given_password
                    .as_bytes()
                    .ct_eq(password.expose().as_bytes());
            if !bool::from(same) {
                state.reject().await?;
                return Err(SocksServerError::AuthenticationRejected);
            }
            state.accept().await?.finish_auth()
        }
    };
    proto.read_command().await
}

/// The destination for the log: text from the client, cut and without control characters.
fn shown(target: &TargetAddr) -> String {
    match target {
        TargetAddr::Ip(addr) => addr.to_string(),
        TargetAddr::Domain(name, port) => {
            let name: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
            format!("{name}:{port}")
        }
    }
}

#[cfg(test)]
mod tests;
