//! What the gateway tells about its workers: one picture for browsers, terminals and programs.

use std::collections::HashMap;
use std::fmt::Write as _;

use bytes::Bytes;
use mesh_types::{NodeId, NodeState, ServiceKind};
use serde::Serialize;

use crate::route_table::RouteTable;

/// How packets travel to a worker at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Straight to it.
    Direct,
    /// Through a relay.
    Relay,
    /// There is no session with it yet: nothing was sent, or nothing came back.
    None,
}

impl Path {
    /// The word for people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::None => "none",
        }
    }
}

/// All workers, as `/` shows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fleet {
    /// Of this format.
    pub version: u32,
    /// The gateway's own version.
    pub gateway: &'static str,
    /// The networks it is in.
    pub networks: Vec<String>,
    /// The default network first, then by network and name.
    pub nodes: Vec<FleetNode>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FleetNode {
    /// Its network.
    pub network: String,
    /// Its name.
    pub name: String,
    /// Its id.
    pub node: String,
    /// By its heartbeats.
    pub state: NodeState,
    /// How packets travel to it.
    pub path: Path,
    /// Its console's path at this gateway; `None` when it publishes none.
    pub url: Option<String>,
    /// What else browsers can open.
    pub services: Vec<FleetService>,
}

/// A published service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FleetService {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ServiceKind,
    /// Its path at this gateway; `None` when browsers cannot use it.
    pub url: Option<String>,
}

impl Fleet {
    /// The picture of `table`, with the paths as they are now.
    pub fn new(table: &RouteTable, paths: &HashMap<NodeId, Path>) -> Self {
        let nodes = table
            .entries()
            .into_iter()
            .map(|entry| {
                let route = &entry.route;
                let services = route
                    .services
                    .iter()
                    .filter(|service| service.kind != ServiceKind::Console)
                    .map(|service| FleetService {
                        name: service.name.to_string(),
                        kind: service.kind,
                        url: entry.url_of(service),
                    })
                    .collect();
                FleetNode {
                    network: route.network.to_string(),
                    name: route.name.to_string(),
                    node: route.node.to_string(),
                    state: route.state,
                    path: paths.get(&route.node).copied().unwrap_or(Path::None),
                    url: entry.has_console().then(|| entry.prefix.clone()),
                    services,
                }
            })
            .collect();
        Self {
            version: 1,
            gateway: mesh_daemon::build_info::VERSION,
            networks: table.networks().map(ToString::to_string).collect(),
            nodes,
        }
    }

    /// As JSON, on one line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("plain values serialise")
    }

    /// As a table for a terminal; `base` is the gateway's URL without its last slash.
    pub fn text(&self, base: &str) -> String {
        if self.nodes.is_empty() {
            return format!("{EMPTY}\n");
        }
        let mut rows = vec![["NAME", "STATE", "PATH", "URL"].map(str::to_owned)];
        for node in &self.nodes {
            let url = node.url.as_deref().map(|url| format!("{base}{url}"));
            rows.push([
                node.name.clone(),
                node.state.to_string(),
                node.path.as_str().to_owned(),
                url.unwrap_or_else(|| "-".to_owned()),
            ]);
            for service in &node.services {
                if let Some(url) = &service.url {
                    let name = format!("  {}", service.name);
                    let kind = service.kind.to_string();
                    rows.push([name, kind, String::new(), format!("{base}{url}")]);
                }
            }
        }
        let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        let mut text = String::new();
        for [name, state, path, url] in &rows {
            let [a, b, c] = widths;
            writeln!(text, "{name:a$}  {state:b$}  {path:c$}  {url}")
                .expect("writing to a String cannot fail");
        }
        text
    }
}

const EMPTY: &str = "No workers yet. Add one:
  mesh token create --output token      (where you run 'mesh up', or with an operator's context)
  worker-agent join --token-file token  (on the machine to be added; then 'worker-agent run')
It shows up here by itself.";

/// A picture, made ready for many readers.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The picture.
    pub fleet: Fleet,
    /// As JSON.
    pub json: Bytes,
    /// As an event of `/_mesh/events`.
    pub event: Bytes,
}

impl Snapshot {
    /// Of this picture.
    pub fn new(fleet: Fleet) -> Self {
        let json = fleet.json();
        let event = format!("event: fleet\ndata: {json}\n\n");
        Self {
            fleet,
            json: json.into(),
            event: event.into(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mesh_types::{NetworkName, OverlayAddrs, Service, route::Route};

    use super::*;
    use crate::route_table::NetworkSlot;

    pub(crate) fn fleet() -> Fleet {
        let mut table = RouteTable::default();
        let network = NetworkName::default_network();
        table.add_network(&network, NetworkSlot(0));
        let route = |name: &str, host: u8, state| Route {
            node: NodeId::from_bytes([host; 16]),
            network: network.clone(),
            name: name.parse().expect("a name"),
            addrs: OverlayAddrs {
                v4: [100, 64, 0, host].into(),
                v6: [0xfd7a, 0, 0, 0, 0, 0, 0, host.into()].into(),
            },
            services: vec![
                Service {
                    name: "console".parse().expect("a name"),
                    kind: ServiceKind::Console,
                    port: 9090,
                },
                Service {
                    name: "app".parse().expect("a name"),
                    kind: ServiceKind::Http,
                    port: 3000,
                },
            ],
            state,
        };
        let routes = vec![
            route("worker-node-2", 2, NodeState::Offline),
            route("worker-node-1", 1, NodeState::Online),
        ];
        table.apply(&network, true, routes, &[]);
        let paths = HashMap::from([(NodeId::from_bytes([1; 16]), Path::Direct)]);
        Fleet::new(&table, &paths)
    }

    #[test]
    fn a_terminal_gets_a_table_in_the_order_of_names() {
        let text = fleet().text("http://localhost:8081");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "NAME           STATE    PATH    URL",
                "worker-node-1  online   direct  http://localhost:8081/worker-node-1/",
                "  app          http             http://localhost:8081/worker-node-1/s/app/",
                "worker-node-2  offline  none    http://localhost:8081/worker-node-2/",
                "  app          http             http://localhost:8081/worker-node-2/s/app/",
            ]
        );
    }

    #[test]
    fn an_empty_fleet_says_how_to_add_a_worker() {
        let empty = Fleet::new(&RouteTable::default(), &HashMap::new());
        assert!(empty.text("").contains("mesh token create"));
    }

    #[test]
    fn an_event_is_one_line_of_data() {
        let snapshot = Snapshot::new(fleet());
        let event = String::from_utf8(snapshot.event.to_vec()).expect("UTF-8");
        assert_eq!(event.lines().count(), 3);
        assert!(event.starts_with("event: fleet\ndata: {\"version\":1,"));
        assert!(event.ends_with("}\n\n"));
    }
}
