//! What runs, for `deploy-manager status`: a small file beside the identities.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use mesh_daemon::write_private;
use mesh_node::StateDirError;
use mesh_types::{NetworkName, NodeId};
use serde::{Deserialize, Serialize};

use crate::join::joined;
use crate::members::Members;

const FILE: &str = "running.json";
/// Names the form of [`Status`].
pub const SCHEMA: &str = "mesh.deploy-manager/1";

/// What a deploy-manager is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Whether one runs on the state directory.
    pub running: bool,
    /// Where its gRPC is.
    pub grpc: Option<SocketAddr>,
    /// The networks joined.
    pub networks: Vec<NetworkStatus>,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub network: NetworkName,
    /// This deploy-manager's id there.
    pub node: Option<NodeId>,
    /// Where its SOCKS5 is.
    pub socks: Option<SocketAddr>,
    /// Whether the overlay is up.
    pub up: bool,
    /// Nodes it may talk to.
    pub peers: usize,
    /// What the coordinator's stream is doing.
    pub control: Option<String>,
}

/// Writes the file when it says something else than before.
pub(crate) fn write(state_dir: &Path, grpc: SocketAddr, members: &Members) {
    let networks = members.all().into_iter().map(|member| NetworkStatus {
        network: member.network.clone(),
        node: Some(member.enrolled.node),
        socks: Some(member.socks),
        up: member.node.addrs().is_some(),
        peers: member.netmap().map_or(0, |netmap| netmap.peers.len()),
        control: Some(format!("{:?}", member.node.control().borrow().state).to_lowercase()),
    });
    let status = Status {
        schema: SCHEMA.to_owned(),
        running: true,
        grpc: Some(grpc),
        networks: networks.collect(),
    };
    let path = state_dir.join(FILE);
    let Ok(text) = serde_json::to_vec(&status) else {
        return;
    };
    if std::fs::read(&path).is_ok_and(|before| before == text) {
        return;
    }
    if let Err(error) = write_private(&path, &text) {
        tracing::debug!(%error, "cannot write the status file");
    }
}

/// Removes the file: nothing runs any more.
pub(crate) fn clear(state_dir: &Path) {
    // It may never have been written.
    drop(std::fs::remove_file(state_dir.join(FILE)));
}

/// What runs on `state_dir`. A file left behind by a killed process is not believed: its gRPC
/// listener is asked.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn read(state_dir: &Path) -> Result<Status, StateDirError> {
    let written = std::fs::read(state_dir.join(FILE))
        .ok()
        .and_then(|text| serde_json::from_slice::<Status>(&text).ok());
    if let Some(status) = written
        && let Some(grpc) = status.grpc
        && TcpStream::connect_timeout(&grpc, Duration::from_secs(1)).is_ok()
    {
        return Ok(status);
    }
    let networks = joined(state_dir)?
        .into_iter()
        .map(|(network, _)| NetworkStatus {
            network,
            node: None,
            socks: None,
            up: false,
            peers: 0,
            control: None,
        });
    Ok(Status {
        schema: SCHEMA.to_owned(),
        running: false,
        grpc: None,
        networks: networks.collect(),
    })
}

impl Status {
    /// For people, with the next command when there is one.
    pub fn lines(&self, state_dir: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        match self.grpc {
            Some(grpc) => lines.push(format!("running, gRPC on {grpc}")),
            None => lines.push(format!(
                "not running on {}: start it with: deploy-manager run",
                state_dir.display()
            )),
        }
        for network in &self.networks {
            let name = &network.network;
            lines.push(match network.socks {
                Some(socks) => format!(
                    "network {name}: {}, SOCKS5 on {socks}, {} peers, coordinator {}",
                    if network.up { "up" } else { "not up yet" },
                    network.peers,
                    network.control.as_deref().unwrap_or("unknown"),
                ),
                None => format!("network {name}: joined"),
            });
        }
        if self.networks.is_empty() {
            lines.push("no network joined: run: deploy-manager join --token-file FILE".to_owned());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_behind_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let status = Status {
            schema: SCHEMA.to_owned(),
            running: true,
            grpc: Some(listener.local_addr().unwrap()),
            networks: Vec::new(),
        };
        std::fs::write(dir.path().join(FILE), serde_json::to_vec(&status).unwrap()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), status);
        drop(listener);
        let stopped = read(dir.path()).unwrap();
        assert!(!stopped.running);
        let lines = stopped.lines(dir.path());
        assert!(
            lines[0].contains("deploy-manager run") && lines[1].contains("join"),
            "{lines:?}"
        );
    }
}
