//! Joining a network.

use std::path::Path;
use std::time::Duration;

use mesh_daemon::build_info;
use mesh_node::{
    EnrolError, EnrolOptions, Enrolled, FirstJoinError, StateDir, StateDirError, enrol,
};
use mesh_types::{JoinToken, Role};

/// What this machine says of itself when it joins.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The name it wishes; the nearest valid one is asked for.
    pub hostname: String,
    /// An operator's permit to take the place of an existing node.
    pub permit: Vec<u8>,
    /// How long all of it may take.
    pub timeout: Duration,
}

impl JoinOptions {
    /// With this name, no permit, and half a minute.
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
            permit: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }
}

/// This machine could not join; the text is for people.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The coordinator did not let it in, or was not reached.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// There is no usable token, or waiting was in vain.
    #[error(transparent)]
    First(#[from] FirstJoinError),
    /// It joined, but as something that this program does not run.
    #[error(
        "this token is for the role {role}, which worker-agent does not run: the state directory \
         now belongs to that role; run {program} with it, or run 'worker-agent leave' and ask for \
         a token of the role worker"
    )]
    OtherRole {
        /// The token's role.
        role: Role,
        /// The program that runs it.
        program: &'static str,
    },
}

/// Makes this machine part of the token's network, and keeps its identity in `state_dir`.
///
/// Repeating it with the same token after a lost answer gives the same identity.
pub async fn join(
    token: &JoinToken,
    options: JoinOptions,
    state_dir: &Path,
) -> Result<Enrolled, JoinError> {
    let state = StateDir::open(state_dir)?;
    let options = EnrolOptions {
        version: build_info::VERSION.to_owned(),
        timeout: options.timeout,
        permit: options.permit,
        roles: vec![Role::Worker, Role::Client, Role::Router],
        ..EnrolOptions::new(options.hostname)
    };
    let enrolled = enrol(token, options, &state).await?;
    match other_program(enrolled.role) {
        None => Ok(enrolled),
        Some(program) => Err(JoinError::OtherRole {
            role: enrolled.role,
            program,
        }),
    }
}

/// The program that runs nodes of a role, when it is not this one.
pub(crate) fn other_program(role: Role) -> Option<&'static str> {
    match role {
        Role::Worker | Role::Client | Role::Router => None,
        Role::Gateway => Some("traffic-gateway"),
        Role::Deployer => Some("deploy-manager"),
        Role::Relay => Some("relay"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_workers_clients_and_routers_are_run_here() {
        let run: Vec<Role> = Role::ALL
            .into_iter()
            .filter(|role| other_program(*role).is_none())
            .collect();
        assert_eq!(run, [Role::Worker, Role::Router, Role::Client]);
    }

    #[tokio::test]
    async fn an_unreachable_coordinator_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = JoinToken {
            ca_fingerprint: [1; 32],
            id: mesh_types::TokenId::from_bytes([2; 16]),
            secret: [3; 32],
            coordinators: vec!["127.0.0.1:9".into()],
        };
        let options = JoinOptions {
            timeout: Duration::from_secs(5),
            ..JoinOptions::new("w")
        };
        let state = dir.path().join("state");
        let error = join(&token, options, &state).await.expect_err("refused");
        assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
        assert!(!StateDir::is_enrolled_at(&state).expect("looks"));
    }
}
