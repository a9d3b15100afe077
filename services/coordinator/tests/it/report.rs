//! What nodes and relays say of themselves, and who learns of it.

use mesh_api::pb;
use mesh_api::pb::gateway_service_client::GatewayServiceClient;
use mesh_api::pb::sync_request::Message as Say;
use mesh_types::Netmap;
use tokio::time::timeout;

use crate::harness::{Mesh, eventually, node_ref};
use crate::session::{SOON, Stream, body, report};

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
    let told = mesh.told("host-key-held", "worker").await;
    let print = second.parse::<mesh_ssh::key::PublicKey>().expect("a key");
    let print = print.fingerprint().to_string();
    assert!(told.ends_with(&print), "{told} of {print}");
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
