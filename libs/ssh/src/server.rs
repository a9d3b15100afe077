//! The agent's own SSH server: one connection over any stream.
//!
//! Only certificates of the trusted authority let anybody in ([`crate::admission`]). Commands and
//! shells run as the principal; what runs ends with its connection. Forwarding of ports, sockets,
//! agents and displays is refused, and so are subsystems: `rsync` and `scp -O` need none.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use mesh_trace::Tracer;
use mesh_types::Timestamp;
use russh::server::{self, Auth, Handler, Msg};
use russh::{Channel, ChannelId, MethodKind, MethodSet, Pty};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admission::{self, Grant};
use crate::key::{Certificate, PrivateKey, PublicKey};
use crate::severable::severable;
use account::Account;
pub use account::RunAs;

mod account;
mod channel;
mod platform;
mod process;
pub(crate) mod signal;

/// Who has not logged in by then is disconnected.
const LOGIN_GRACE: Duration = Duration::from_secs(30);
/// Refused credentials are answered no sooner than this.
const REJECTION_TIME: Duration = Duration::from_millis(200);
const MAX_AUTH_ATTEMPTS: usize = 6;
/// Channels of one connection that run something at the same time.
const MAX_CHANNELS: usize = 64;
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_MAX: usize = 4;

/// What a server is made of.
#[derive(Debug)]
pub struct ServerConfig {
    /// The host keys it presents; at least one.
    pub host_keys: Vec<PrivateKey>,
    /// As whom commands run.
    pub run_as: RunAs,
    /// The node's name, for the log.
    pub node: String,
    /// Makes a span of each command and shell.
    pub tracer: Tracer,
}

/// The configuration makes no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerConfigError {
    /// There is no host key.
    #[error("an SSH server needs a host key")]
    NoHostKey,
}

/// A connection ended with a fault of the transport.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nobody logged in within 30 seconds.
    #[error("nobody logged in within {} s", LOGIN_GRACE.as_secs())]
    LoginGrace,
    /// The other side broke the protocol, or the stream broke.
    #[error("the SSH connection failed")]
    Protocol(#[source] russh::Error),
}

/// What a connection was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Who was logged in; `None` when nobody was.
    pub user: Option<String>,
}

struct Shared {
    config: Arc<server::Config>,
    host_keys: Vec<PublicKey>,
    run_as: RunAs,
    own: Account,
    node: String,
    tracer: Tracer,
    trusted: RwLock<Arc<[PublicKey]>>,
}

/// The server; cheap to clone, all clones share the trusted authorities.
#[derive(Clone)]
pub struct SshServer(Arc<Shared>);

impl fmt::Debug for SshServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SshServer")
            .field("node", &self.0.node)
            .field("run_as", &self.0.run_as)
            .finish_non_exhaustive()
    }
}

impl SshServer {
    /// A server that trusts nobody yet.
    ///
    /// # Errors
    ///
    /// [`ServerConfigError::NoHostKey`].
    pub fn new(config: ServerConfig) -> Result<Self, ServerConfigError> {
        if config.host_keys.is_empty() {
            return Err(ServerConfigError::NoHostKey);
        }
        let methods: &[MethodKind] = &[MethodKind::PublicKey];
        let transport = server::Config {
            methods: MethodSet::from(methods),
            keys: config
                .host_keys
                .iter()
                .map(|key| (*key.0).clone())
                .collect(),
            auth_rejection_time: REJECTION_TIME,
            auth_rejection_time_initial: Some(Duration::ZERO),
            max_auth_attempts: MAX_AUTH_ATTEMPTS,
            inactivity_timeout: None,
            keepalive_interval: Some(KEEPALIVE),
            keepalive_max: KEEPALIVE_MAX,
            ..server::Config::default()
        };
        Ok(Self(Arc::new(Shared {
            config: Arc::new(transport),
            host_keys: config
                .host_keys
                .iter()
                .map(PrivateKey::public_key)
                .collect(),
            run_as: config.run_as,
            own: Account::own(),
            node: config.node,
            tracer: config.tracer,
            trusted: RwLock::new(Arc::from([])),
        })))
    }

    /// Sets whose certificates are good from now on; none means that nobody gets in.
    pub fn trust(&self, authorities: Vec<PublicKey>) {
        let mut trusted = self
            .0
            .trusted
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *trusted = authorities.into();
    }

    /// The user to log in as when the caller names none.
    pub fn default_user(&self) -> &str {
        &self.0.own.name
    }

    /// The host keys as OpenSSH public key lines.
    pub fn host_key_lines(&self) -> Vec<String> {
        self.0.host_keys.iter().map(PublicKey::to_string).collect()
    }

    /// Serves one connection from `peer` to its end. Dropping the future ends the connection and
    /// kills what runs in it.
    ///
    /// # Errors
    ///
    /// [`ServeError`] when the transport failed or nobody logged in; refused logins are no errors.
    pub async fn serve<S>(&self, stream: S, peer: IpAddr) -> Result<Served, ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, _cut_on_drop) = severable(stream);
        let (login, mut logged_in) = watch::channel(None);
        let channels = Channels::default();
        let connection = Connection {
            shared: Arc::clone(&self.0),
            peer: peer.to_canonical(),
            login,
            granted: None,
            started: BTreeSet::new(),
            channels: channels.clone(),
        };
        let config = Arc::clone(&self.0.config);
        let user = logged_in.clone();
        let session = async {
            let running = server::run_stream(config, stream, connection).await?;
            running.await
        };
        let grace = async {
            let login = tokio::time::timeout(LOGIN_GRACE, logged_in.wait_for(Option::is_some));
            // Taken apart here: what `wait_for` gives must not be held across an await.
            let late = login.await.is_err();
            if !late {
                std::future::pending::<()>().await;
            }
            ServeError::LoginGrace
        };
        let result = tokio::select! {
            ended = session => ended.map_err(|error| ServeError::Protocol(error.0)),
            late = grace => Err(late),
        };
        // The channels see the end of the connection and hang up their processes.
        channels.finished().await;
        let user: Option<String> = user.borrow().clone();
        match result {
            Err(ServeError::Protocol(error)) if is_goodbye(&error) => Ok(Served { user }),
            Err(error) => Err(error),
            Ok(()) => Ok(Served { user }),
        }
    }
}

/// Whether the error is only another way of ending: clients close without a good-bye.
fn is_goodbye(error: &russh::Error) -> bool {
    match error {
        russh::Error::Disconnect | russh::Error::HUP => true,
        russh::Error::IO(error) => matches!(
            error.kind(),
            std::io::ErrorKind::UnexpectedEof
                | std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::BrokenPipe
        ),
        _ => false,
    }
}

/// Whether a client may set this variable.
fn accepts_env(name: &str) -> bool {
    matches!(name, "LANG" | "COLORTERM" | "TZ") || name.starts_with("LC_")
}

/// The tasks of a connection's channels.
///
/// Shared between the connection, which the SSH library runs in a task of its own, and
/// [`SshServer::serve`]; whichever owner goes last ends them.
#[derive(Clone, Default)]
struct Channels(Arc<Mutex<JoinSet<()>>>);

impl Channels {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= MAX_CHANNELS {
            return false;
        }
        tasks.spawn(task);
        true
    }

    async fn finished(&self) {
        let mut tasks = {
            let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        while tasks.join_next().await.is_some() {}
    }
}

/// Errors of the connection's handler: the library's own.
#[derive(Debug)]
struct HandlerError(russh::Error);

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        Self(error)
    }
}

struct Connection {
    shared: Arc<Shared>,
    peer: IpAddr,
    login: watch::Sender<Option<String>>,
    granted: Option<(Account, Grant)>,
    /// Channels in which something was started; a second start is refused.
    started: BTreeSet<ChannelId>,
    channels: Channels,
}

impl Connection {
    fn decide(&self, user: &str, certificate: &Certificate) -> Option<(Account, Grant)> {
        let trusted = {
            let trusted = self
                .shared
                .trusted
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&trusted)
        };
        let now = Timestamp::from(SystemTime::now());
        let (node, peer) = (&self.shared.node, self.peer);
        let key_id = certificate.key_id();
        match admission::admit(certificate, user, peer, &trusted, now) {
            Ok(grant) => match Account::resolve(user, self.shared.run_as) {
                Some(account) => {
                    let serial = certificate.serial();
                    tracing::info!(node, %peer, key_id, serial, user, "ssh login");
                    Some((account, grant))
                }
                None => {
                    let own = &self.shared.own.name;
                    tracing::info!(node, %peer, key_id, own, "ssh login refused: this node runs nothing as that user");
                    None
                }
            },
            Err(refusal) => {
                tracing::info!(node, %peer, key_id, reason = %refusal, "ssh login refused");
                None
            }
        }
    }

    /// Answers a request to start something: once per channel.
    fn start(
        &mut self,
        channel: ChannelId,
        session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        if self.started.insert(channel) {
            session.channel_success(channel)?;
        } else {
            session.channel_failure(channel)?;
        }
        Ok(())
    }
}

impl Handler for Connection {
    type Error = HandlerError;

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &russh::keys::Certificate,
    ) -> Result<Auth, HandlerError> {
        let certificate = Certificate(certificate.clone());
        match self.decide(user, &certificate) {
            Some(granted) => {
                self.granted = Some(granted);
                self.login.send_replace(Some(user.to_owned()));
                Ok(Auth::Accept)
            }
            None => Ok(Auth::reject()),
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        let Some((account, grant)) = self.granted.clone() else {
            return Ok(());
        };
        let serving = channel::Serving {
            handle: session.handle(),
            account,
            pty: grant.pty,
            tracer: self.shared.tracer.clone(),
            node: self.shared.node.clone(),
        };
        let task = channel::serve(channel, serving);
        if self.channels.spawn(task) {
            reply.accept().await;
        } else {
            reply
                .reject(russh::ChannelOpenFailure::ResourceShortage)
                .await;
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        self.started.remove(&channel);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        if self.granted.as_ref().is_some_and(|(_, grant)| grant.pty) {
            session.channel_success(channel)?;
        } else {
            session.channel_failure(channel)?;
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        _value: &str,
        session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        if accepts_env(name) || name == crate::TRACEPARENT {
            session.channel_success(channel)?;
        } else {
            session.channel_failure(channel)?;
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        self.start(channel, session)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        self.start(channel, session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        let name: String = name
            .chars()
            .filter(char::is_ascii_graphic)
            .take(40)
            .collect();
        tracing::info!(node = self.shared.node, name, "ssh subsystem refused");
        let text = format!("mesh: no SSH subsystem {name:?} here; use rsync, or scp -O\r\n");
        // OpenSSH's client drops what a refused request says; a failed one it shows to its user.
        session.channel_success(channel)?;
        session.extended_data(channel, 1, text)?;
        session.exit_status_request(channel, 1)?;
        session.eof(channel)?;
        session.close(channel)?;
        Ok(())
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        session: &mut server::Session,
    ) -> Result<(), HandlerError> {
        session.channel_success(channel)?;
        Ok(())
    }
}
