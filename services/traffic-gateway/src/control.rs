//! What `traffic-gateway join` and `status` ask of the running gateway, by its control socket.

use std::path::Path;
use std::time::SystemTime;

use mesh_daemon::{AskError, control_socket};
use mesh_node::NodeStatus;
use mesh_node::advice::advice_of_all;
use mesh_types::{Finding, OpenFiles, Role, Timestamp};
use serde::{Deserialize, Serialize};

use crate::networks::Networks;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// How it is doing.
    Status,
    /// Look for networks that were joined.
    Scan,
}

impl Request {
    const fn word(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scan => "scan",
        }
    }
}

/// What `status --json` prints is of this schema.
pub const SCHEMA: &str = "mesh.traffic-gateway/1";

/// The answer to [`Request::Status`], and what `status --json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Of this format.
    pub version: u32,
    /// The gateway's own version.
    pub gateway: String,
    /// Its process.
    pub pid: u32,
    /// Where browsers find it.
    pub url: String,
    /// The networks it is in.
    pub networks: Vec<NetworkStatus>,
    /// What is wrong, network by network, the most far-reaching first.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// One network of the gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub network: String,
    /// The gateway's name in it.
    pub name: String,
    /// The gateway's overlay address.
    pub address: Option<String>,
    /// The connection to the coordinator: `connected`, `connecting`, ….
    pub control: String,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Workers with a route.
    pub routes: usize,
}

/// Asks the gateway that runs with `state_dir`.
///
/// # Errors
/// None runs, or it does not answer.
pub async fn ask(state_dir: &Path, request: Request) -> Result<String, AskError> {
    control_socket::ask(state_dir, request.word()).await
}

/// The answer to a request, in the words of [`Request`].
pub(crate) async fn answer(request: &str, networks: &Networks, url: String) -> serde_json::Value {
    match request {
        "status" => serde_json::json!(status(networks, url)),
        "scan" => match networks.scan().await {
            Ok(started) => serde_json::json!({ "started": started }),
            Err(err) => {
                let text = mesh_daemon::report::chain(&err);
                tracing::warn!(error = text, "a joined network cannot be served");
                serde_json::json!({ "error": text })
            }
        },
        _ => serde_json::json!({ "error": "unknown request" }),
    }
}

fn status(networks: &Networks, url: String) -> Status {
    let table = networks.table().current();
    let routes = table.entries();
    let nodes = networks.nodes();
    let was_low = nodes.iter().any(|(_, node)| node.is_low_on_files());
    let (networks, statuses): (Vec<NetworkStatus>, Vec<NodeStatus>) = nodes
        .into_iter()
        .map(|(network, node)| {
            let status = node.status();
            let shown = NetworkStatus {
                name: status.name.to_string(),
                address: status.addrs.map(|addrs| addrs.v4.to_string()),
                control: word_of(&status.control.state),
                error: status.control.last_error.clone(),
                routes: routes
                    .iter()
                    .filter(|entry| entry.route.network == network)
                    .count(),
                network: network.to_string(),
            };
            (shown, status)
        })
        .unzip();
    let (used, limit) = mesh_daemon::open_files();
    let mut findings = advice_of_all(Role::Gateway, &statuses, Timestamp::from(SystemTime::now()));
    let open_files = OpenFiles { used, limit };
    findings.extend(open_files.finding(was_low, "the gateway", "mesh-traffic-gateway"));
    Status {
        schema: SCHEMA.to_owned(),
        version: 1,
        gateway: mesh_daemon::build_info::VERSION.to_owned(),
        pid: std::process::id(),
        url,
        networks,
        findings,
    }
}

/// The state's word as it stands in JSON.
fn word_of(state: &mesh_node::ControlState) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => format!("{state:?}").to_lowercase(),
    }
}
