//! Streams: netmaps, heartbeats, reports, watches, and how they end.

use std::time::Duration;

use mesh_api::model::netmap::Assembler;
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::pb::gateway_service_client::GatewayServiceClient;
use mesh_api::pb::relay_service_client::RelayServiceClient;
use mesh_api::pb::sync_request::Message as Say;
use mesh_api::pb::sync_response::Message as Hear;
use mesh_types::heartbeat::signed_bytes;
use mesh_types::{Netmap, NetmapUpdate};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::harness::{Machine, Member, Mesh, eventually, node_ref, send, word};

const SOON: Duration = Duration::from_secs(5);

/// A machine's open control stream.
struct Stream {
    say: mpsc::Sender<pb::SyncRequest>,
    hear: Streaming<pb::SyncResponse>,
    nonce: Vec<u8>,
    assembler: Assembler,
}

impl Stream {
    async fn open(mesh: &Mesh, member: &Member, cursor: Option<pb::Cursor>) -> Self {
        let (say, said) = mpsc::channel(16);
        let hello = pb::SyncHello {
            cursor,
            version: "0.1.0".into(),
        };
        say.send(pb::SyncRequest {
            message: Some(Say::Hello(hello)),
        })
        .await
        .expect("room");
        let mut client = ControlServiceClient::new(member.channel(mesh).await);
        let mut hear = client
            .sync(ReceiverStream::new(said))
            .await
            .expect("syncs")
            .into_inner();
        let Some(Hear::Welcome(welcome)) = next(&mut hear).await else {
            panic!("no welcome first");
        };
        Self {
            say,
            hear,
            nonce: welcome.nonce,
            assembler: Assembler::default(),
        }
    }

    async fn say(&self, message: Say) {
        self.say
            .send(pb::SyncRequest {
                message: Some(message),
            })
            .await
            .expect("room");
    }

    /// The next whole update of the netmap; acknowledgements are passed over.
    async fn update(&mut self) -> NetmapUpdate {
        loop {
            match next(&mut self.hear).await {
                Some(Hear::Netmap(chunk)) => {
                    if let Some(update) = self.assembler.push(chunk).expect("a good chunk") {
                        return update;
                    }
                }
                Some(Hear::HeartbeatAck(_)) => {}
                other => panic!("no update: {other:?}"),
            }
        }
    }

    /// The next acknowledgement; updates are passed over.
    async fn ack(&mut self) -> pb::HeartbeatAck {
        loop {
            match next(&mut self.hear).await {
                Some(Hear::HeartbeatAck(ack)) => return ack,
                Some(Hear::Netmap(_)) => {}
                other => panic!("no acknowledgement: {other:?}"),
            }
        }
    }

    /// The reason of the goodbye that ends the stream.
    async fn goodbye(&mut self) -> pb::sync_goodbye::Reason {
        loop {
            match next(&mut self.hear).await {
                Some(Hear::Goodbye(goodbye)) => return goodbye.reason(),
                Some(_) => {}
                None => panic!("ended without a goodbye"),
            }
        }
    }

    async fn beat(&mut self, member: &Member, body: pb::HeartbeatBody) -> pb::HeartbeatAck {
        let body = body.encode_to_vec();
        let signature = member
            .machine
            .identity
            .sign(&signed_bytes(&self.nonce, &body))
            .expect("signs");
        self.say(Say::Heartbeat(pb::Heartbeat { body, signature }))
            .await;
        self.ack().await
    }
}

async fn next(hear: &mut Streaming<pb::SyncResponse>) -> Option<Hear> {
    let message = timeout(SOON, hear.message())
        .await
        .expect("something in time");
    message
        .expect("no error")
        .map(|response| response.message.expect("a message"))
}

fn body(mesh: &Mesh, member: &Member, sequence: u64) -> pb::HeartbeatBody {
    use coordinator::Clock as _;

    pb::HeartbeatBody {
        node_id: member.answer.node_id.clone(),
        sequence,
        time: mesh.clock.now().as_micros(),
        status: "fine".into(),
    }
}

async fn state_of(mesh: &Mesh, name: &str) -> pb::NodeState {
    let request = pb::ShowNodeRequest {
        node: node_ref("", name),
    };
    mesh.admin()
        .await
        .show_node(request)
        .await
        .expect("shows")
        .into_inner()
        .state()
}

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

    // The same owner: they see each other.
    let other = mesh.joined(pb::Role::Worker, "other").await;
    let map = Netmap::apply(Some(map), stream.update().await).expect("a change");
    let peer = map.peers.values().next().expect("a peer");
    assert_eq!(peer.name.as_str(), "other");
    assert_eq!(peer.wg_key.as_bytes()[..], other.wg_key());

    mesh.remove("", "other").await;
    let map = Netmap::apply(Some(map), stream.update().await).expect("a change");
    assert!(map.peers.is_empty());
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
    let refusals: Vec<_> = mesh
        .events()
        .await
        .into_iter()
        .filter(|event| event.kind == "heartbeat-refused" && event.subject == "worker")
        .map(|event| event.detail.split(':').next().unwrap().to_owned())
        .collect();
    assert_eq!(refusals, ["skew", "replay", "skew"]);
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

fn report(services: &[(&str, u32)]) -> pb::NodeReport {
    let service = |(name, port): &(&str, u32)| pb::Service {
        name: (*name).to_owned(),
        kind: pb::ServiceKind::Http.into(),
        port: *port,
    };
    pb::NodeReport {
        services: services.iter().map(service).collect(),
        endpoints: vec![pb::Endpoint {
            addr: vec![192, 0, 2, 1],
            port: 51820,
        }],
        ssh_user: "deploy".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_gateway_learns_of_a_worker_and_its_services_without_asking_again() {
    let mesh = Mesh::start().await;
    let gateway = mesh.joined(pb::Role::Gateway, "gateway").await;
    let mut routes = GatewayServiceClient::new(gateway.channel(&mesh).await)
        .watch_routes(pb::WatchRoutesRequest {})
        .await
        .expect("watches")
        .into_inner();
    let mut read = async || {
        let message = timeout(SOON, routes.message())
            .await
            .expect("in time")
            .expect("reads");
        message.expect("a response")
    };
    assert!(read().await.full);
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let change = read().await;
    assert!(!change.full);
    assert_eq!(change.changed[0].name, "worker");
    assert_eq!(change.changed[0].network, "default");

    let stream = Stream::open(&mesh, &worker, None).await;
    stream.say(Say::Report(report(&[("wiki", 8080)]))).await;
    let services = loop {
        let mut change = read().await;
        if let Some(route) = change
            .changed
            .pop()
            .filter(|route| !route.services.is_empty())
        {
            break route.services;
        }
    };
    assert_eq!(
        (services[0].name.as_str(), services[0].port),
        ("wiki", 8080)
    );
    mesh.remove("", "worker").await;
    loop {
        if read().await.removed == [worker.answer.node_id.clone()] {
            break;
        }
    }
}

#[tokio::test]
async fn endpoints_and_services_reach_peers_and_survive_where_they_should() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let other = mesh.joined(pb::Role::Worker, "other").await;
    let mut watching = Stream::open(&mesh, &other, None).await;
    let mut map = Netmap::apply(None, watching.update().await).expect("whole");
    let stream = Stream::open(&mesh, &worker, None).await;
    stream.say(Say::Report(report(&[("wiki", 8080)]))).await;
    loop {
        let peer = map.peers.values().next().expect("the worker");
        if !peer.services.is_empty() && !peer.endpoints.is_empty() {
            assert_eq!(peer.ssh_user, "deploy");
            break;
        }
        map = Netmap::apply(Some(map), watching.update().await).expect("a change");
    }
    drop((stream, watching));
    let (dir, clock) = mesh.stop().await;
    let mesh = Mesh::start_in(dir, clock).await;
    let node = mesh
        .nodes()
        .await
        .into_iter()
        .find(|node| node.name == "worker")
        .expect("it");
    assert_eq!(node.services.len(), 1, "durable");
    assert!(node.endpoints.is_empty(), "volatile");
}

#[tokio::test]
async fn a_changed_host_key_is_held_until_it_is_accepted() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let stream = Stream::open(&mesh, &worker, None).await;
    let key = || mesh_ssh::PrivateKey::generate().public_key().to_string();
    let (first, second) = (key(), key());
    let say = async |line: &String| {
        let report = pb::NodeReport {
            ssh_host_keys: vec![line.clone()],
            ..report(&[])
        };
        stream.say(Say::Report(report)).await;
    };
    let shown = async || mesh.nodes().await.remove(0);
    say(&first).await;
    eventually("the first key is pinned", async || {
        (shown().await.ssh_host_keys == [first.clone()]).then_some(())
    })
    .await;
    say(&second).await;
    eventually("the second key is held", async || {
        let node = shown().await;
        (node.ssh_host_keys_held == std::slice::from_ref(&second)
            && node.ssh_host_keys == [first.clone()])
        .then_some(())
    })
    .await;
    let request = pb::AcceptHostKeyRequest {
        node: node_ref("", "worker"),
    };
    let node = mesh
        .admin()
        .await
        .accept_host_key(request.clone())
        .await
        .expect("accepts");
    assert_eq!(node.get_ref().ssh_host_keys, [second]);
    assert!(node.get_ref().ssh_host_keys_held.is_empty());
    let status = mesh
        .admin()
        .await
        .accept_host_key(request)
        .await
        .expect_err("none is held");
    assert!(
        status.message().contains("no host keys"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn a_relay_reports_where_it_is_and_nodes_learn_of_it() {
    let mesh = Mesh::start().await;
    let relay = mesh.joined(pb::Role::Relay, "relay").await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let mut watching = Stream::open(&mesh, &worker, None).await;
    assert_eq!(
        watching.update().await.relays.map(|relays| relays.len()),
        Some(0)
    );
    let mut stream = Stream::open(&mesh, &relay, None).await;
    let report = pb::NodeReport {
        derp: vec!["relay.example.org:8443".into(), "no port".into()],
        stun: vec!["relay.example.org:3478".into()],
        ..Default::default()
    };
    stream.say(Say::Report(report)).await;
    let relays = loop {
        if let Some(relays) = watching.update().await.relays {
            break relays;
        }
    };
    assert_eq!(relays[0].derp, ["relay.example.org:8443"]);
    assert_eq!(
        stream.beat(&relay, body(&mesh, &relay, 1)).await.refusal,
        ""
    );
    let status = mesh
        .admin()
        .await
        .status(pb::AdminStatusRequest {})
        .await
        .expect("status");
    assert_eq!(status.get_ref().relays[0].state(), pb::NodeState::Online);
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
