//! Joining a network: a new identity in a directory of its own.

use std::io;
use std::path::Path;
use std::time::Duration;

use mesh_daemon::{PrivateFileError, private_dir};
use mesh_node::{
    ControlConfig, ControlSession, EnrolError, EnrolOptions, Enrolled, StateDir, StateDirError,
    enrol,
};
use mesh_types::{JoinToken, NetworkName, Role};

use crate::control;
use crate::networks::{dir_of, joined};

/// The token that an identity was made with, so that joining twice is joining once.
const TOKEN_FILE: &str = "token-id";
/// How long the coordinator may take to be told about an identity that is given up.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// How to join.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// What the gateway would like to be called in the network.
    pub hostname: String,
}

impl JoinOptions {
    /// With this name.
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
        }
    }
}

/// Why the gateway did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The coordinator did not accept it, or could not be asked.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// A directory is not what it should be.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The directory of all networks cannot be made.
    #[error(transparent)]
    Dir(#[from] PrivateFileError),
    /// The token is for something else than a gateway.
    #[error(
        "this token is for a {0}, not for a gateway: make one with 'mesh token create --role gateway'"
    )]
    Role(Role),
    /// There is an identity for that network already.
    #[error(
        "this gateway is in network {0} already; to join it anew, stop the gateway and remove its \
         directory network-{0}"
    )]
    Twice(NetworkName),
    /// The new identity cannot be put in its place.
    #[error("the new identity cannot be stored")]
    Store(#[source] io::Error),
}

/// Joins the network of `token` with an identity below `state_dir`, and tells the gateway that
/// runs there, if one does. The same token again finds the identity that it made.
///
/// # Errors
/// See [`JoinError`]; nothing is left behind, and the token is not used up unless it says so.
pub async fn join(
    state_dir: &Path,
    token: &JoinToken,
    options: JoinOptions,
) -> Result<Enrolled, JoinError> {
    private_dir(state_dir)?;
    let id = token.id.to_string();
    if let Some(enrolled) = known(state_dir, &id)? {
        return Ok(enrolled);
    }
    let fresh = state_dir.join(format!("joining-{id}"));
    let state = StateDir::open(&fresh)?;
    let mut enrolling = EnrolOptions::new(options.hostname);
    enrolling.roles = vec![Role::Gateway];
    enrolling.version = mesh_daemon::build_info::VERSION.to_owned();
    let enrolled = enrol(token, enrolling, &state).await?;
    let place = match (&enrolled.network, enrolled.role) {
        (Some(network), Role::Gateway) => {
            let place = dir_of(state_dir, network);
            if place.exists() {
                Err(JoinError::Twice(network.clone()))
            } else {
                Ok(place)
            }
        }
        (_, role) => Err(JoinError::Role(role)),
    };
    let place = match place {
        Ok(place) => place,
        Err(fault) => {
            give_up(&state, &fresh).await;
            return Err(fault);
        }
    };
    state.write(TOKEN_FILE, id.as_bytes())?;
    drop(state);
    std::fs::rename(&fresh, &place).map_err(JoinError::Store)?;
    control::ask(state_dir, control::Request::Scan).await.ok();
    Ok(enrolled)
}

/// The identity that the token made, when there is one. Directories of networks that a running
/// gateway holds are locked, so only their plain file is read.
fn known(state_dir: &Path, token: &str) -> Result<Option<Enrolled>, JoinError> {
    for network in joined(state_dir).map_err(JoinError::Store)? {
        let dir = dir_of(state_dir, &network);
        let same = std::fs::read_to_string(dir.join(TOKEN_FILE)).is_ok_and(|id| id == token);
        if same {
            return match StateDir::open(&dir) {
                Ok(state) => Ok(state.enrolment()?),
                Err(_) => Err(JoinError::Twice(network)),
            };
        }
    }
    Ok(None)
}

/// Tells the coordinator that the identity is not going to be used, as far as that is possible.
async fn give_up(state: &StateDir, dir: &Path) {
    if let Ok(session) = ControlSession::start(ControlConfig::default(), state) {
        let left = tokio::time::timeout(LEAVE_LIMIT, session.leave()).await;
        if !matches!(left, Ok(Ok(()))) {
            tracing::info!("the coordinator was not told that the new identity is given up");
        }
        session.shutdown().await;
    }
    if let Err(err) = std::fs::remove_dir_all(dir) {
        tracing::info!(error = %err, "the unused identity cannot be removed");
    }
}
