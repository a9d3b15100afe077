//! What each node is told of the others.

use mesh_api::pb;
use mesh_types::{
    Cursor, FilterRule, NetworkId, NodeId, NodeState, PacketFilter, Peer, PortRange, Protocol,
    Role, SelfNode,
};

use super::{Facts, NETWORK};

impl Facts {
    pub(super) fn netmap(&self, node: NodeId, version: u64) -> pb::NetmapChunk {
        let own = &self.nodes[&node];
        let others = self
            .nodes
            .iter()
            .filter(|(id, member)| **id != node && !member.removed);
        let peers = others.map(|(id, member)| {
            Peer {
                id: *id,
                name: member.name.parse().expect("a name"),
                role: Role::Worker,
                addrs: member.addrs,
                routes: Vec::new(),
                wg_key: mesh_types::WgPublicKey::from_bytes(member.wg),
                disco_key: mesh_types::DiscoPublicKey::from_bytes(member.disco),
                services: member.report.services.clone(),
                ssh_host_keys: Vec::new(),
                ssh_user: String::new(),
                endpoints: member.report.endpoints.clone(),
                home_relay: member.report.home_relay,
                state: NodeState::Online,
            }
            .into()
        });
        let everybody = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"];
        let filter = PacketFilter {
            rules: vec![FilterRule {
                sources: everybody.map(|net| net.parse().expect("a prefix")).to_vec(),
                protocols: vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp],
                ports: vec![PortRange::ALL],
            }],
        };
        let self_node = SelfNode {
            id: node,
            network: NetworkId::from_bytes(NETWORK),
            network_name: "default".parse().expect("a name"),
            name: own.name.parse().expect("a name"),
            role: Role::Worker,
            addrs: own.addrs,
            console_prefix: format!("/{}/", own.name),
            ssh_ca: String::new(),
        };
        pb::NetmapChunk {
            cursor: Some(
                Cursor {
                    version,
                    epoch: 1,
                    volatile: version,
                }
                .into(),
            ),
            full: true,
            last: true,
            node: Some(self_node.into()),
            peers: peers.collect(),
            removed: Vec::new(),
            patches: Vec::new(),
            filter: Some(filter.into()),
            relays: Some(pb::RelayList {
                relays: self.relays.iter().cloned().map(Into::into).collect(),
            }),
        }
    }
}
