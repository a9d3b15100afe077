//! One SSH session to one node, over any stream.
//!
//! Host keys are pinned: there is no prompt and no trust on first use. Nothing here has a time limit
//! of its own; wrap the futures, and drop the [`Session`] to end everything that runs in it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::client::{self, AuthResult};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, Disconnect, Preferred};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::DropGuard;
use zeroize::Zeroizing;

use crate::key::{Certificate, PrivateKey, PublicKey};
use crate::severable::severable;

/// How often a silent connection is probed.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// After this many unanswered probes the connection counts as lost.
const KEEPALIVE_MAX: usize = 4;

/// Whom a session is with.
#[derive(Debug, Clone)]
pub struct Target {
    /// The node's name, for messages.
    pub node: String,
    /// Its pinned host keys; one of them must be presented.
    pub host_keys: Vec<PublicKey>,
}

/// How to log in.
#[derive(Clone)]
pub enum Credential {
    /// A certificate and the key that it certifies.
    Certificate {
        /// The certified key.
        key: PrivateKey,
        /// The certificate.
        certificate: Certificate,
    },
    /// A key that the machine lists in `authorized_keys`.
    Key(PrivateKey),
    /// The user's password.
    Password(Zeroizing<String>),
}

impl Credential {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Certificate { .. } => "certificate",
            Self::Key(_) => "key",
            Self::Password(_) => "password",
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// The node presented a host key that is not pinned for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the SSH host key of {node} is not the pinned one: expected {}, presented {presented}; if the change is meant, run: mesh node host-key accept {node}",
    .expected.join(" or ")
)]
pub struct HostKeyMismatch {
    /// The node's name.
    pub node: String,
    /// Fingerprints of the pinned keys.
    pub expected: Vec<String>,
    /// Fingerprint of the key that was presented.
    pub presented: String,
}

/// A session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Another host key than the pinned ones: a changed machine, or somebody in between.
    #[error(transparent)]
    HostKey(#[from] HostKeyMismatch),
    /// No host key is pinned for the node.
    #[error(
        "no SSH host key is pinned for {node}, which presented {presented}; when the node has reported its key, run: mesh node host-key accept {node}"
    )]
    NotPinned {
        /// The node's name.
        node: String,
        /// Fingerprint of the key that was presented.
        presented: String,
    },
    /// The other side does not speak SSH, or not in a way both sides accept.
    #[error("the SSH connection to {node} failed before login")]
    Protocol {
        /// The node's name.
        node: String,
        /// What went wrong.
        #[source]
        source: russh::Error,
    },
}

/// A login failed.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The node did not accept the credential.
    #[error(
        "{node} does not let {user:?} in with this {credential} (it accepts: {accepted}); check the user (--user), and for certificates that the machine trusts the network's SSH authority (worker-agent ssh trust)"
    )]
    Refused {
        /// The node's name.
        node: String,
        /// The user that was asked for.
        user: String,
        /// What was presented: certificate, key or password.
        credential: &'static str,
        /// The methods that the node would go on with.
        accepted: String,
    },
    /// The connection ended during the login.
    #[error("the SSH connection to {node} was lost during login")]
    Lost {
        /// The node's name.
        node: String,
        /// What went wrong.
        #[source]
        source: russh::Error,
    },
}

/// A command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The node refuses to run commands for this user.
    #[error("{node} refused to run the command")]
    Refused {
        /// The node's name.
        node: String,
    },
    /// The connection ended before the command started.
    #[error("the SSH connection to {node} was lost before the command started")]
    Lost {
        /// The node's name.
        node: String,
        /// What went wrong.
        #[source]
        source: russh::Error,
    },
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this status; 0 is success.
    Status(u32),
    /// By this signal, without the `SIG`.
    Signal(String),
    /// Unknown: the connection ended first.
    Lost,
}

impl Exit {
    /// The status as shells give it: the command's own, or 128 and the number of the signal that
    /// ended it; `None` when that is not known.
    pub fn shell_code(&self) -> Option<u32> {
        match self {
            Self::Status(code) => Some(*code),
            Self::Signal(name) => crate::server::signal::number(name).map(|number| 128 + number),
            Self::Lost => None,
        }
    }
}

/// Something a running command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It ended; nothing comes after this.
    Exit(Exit),
}

#[derive(Debug)]
enum CheckError {
    Mismatch(HostKeyMismatch),
    NotPinned(String),
    Protocol(russh::Error),
}

impl From<russh::Error> for CheckError {
    fn from(error: russh::Error) -> Self {
        Self::Protocol(error)
    }
}

#[derive(Debug)]
struct HostKeyCheck(Target);

impl client::Handler for HostKeyCheck {
    type Error = CheckError;

    async fn check_server_key(
        &mut self,
        presented: &PublicKeyOrCertificate,
    ) -> Result<bool, CheckError> {
        let presented = PublicKey::new(presented.public_key().key_data().clone());
        if self.0.host_keys.is_empty() {
            return Err(CheckError::NotPinned(presented.fingerprint()));
        }
        if self.0.host_keys.contains(&presented) {
            return Ok(true);
        }
        Err(CheckError::Mismatch(HostKeyMismatch {
            node: self.0.node.clone(),
            expected: self
                .0
                .host_keys
                .iter()
                .map(PublicKey::fingerprint)
                .collect(),
            presented: presented.fingerprint(),
        }))
    }
}

/// Takes any host key, and keeps it.
struct HostKeyCapture(Arc<Mutex<Option<PublicKey>>>);

impl client::Handler for HostKeyCapture {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        presented: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let presented = PublicKey::new(presented.public_key().key_data().clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented);
        Ok(false)
    }
}

/// Asks an SSH server for its host key by a key exchange; nobody logs in. Only for servers that
/// cannot be anybody else's, such as one on this machine's loopback.
///
/// # Errors
///
/// [`ConnectError::Protocol`] when the other side does not speak SSH; `node` names it there.
pub async fn host_key<S>(stream: S, node: &str) -> Result<PublicKey, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let seen = Arc::new(Mutex::new(None));
    let capture = HostKeyCapture(Arc::clone(&seen));
    let (stream, _cut_on_drop) = severable(stream);
    let outcome = client::connect_stream(Arc::new(config(&[])), stream, capture).await;
    if let Some(key) = seen.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Ok(key);
    }
    let source = outcome.err().unwrap_or(russh::Error::Disconnect);
    Err(ConnectError::Protocol {
        node: node.to_owned(),
        source,
    })
}

/// The client's settings; the pinned keys' algorithms come first, so that a machine with several
/// host keys shows the pinned one.
fn config(host_keys: &[PublicKey]) -> client::Config {
    let mut preferred = Preferred::default();
    let (mut first, rest): (Vec<_>, Vec<_>) = preferred
        .key
        .iter()
        .cloned()
        .partition(|algorithm| host_keys.iter().any(|key| key.0.algorithm() == *algorithm));
    first.extend(rest);
    preferred.key = first.into();
    client::Config {
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        inactivity_timeout: None,
        preferred,
        ..client::Config::default()
    }
}

/// An SSH session. Dropping it closes the connection and ends what runs in it.
pub struct Session {
    node: String,
    handle: client::Handle<HostKeyCheck>,
    _cut_on_drop: DropGuard,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Opens a session over `stream` and checks the host key; nobody is logged in yet.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; a wrong host key shows both fingerprints.
    pub async fn connect<S>(stream: S, target: &Target) -> Result<Self, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, guard) = severable(stream);
        let config = Arc::new(config(&target.host_keys));
        let node = target.node.clone();
        match client::connect_stream(config, stream, HostKeyCheck(target.clone())).await {
            Ok(handle) => Ok(Self {
                node,
                handle,
                _cut_on_drop: guard,
            }),
            Err(CheckError::Mismatch(mismatch)) => Err(mismatch.into()),
            Err(CheckError::NotPinned(presented)) => {
                Err(ConnectError::NotPinned { node, presented })
            }
            Err(CheckError::Protocol(source)) => Err(ConnectError::Protocol { node, source }),
        }
    }

    /// Logs in.
    ///
    /// # Errors
    ///
    /// [`AuthError::Refused`] when the node does not accept the credential.
    pub async fn authenticate(
        &mut self,
        user: &str,
        credential: &Credential,
    ) -> Result<(), AuthError> {
        let result = match credential {
            Credential::Certificate { key, certificate } => {
                let (key, certificate) = (Arc::clone(&key.0), certificate.0.clone());
                self.handle
                    .authenticate_openssh_cert(user, key, certificate)
                    .await
            }
            Credential::Key(key) => {
                let key = PrivateKeyWithHashAlg::new(Arc::clone(&key.0), None);
                self.handle.authenticate_publickey(user, key).await
            }
            Credential::Password(password) => {
                self.handle
                    .authenticate_password(user, password.as_str())
                    .await
            }
        };
        match result {
            Ok(AuthResult::Success) => Ok(()),
            Ok(AuthResult::Failure {
                remaining_methods, ..
            }) => {
                let methods: Vec<&str> = remaining_methods.iter().map(<&str>::from).collect();
                Err(AuthError::Refused {
                    node: self.node.clone(),
                    user: user.to_owned(),
                    credential: credential.kind(),
                    accepted: if methods.is_empty() {
                        "nothing else".to_owned()
                    } else {
                        methods.join(", ")
                    },
                })
            }
            Err(source) => Err(AuthError::Lost {
                node: self.node.clone(),
                source,
            }),
        }
    }

    /// Starts a command; its standard input is empty.
    ///
    /// # Errors
    ///
    /// [`ExecError`] when it could not be started.
    pub async fn exec(&self, command: &str) -> Result<Exec, ExecError> {
        let lost = |source| ExecError::Lost {
            node: self.node.clone(),
            source,
        };
        let mut channel = self.handle.channel_open_session().await.map_err(lost)?;
        if let Some(parent) = mesh_trace::current_parent() {
            // A server that does not take it says nothing, and the command runs all the same.
            let parent = parent.to_string();
            let told = channel.set_env(false, crate::TRACEPARENT, parent);
            told.await.map_err(lost)?;
        }
        channel.exec(true, command).await.map_err(lost)?;
        let mut early = VecDeque::new();
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => break,
                Some(ChannelMsg::Failure) => {
                    let node = self.node.clone();
                    return Err(ExecError::Refused { node });
                }
                Some(ChannelMsg::Data { data }) => early.push_back(ExecEvent::Stdout(data)),
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                    early.push_back(ExecEvent::Stderr(data));
                }
                Some(ChannelMsg::Close) | None => return Err(lost(russh::Error::Disconnect)),
                Some(_) => {}
            }
        }
        // A command that has ended already may have closed the channel; that is no failure.
        drop(channel.eof().await);
        Ok(Exec {
            channel,
            early,
            exit: None,
            ended: false,
        })
    }

    /// Says good-bye and closes the connection.
    pub async fn close(self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "en");
        drop(goodbye.await);
    }
}

/// A running command.
pub struct Exec {
    channel: Channel<client::Msg>,
    early: VecDeque<ExecEvent>,
    exit: Option<Exit>,
    ended: bool,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").finish_non_exhaustive()
    }
}

impl Exec {
    /// The next thing it does; [`ExecEvent::Exit`] comes once and last, `None` after that.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        if let Some(event) = self.early.pop_front() {
            return Some(event);
        }
        while !self.ended {
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => return Some(ExecEvent::Stdout(data)),
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                    return Some(ExecEvent::Stderr(data));
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    self.exit = Some(Exit::Status(exit_status));
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    self.exit = Some(Exit::Signal(crate::server::signal::name(&signal_name)));
                }
                Some(ChannelMsg::Close) | None => {
                    self.ended = true;
                    let exit = self.exit.take().unwrap_or(Exit::Lost);
                    return Some(ExecEvent::Exit(exit));
                }
                Some(_) => {}
            }
        }
        None
    }
}
