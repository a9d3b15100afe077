//! Streams: netmaps, heartbeats, watches, and how they end.

use std::time::Duration;

use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::pb::gateway_service_client::GatewayServiceClient;
use mesh_api::pb::relay_service_client::RelayServiceClient;
use mesh_api::pb::sync_request::Message as Say;
use mesh_types::Netmap;
use mesh_types::heartbeat::signed_bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{Machine, Mesh, eventually, node_ref, send, word};
use crate::session::{SOON, Stream, body, report, state_of};

#[tokio::test]
async fn a_stream_begins_with_a_full_netmap_and_goes_on_with_changes() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    let update = stream.update().await;
    assert!(update.full);
    let map = Netmap::apply(None, update).expect("whole");
    assert_eq!(map.node.name.as_str(), "worker");
    assert_eq!(map.node.console_prefix, "/worker/");
    assert!(
        map.node.ssh_ca.starts_with("ssh-ed25519 "),
        "{}",
        map.node.ssh_ca
    );
    assert!(map.peers.is_empty());
    assert_full_maps(&mesh, 1);

    // The same owner: they see each other.
    let other = mesh.joined(pb::Role::Worker, "other").await;
    let map = Netmap::apply(Some(map), stream.update().await).expect("a change");
    let peer = map.peers.values().next().expect("a peer");
    assert_eq!(peer.name.as_str(), "other");
    assert_eq!(peer.wg_key.as_bytes()[..], other.wg_key());

    mesh.remove("", "other").await;
    let map = Netmap::apply(Some(map), stream.update().await).expect("a change");
    assert!(map.peers.is_empty());
    assert_full_maps(&mesh, 1);
}

/// How many netmaps the coordinator says that it has sent whole since its start.
fn assert_full_maps(mesh: &Mesh, count: u32) {
    let metrics = mesh.handles.metrics.encode();
    let told = format!("mesh_coordinator_full_maps_total {count}\n");
    assert!(metrics.contains(&told), "not {told}: {metrics}");
}

#[tokio::test]
async fn a_cursor_resumes_without_a_full_map_also_after_a_restart() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    mesh.joined(pb::Role::Worker, "other").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    let cursor = stream.update().await.cursor;
    drop(stream);

    let (dir, clock) = mesh.stop().await;
    let mesh = Mesh::start_in(dir, clock).await;
    mesh.joined(pb::Role::Worker, "third").await;
    let mut stream = Stream::open(&mesh, &worker, Some(cursor.into())).await;
    let update = stream.update().await;
    assert!(!update.full);
    let names: Vec<_> = update.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["third"]);
    assert_full_maps(&mesh, 0);
}

#[tokio::test]
async fn nodes_of_another_network_are_never_seen() {
    let mesh = Mesh::start().await;
    mesh.network("lab").await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let lab = mesh.joined_in("lab", pb::Role::Worker, "worker").await;
    let mut here = Stream::open(&mesh, &worker, None).await;
    let mut there = Stream::open(&mesh, &lab, None).await;
    let (here, there) = (here.update().await, there.update().await);
    assert!(here.peers.is_empty() && there.peers.is_empty());
    let (here, there) = (here.node.expect("itself"), there.node.expect("itself"));
    assert_eq!(
        (here.network_name.as_str(), there.network_name.as_str()),
        ("default", "lab")
    );
    assert_eq!(there.console_prefix, "/n/lab/worker/");
    assert_ne!(here.ssh_ca, there.ssh_ca);
}

#[tokio::test]
async fn heartbeats_make_a_node_online_and_bad_ones_are_refused_by_name() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    assert_eq!(state_of(&mesh, "worker").await, pb::NodeState::Offline);
    let mut stream = Stream::open(&mesh, &worker, None).await;
    let good = body(&mesh, &worker, 1);
    let ack = stream.beat(&worker, good.clone()).await;
    assert_eq!((ack.sequence, ack.refusal.as_str()), (1, ""));
    assert_eq!(state_of(&mesh, "worker").await, pb::NodeState::Online);

    let ack = stream.beat(&worker, good.clone()).await;
    assert_eq!(ack.refusal, "replay");
    let skewed = pb::HeartbeatBody {
        sequence: 2,
        time: good.time + 31_000_000,
        ..good.clone()
    };
    assert_eq!(stream.beat(&worker, skewed).await.refusal, "skew");
    let other = pb::HeartbeatBody {
        sequence: 2,
        node_id: vec![9; 16],
        ..good.clone()
    };
    assert_eq!(stream.beat(&worker, other).await.refusal, "wrong-node");

    let bytes = pb::HeartbeatBody {
        sequence: 2,
        ..good.clone()
    }
    .encode_to_vec();
    let signature = worker
        .machine
        .identity
        .sign(&signed_bytes(&stream.nonce, &bytes))
        .expect("signs");
    let changed = pb::HeartbeatBody {
        sequence: 3,
        ..good.clone()
    }
    .encode_to_vec();
    stream
        .say(Say::Heartbeat(pb::Heartbeat {
            body: changed,
            signature,
        }))
        .await;
    assert_eq!(stream.ack().await.refusal, "bad-signature");

    let junk = vec![0xff; 7];
    let signature = worker
        .machine
        .identity
        .sign(&signed_bytes(&stream.nonce, &junk))
        .expect("signs");
    stream
        .say(Say::Heartbeat(pb::Heartbeat {
            body: junk,
            signature,
        }))
        .await;
    assert_eq!(stream.ack().await.refusal, "malformed");

    let fine = pb::HeartbeatBody {
        sequence: 2,
        ..good
    };
    assert_eq!(
        stream.beat(&worker, fine).await.refusal,
        "",
        "the stream goes on"
    );
}

#[tokio::test]
async fn a_heartbeats_text_is_taken_as_it_is() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let other = mesh.joined(pb::Role::Worker, "other").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    for (sequence, status) in (1..).zip(["<&>é", "\"'\\\u{0}\n", "😀 漢字 \u{202e}", ""]) {
        let told = pb::HeartbeatBody {
            status: status.into(),
            ..body(&mesh, &worker, sequence)
        };
        assert_eq!(stream.beat(&worker, told).await.refusal, "", "{status:?}");
    }
    // Another node that exists counts as little as one that does not; and text that is signed is
    // no text that is changed afterwards.
    let foreign = body(&mesh, &other, 9);
    assert_eq!(stream.beat(&worker, foreign).await.refusal, "wrong-node");
    let signed = body(&mesh, &worker, 9).encode_to_vec();
    let changed = pb::HeartbeatBody {
        status: "<&>é".into(),
        ..body(&mesh, &worker, 9)
    };
    let signature = worker
        .machine
        .identity
        .sign(&signed_bytes(&stream.nonce, &signed));
    stream
        .say(Say::Heartbeat(pb::Heartbeat {
            body: changed.encode_to_vec(),
            signature: signature.expect("signs"),
        }))
        .await;
    assert_eq!(stream.ack().await.refusal, "bad-signature");
    assert_eq!(state_of(&mesh, "worker").await, pb::NodeState::Online);
    assert_eq!(state_of(&mesh, "other").await, pb::NodeState::Offline);
}

#[tokio::test]
async fn refusals_become_events_once_a_minute_for_each_reason() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    let old = pb::HeartbeatBody {
        time: 0,
        ..body(&mesh, &worker, 1)
    };
    let replayed = pb::HeartbeatBody {
        sequence: 0,
        ..body(&mesh, &worker, 1)
    };
    for _ in 0..3 {
        assert_eq!(stream.beat(&worker, old.clone()).await.refusal, "skew");
        assert_eq!(
            stream.beat(&worker, replayed.clone()).await.refusal,
            "replay"
        );
    }
    mesh.clock.advance(Duration::from_secs(60));
    assert_eq!(stream.beat(&worker, old).await.refusal, "skew");
    // They are written beside the stream, one after the other.
    let refusals = eventually("three events", async || {
        let events = mesh.events().await.into_iter();
        let refusals: Vec<_> = events
            .filter(|event| event.kind == "heartbeat-refused" && event.subject == "worker")
            .map(|event| event.detail.split(':').next().unwrap().to_owned())
            .collect();
        (refusals.len() >= 3).then_some(refusals)
    });
    assert_eq!(refusals.await, ["skew", "replay", "skew"]);
    // The first that counts ends it, and no other.
    for sequence in [1, 2] {
        let good = body(&mesh, &worker, sequence);
        assert_eq!(stream.beat(&worker, good).await.refusal, "");
    }
    let over = mesh.told("heartbeat-accepted", "worker").await;
    assert!(over.starts_with("after "), "{over}");
    let accepted = mesh.events().await.into_iter();
    let accepted = accepted.filter(|event| event.kind == "heartbeat-accepted");
    assert_eq!(accepted.count(), 1);
}

#[tokio::test]
async fn removal_ends_the_nodes_stream_and_its_relay_admission_within_two_seconds() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let relay = mesh.joined(pb::Role::Relay, "relay").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    stream.update().await;
    let channel = relay.channel(&mesh).await;
    let mut clients = RelayServiceClient::new(channel.clone())
        .watch_clients(pb::WatchClientsRequest {})
        .await
        .expect("watches")
        .into_inner();
    let first = timeout(SOON, clients.message())
        .await
        .expect("in time")
        .expect("reads");
    let first = first.expect("a response");
    assert!(first.full && first.last);
    let keys: Vec<_> = first
        .clients
        .iter()
        .map(|client| client.wg_key.clone())
        .collect();
    assert_eq!(keys, [worker.wg_key()]);

    let began = tokio::time::Instant::now();
    mesh.remove("", "worker").await;
    assert_eq!(stream.goodbye().await, pb::sync_goodbye::Reason::Removed);
    let change = timeout(SOON, clients.message())
        .await
        .expect("in time")
        .expect("reads");
    assert_eq!(change.expect("a response").removed, [worker.wg_key()]);
    assert!(began.elapsed() < Duration::from_secs(2));

    // Its certificate opens nothing any more.
    let mut control = ControlServiceClient::new(worker.channel(&mesh).await);
    let refused = control
        .leave(pb::LeaveRequest {})
        .await
        .expect_err("removed");
    assert_eq!(word(&refused), "removed");

    // A removed relay loses its watch as well.
    mesh.remove("", "relay").await;
    let ended = timeout(Duration::from_secs(2), clients.message())
        .await
        .expect("within 2 s");
    assert_eq!(word(&ended.expect_err("removed")), "removed");
}

#[tokio::test]
async fn a_machine_that_took_over_by_permit_cuts_the_old_ones_stream_within_two_seconds() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    stream.update().await;
    let wish = pb::PermitRejoinRequest {
        node: node_ref("", "worker"),
    };
    let permit = mesh
        .admin()
        .await
        .permit_rejoin(wish)
        .await
        .expect("permits")
        .into_inner();
    let token = mesh.token(pb::Role::Worker).await;
    let mut request = Machine::new().request(&mesh, &token, "worker").await;
    request.permit = permit.permit;
    send(&mesh, request).await.expect("permitted");
    let began = tokio::time::Instant::now();
    assert_eq!(stream.goodbye().await, pb::sync_goodbye::Reason::Removed);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_gateway_that_was_taken_over_by_permit_loses_its_routes_within_two_seconds() {
    let mesh = Mesh::start().await;
    let gateway = mesh.joined(pb::Role::Gateway, "gateway").await;
    let mut routes = GatewayServiceClient::new(gateway.channel(&mesh).await)
        .watch_routes(pb::WatchRoutesRequest {})
        .await
        .expect("watches")
        .into_inner();
    let first = timeout(SOON, routes.message()).await.expect("in time");
    assert!(first.expect("reads").expect("a response").full);
    let wish = pb::PermitRejoinRequest {
        node: node_ref("", "gateway"),
    };
    let permit = mesh
        .admin()
        .await
        .permit_rejoin(wish)
        .await
        .expect("permits")
        .into_inner();
    let token = mesh.token(pb::Role::Gateway).await;
    let mut request = Machine::new().request(&mesh, &token, "gateway").await;
    request.permit = permit.permit;
    send(&mesh, request).await.expect("permitted");
    let ended = async {
        loop {
            if let Err(status) = routes.message().await {
                break status;
            }
        }
    };
    let status = timeout(Duration::from_secs(2), ended)
        .await
        .expect("within 2 s");
    assert_eq!(word(&status), "removed");
}

#[tokio::test]
async fn a_newer_stream_replaces_the_older_one() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let mut older = Stream::open(&mesh, &worker, None).await;
    older.update().await;
    let mut newer = Stream::open(&mesh, &worker, None).await;
    newer.update().await;
    assert_eq!(older.goodbye().await, pb::sync_goodbye::Reason::Replaced);
    let ack = newer.beat(&worker, body(&mesh, &worker, 1)).await;
    assert_eq!(ack.refusal, "");
}

#[tokio::test]
async fn streams_of_one_identity_that_take_turns_are_an_event() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let other = mesh.joined(pb::Role::Worker, "other").await;
    // The first takes over nothing, and a machine that reconnects does it once.
    let mut first = Stream::open(&mesh, &other, None).await;
    let _second = Stream::open(&mesh, &other, None).await;
    assert_eq!(first.goodbye().await, pb::sync_goodbye::Reason::Replaced);
    let mut last = Stream::open(&mesh, &worker, None).await;
    for _ in 0..5 {
        let next = Stream::open(&mesh, &worker, None).await;
        assert_eq!(last.goodbye().await, pb::sync_goodbye::Reason::Replaced);
        last = next;
    }
    let told = mesh.told("identity-twice", "worker").await;
    assert!(told.contains("two machines"), "{told}");
    let twice = mesh.events().await.into_iter();
    let twice = twice.filter(|event| event.kind == "identity-twice");
    assert_eq!(twice.count(), 1);
}

#[tokio::test]
async fn a_shutdown_says_goodbye() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    stream.update().await;
    mesh.begin_stop();
    assert_eq!(stream.goodbye().await, pb::sync_goodbye::Reason::Shutdown);
    mesh.stop().await;
}

#[tokio::test]
async fn leaving_frees_the_name_and_ends_the_stream() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    stream.update().await;
    let mut control = ControlServiceClient::new(worker.channel(&mesh).await);
    control.leave(pb::LeaveRequest {}).await.expect("leaves");
    assert_eq!(stream.goodbye().await, pb::sync_goodbye::Reason::Removed);
    assert_eq!(
        mesh.joined(pb::Role::Worker, "worker").await.answer.name,
        "worker"
    );
}

#[tokio::test]
async fn streams_and_heartbeats_go_on_while_changes_are_refused() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let token = mesh.token(pb::Role::Worker).await;
    let mut stream = Stream::open(&mesh, &worker, None).await;
    stream.update().await;
    mesh.guard.hold("the disk is full");

    let outcome = Machine::new().enrol(&mesh, &token, "late").await;
    let status = outcome.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert_eq!(word(&status), "store-unavailable");
    assert!(
        status.message().contains("the disk is full"),
        "{}",
        status.message()
    );
    let create = pb::CreateNetworkRequest { name: "lab".into() };
    let status = mesh
        .admin()
        .await
        .create_network(create)
        .await
        .expect_err("refused");
    assert_eq!(word(&status), "store-unavailable");

    assert_eq!(
        stream.beat(&worker, body(&mesh, &worker, 1)).await.refusal,
        ""
    );
    assert_eq!(state_of(&mesh, "worker").await, pb::NodeState::Online);
    stream.say(Say::Report(report(&[("wiki", 8080)]))).await;
    let endpoints = eventually("endpoints are volatile and count", async || {
        let node = mesh.nodes().await.remove(0);
        (!node.endpoints.is_empty()).then_some(node.endpoints)
    });
    assert_eq!(endpoints.await.len(), 1);
    let status = mesh
        .admin()
        .await
        .status(pb::AdminStatusRequest {})
        .await
        .expect("reads");
    assert!(!status.get_ref().writable);
    assert!(status.get_ref().store_problem.contains("the disk is full"));
    mesh.guard.release();
    let token_still_good = Machine::new().enrol(&mesh, &token, "late").await;
    token_still_good.expect("heals by itself");
}

#[tokio::test]
async fn a_stream_must_begin_with_a_hello() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let (say, said) = mpsc::channel(4);
    let message = Some(Say::Report(pb::NodeReport::default()));
    say.send(pb::SyncRequest { message }).await.expect("room");
    let mut client = ControlServiceClient::new(worker.channel(&mesh).await);
    let mut hear = client
        .sync(ReceiverStream::new(said))
        .await
        .expect("opens")
        .into_inner();
    let status = timeout(SOON, hear.message())
        .await
        .expect("in time")
        .expect_err("refused");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}
