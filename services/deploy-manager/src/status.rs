//! What runs, for `deploy-manager status`: a small file beside the identities.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use mesh_daemon::write_private;
use mesh_node::advice::{advice_of_all, of_damaged, of_silent, of_stopped};
use mesh_node::{NodeStatus, StateDir, StateDirError};
use mesh_types::{Finding, NetworkName, NodeId, OpenFiles, Role, Timestamp};
use serde::{Deserialize, Serialize};

use crate::join::joined;
use crate::members::Members;

const FILE: &str = "running.json";
/// How old what a finding says may become in the file, when only that changes.
const TEXT_AGE: Duration = Duration::from_secs(15);
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
    /// What is wrong, network by network, the most far-reaching first; at most 15 s old.
    #[serde(default)]
    pub findings: Vec<Finding>,
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

/// The file of a running deploy-manager.
#[derive(Debug)]
pub(crate) struct StatusFile {
    path: PathBuf,
    /// What stands in it, and since when.
    written: Option<(Status, Instant)>,
}

impl StatusFile {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(FILE),
            written: None,
        }
    }

    /// Writes what is so now, when it is something else than before.
    pub(crate) fn update(&mut self, grpc: SocketAddr, members: &Members) {
        let status = current(grpc, members, Timestamp::from(SystemTime::now()));
        let now = Instant::now();
        if !is_news(self.written.as_ref(), &status, now) {
            return;
        }
        let written = serde_json::to_vec(&status)
            .map_err(|error| error.to_string())
            .and_then(|text| write_private(&self.path, &text).map_err(|error| error.to_string()));
        match written {
            Ok(()) => self.written = Some((status, now)),
            Err(error) => tracing::debug!(error, "cannot write the status file"),
        }
    }
}

/// Whether `status` is worth a write. Findings tell how long something has been so: of those that
/// are the same but for that, one write in [`TEXT_AGE`] is enough.
fn is_news(written: Option<&(Status, Instant)>, status: &Status, now: Instant) -> bool {
    let Some((before, at)) = written else {
        return true;
    };
    if before == status {
        return false;
    }
    let codes = |status: &Status| -> Vec<String> {
        let found = status.findings.iter();
        found.map(|finding| finding.code.clone()).collect()
    };
    let same = before.networks == status.networks
        && before.grpc == status.grpc
        && codes(before) == codes(status);
    !same || now.duration_since(*at) >= TEXT_AGE
}

fn current(grpc: SocketAddr, members: &Members, now: Timestamp) -> Status {
    let members = members.all();
    let was_low = members.iter().any(|member| member.node.is_low_on_files());
    let (networks, statuses): (Vec<NetworkStatus>, Vec<NodeStatus>) = members
        .into_iter()
        .map(|member| {
            let status = member.node.status();
            let shown = NetworkStatus {
                network: member.network.clone(),
                node: Some(member.enrolled.node),
                socks: Some(member.socks),
                up: status.addrs.is_some(),
                peers: status.peers.len(),
                control: Some(format!("{:?}", status.control.state).to_lowercase()),
            };
            (shown, status)
        })
        .unzip();
    let (used, limit) = mesh_daemon::open_files();
    let mut findings = advice_of_all(Role::Deployer, &statuses, now);
    let open_files = OpenFiles { used, limit };
    findings.extend(open_files.finding(was_low, "the deploy-manager", "mesh-deploy-manager"));
    Status {
        schema: SCHEMA.to_owned(),
        running: true,
        grpc: Some(grpc),
        networks,
        findings,
    }
}

/// Removes the file: nothing runs any more.
pub(crate) fn clear(state_dir: &Path) {
    // It may never have been written.
    drop(std::fs::remove_file(state_dir.join(FILE)));
}

/// What runs on `state_dir`. A file left behind by a killed process is not believed: its gRPC
/// listener is asked.
pub fn read(state_dir: &Path) -> Status {
    let written = std::fs::read(state_dir.join(FILE))
        .ok()
        .and_then(|text| serde_json::from_slice::<Status>(&text).ok());
    if let Some(status) = written
        && let Some(grpc) = status.grpc
        && TcpStream::connect_timeout(&grpc, Duration::from_secs(1)).is_ok()
    {
        return status;
    }
    let (networks, finding) = match joined(state_dir) {
        Ok(networks) => {
            // It may be because of the files of a network that it does not run.
            let damaged = networks.iter().find_map(|(_, dir)| {
                let checked = StateDir::check_at(dir);
                of_damaged(Role::Deployer, &checked.err()?)
            });
            let stopped = || of_stopped(Role::Deployer, !networks.is_empty(), state_dir);
            let finding = damaged.unwrap_or_else(stopped);
            (networks, finding)
        }
        // Root asks about what its own user joined.
        Err(StateDirError::OtherOwner { .. }) => {
            (Vec::new(), of_stopped(Role::Deployer, true, state_dir))
        }
        Err(error) => {
            let error = mesh_daemon::report::chain(&error);
            (Vec::new(), of_silent(Role::Deployer, &error))
        }
    };
    let networks = networks.into_iter().map(|(network, _)| NetworkStatus {
        network,
        node: None,
        socks: None,
        up: false,
        peers: 0,
        control: None,
    });
    Status {
        schema: SCHEMA.to_owned(),
        running: false,
        grpc: None,
        networks: networks.collect(),
        findings: vec![finding],
    }
}

impl Status {
    /// Whether it runs in every network that was joined, and nobody must act.
    pub fn is_good(&self) -> bool {
        self.running
            && self.networks.iter().all(|network| network.up)
            && !Finding::any_error(&self.findings)
    }

    /// For people, with the next command when there is one.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(grpc) = self.grpc {
            lines.push(format!("running, gRPC on {grpc}"));
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
        if !lines.is_empty() {
            lines.push(String::new());
        }
        if self.findings.is_empty() {
            lines.push("Nothing is wrong.".to_owned());
        }
        lines.extend(self.findings.iter().map(ToString::to_string));
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
            findings: Vec::new(),
        };
        std::fs::write(dir.path().join(FILE), serde_json::to_vec(&status).unwrap()).unwrap();
        assert_eq!(read(dir.path()), status);
        drop(listener);
        let stopped = read(dir.path());
        assert!(!stopped.running);
        let lines = stopped.lines();
        assert!(lines[0].contains("deploy-manager join"), "{lines:?}");
        assert_eq!(stopped.findings[0].code, "not-joined");
        assert!(!stopped.is_good());
        let network = dir.path().join("network-default");
        std::fs::create_dir(&network).unwrap();
        for file in ["node.json", "node.crt", "ca.crt"] {
            std::fs::write(network.join(file), "").unwrap();
        }
        // What it joined with is there and not what it was: it does not start by that.
        let stopped = read(dir.path());
        assert_eq!(stopped.findings[0].code, "file-damaged", "{stopped:?}");
        assert_eq!(stopped.networks.len(), 1);
    }

    fn running(findings: Vec<Finding>) -> Status {
        Status {
            schema: SCHEMA.to_owned(),
            running: true,
            grpc: None,
            networks: vec![NetworkStatus {
                network: "default".parse().unwrap(),
                node: None,
                socks: None,
                up: true,
                peers: 1,
                control: None,
            }],
            findings,
        }
    }

    #[test]
    fn what_is_wrong_is_shown_with_the_next_command_and_errors_decide_the_exit_code() {
        let last = |status: &Status| status.lines().pop().unwrap();
        let well = running(Vec::new());
        assert!(well.is_good() && last(&well) == "Nothing is wrong.");
        let warned = running(vec![Finding::warning("a", "it is slow", "wait")]);
        assert!(warned.is_good() && last(&warned).contains("next: wait"));
        let bad = running(vec![Finding::error("a", "it is gone", "look")]);
        assert!(!bad.is_good() && last(&bad).contains("it is gone"));
    }

    #[test]
    fn a_text_that_counts_seconds_is_no_reason_to_write_each_time() {
        let at = Instant::now();
        let since = |secs: u64, after: &Status| {
            let before = running(vec![Finding::warning("away", "for 1 s", "wait")]);
            is_news(Some(&(before, at)), after, at + Duration::from_secs(secs))
        };
        let later = running(vec![Finding::warning("away", "for 2 s", "wait")]);
        assert!(is_news(None, &later, at));
        assert!(!since(1, &later), "only the text");
        assert!(since(15, &later), "it would be too old");
        assert!(since(1, &running(Vec::new())), "it is over");
        let same = running(vec![Finding::warning("away", "for 1 s", "wait")]);
        assert!(!since(60, &same));
    }
}
