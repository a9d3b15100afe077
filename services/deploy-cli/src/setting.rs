//! Where the program stands: the context, the network, its nodes, and how to log in to them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use mesh_api::client::AttemptError;
use mesh_api::context::{Context, ContextConnectError, Contexts};
use mesh_ssh::{Credential, PrivateKey};
use mesh_types::time::span;
use mesh_types::{NetworkName, NodeId};
use tokio::sync::Mutex;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::args::Options;
use crate::grpc;
use crate::last_nodes;
use crate::output::warn;
use crate::socks::{Login, Proxy};
use crate::target::Node;

/// Where SOCKS5 is when neither a flag nor the context says it.
const DEFAULT_SOCKS: &str = "localhost:1080";
/// A certificate older than this is replaced before it is used again; it is valid for five minutes.
const CERTIFICATE_USE: Duration = Duration::from_secs(180);

/// The operator's context and the network that is meant.
pub struct Setting {
    pub context: Context,
    pub network: NetworkName,
}

impl Setting {
    /// Reads the context named by the flag, else by the caller, else the current one.
    pub fn open(options: &Options, context: Option<&str>) -> anyhow::Result<Self> {
        let name = options.context.as_deref().or(context);
        let context = Contexts::of_user()?.load(name)?;
        let network = options.network.as_deref().unwrap_or(&context.network);
        let network = network.parse()?;
        Ok(Self { context, network })
    }

    /// The SOCKS5 listener of the network.
    pub fn proxy(&self, options: &Options) -> anyhow::Result<Proxy> {
        let addr = match &options.socks {
            Some(addr) => addr.clone(),
            None => proxy_addr(&self.context, &self.network)?,
        };
        let login = options.socks_auth_file.as_deref().map(read_login);
        Ok(Proxy {
            addr,
            login: login.transpose()?,
        })
    }

    /// A channel to the coordinator.
    pub async fn coordinator(&self) -> anyhow::Result<Channel> {
        Ok(self.context.coordinator().await?)
    }

    /// The nodes of the network.
    pub async fn nodes(&self, coordinator: Channel) -> anyhow::Result<Vec<Node>> {
        grpc::nodes(coordinator, &self.network).await
    }

    /// The nodes of the network and the coordinator that told them; while it does not answer, the
    /// nodes that it told last, without it. Those may be a day old, and `old_too` older.
    pub async fn nodes_even_without_coordinator(
        &self,
        old_too: bool,
    ) -> anyhow::Result<(Option<Channel>, Vec<Node>)> {
        let asked = async {
            let coordinator = self.coordinator().await?;
            let nodes = self.nodes(coordinator.clone()).await?;
            anyhow::Ok((coordinator, nodes))
        };
        let file = last_nodes::file(&self.context.ca_der()?, &self.network);
        match asked.await {
            Ok((coordinator, nodes)) => {
                // Where nothing can be kept, as in a container, it is missed only once the coordinator
                // is; a word about it at each command would be in the way.
                drop(file.and_then(|file| last_nodes::keep(&file, &nodes)));
                Ok((Some(coordinator), nodes))
            }
            Err(error) if is_away(&error) => {
                let last = file.ok().and_then(|file| last_nodes::read(&file));
                let Some(last) = last else {
                    return Err(error.context("there is no earlier list of nodes to go by"));
                };
                let age = match last.age(SystemTime::now().into(), old_too) {
                    Ok(age) => span(age),
                    Err(refused) => return Err(error.context(refused)),
                };
                warn(&format!(
                    "the coordinator does not answer ({error:#}); going by the nodes of {age} ago"
                ));
                Ok((None, last.nodes))
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether the coordinator did not answer at all; one that refuses did, and so did whatever else is
/// found at its address.
pub fn is_away(error: &anyhow::Error) -> bool {
    if let Some(ContextConnectError::Connect(error)) = error.downcast_ref() {
        // What stands in front of it breaks connections off when nobody is behind.
        return error.attempts.iter().all(|(_, reason)| {
            use AttemptError::{Broken, Name, Tcp, Timeout};
            matches!(reason, Name(_) | Tcp(_) | Timeout | Broken(_))
        });
    }
    error.is::<grpc::Unavailable>()
}

/// The SOCKS5 listener that the context names for the network.
pub fn proxy_addr(context: &Context, network: &NetworkName) -> anyhow::Result<String> {
    match context.socks.get(network.as_str()) {
        Some(addr) => Ok(addr.clone()),
        None if network.is_default() => Ok(DEFAULT_SOCKS.to_owned()),
        None => anyhow::bail!(
            "the context names no SOCKS5 listener for network {network}: say it with --socks, or store it with: \
             mesh context set --socks {network}=HOST:PORT"
        ),
    }
}

fn read_login(path: &Path) -> anyhow::Result<Login> {
    let text = read_secret(path)?;
    let (user, password) = text
        .split_once(':')
        .with_context(|| format!("{} does not hold \"user:password\"", path.display()))?;
    Ok(Login {
        user: user.to_owned(),
        password: password.to_owned().into(),
    })
}

/// The file's text without the line end; "-" is standard input.
pub fn read_secret(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("read the secret from standard input")?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?
    };
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(
        text.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}

/// How to log in, as the flags say.
pub enum Method {
    /// With a certificate of the network's authority.
    Certificate,
    /// With this key.
    Key(PrivateKey),
    /// With this password.
    Password(Zeroizing<String>),
}

impl Method {
    /// What the flags say; a password in plain sight is warned about.
    pub fn from_options(options: &Options) -> anyhow::Result<Self> {
        if let Some(path) = &options.identity {
            let text = read_secret(path)?;
            let key = PrivateKey::from_openssh(&text, None)
                .with_context(|| format!("use the key in {}", path.display()))?;
            return Ok(Self::Key(key));
        }
        if let Some(path) = &options.password_file {
            return Ok(Self::Password(read_secret(path)?));
        }
        if let Some(password) = &options.password {
            warn(
                "a password on the command line can be read by every user of this machine; use --password-file",
            );
            return Ok(Self::Password(password.0.clone()));
        }
        Ok(Self::Certificate)
    }
}

/// Gives out credentials; certificates are made when they are needed, once per user.
pub struct Credentials {
    login: Method,
    issuer: Option<Issuer>,
}

impl Credentials {
    /// With `login`; `coordinator`, if it answers, signs the certificates.
    pub fn new(login: Method, coordinator: Option<Channel>, network: &NetworkName) -> Self {
        let issuer = coordinator
            .filter(|_| matches!(login, Method::Certificate))
            .map(|coordinator| Issuer::new(coordinator, network, PrivateKey::generate()));
        Self { login, issuer }
    }

    /// How to log in as `user` on `targets`, all those of the run that are logged in to as him.
    pub async fn of(&self, user: &str, targets: &[NodeId]) -> anyhow::Result<Credential> {
        match (&self.login, &self.issuer) {
            (Method::Key(key), _) => Ok(Credential::Key(key.clone())),
            (Method::Password(password), _) => Ok(Credential::Password(password.clone())),
            (Method::Certificate, Some(issuer)) => issuer.of(user, targets).await,
            (Method::Certificate, None) => anyhow::bail!(
                "only the coordinator gives out certificates, and it does not answer: log in with \
                 --identity FILE or --password-file FILE"
            ),
        }
    }
}

/// Has certificates made for one key that never leaves this process (or its 0600 file).
pub struct Issuer {
    coordinator: Channel,
    network: NetworkName,
    key: PrivateKey,
    made: Mutex<BTreeMap<String, (Instant, Credential)>>,
}

impl Issuer {
    /// Certificates for `key` in `network`.
    pub fn new(coordinator: Channel, network: &NetworkName, key: PrivateKey) -> Self {
        Self {
            coordinator,
            network: network.clone(),
            key,
            made: Mutex::default(),
        }
    }

    async fn of(&self, user: &str, targets: &[NodeId]) -> anyhow::Result<Credential> {
        // Held across the request on purpose: the others of this user wait for its answer.
        let mut made = self.made.lock().await;
        if let Some((at, credential)) = made.get(user)
            && at.elapsed() < CERTIFICATE_USE
        {
            return Ok(credential.clone());
        }
        let certificate = self.issue(user, targets).await?.parse()?;
        let credential = Credential::Certificate {
            key: self.key.clone(),
            certificate,
        };
        made.insert(user.to_owned(), (Instant::now(), credential.clone()));
        Ok(credential)
    }

    /// A fresh certificate line for `user` on `targets`.
    pub async fn issue(&self, user: &str, targets: &[NodeId]) -> anyhow::Result<String> {
        let key = self.key.public_key();
        grpc::issue(self.coordinator.clone(), &self.network, &key, user, targets).await
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use mesh_api::client::ConnectError;

    use super::*;

    fn unreached(attempts: Vec<AttemptError>) -> anyhow::Error {
        let attempts = attempts.into_iter().map(|why| ("c:8080".to_owned(), why));
        let attempts = attempts.collect();
        ContextConnectError::Connect(ConnectError { attempts }).into()
    }

    #[test]
    fn a_coordinator_is_away_when_nobody_answers_and_not_when_something_else_does() {
        use AttemptError::{Address, Broken, Name, NotTls, Tcp, Timeout};

        let io = |kind: ErrorKind| Error::from(kind);
        let away = || Broken(io(ErrorKind::UnexpectedEof));
        let elsewhere = || NotTls(io(ErrorKind::InvalidData));
        for (attempts, expected) in [
            (vec![Name(io(ErrorKind::NotFound))], true),
            (vec![Tcp(io(ErrorKind::ConnectionRefused))], true),
            (vec![Timeout], true),
            // A proxy before a coordinator that is stopped.
            (vec![away()], true),
            (vec![Broken(io(ErrorKind::ConnectionReset)), Timeout], true),
            (vec![elsewhere()], false),
            (vec![Address(io(ErrorKind::InvalidInput))], false),
            (vec![away(), elsewhere()], false),
        ] {
            let error = unreached(attempts);
            assert_eq!(is_away(&error), expected, "{error:#}");
        }
        assert!(!is_away(&anyhow::anyhow!("refused")));
    }
}
