//! Any datagrams, from the UDP socket or a relay, side by side or alone, are taken or dropped, and
//! a stranger's never become a packet.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::{Batch, Device, DeviceConfig, Out, Source, disco_public_key, wg_public_key};
use mesh_types::key::SecretKey;
use mesh_types::{
    Cursor, Netmap, NetworkId, NodeId, NodeState, OverlayAddrs, PacketFilter, Peer, RelayId, Role,
    SelfNode,
};

const RELAY: RelayId = RelayId::from_bytes([9; 16]);

fn overlay(n: u8) -> OverlayAddrs {
    OverlayAddrs {
        v4: [100, 64, 0, n].into(),
        v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(n)].into(),
    }
}

fn netmap(peer_key: &SecretKey) -> Netmap {
    let peer = Peer {
        id: NodeId::from_bytes([2; 16]),
        name: "peer".parse().expect("a name"),
        role: Role::Worker,
        addrs: overlay(2),
        routes: Vec::new(),
        wg_key: wg_public_key(peer_key),
        disco_key: disco_public_key(peer_key),
        services: Vec::new(),
        ssh_host_keys: Vec::new(),
        ssh_user: String::new(),
        endpoints: vec!["192.0.2.2:51820".parse().expect("an address")],
        home_relay: Some(RELAY),
        state: NodeState::Online,
    };
    Netmap {
        cursor: Cursor::default(),
        node: SelfNode {
            id: NodeId::from_bytes([1; 16]),
            network: NetworkId::from_bytes([1; 16]),
            network_name: "default".parse().expect("a name"),
            name: "self".parse().expect("a name"),
            role: Role::Worker,
            addrs: overlay(1),
            console_prefix: "/self/".into(),
            ssh_ca: String::new(),
        },
        peers: [(peer.id, peer)].into(),
        filter: PacketFilter::default(),
        relays: Vec::new(),
    }
}

fuzz_target!(|steps: Vec<(u8, u16, Vec<u8>)>| {
    let peer_key = SecretKey::from_bytes([2; 32]);
    let mut now = Instant::now();
    let config = DeviceConfig {
        wg_key: SecretKey::from_bytes([1; 32]),
        disco_key: SecretKey::from_bytes([3; 32]),
        mtu: 1280,
        seed: [5; 32],
    };
    let mut device = Device::new(config, now);
    device.apply_netmap(&netmap(&peer_key), now);
    device.handle_relay_up(RELAY, now);
    let mut out = Out::new();
    // A handshake is under way, so that answers have something to answer.
    device.handshake_now(NodeId::from_bytes([2; 16]), &mut out, now);
    for (what, stride, bytes) in steps {
        now += Duration::from_millis(u64::from(stride));
        out.clear();
        let from = wg_public_key(&peer_key);
        let source = if what & 1 == 0 {
            Source::Direct("192.0.2.2:51820".parse().expect("an address"))
        } else {
            Source::Relay { relay: RELAY, from }
        };
        match what >> 1 & 3 {
            0 => device.open(source, &bytes, usize::from(stride), &mut out, now),
            1 => device.handle_timeout(&mut out, now),
            2 => {
                let mut batch = Batch::new();
                batch.push(&bytes);
                device.seal(&mut batch, &mut out, now);
            }
            // The type and the reserved bytes right, which opens the way to the parsers behind.
            _ => {
                let head = [1 + (what >> 3 & 3), 0, 0, 0];
                let datagram = [head.as_slice(), &bytes].concat();
                device.open(source, &datagram, datagram.len(), &mut out, now);
            }
        }
        assert_eq!(out.packets().count(), 0, "nobody holds a session key");
        while device.poll_event().is_some() {}
    }
});
