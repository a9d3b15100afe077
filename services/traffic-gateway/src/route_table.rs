//! Where a request goes: path prefix or host name to worker. Pure; the only source of addresses
//! that the gateway dials.
//!
//! ```text
//! /<node>/                      console, default network; prefix kept
//! /n/<network>/<node>/          console, other networks; prefix kept
//! …/s/<service>/                published HTTP service of that node; prefix stripped
//! <node>.<suffix>               the same node under an origin of its own
//! <node>.<network>.<suffix>
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use hyper_reverse_proxy::{Mount, Upstream};
use mesh_types::route::{Route, console_prefix};
use mesh_types::{NetworkName, NodeId, NodeName, NodeState, ServiceKind, ServiceName};

use crate::metrics::RouteFigures;

/// Which of the gateway's networks an address is dialled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetworkSlot(pub u32);

/// What the gateway dials: an overlay address, inside one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// The network.
    pub slot: NetworkSlot,
    /// The overlay address and port.
    pub addr: SocketAddr,
}

/// One service of one node, as a place to forward to.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The node's network.
    pub network: NetworkName,
    /// The node.
    pub node: NodeName,
    /// Its service.
    pub service: ServiceName,
    /// What the service is: [`ServiceKind::Console`] or [`ServiceKind::Http`].
    pub kind: ServiceKind,
    /// How the node is doing, by its heartbeats.
    pub state: NodeState,
    /// Under its prefix, where others live beside it.
    pub shared: Upstream<Target>,
    /// Under an origin of its own, for paths without the prefix.
    pub own: Upstream<Target>,
    /// Where its requests are counted, once there was one.
    pub(crate) figures: OnceLock<RouteFigures>,
}

/// One node with all it offers.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What the coordinator says.
    pub route: Route,
    /// Starts and ends with `/`.
    pub prefix: String,
    console: Option<Arc<Destination>>,
    services: HashMap<ServiceName, Arc<Destination>>,
}

/// A node named by the request's host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeHost {
    /// The node.
    pub node: String,
    /// Its network; `None` is the default one.
    pub network: Option<String>,
}

/// What becomes of a request. Borrows from the table: counting references to what all cores share
/// would make them wait for each other.
#[derive(Debug, Clone)]
pub enum Resolved<'t> {
    /// It goes to a worker. `own` says that the path has no prefix.
    Forward {
        /// Where.
        destination: &'t Destination,
        /// By an origin of its own, and without the prefix in its path.
        own: bool,
    },
    /// The same with this path, which ends in `/`.
    Redirect(String),
    /// The page of the fleet.
    Fleet,
    /// There is nothing at this path.
    UnknownPath,
    /// The gateway is in no such network.
    UnknownNetwork(String),
    /// The network has no such worker.
    UnknownNode(String),
    /// The worker publishes no such HTTP service.
    UnknownService {
        /// The worker.
        node: NodeName,
        /// What was asked for.
        service: String,
    },
    /// The worker publishes no console.
    NoConsole(NodeName),
}

#[derive(Debug, Clone)]
struct NetworkRoutes {
    slot: NetworkSlot,
    name: NetworkName,
    by_id: BTreeMap<NodeId, Arc<Entry>>,
    by_name: HashMap<Box<str>, Arc<Entry>>,
}

/// All routes of all networks. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    networks: BTreeMap<NetworkName, Arc<NetworkRoutes>>,
}

impl RouteTable {
    /// Makes the network known, with no routes yet. Nothing changes when it is known already.
    pub fn add_network(&mut self, name: &NetworkName, slot: NetworkSlot) {
        self.networks.entry(name.clone()).or_insert_with(|| {
            Arc::new(NetworkRoutes {
                slot,
                name: name.clone(),
                by_id: BTreeMap::new(),
                by_name: HashMap::new(),
            })
        });
    }

    /// Forgets a network and its routes.
    pub fn remove_network(&mut self, name: &NetworkName) {
        self.networks.remove(name);
    }

    /// Applies what the coordinator says of one network: forgets all first when `full`. Routes of
    /// other networks are ignored: an identity speaks for its own network only.
    pub fn apply(
        &mut self,
        network: &NetworkName,
        full: bool,
        changed: Vec<Route>,
        removed: &[NodeId],
    ) {
        let Some(routes) = self.networks.get_mut(network) else {
            return;
        };
        let routes = Arc::make_mut(routes);
        if full {
            routes.by_id.clear();
        }
        for id in removed {
            routes.by_id.remove(id);
        }
        for route in changed {
            if route.network == routes.name {
                let entry = Entry::new(route, routes.slot);
                routes.by_id.insert(entry.route.node, Arc::new(entry));
            }
        }
        routes.by_name = routes
            .by_id
            .values()
            .map(|entry| (entry.route.name.as_str().into(), Arc::clone(entry)))
            .collect();
    }

    /// The networks, in the order of their names.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkName> {
        self.networks.keys()
    }

    /// All nodes: the default network first, then by network and name.
    pub fn entries(&self) -> Vec<&Arc<Entry>> {
        let mut entries: Vec<&Arc<Entry>> = self
            .networks
            .values()
            .flat_map(|routes| routes.by_id.values())
            .collect();
        entries.sort_by(|a, b| order(&a.route).cmp(&order(&b.route)));
        entries
    }

    /// Whether some route leads to `target`.
    pub fn leads_to(&self, target: &Target) -> bool {
        self.networks
            .values()
            .filter(|routes| routes.slot == target.slot)
            .flat_map(|routes| routes.by_id.values())
            .any(|entry| entry.route.addrs.contains(target.addr.ip()))
    }

    /// Where a request for `path` goes; `host` is the node that its host name names.
    pub fn resolve(&self, host: Option<&NodeHost>, path: &str) -> Resolved<'_> {
        match host {
            Some(host) => self.resolve_host(host, path),
            None => self.resolve_path(path),
        }
    }

    fn resolve_path(&self, path: &str) -> Resolved<'_> {
        let Some(rest) = path.strip_prefix('/') else {
            return Resolved::UnknownPath;
        };
        if rest.is_empty() {
            return Resolved::Fleet;
        }
        if let Some(rest) = rest.strip_prefix("n/") {
            let Some((network, rest)) = rest.split_once('/') else {
                return Resolved::UnknownPath;
            };
            return match self.network(network) {
                // The default network has its short form only, so that no worker has two prefixes.
                Some(routes) if !routes.name.is_default() => routes.resolve(rest, path),
                // Anything else at its start could lead to another site: "//" and "/\" do.
                Some(_) if rest.starts_with(|c: char| c.is_ascii_alphanumeric()) => {
                    Resolved::Redirect(format!("/{rest}"))
                }
                Some(_) => Resolved::UnknownPath,
                None => Resolved::UnknownNetwork(network.to_owned()),
            };
        }
        match self
            .networks
            .values()
            .find(|routes| routes.name.is_default())
        {
            Some(routes) => routes.resolve(rest, path),
            None => {
                let node = rest.split('/').next().unwrap_or_default();
                Resolved::UnknownNode(node.to_owned())
            }
        }
    }

    fn resolve_host(&self, host: &NodeHost, path: &str) -> Resolved<'_> {
        let default = NetworkName::default_network();
        let network = host.network.as_deref().unwrap_or(default.as_str());
        let Some(routes) = self.network(network) else {
            return Resolved::UnknownNetwork(network.to_owned());
        };
        let Some(entry) = routes.by_name.get(host.node.as_str()) else {
            return Resolved::UnknownNode(host.node.clone());
        };
        if let Some(rest) = path.strip_prefix(entry.prefix.as_str()) {
            return entry.resolve(rest, path);
        }
        if path == &entry.prefix[..entry.prefix.len() - 1] {
            return Resolved::Redirect(entry.prefix.clone());
        }
        match &entry.console {
            Some(destination) => Resolved::Forward {
                destination,
                own: true,
            },
            None => Resolved::NoConsole(entry.route.name.clone()),
        }
    }

    fn network(&self, name: &str) -> Option<&Arc<NetworkRoutes>> {
        // Names are few; looking one up must not allocate.
        self.networks
            .values()
            .find(|routes| routes.name.as_str() == name)
    }
}

fn order(route: &Route) -> (bool, &NetworkName, &NodeName) {
    (!route.network.is_default(), &route.network, &route.name)
}

impl NetworkRoutes {
    /// `rest` is `path` from the node's name on.
    fn resolve(&self, rest: &str, path: &str) -> Resolved<'_> {
        let (name, below) = match rest.bytes().position(|b| b == b'/') {
            Some(end) => (&rest[..end], Some(&rest[end + 1..])),
            None => (rest, None),
        };
        match (self.by_name.get(name), below) {
            (None, _) => Resolved::UnknownNode(name.to_owned()),
            // The bare prefix is never forwarded: it ends cockpit-ws 287.
            (Some(_), None) => Resolved::Redirect(format!("{path}/")),
            (Some(entry), Some(below)) => entry.resolve(below, path),
        }
    }
}

impl Entry {
    fn new(route: Route, slot: NetworkSlot) -> Self {
        let prefix = console_prefix(&route.network, &route.name);
        let ip = IpAddr::V4(route.addrs.v4);
        let mut console = None;
        let mut services = HashMap::new();
        for service in &route.services {
            let target = Target {
                slot,
                addr: SocketAddr::new(ip, service.port),
            };
            let (shared, own) = match service.kind {
                ServiceKind::Console => (Mount::keep(&prefix), Mount::map("/", &prefix)),
                ServiceKind::Http => {
                    let mounted = service_prefix(&prefix, &service.name);
                    (Mount::strip(&mounted), Ok(Mount::root()))
                }
                ServiceKind::Ssh | ServiceKind::Tcp => continue,
            };
            let (Ok(shared), Ok(own)) = (shared, own) else {
                continue;
            };
            let authority: Box<str> = target.addr.to_string().into();
            let upstream = |mount| Upstream {
                target,
                mount,
                authority: Some(authority.clone()),
            };
            let destination = Arc::new(Destination {
                network: route.network.clone(),
                node: route.name.clone(),
                service: service.name.clone(),
                kind: service.kind,
                state: route.state,
                shared: upstream(shared),
                own: upstream(own),
                figures: OnceLock::new(),
            });
            if service.kind == ServiceKind::Console {
                console = Some(destination);
            } else {
                services.insert(service.name.clone(), destination);
            }
        }
        Self {
            route,
            prefix,
            console,
            services,
        }
    }

    /// Where its service is mounted, when browsers can use it.
    pub fn url_of(&self, service: &mesh_types::Service) -> Option<String> {
        match service.kind {
            ServiceKind::Console => Some(self.prefix.clone()),
            ServiceKind::Http => Some(service_prefix(&self.prefix, &service.name)),
            ServiceKind::Ssh | ServiceKind::Tcp => None,
        }
    }

    /// Whether it publishes a console.
    pub fn has_console(&self) -> bool {
        self.console.is_some()
    }

    /// `below` is `path` after the prefix.
    fn resolve(&self, below: &str, path: &str) -> Resolved<'_> {
        if let Some(rest) = below.strip_prefix("s/") {
            let (name, inside) = match rest.split_once('/') {
                Some((name, _)) => (name, true),
                None => (rest, false),
            };
            let found = name
                .parse::<ServiceName>()
                .ok()
                .and_then(|name| self.services.get(&name));
            return match found {
                Some(_) if !inside => Resolved::Redirect(format!("{path}/")),
                Some(destination) => forward(destination),
                None => Resolved::UnknownService {
                    node: self.route.name.clone(),
                    service: name.to_owned(),
                },
            };
        }
        match &self.console {
            Some(destination) => forward(destination),
            None => Resolved::NoConsole(self.route.name.clone()),
        }
    }
}

fn forward(destination: &Destination) -> Resolved<'_> {
    Resolved::Forward {
        destination,
        own: false,
    }
}

fn service_prefix(prefix: &str, service: &ServiceName) -> String {
    format!("{prefix}s/{service}/")
}

#[cfg(test)]
mod tests;
