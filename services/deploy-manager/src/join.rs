//! Joining a network: one identity, in a directory of its own.

use std::path::{Path, PathBuf};

use mesh_daemon::{PrivateFileError, private_dir};
use mesh_node::{EnrolError, EnrolOptions, Enrolled, StateDir, StateDirError, enrol};
use mesh_types::{JoinToken, NetworkName, Role};

/// Starts the name of each network's directory.
const PREFIX: &str = "network-";
/// An identity on its way in. It keeps its name until the network is known, so that a join whose
/// answer was lost goes on with the same keys.
const JOINING: &str = "joining";

/// A network was not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The state directory cannot be used.
    #[error(transparent)]
    Directory(#[from] PrivateFileError),
    /// The identity's directory cannot be used.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The coordinator did not let it in, or was not reached.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The token is for another role.
    #[error("the token is for a {0}: make one with: mesh token create --role deployer")]
    OtherRole(Role),
    /// This deploy-manager is in the network already.
    #[error("this deploy-manager has joined network {0} already")]
    Joined(NetworkName),
    /// The new identity cannot be put in its place.
    #[error("cannot move the new identity to {}", path.display())]
    Move {
        /// Where it should go.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The directory of `network` under `state_dir`.
pub fn network_dir(state_dir: &Path, network: &NetworkName) -> PathBuf {
    state_dir.join(format!("{PREFIX}{network}"))
}

/// Joins the network of `token` as `hostname`. A deploy-manager that runs on `state_dir` serves it
/// within a second.
///
/// # Errors
///
/// [`JoinError`]; after a lost answer the same call with the same token is safe.
pub async fn join(
    state_dir: &Path,
    token: &JoinToken,
    hostname: &str,
) -> Result<Enrolled, JoinError> {
    private_dir(state_dir)?;
    let joining = state_dir.join(JOINING);
    let state = StateDir::open(&joining)?;
    let enrolled = match state.enrolment()? {
        // An earlier join got as far as this, and was stopped before the move.
        Some(enrolled) => enrolled,
        None => {
            let options = EnrolOptions {
                roles: vec![Role::Deployer],
                ..EnrolOptions::new(hostname)
            };
            enrol(token, options, &state).await?
        }
    };
    let network = match (&enrolled.network, enrolled.role) {
        (Some(network), Role::Deployer) => network.clone(),
        (_, role) => {
            state.wipe()?;
            return Err(JoinError::OtherRole(role));
        }
    };
    let path = network_dir(state_dir, &network);
    if path.exists() {
        state.wipe()?;
        return Err(JoinError::Joined(network));
    }
    // The lock goes with the handle; whoever opens the directory next takes its own.
    drop(state);
    std::fs::rename(&joining, &path).map_err(|source| JoinError::Move { path, source })?;
    Ok(enrolled)
}

/// The networks joined in `state_dir`, by their directories; those still on their way are left
/// out.
///
/// # Errors
///
/// When the directory cannot be read, or one in it is somebody else's.
pub fn joined(state_dir: &Path) -> Result<Vec<(NetworkName, PathBuf)>, StateDirError> {
    let unlisted = |source| StateDirError::Io {
        action: "list",
        path: state_dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unlisted(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unlisted)?;
        let name = entry.file_name();
        let network = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(network) = network.and_then(|network| network.parse().ok())
            && StateDir::is_enrolled_at(&entry.path())?
        {
            found.push((network, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Puts the identity of a network that this node was removed from aside, so that it can be joined
/// again.
///
/// # Errors
///
/// When the directory cannot be moved.
pub fn set_aside(
    dir: &Path,
    network: &NetworkName,
    enrolled: &Enrolled,
) -> std::io::Result<PathBuf> {
    let name = format!("removed-{network}-{}", enrolled.node);
    let aside = dir.with_file_name(name);
    std::fs::rename(dir, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_identities_of_networks_are_found() {
        let state = tempfile::tempdir().unwrap();
        for (dir, files) in [
            ("network-home", &["node.crt", "ca.crt", "node.json"][..]),
            ("network-half", &["node.crt", "ca.crt"][..]),
            ("network-BAD!", &["node.crt", "ca.crt", "node.json"][..]),
            ("joining", &["node.crt", "ca.crt", "node.json"][..]),
        ] {
            std::fs::create_dir(state.path().join(dir)).unwrap();
            for file in files {
                std::fs::write(state.path().join(dir).join(file), "").unwrap();
            }
        }
        let names: Vec<String> = joined(state.path())
            .unwrap()
            .into_iter()
            .map(|(name, _)| name.to_string())
            .collect();
        assert_eq!(names, ["home"]);
        assert!(joined(&state.path().join("absent")).unwrap().is_empty());
    }
}
