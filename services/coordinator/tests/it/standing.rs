//! What heartbeats say of their nodes, and what their absence says.

use std::time::Duration;

use mesh_api::pb;

use crate::harness::{Mesh, eventually, node_ref};
use crate::session::{Stream, body};

#[tokio::test]
async fn what_a_heartbeat_says_is_wrong_is_shown_and_becomes_events() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let relay = mesh.joined(pb::Role::Relay, "relay").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    let mut of_relay = Stream::open(&mesh, &relay, None).await;
    let shown = async || {
        let request = pb::ShowNodeRequest {
            node: node_ref("", "worker"),
        };
        let shown = mesh.admin().await.show_node(request).await;
        shown.expect("shows").into_inner().troubles
    };
    for (sequence, status, troubles) in [
        (1, "fine", &[][..]),
        (
            2,
            "<&>é udp-blocked netmap-unsaved",
            &["netmap-unsaved", "udp-blocked"],
        ),
        (
            3,
            "udp-blocked netmap-unsaved",
            &["netmap-unsaved", "udp-blocked"],
        ),
        (4, "netmap-stored=185", &[]),
    ] {
        let told = pb::HeartbeatBody {
            status: status.into(),
            ..body(&mesh, &worker, sequence)
        };
        assert_eq!(stream.beat(&worker, told).await.refusal, "");
        assert_eq!(shown().await, troubles, "after {status:?}");
    }
    let told = pb::HeartbeatBody {
        status: "udp-blocked".into(),
        ..body(&mesh, &relay, 1)
    };
    assert_eq!(of_relay.beat(&relay, told).await.refusal, "");
    // A heartbeat that is refused says nothing.
    let refused = pb::HeartbeatBody {
        status: "tun-trouble".into(),
        ..body(&mesh, &worker, 4)
    };
    assert_eq!(stream.beat(&worker, refused).await.refusal, "replay");
    let last = pb::HeartbeatBody {
        status: "tun-trouble".into(),
        ..body(&mesh, &worker, 5)
    };
    assert_eq!(stream.beat(&worker, last).await.refusal, "");
    let events = eventually("all events", async || {
        let mut events = mesh.events().await;
        events.retain(|event| event.kind.contains("trouble") || event.kind.contains("stored"));
        (events.len() >= 4).then_some(events)
    });
    let events = events.await;
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    let wanted = [
        "node-trouble",
        "node-netmap-stored",
        "node-trouble-over",
        "node-trouble",
    ];
    assert_eq!(kinds, wanted);
    assert!(events.iter().all(|event| event.subject == "worker"));
    assert!(events[0].detail.starts_with("netmap-unsaved: it cannot"));
    assert!(events[1].detail.ends_with("stored netmap for 3 min"));
    assert_eq!(events[2].detail, "it was netmap-unsaved, udp-blocked");
    assert!(events[3].detail.starts_with("tun-trouble: "));
}

#[tokio::test]
async fn who_falls_silent_and_who_comes_back_is_told() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let laptop = mesh.joined(pb::Role::Worker, "laptop").await;
    let relay = mesh.joined(pb::Role::Relay, "relay").await;
    let request = pb::SetNodeRequest {
        node: node_ref("", "laptop"),
        uptime_class: pb::UptimeClass::OnDemand.into(),
        ..Default::default()
    };
    mesh.admin().await.set_node(request).await.expect("sets");
    let members = [("worker", &worker), ("laptop", &laptop), ("relay", &relay)];
    for (_, member) in members {
        let mut stream = Stream::open(&mesh, member, None).await;
        assert_eq!(
            stream.beat(member, body(&mesh, member, 1)).await.refusal,
            ""
        );
    }
    for (name, kind) in [
        ("worker", "node-online"),
        ("laptop", "node-online"),
        ("relay", "relay-online"),
    ] {
        assert_eq!(mesh.told(kind, name).await, "was offline");
    }
    // Each time a second is left until they are in the next state, and the coordinator waits for it
    // by itself.
    let (dir, clock) = mesh.stop().await;
    clock.advance(Duration::from_secs(44));
    let mesh = Mesh::start_in(dir, clock).await;
    for (name, kind) in [
        ("worker", "node-stale"),
        ("laptop", "node-stale"),
        ("relay", "relay-stale"),
    ] {
        assert_eq!(mesh.told(kind, name).await, "was online");
    }
    let (dir, clock) = mesh.stop().await;
    clock.advance(Duration::from_secs(60));
    let mesh = Mesh::start_in(dir, clock).await;
    for (name, kind) in [
        ("worker", "node-offline"),
        ("laptop", "node-absent"),
        ("relay", "relay-offline"),
    ] {
        assert_eq!(mesh.told(kind, name).await, "was stale");
    }
    let mut stream = Stream::open(&mesh, &worker, None).await;
    let ack = stream.beat(&worker, body(&mesh, &worker, 1)).await;
    assert_eq!(ack.refusal, "");
    let online = async || {
        let events = mesh.events().await.into_iter();
        let online =
            events.filter(|event| event.kind == "node-online" && event.subject == "worker");
        (online.count() == 2).then_some(())
    };
    eventually("it is back", online).await;
}
