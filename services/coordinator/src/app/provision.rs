//! `coordinator bootstrap`: what a compose project or a cluster needs before its services start.
//! Idempotent: what is there and still good is left as it is.
//!
//! Runs instead of a coordinator, or beside one where the store lets two processes in. It applies
//! nothing to anybody's memory: tokens are always looked up in the store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::context::{Context, ContextConnectError, ContextError, Contexts};
use mesh_daemon::{PrivateFileError, private_dir, read_private, write_private};
use mesh_types::{JoinToken, NetworkId, NetworkName, Role, Timestamp, TokenId};
use subtle::ConstantTimeEq as _;

use super::bootstrap::{
    BootstrapError, FIRST_OPERATOR, Foundation, Opening, found, operator_dir, random,
    write_addresses,
};
use super::enrol::secret_hash;
use super::note;
use crate::OperatorFiles;
use crate::clock::Clock;
use crate::config::{Config, advertised_unbound};
use crate::record::{AuditEntry, EventKind, EventRecord, TokenRecord};
use crate::store::StoreError;

/// The services that join by a token file, each in a directory of this name.
pub(crate) const ROLES: [Role; 4] = [Role::Relay, Role::Gateway, Role::Deployer, Role::Worker];
/// How long the tokens live: as long as an operator's may at most.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// A token with less than this left is replaced, so that whoever starts after us has time.
const ENOUGH: Duration = Duration::from_secs(12 * 60 * 60);
const ACTOR: &str = "bootstrap";
const FILE: &str = "token";
const CONTEXT: &str = "default";

/// Where a role's token is, below the directory of all.
pub(crate) fn token_file(tokens_dir: &Path, role: Role) -> PathBuf {
    tokens_dir.join(role.as_str()).join(FILE)
}

/// Where the operator's context is, below the operator's directory.
pub(crate) fn context_file(operator_dir: &Path) -> PathBuf {
    contexts(operator_dir).path(CONTEXT)
}

fn contexts(operator_dir: &Path) -> Contexts {
    Contexts::in_dir(operator_dir.join("mesh/contexts"))
}

/// What is to be made, and where.
#[derive(Debug, Clone)]
pub struct ProvisionOptions {
    /// Gets one directory for each role, with the file `token` in it.
    pub tokens_dir: PathBuf,
    /// Gets the operator's context, as `mesh/contexts/default.json`; so it can be used as
    /// `XDG_CONFIG_HOME`.
    pub operator_dir: PathBuf,
    /// The gateway's URL, for the context.
    pub gateway: Option<String>,
    /// `host:port` of the deploy-manager's SOCKS5 listener, for the context.
    pub socks: Option<String>,
    /// The roles whose tokens let in any number of machines; all others let in one.
    pub reusable: BTreeSet<Role>,
}

/// What was done with one token file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionedToken {
    /// Whom it lets in.
    pub role: Role,
    /// Where it is.
    pub path: PathBuf,
    /// Until when.
    pub expires_at: Timestamp,
    /// Whether it is new; else it was there and still good.
    pub is_new: bool,
}

/// What stands after [`provision`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// `host:port` of the coordinator as tokens and context say.
    pub addresses: Vec<String>,
    /// One for each role.
    pub tokens: Vec<ProvisionedToken>,
    /// The operator's context file; `None` when the first operator was revoked, or its key is kept
    /// elsewhere.
    pub context: Option<PathBuf>,
}

/// Why not everything could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvisionError {
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A token must say where the coordinator is, and nothing is bound here.
    #[error(
        "the tokens must say where the coordinator is: set server.advertise, such as \
         MESH_COORDINATOR__SERVER__ADVERTISE=coordinator:8080"
    )]
    NoAddress,
    /// The network that everybody joins is gone.
    #[error("there is no network {0}: make it with 'mesh network create {0}'")]
    NoNetwork(NetworkName),
    /// A directory or file cannot be used.
    #[error("the join tokens cannot be written")]
    File(#[from] PrivateFileError),
    /// The context cannot be written.
    #[error("the operator's context cannot be written")]
    Context(#[from] ContextError),
    /// The operator's files cannot be used.
    #[error("the first operator's credential cannot be used")]
    Credential(#[from] ContextConnectError),
    /// The operator's files cannot be read.
    #[error("the first operator's credential cannot be read: {0:#}")]
    Operator(anyhow::Error),
}

/// Makes what is missing of CA, default network, first operator and its context, and join tokens.
pub(crate) async fn provision(
    config: &Config,
    options: &ProvisionOptions,
    clock: &Arc<dyn Clock>,
) -> Result<Provisioned, ProvisionError> {
    let addresses = advertised_unbound(&config.server).ok_or(ProvisionError::NoAddress)?;
    let now = clock.now();
    let foundation = found(config, Opening::Beside, now).await?;
    let default = NetworkName::default_network();
    let networks = foundation.store.network_list().await?;
    let network = networks.into_iter().find(|known| known.name == default);
    let network = network
        .ok_or_else(|| ProvisionError::NoNetwork(default.clone()))?
        .id;
    let mut tokens = Vec::new();
    for role in ROLES {
        let wish = Wish {
            role,
            network: (role != Role::Relay).then_some(network),
            is_reusable: options.reusable.contains(&role),
            addresses: &addresses,
        };
        let path = token_file(&options.tokens_dir, role);
        tokens.push(provide(&foundation, &wish, path, now).await?);
    }
    write_addresses(&config.state_dir, &addresses)?;
    let context = write_context(&config.state_dir, options, &addresses)?;
    foundation.store.close().await;
    Ok(Provisioned {
        addresses,
        tokens,
        context,
    })
}

/// The token that a file should hold.
struct Wish<'a> {
    role: Role,
    network: Option<NetworkId>,
    is_reusable: bool,
    addresses: &'a [String],
}

async fn provide(
    foundation: &Foundation,
    wish: &Wish<'_>,
    path: PathBuf,
    now: Timestamp,
) -> Result<ProvisionedToken, ProvisionError> {
    // A directory that is there may be a volume with an owner of its own: it is used as it is.
    if let Some(dir) = path.parent().filter(|dir| !dir.is_dir()) {
        private_dir(dir)?;
    }
    if let Some(expires_at) = still_good(foundation, wish, &path, now).await? {
        return Ok(ProvisionedToken {
            role: wish.role,
            path,
            expires_at,
            is_new: false,
        });
    }
    let (token, record) = create(foundation, wish, now).await?;
    write_private(&path, format!("{}\n", token.reveal()).as_bytes())?;
    Ok(ProvisionedToken {
        role: wish.role,
        path,
        expires_at: record.expires_at,
        is_new: true,
    })
}

/// Until when the token in the file lets in whom it should; `None` when it must be replaced.
async fn still_good(
    foundation: &Foundation,
    wish: &Wish<'_>,
    path: &Path,
    now: Timestamp,
) -> Result<Option<Timestamp>, ProvisionError> {
    let text = read_private(path)?;
    let token = text.and_then(|text| {
        let text = String::from_utf8(text).ok()?;
        text.trim().parse::<JoinToken>().ok()
    });
    let Some(token) = token else {
        return Ok(None);
    };
    let Some(record) = foundation.store.token_peek(token.id).await? else {
        return Ok(None);
    };
    let is_ours = token.ca_fingerprint == foundation.ca.fingerprint()
        && bool::from(secret_hash(&token.secret).ct_eq(&record.secret_hash));
    let is_wished = record.role == wish.role
        && record.network == wish.network
        && record.reusable == wish.is_reusable
        && token.coordinators == wish.addresses;
    let lets_in = record.revoked_at.is_none()
        && (record.reusable || record.uses == 0)
        && now.plus(ENOUGH) < record.expires_at;
    Ok((is_ours && is_wished && lets_in).then_some(record.expires_at))
}

async fn create(
    foundation: &Foundation,
    wish: &Wish<'_>,
    now: Timestamp,
) -> Result<(JoinToken, TokenRecord), ProvisionError> {
    let secret: [u8; 32] = random()?;
    let record = TokenRecord {
        id: TokenId::from_parts(now.as_unix_millis(), random()?),
        network: wish.network,
        role: wish.role,
        owner: FIRST_OPERATOR.to_owned(),
        reusable: wish.is_reusable,
        secret_hash: secret_hash(&secret),
        created_at: now,
        expires_at: now.plus(LIFE),
        revoked_at: None,
        uses: 0,
    };
    let role = wish.role.as_str();
    let event = EventRecord {
        id: 0,
        time: now,
        network: wish.network.map(|_| NetworkName::default_network()),
        kind: EventKind::TokenCreated,
        subject: record.id.to_string(),
        detail: role.to_owned(),
    };
    let entry = AuditEntry {
        time: now,
        actor: ACTOR.to_owned(),
        action: "token-create".to_owned(),
        subject: format!("token:{}", record.id),
        before: String::new(),
        after: note(&[("role", role), ("owner", FIRST_OPERATOR)]),
    };
    let txn = foundation.store.write().await?;
    txn.token_create(&record).await?;
    txn.event_create(&event).await?;
    txn.audit_append(&entry).await?;
    txn.commit().await?;
    let token = JoinToken {
        ca_fingerprint: foundation.ca.fingerprint(),
        id: record.id,
        secret,
        coordinators: wish.addresses.to_vec(),
    };
    Ok((token, record))
}

/// Writes the first operator's context, keeping what others added to one that is there already.
fn write_context(
    state_dir: &Path,
    options: &ProvisionOptions,
    addresses: &[String],
) -> Result<Option<PathBuf>, ProvisionError> {
    if !operator_dir(state_dir).join("id").exists() {
        return Ok(None);
    }
    let files = OperatorFiles::read(state_dir).map_err(ProvisionError::Operator)?;
    let default = NetworkName::default_network();
    let mut context = Context::from_pem(
        addresses.to_vec(),
        &files.ca_pem,
        &files.cert_pem,
        &files.key_pem,
        default.as_str(),
    )?;
    let contexts = contexts(&options.operator_dir);
    if let Ok(before) = contexts.load(Some(CONTEXT))
        && before.key == context.key
    {
        context.socks = before.socks;
        context.deploy = before.deploy;
        context.gateway = before.gateway;
    }
    if let Some(socks) = &options.socks {
        let network = default.as_str().to_owned();
        context.socks.insert(network, socks.clone());
    }
    if options.gateway.is_some() {
        context.gateway.clone_from(&options.gateway);
    }
    let select = contexts.current()?.is_none();
    contexts.save(CONTEXT, &context, select)?;
    Ok(Some(contexts.path(CONTEXT)))
}

impl std::fmt::Display for Provisioned {
    /// One line for each thing, for people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "coordinator at {}", self.addresses.join(", "))?;
        for token in &self.tokens {
            let done = if token.is_new { "made" } else { "kept" };
            writeln!(f, "{done} {} token {}", token.role, token.path.display())?;
        }
        match &self.context {
            Some(path) => writeln!(f, "operator's context {}", path.display()),
            None => writeln!(
                f,
                "no operator's context: the first operator was revoked, or its key is elsewhere"
            ),
        }
    }
}
