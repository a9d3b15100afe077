//! What `worker-agent status` tells.

use std::path::Path;

use mesh_node::{NodeStatus, PeerPath, ShellStatus};
use mesh_types::{Finding, OpenFiles, ServiceKind, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config::SshMode;
use crate::console::ConsoleState;
use crate::local::{self, Answer, Request};

/// The schema of [`AgentStatus`] as JSON.
pub const SCHEMA: &str = "mesh.agent-status/1";

/// How a running agent is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// [`SCHEMA`].
    pub schema: String,
    /// The agent's version.
    pub version: String,
    /// The node, its peers and its services.
    #[serde(flatten)]
    pub node: NodeStatus,
    /// The console.
    pub console: ConsoleStatus,
    /// SSH.
    pub ssh: SshStatus,
    /// What the process has open.
    #[serde(default)]
    pub open_files: OpenFiles,
    /// What is wrong, the most far-reaching first.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// The console as it is served now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleStatus {
    /// What is served.
    pub state: ConsoleState,
    /// Its path at the gateway; starts and ends with `/`.
    pub prefix: String,
}

/// SSH as it is served now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshStatus {
    /// Who answers.
    pub mode: SshMode,
    /// The host keys that were reported: OpenSSH public key lines.
    pub host_keys: Vec<String>,
    /// The user to log in as by default; may be empty.
    pub user: String,
    /// The network's certificate authority: an OpenSSH public key line, or empty.
    pub authority: String,
}

/// What the agent that runs on this state directory tells of itself, as JSON.
///
/// # Errors
/// No agent runs there, it does not answer, or it is another user's.
pub async fn ask(state_dir: &Path) -> anyhow::Result<String> {
    match local::ask(state_dir, &Request::Status).await? {
        Answer::Status(status) => Ok(serde_json::to_string_pretty(&status)?),
        Answer::Done | Answer::Refused { .. } => anyhow::bail!("the agent answered something else"),
    }
}

/// The status for people.
pub(crate) fn render(status: &AgentStatus, now: Timestamp) -> String {
    let node = &status.node;
    let mut lines = Vec::new();
    let network = node
        .enrolled
        .network
        .as_ref()
        .map_or("", |network| network.as_str());
    lines.push(format!(
        "{} in network {network}, {}",
        node.name, node.enrolled.role
    ));
    lines.push(format!("  node id      {}", node.enrolled.node));
    let addrs: Vec<String> = node
        .addrs
        .iter()
        .flat_map(|addrs| addrs.iter())
        .map(|ip| ip.to_string())
        .collect();
    lines.push(format!("  addresses    {}", addrs.join(", ")));
    lines.push(format!("  coordinator  {}", coordinator(status, now)));
    let relay = match node
        .relays
        .iter()
        .find(|relay| Some(relay.id) == node.home_relay)
    {
        Some(relay) if relay.connected => "connected",
        Some(_) => "not connected",
        None => "none",
    };
    lines.push(format!("  relay        {relay}"));
    lines.push(format!("  WireGuard    UDP port {}", node.wg_port));
    lines.push(format!("  network      {}", shell(&node.shell)));
    let console = match status.console.state {
        ConsoleState::Page => "the agent's own page",
        ConsoleState::Cockpit => "Cockpit",
        ConsoleState::UrlRootMismatch => "Cockpit is set up for another path",
        ConsoleState::NoCockpit => "Cockpit does not answer",
    };
    lines.push(format!(
        "  console      {console} (at the gateway: {})",
        status.console.prefix
    ));
    let ssh = match status.ssh.mode {
        SshMode::Agent => "the agent's own server",
        SshMode::Sshd => "the machine's sshd",
        SshMode::Off => "off",
    };
    lines.push(format!("  SSH          {ssh}"));
    for service in &node.services {
        if service.kind == ServiceKind::Http || service.kind == ServiceKind::Tcp {
            lines.push(format!(
                "  publishes    {} on port {}",
                service.name, service.port
            ));
        }
    }
    lines.push(String::new());
    lines.extend(peers(status));
    lines.push(String::new());
    if status.findings.is_empty() {
        lines.push("Nothing is wrong.".to_owned());
    }
    lines.extend(status.findings.iter().map(ToString::to_string));
    lines.join("\n")
}

fn shell(shell: &ShellStatus) -> String {
    match shell {
        ShellStatus::Userspace => "this program alone (userspace)".into(),
        ShellStatus::Tun {
            device,
            present,
            ipv6,
            routes,
            problem,
        } => {
            let without = if *ipv6 { "" } else { ", without IPv6" };
            match (present, problem) {
                (true, None) => {
                    format!("the whole machine, by {device} ({routes} routes{without})")
                }
                (true, Some(problem)) => format!("the whole machine, by {device}, but {problem}"),
                (false, None) => format!("not on the mesh any more, {device} is gone"),
                (false, Some(problem)) => format!(
                    "{device} is gone, to be made again ({problem}); what this program serves \
                     goes on"
                ),
            }
        }
    }
}

fn coordinator(status: &AgentStatus, now: Timestamp) -> String {
    let control = &status.node.control;
    if control.is_removed() {
        return "removed from the network".into();
    }
    match (control.is_connected(), status.node.stale_since) {
        (true, _) => "connected".into(),
        (false, Some(at)) => format!("not connected for {} s", now.since(at).as_secs()),
        (false, None) => "connecting".into(),
    }
}

fn peers(status: &AgentStatus) -> Vec<String> {
    let peers = &status.node.peers;
    if peers.is_empty() {
        return vec!["no peers yet".into()];
    }
    let rows = peers.iter().map(|peer| {
        let path = match peer.path {
            PeerPath::Direct { addr } => format!("direct {addr}"),
            PeerPath::Relay { .. } => "relay".into(),
            PeerPath::None => "-".into(),
        };
        [
            peer.name.to_string(),
            peer.addrs.v4.to_string(),
            peer.state.to_string(),
            path,
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
        ]
    });
    let head = ["PEER", "ADDRESS", "STATE", "PATH", "RECEIVED", "SENT"].map(str::to_owned);
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(head);
    for row in rows {
        table.add_row(row);
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// A number of bytes for people.
fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{}.{} KiB", n / 1024, n % 1024 * 10 / 1024),
        1_048_576..1_073_741_824 => {
            format!("{}.{} MiB", n / 1_048_576, n % 1_048_576 * 10 / 1_048_576)
        }
        _ => format!(
            "{}.{} GiB",
            n / 1_073_741_824,
            n % 1_073_741_824 * 10 / 1_073_741_824
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        let shown = [0, 1023, 1536, 5 * 1_048_576, 3_221_225_472].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB"]);
    }
}
