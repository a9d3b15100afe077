//! A small network for tests: this deploy-manager, two workers and a gateway.

use std::collections::BTreeMap;

use mesh_types::{
    Cursor, DiscoPublicKey, Netmap, NetworkId, NetworkName, NodeId, NodeState, OverlayAddrs,
    PacketFilter, Peer, Role, SelfNode, WgPublicKey,
};

fn addrs(n: u8) -> OverlayAddrs {
    OverlayAddrs {
        v4: [100, 64, 0, n].into(),
        v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(n)].into(),
    }
}

pub(crate) fn peer(n: u8, name: &str, role: Role) -> Peer {
    Peer {
        id: NodeId::from_bytes([n; 16]),
        name: name.parse().unwrap(),
        role,
        addrs: addrs(n),
        routes: Vec::new(),
        wg_key: WgPublicKey::from_bytes([n; 32]),
        disco_key: DiscoPublicKey::from_bytes([n; 32]),
        services: Vec::new(),
        ssh_host_keys: Vec::new(),
        ssh_user: "deploy".into(),
        endpoints: vec![([192, 168, 1, 10], 41641).into()],
        home_relay: None,
        state: NodeState::Online,
    }
}

pub(crate) fn netmap() -> Netmap {
    let peers = [
        peer(2, "worker-node-1", Role::Worker),
        peer(3, "worker-node-2", Role::Worker),
        peer(4, "gateway", Role::Gateway),
    ];
    Netmap {
        cursor: Cursor::default(),
        node: SelfNode {
            id: NodeId::from_bytes([1; 16]),
            network: NetworkId::from_bytes([9; 16]),
            network_name: NetworkName::default_network(),
            name: "deploy-manager".parse().unwrap(),
            role: Role::Deployer,
            addrs: addrs(1),
            console_prefix: "/deploy-manager/".into(),
            ssh_ca: String::new(),
        },
        peers: peers
            .into_iter()
            .map(|peer| (peer.id, peer))
            .collect::<BTreeMap<_, _>>(),
        filter: PacketFilter::default(),
        relays: Vec::new(),
    }
}
