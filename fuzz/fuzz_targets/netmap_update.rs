//! Any sequence of chunks from a coordinator is updates or refused. An update says the same however
//! it was cut into chunks; the netmap after it is what a simple reading gives, is no larger than
//! what came in, and survives being stored.

#![no_main]

use std::collections::BTreeMap;

use fuzz::Steps;
use libfuzzer_sys::fuzz_target;
use mesh_api::model::netmap::Assembler;
use mesh_api::pb;
use mesh_types::{
    Cursor, DiscoPublicKey, FilterRule, Netmap, NetmapUpdate, NetworkId, NodeId, NodeState,
    OverlayAddrs, PacketFilter, Peer, PeerPatch, PortRange, Protocol, Relay, RelayId, Role,
    SelfNode, Service, ServiceKind, WgPublicKey,
};
use prost::Message as _;

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let mut assembler = Assembler::default();
    let mut netmap = None;
    for step in Steps::new(input) {
        let Ok(chunk) = pb::NetmapChunk::decode(step.bytes) else {
            continue;
        };
        let update = match assembler.push(chunk) {
            Ok(Some(update)) => update,
            Ok(None) => continue,
            // The node opens a new stream and keeps what it has.
            Err(_) => {
                assembler = Assembler::default();
                continue;
            }
        };
        check_chunks(&update, usize::from(step.number));
        netmap = apply(netmap, update);
        if let Some(netmap) = &netmap {
            check_netmap(netmap, input.len());
        }
    }
});

/// The same update in several chunks is the same update.
fn check_chunks(update: &NetmapUpdate, per_chunk: usize) {
    let chunks = chunks(update, per_chunk.max(1));
    let many = chunks.len() > 2;
    let mut assembler = Assembler::default();
    let mut whole = None;
    for (at, mut chunk) in chunks.into_iter().enumerate() {
        assert_eq!(whole, None, "over before its last chunk");
        if fuzz::planted() && many && at == 0 {
            chunk.removed.clear();
        }
        whole = assembler.push(chunk).expect("what was written can be read");
    }
    assert_eq!(whole.as_ref(), Some(update));
}

fn chunks(update: &NetmapUpdate, per_chunk: usize) -> Vec<pb::NetmapChunk> {
    let removed: Vec<Vec<u8>> = update
        .removed
        .iter()
        .map(|id| id.as_bytes().to_vec())
        .collect();
    let count = update
        .peers
        .len()
        .max(update.patches.len())
        .max(removed.len());
    let last = count.div_ceil(per_chunk);
    (0..=last)
        .map(|at| pb::NetmapChunk {
            cursor: (at == last).then(|| update.cursor.into()),
            full: update.full,
            last: at == last,
            node: update.node.clone().filter(|_| at == 0).map(Into::into),
            peers: part(&update.peers, at, per_chunk)
                .map(|peer| pb::Peer {
                    unreported: update.unreported.contains(&peer.id),
                    ..peer.into()
                })
                .collect(),
            removed: part(&removed, at, per_chunk).collect(),
            patches: part(&update.patches, at, per_chunk)
                .map(Into::into)
                .collect(),
            filter: update.filter.clone().filter(|_| at == last).map(Into::into),
            relays: update
                .relays
                .clone()
                .filter(|_| at == 0)
                .map(|relays| pb::RelayList {
                    relays: relays.into_iter().map(Into::into).collect(),
                }),
        })
        .collect()
}

fn part<T: Clone>(all: &[T], at: usize, per_chunk: usize) -> impl Iterator<Item = T> {
    all.iter().skip(at * per_chunk).take(per_chunk).cloned()
}

/// The netmap after the update, held against a reading that knows no shortcut.
fn apply(before: Option<Netmap>, update: NetmapUpdate) -> Option<Netmap> {
    let expected = expected_peers(before.as_ref(), &update);
    match Netmap::apply(before.clone(), update.clone()) {
        Ok(after) => {
            assert_eq!(after.cursor, update.cursor);
            assert_eq!(Some(&after.peers), expected.as_ref());
            let filter = update.filter.or(before.map(|before| before.filter));
            assert_eq!(Some(&after.filter), filter.as_ref());
            Some(after)
        }
        Err(_) => {
            let lacks = update.node.is_none() || update.filter.is_none() || update.relays.is_none();
            assert!(if update.full { lacks } else { before.is_none() });
            before
        }
    }
}

fn expected_peers(
    before: Option<&Netmap>,
    update: &NetmapUpdate,
) -> Option<BTreeMap<NodeId, Peer>> {
    let mut peers = BTreeMap::new();
    if !update.full {
        peers.clone_from(&before?.peers);
        peers.retain(|id, _| !update.removed.contains(id));
    }
    for peer in &update.peers {
        let mut peer = peer.clone();
        let known = before.and_then(|before| before.peers.get(&peer.id));
        if let Some(known) = known.filter(|_| update.unreported.contains(&peer.id)) {
            peer.endpoints.clone_from(&known.endpoints);
            peer.home_relay = known.home_relay;
        }
        peers.insert(peer.id, peer);
    }
    for patch in update.patches.iter().filter(|_| !update.full) {
        if let Some(peer) = peers.get_mut(&patch.id) {
            peer.endpoints = patch.endpoints.clone().unwrap_or(peer.endpoints.clone());
            peer.home_relay = patch.home_relay.unwrap_or(peer.home_relay);
            peer.state = patch.state.unwrap_or(peer.state);
        }
    }
    Some(peers)
}

fn check_netmap(netmap: &Netmap, came_in: usize) {
    // A peer takes at least its id, two addresses and two keys on the wire.
    assert!(netmap.peers.len() * 100 <= came_in);
    let stored = serde_json::to_vec(netmap).expect("a netmap can be stored");
    let read: Netmap = serde_json::from_slice(&stored).expect("what was stored can be read");
    assert_eq!(read, *netmap);
}

fn peer(n: u8) -> Peer {
    Peer {
        id: NodeId::from_bytes([n; 16]),
        name: format!("worker-{n}").parse().expect("a name"),
        role: Role::Worker,
        addrs: overlay(n),
        routes: vec!["10.0.0.0/8".parse().expect("a prefix")],
        wg_key: WgPublicKey::from_bytes([n; 32]),
        disco_key: DiscoPublicKey::from_bytes([n; 32]),
        services: vec![Service {
            name: "console".parse().expect("a name"),
            kind: ServiceKind::Console,
            port: 9090,
        }],
        ssh_host_keys: vec!["ssh-ed25519 AAAA".to_owned()],
        ssh_user: "root".to_owned(),
        endpoints: vec![
            "192.0.2.1:51820".parse().expect("an address"),
            "[2001:db8::1]:51820".parse().expect("an address"),
        ],
        home_relay: Some(RelayId::from_bytes([9; 16])),
        state: NodeState::Online,
    }
}

fn overlay(n: u8) -> OverlayAddrs {
    OverlayAddrs {
        v4: [100, 64, 0, n].into(),
        v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(n)].into(),
    }
}

fn full() -> NetmapUpdate {
    NetmapUpdate {
        cursor: Cursor {
            version: 7,
            epoch: 8,
            volatile: 9,
        },
        full: true,
        node: Some(SelfNode {
            id: NodeId::from_bytes([1; 16]),
            network: NetworkId::from_bytes([1; 16]),
            network_name: "default".parse().expect("a name"),
            name: "self".parse().expect("a name"),
            role: Role::Worker,
            addrs: overlay(1),
            console_prefix: "/self/".to_owned(),
            ssh_ca: String::new(),
        }),
        peers: vec![peer(2), peer(3)],
        filter: Some(PacketFilter {
            rules: vec![FilterRule {
                sources: vec!["100.64.0.2/32".parse().expect("a prefix")],
                protocols: vec![Protocol::Tcp, Protocol::Icmp],
                ports: vec![PortRange::single(22)],
            }],
        }),
        relays: Some(vec![Relay {
            id: RelayId::from_bytes([9; 16]),
            derp: vec!["relay:8443".to_owned()],
            stun: vec!["relay:3478".to_owned()],
        }]),
        ..NetmapUpdate::default()
    }
}

fn write(updates: &[(u8, NetmapUpdate)]) -> Vec<u8> {
    let encoded: Vec<(u8, Vec<u8>)> = updates
        .iter()
        .flat_map(|(per_chunk, update)| {
            let per_chunk = *per_chunk;
            let chunks = chunks(update, usize::from(per_chunk));
            chunks
                .into_iter()
                .map(move |chunk| (per_chunk, chunk.encode_to_vec()))
        })
        .collect();
    Steps::write(encoded.iter().map(|(n, bytes)| (0, *n, bytes.as_slice())))
}

fn seeds() -> [(&'static str, Vec<u8>); 3] {
    let removal = NetmapUpdate {
        removed: [NodeId::from_bytes([2; 16])].into(),
        peers: vec![peer(4), peer(5)],
        ..NetmapUpdate::default()
    };
    let patch = NetmapUpdate {
        patches: vec![PeerPatch {
            id: NodeId::from_bytes([3; 16]),
            endpoints: Some(Vec::new()),
            home_relay: Some(None),
            state: Some(NodeState::Stale),
        }],
        ..NetmapUpdate::default()
    };
    [
        ("full", write(&[(8, full())])),
        ("in_parts", write(&[(1, full())])),
        (
            "full_then_changes",
            write(&[(8, full()), (8, removal), (8, patch)]),
        ),
    ]
}
