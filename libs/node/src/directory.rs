//! Names and addresses of the netmap, indexed. Nothing outside the netmap is ever asked.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use mesh_types::{Netmap, NetworkName, NodeId, NodeName, OverlayAddrs};

/// A name or address that the netmap knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Whose it is.
    pub node: NodeId,
    /// That node's name.
    pub name: NodeName,
    /// Its overlay addresses.
    pub addrs: OverlayAddrs,
    /// Whether it is this node itself.
    pub own: bool,
}

/// The index of one netmap.
#[derive(Debug)]
pub(crate) struct Directory {
    network: NetworkName,
    by_ip: HashMap<IpAddr, NodeId>,
    by_name: BTreeMap<NodeName, NodeId>,
    nodes: HashMap<NodeId, Resolved>,
    own: NodeId,
}

impl Directory {
    pub(crate) fn new(netmap: &Netmap) -> Self {
        let mut directory = Self {
            network: netmap.node.network_name.clone(),
            by_ip: HashMap::new(),
            by_name: BTreeMap::new(),
            nodes: HashMap::new(),
            own: netmap.node.id,
        };
        for peer in netmap.peers.values() {
            directory.add(peer.id, &peer.name, peer.addrs, false);
        }
        // Last, so that no peer can pass for this node.
        directory.add(netmap.node.id, &netmap.node.name, netmap.node.addrs, true);
        directory
    }

    fn add(&mut self, node: NodeId, name: &NodeName, addrs: OverlayAddrs, own: bool) {
        for ip in addrs.iter() {
            self.by_ip.insert(ip, node);
        }
        self.by_name.insert(name.clone(), node);
        self.nodes.insert(
            node,
            Resolved {
                node,
                name: name.clone(),
                addrs,
                own,
            },
        );
    }

    /// `<node>`, `<node>.<network>` or `<node>.<network>.mesh.local`, in any case, with or without
    /// the final dot.
    pub(crate) fn resolve(&self, text: &str) -> Option<Resolved> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let text = text.strip_suffix(".mesh.local").unwrap_or(&text);
        let name = match text.split_once('.') {
            Some((name, network)) if network == self.network.as_str() => name,
            Some(_) => return None,
            None => text,
        };
        let name: NodeName = name.parse().ok()?;
        self.nodes.get(self.by_name.get(&name)?).cloned()
    }

    pub(crate) fn owner_of(&self, ip: IpAddr) -> Option<NodeId> {
        self.by_ip.get(&ip).copied()
    }

    /// Whether the address is a peer's (and not this node's own).
    pub(crate) fn is_peer(&self, ip: IpAddr) -> bool {
        self.owner_of(ip).is_some_and(|node| node != self.own)
    }
}

#[cfg(test)]
mod tests {
    use mesh_types::{Cursor, DiscoPublicKey, NetworkId, NodeState, PacketFilter, Peer, Role};
    use mesh_types::{SelfNode, WgPublicKey};

    use super::*;

    fn addrs(n: u8) -> OverlayAddrs {
        OverlayAddrs {
            v4: std::net::Ipv4Addr::new(100, 64, 0, n),
            v6: format!("fd7a:115c:a1e0::{n}").parse().expect("an address"),
        }
    }

    fn directory() -> Directory {
        let peer = Peer {
            id: NodeId::from_bytes([2; 16]),
            name: "worker-node-1".parse().expect("a name"),
            role: Role::Worker,
            addrs: addrs(2),
            routes: Vec::new(),
            wg_key: WgPublicKey::from_bytes([2; 32]),
            disco_key: DiscoPublicKey::from_bytes([3; 32]),
            services: Vec::new(),
            ssh_host_keys: Vec::new(),
            ssh_user: String::new(),
            endpoints: Vec::new(),
            home_relay: None,
            state: NodeState::Online,
        };
        Directory::new(&Netmap {
            cursor: Cursor::default(),
            node: SelfNode {
                id: NodeId::from_bytes([1; 16]),
                network: NetworkId::from_bytes([9; 16]),
                network_name: "lab".parse().expect("a name"),
                name: "gateway".parse().expect("a name"),
                role: Role::Gateway,
                addrs: addrs(1),
                console_prefix: String::new(),
                ssh_ca: String::new(),
            },
            peers: [(peer.id, peer)].into(),
            filter: PacketFilter::default(),
            relays: Vec::new(),
        })
    }

    #[test]
    fn names_resolve_with_and_without_their_network() {
        let directory = directory();
        for name in [
            "worker-node-1",
            "Worker-Node-1.lab",
            "worker-node-1.lab.mesh.local.",
        ] {
            let found = directory.resolve(name).expect(name);
            assert_eq!((found.addrs, found.own), (addrs(2), false));
        }
        assert!(directory.resolve("gateway").expect("itself").own);
    }

    #[test]
    fn names_of_other_networks_and_of_the_internet_are_unknown() {
        for name in [
            "worker-node-1.default",
            "example.org",
            "localhost",
            "",
            ".",
            "127.0.0.1",
        ] {
            assert_eq!(directory().resolve(name), None, "{name}");
        }
    }

    #[test]
    fn only_peers_addresses_count_as_peers() {
        let directory = directory();
        assert!(directory.is_peer(addrs(2).v4.into()) && directory.is_peer(addrs(2).v6.into()));
        assert!(!directory.is_peer(addrs(1).v4.into()));
        assert!(!directory.is_peer("127.0.0.1".parse().expect("an address")));
        assert_eq!(
            directory.owner_of(addrs(1).v6.into()),
            Some(NodeId::from_bytes([1; 16]))
        );
    }
}
