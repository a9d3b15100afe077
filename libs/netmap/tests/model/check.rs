//! What must be so, by looking at all pairs of nodes.

use std::collections::BTreeMap;

use mesh_netmap::NodeRow;
use mesh_types::route::{Route, console_prefix};
use mesh_types::{
    NetworkId, NodeId, NodeState, Peer, Protocol, Relay, Role, ServiceKind, WgPublicKey,
};

use super::world::{Machine, World};

/// The rules once more, by hand: does `from` reach a service of this kind on `to`?
fn may_reach(from: &NodeRow, to: &NodeRow, kind: ServiceKind) -> bool {
    let is_plain = |node: &NodeRow| node.role != Role::Gateway && node.role != Role::Deployer;
    let same_owner = from.owner == to.owner && !from.owner.is_empty();
    let web = kind == ServiceKind::Console || kind == ServiceKind::Http;
    from.network == to.network
        && from.id != to.id
        && match from.role {
            Role::Deployer => true,
            Role::Gateway => web,
            _ => same_owner && is_plain(from) && is_plain(to),
        }
}

fn are_peers(a: &NodeRow, b: &NodeRow) -> bool {
    may_reach(a, b, ServiceKind::Console) || may_reach(b, a, ServiceKind::Console)
}

impl World {
    /// Everybody reads all there is; then every open session must be right.
    pub(super) fn settle(&mut self) {
        while let Some(session) = self.engine.poll_ready() {
            assert!(self.named.insert(session), "{session:?} was named twice");
        }
        for session in self.named.clone() {
            self.read(session, usize::MAX);
        }
        assert_eq!(self.engine.poll_ready(), None);
        assert!(
            self.gone.is_empty(),
            "sessions that should have ended: {:?}",
            self.gone
        );
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            if self.machines[&id].session.is_some() {
                self.check(id);
            }
        }
        self.check_watches();
    }

    pub(super) fn state(&self, machine: &Machine) -> NodeState {
        match machine.beat.map(|at| (self.elapsed - at).as_secs()) {
            Some(0..45) => NodeState::Online,
            Some(45..105) => NodeState::Stale,
            _ => NodeState::Offline,
        }
    }

    fn check(&mut self, id: NodeId) {
        let machine = &self.machines[&id];
        let row = &machine.row;
        let network = &self.networks[&row.network];
        let map = machine
            .map
            .as_ref()
            .expect("an open session was told a map");
        let mut wanted = BTreeMap::new();
        for other in self
            .machines
            .values()
            .filter(|other| are_peers(row, &other.row))
        {
            let mut peer = Peer {
                id: other.row.id,
                name: other.row.name.clone(),
                role: other.row.role,
                addrs: other.row.addrs,
                routes: Vec::new(),
                wg_key: other.row.wg_key,
                disco_key: other.row.disco_key,
                services: other.row.services.clone(),
                ssh_host_keys: other.row.ssh_host_keys.clone(),
                ssh_user: String::new(),
                endpoints: other.endpoints.clone(),
                home_relay: other.home_relay,
                state: self.state(other),
            };
            if let Some(seen) = map.peers.get(&peer.id).filter(|_| !other.reported) {
                // After a restart nobody knows better than what the machine remembers.
                peer.endpoints = seen.endpoints.clone();
                peer.home_relay = seen.home_relay;
            }
            wanted.insert(peer.id, peer);
        }
        assert_eq!(map.peers, wanted);
        assert_eq!(map.node.name, row.name);
        assert_eq!(map.node.ssh_ca, network.ssh_ca);
        assert_eq!(
            map.node.console_prefix,
            console_prefix(&network.name, &row.name)
        );
        let relays: Vec<Relay> = std::iter::once(&self.relay)
            .filter(|relay| !relay.derp.is_empty())
            .map(|relay| Relay {
                id: relay.id,
                derp: relay.derp.clone(),
                stun: vec![],
            })
            .collect();
        assert_eq!(map.relays, relays);
        for other in self.machines.values() {
            for service in &row.services {
                let allowed = may_reach(&other.row, row, service.kind);
                for ip in other.row.addrs.iter().filter(|_| other.row.id != id) {
                    let passes = map.filter.rules.iter().any(|rule| {
                        rule.protocols == [Protocol::Tcp, Protocol::Icmp]
                            && rule.sources.iter().any(|net| net.contains(&ip))
                            && rule.ports.iter().any(|ports| ports.contains(service.port))
                    });
                    assert_eq!(passes, allowed, "{ip} to {service:?} of {}", row.name);
                }
            }
            // Who may reach anything may ping.
            let allowed = row
                .services
                .iter()
                .any(|service| may_reach(&other.row, row, service.kind));
            for ip in other.row.addrs.iter().filter(|_| other.row.id != id) {
                let passes = map.filter.rules.iter().any(|rule| {
                    rule.protocols.contains(&Protocol::Icmp)
                        && rule.sources.iter().any(|net| net.contains(&ip))
                });
                assert_eq!(passes, allowed, "{ip} pings {}", row.name);
            }
        }
        let filter = map.filter.clone();
        assert_eq!(self.engine.filter(id), Some(filter));
    }

    fn check_watches(&self) {
        for (network, (_, routes)) in &self.routes {
            let wanted: BTreeMap<NodeId, Route> = self
                .machines
                .values()
                .filter(|m| m.row.network == *network && m.row.role == Role::Worker)
                .map(|m| Route {
                    node: m.row.id,
                    network: self.networks[network].name.clone(),
                    name: m.row.name.clone(),
                    addrs: m.row.addrs,
                    services: m.row.services.clone(),
                    state: self.state(m),
                })
                .map(|route| (route.node, route))
                .collect();
            assert_eq!(routes, &wanted);
        }
        let clients: BTreeMap<WgPublicKey, NetworkId> = self
            .machines
            .values()
            .map(|m| (m.row.wg_key, m.row.network))
            .collect();
        assert_eq!(self.clients.1, clients);
    }
}
