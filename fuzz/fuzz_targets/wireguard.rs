//! Any datagrams, from the UDP socket or a relay, side by side or alone, are taken or dropped. A
//! stranger's never become a packet, and are answered with no more than came in.

#![no_main]

use std::time::{Duration, Instant};

use fuzz::{Step, Steps};
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

/// An address of the peer's that was never seen.
const DIRECT: &str = "192.0.2.2:51820";

// What a step is.
const RELAYED: u8 = 1;
const TIMEOUT: u8 = 2;
const SEAL: u8 = 4;
/// With the type and the reserved bytes right, which opens the way to the parsers behind.
const TYPED: u8 = 8;

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let peer_key = SecretKey::from_bytes([2; 32]);
    let mut now = Instant::now();
    let mut device = device(now);
    let mut out = Out::new();
    // A handshake is under way, so that answers have something to answer.
    device.greet(&[NodeId::from_bytes([2; 16])], now);
    device.handle_timeout(&mut out, now);
    for step in Steps::new(input) {
        now += Duration::from_millis(u64::from(step.number));
        out.clear();
        let typed = [&[1 + (step.what >> 4 & 3), 0, 0, 0], step.bytes].concat();
        let bytes = if step.what & TYPED == 0 { step.bytes } else { &typed };
        let source = source(step, &peer_key);
        if step.what & TIMEOUT != 0 {
            device.handle_timeout(&mut out, now);
        } else if step.what & SEAL != 0 {
            let mut batch = Batch::new();
            batch.push(step.bytes);
            device.seal(&mut batch, &mut out, now);
        } else {
            let stride = if step.number == 0 { bytes.len() } else { usize::from(step.number) };
            device.open(source, bytes, stride, &mut out, now);
            check_answers(&out, bytes.len());
        }
        let leaked = usize::from(fuzz::planted() && bytes.starts_with(&[4, 0, 0, 0]) && bytes.len() == 48);
        assert_eq!(out.packets().count() + leaked, 0, "nobody holds a session key");
        while device.poll_event().is_some() {}
    }
});

fn source(step: Step<'_>, peer_key: &SecretKey) -> Source {
    if step.what & RELAYED == 0 {
        Source::Direct(DIRECT.parse().expect("an address"))
    } else {
        let from = wg_public_key(peer_key);
        Source::Relay { relay: RELAY, from }
    }
}

/// A stranger cannot make us send much to somebody else: at most an answer for each datagram.
fn check_answers(out: &Out, came_in: usize) {
    let udp: usize = out.transmits().map(|sent| sent.bytes.len()).sum();
    let relayed: usize = out.relayed().map(|sent| sent.payload().len()).sum();
    // A first word from a peer is also the occasion to look for better paths to it.
    assert!(
        udp + relayed <= 4096 + 2 * came_in,
        "{udp} and {relayed} bytes for {came_in}"
    );
}

fn device(now: Instant) -> Device {
    let config = DeviceConfig {
        wg_key: SecretKey::from_bytes([1; 32]),
        disco_key: SecretKey::from_bytes([3; 32]),
        mtu: 1280,
        seed: [5; 32],
    };
    let mut device = Device::new(config, now);
    device.apply_netmap(&netmap(&SecretKey::from_bytes([2; 32])), now);
    device.handle_relay_up(RELAY, now);
    device
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let zeros: &[u8] = &[0; 32];
    let ping: &[u8] = &[&mesh_tunnel::disco::MAGIC[..], &[9; 80]].concat();
    let initiation: &[u8] = &initiation();
    [
        ("initiation", Steps::write([(0, 0, initiation)])),
        (
            "initiation_twice",
            Steps::write([
                (RELAYED, 0, initiation),
                (TIMEOUT, 200, &[]),
                (0, 0, initiation),
            ]),
        ),
        (
            "data",
            Steps::write([(TYPED | 3 << 4, 0, zeros), (SEAL, 1, zeros)]),
        ),
        (
            "disco",
            Steps::write([(0, 0, ping), (RELAYED, 0, ping), (TIMEOUT, 255, &[])]),
        ),
    ]
}

/// What the peer sends to begin a session with us.
fn initiation() -> Vec<u8> {
    let now = Instant::now();
    let config = DeviceConfig {
        wg_key: SecretKey::from_bytes([2; 32]),
        disco_key: SecretKey::from_bytes([2; 32]),
        mtu: 1280,
        seed: [6; 32],
    };
    let mut device = Device::new(config, now);
    let mut map = netmap(&SecretKey::from_bytes([1; 32]));
    map.node.id = NodeId::from_bytes([3; 16]);
    map.node.addrs = overlay(3);
    device.apply_netmap(&map, now);
    device.handle_relay_up(RELAY, now);
    let mut out = Out::new();
    device.greet(&[NodeId::from_bytes([2; 16])], now);
    device.handle_timeout(&mut out, now);
    let first = out.transmits().next().map(|sent| sent.bytes.to_vec());
    let relayed = || out.relayed().next().map(|sent| sent.payload().to_vec());
    first.or_else(relayed).expect("a handshake is sent")
}
