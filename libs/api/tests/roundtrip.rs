//! Every value of the vocabulary that travels comes back the same.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use mesh_api::model::netmap::Assembler;
use mesh_api::model::node::NodeReport;
use mesh_api::{ProtocolError, pb};
use mesh_types::{
    Cursor, DiscoPublicKey, FilterRule, NodeId, NodeState, OverlayAddrs, PacketFilter, Peer,
    PeerPatch, PortRange, Protocol, RelayId, Role, Service, ServiceKind, WgPublicKey,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>())
            .prop_map(|(ip, port)| SocketAddr::from((Ipv4Addr::from(ip), port))),
        (any::<[u8; 16]>(), any::<u16>())
            .prop_map(|(ip, port)| SocketAddr::from((Ipv6Addr::from(ip), port))),
    ]
}

fn addrs() -> impl Strategy<Value = OverlayAddrs> {
    (any::<[u8; 4]>(), any::<[u8; 16]>()).prop_map(|(v4, v6)| OverlayAddrs {
        v4: v4.into(),
        v6: v6.into(),
    })
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (any::<[u8; 4]>(), 0u8..=32)
        .prop_map(|(ip, len)| IpNet::new(Ipv4Addr::from(ip).into(), len).expect("in range"))
}

/// A number below 2^254, so one that has no other spelling.
fn public_key() -> impl Strategy<Value = [u8; 32]> {
    any::<[u8; 32]>().prop_map(|mut key| {
        key[31] &= 0x3f;
        key
    })
}

fn role() -> impl Strategy<Value = Role> {
    proptest::sample::select(Role::ALL.to_vec())
}

fn state() -> impl Strategy<Value = NodeState> {
    proptest::sample::select(vec![
        NodeState::Online,
        NodeState::Stale,
        NodeState::Offline,
    ])
}

fn service() -> impl Strategy<Value = Service> {
    let kinds = vec![
        ServiceKind::Console,
        ServiceKind::Ssh,
        ServiceKind::Http,
        ServiceKind::Tcp,
    ];
    (
        "[a-z][a-z0-9]{0,8}",
        proptest::sample::select(kinds),
        1u16..,
    )
        .prop_map(|(name, kind, port)| Service {
            name: name.parse().expect("a label"),
            kind,
            port,
        })
}

fn relay() -> impl Strategy<Value = Option<RelayId>> {
    option::of(any::<[u8; 16]>().prop_map(RelayId::from_bytes))
}

fn peer() -> impl Strategy<Value = Peer> {
    let identity = (
        any::<[u8; 16]>(),
        "[a-z]{1,9}",
        role(),
        addrs(),
        vec(prefix(), 0..3),
    );
    let keys = (public_key(), public_key(), vec(service(), 0..4));
    let volatile = (vec(endpoint(), 0..4), relay(), state());
    (
        identity,
        keys,
        vec("[ -~]{0,40}", 0..3),
        "[a-z]{0,8}",
        volatile,
    )
        .prop_map(
            |(
                (id, name, role, addrs, routes),
                (wg, disco, services),
                host_keys,
                user,
                volatile,
            )| Peer {
                id: NodeId::from_bytes(id),
                name: name.parse().expect("a label"),
                role,
                addrs,
                routes,
                wg_key: WgPublicKey::from_bytes(wg),
                disco_key: DiscoPublicKey::from_bytes(disco),
                services,
                ssh_host_keys: host_keys,
                ssh_user: user,
                endpoints: volatile.0,
                home_relay: volatile.1,
                state: volatile.2,
            },
        )
}

fn patch() -> impl Strategy<Value = PeerPatch> {
    (
        any::<[u8; 16]>(),
        option::of(vec(endpoint(), 0..4)),
        option::of(relay()),
        option::of(state()),
    )
        .prop_map(|(id, endpoints, home_relay, state)| PeerPatch {
            id: NodeId::from_bytes(id),
            endpoints,
            home_relay,
            state,
        })
}

fn filter() -> impl Strategy<Value = PacketFilter> {
    let protocols = vec![Protocol::Icmp, Protocol::Tcp, Protocol::Udp];
    let ports = (any::<u16>(), any::<u16>()).prop_map(|(a, b)| PortRange {
        first: a.min(b),
        last: a.max(b),
    });
    let rule = (
        vec(prefix(), 0..4),
        proptest::sample::subsequence(protocols, 0..=3),
        vec(ports, 0..3),
    )
        .prop_map(|(sources, protocols, ports)| FilterRule {
            sources,
            protocols,
            ports,
        });
    vec(rule, 0..4).prop_map(|rules| PacketFilter { rules })
}

fn through_bytes<M: prost::Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).expect("its own bytes")
}

proptest! {
    #[test]
    fn a_peer_survives_the_wire(peer in peer()) {
        let wire = through_bytes(&pb::Peer::from(peer.clone()));
        prop_assert_eq!(Peer::try_from(wire), Ok(peer));
    }

    #[test]
    fn a_patch_survives_the_wire(patch in patch()) {
        let wire = through_bytes(&pb::PeerPatch::from(patch.clone()));
        prop_assert_eq!(PeerPatch::try_from(wire), Ok(patch));
    }

    #[test]
    fn a_filter_survives_the_wire(filter in filter()) {
        let wire = through_bytes(&pb::PacketFilter::from(filter.clone()));
        prop_assert_eq!(PacketFilter::try_from(wire), Ok(filter));
    }

    #[test]
    fn a_report_survives_the_wire(
        endpoints in vec(endpoint(), 0..5),
        home_relay in relay(),
        services in vec(service(), 0..5),
        via in any::<bool>(),
    ) {
        let report = NodeReport {
            endpoints,
            home_relay,
            services,
            ssh_via_loopback: via,
            ..NodeReport::default()
        };
        let wire = through_bytes(&pb::NodeReport::from(report.clone()));
        prop_assert_eq!(NodeReport::try_from(wire), Ok(report));
    }

    #[test]
    fn any_bytes_are_taken_or_refused_without_panic(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(chunk) = pb::NetmapChunk::decode(bytes.as_slice()) {
            let _outcome = Assembler::default().push(chunk);
        }
    }
}

#[test]
fn an_update_comes_out_with_its_last_chunk_only() {
    let cursor = Cursor {
        version: 1,
        epoch: 2,
        volatile: 3,
    };
    let mut assembler = Assembler::default();
    let first = pb::NetmapChunk {
        full: true,
        ..Default::default()
    };
    assert_eq!(assembler.push(first), Ok(None));
    let last = pb::NetmapChunk {
        last: true,
        cursor: Some(cursor.into()),
        ..Default::default()
    };
    let update = assembler.push(last).expect("whole").expect("the last");
    assert!(update.full);
    assert_eq!(update.cursor, cursor);
}

#[test]
fn roles_and_kinds_unknown_to_this_version_are_refused() {
    let service = pb::Service {
        name: "x".into(),
        kind: 99,
        port: 1,
    };
    assert!(matches!(
        Service::try_from(service),
        Err(ProtocolError::Invalid { .. })
    ));
    assert!(mesh_api::model::enums::role(99).is_err());
}
