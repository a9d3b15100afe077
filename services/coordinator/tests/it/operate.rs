//! What operators do, and that a restart keeps it.

use std::time::Duration;

use mesh_api::pb;
use mesh_api::pb::ssh_service_client::SshServiceClient;
use mesh_types::OverlayAddrs;
use tokio::time::timeout;

use crate::harness::{Machine, Mesh, node_ref, refused, word};

#[tokio::test]
async fn a_restart_keeps_everything() {
    let mesh = Mesh::start().await;
    mesh.network("lab").await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    mesh.joined_in("lab", pb::Role::Gateway, "gate").await;
    let relay = mesh.joined(pb::Role::Relay, "relay").await;
    let token = mesh.token(pb::Role::Worker).await;
    let (ca, before) = (mesh.ca.clone(), mesh.nodes().await);

    let (dir, clock) = mesh.stop().await;
    let mesh = Mesh::start_in(dir, clock).await;
    assert_eq!(mesh.ca, ca);
    assert_eq!(mesh.nodes().await, before);
    worker.renew(&mesh).await.expect("still enrolled");
    relay.renew(&mesh).await.expect("still enrolled");
    let late = Machine::new()
        .enrol(&mesh, &token, "worker")
        .await
        .expect("the token is good");
    assert_eq!(late.name, "worker-1");
    let addrs = |node: &pb::EnrolResponse| {
        OverlayAddrs::try_from(node.addrs.clone().expect("addresses")).expect("valid")
    };
    assert_ne!(addrs(&late), addrs(&worker.answer));
    let networks = mesh
        .admin()
        .await
        .list_networks(pb::ListNetworksRequest {})
        .await;
    let names: Vec<_> = networks
        .expect("lists")
        .into_inner()
        .networks
        .into_iter()
        .map(|n| n.name)
        .collect();
    assert_eq!(names, ["default", "lab"]);
}

#[tokio::test]
async fn networks_are_made_listed_and_deleted() {
    let mesh = Mesh::start().await;
    mesh.network("lab").await;
    let mut admin = mesh.admin().await;
    let create = |name: &str| pb::CreateNetworkRequest { name: name.into() };
    assert_eq!(refused(admin.create_network(create("lab")).await), "exists");
    for bad in ["relay", "operator", "Lab", "a.b", ""] {
        assert_eq!(
            refused(admin.create_network(create(bad)).await),
            "invalid",
            "{bad}"
        );
    }
    let node = mesh.joined_in("lab", pb::Role::Worker, "worker").await;
    let delete = |force| pb::DeleteNetworkRequest {
        name: "lab".into(),
        force,
    };
    let status = admin
        .delete_network(delete(false))
        .await
        .expect_err("not empty");
    assert_eq!(word(&status), "network-not-empty");
    assert!(status.message().contains("--force"));
    admin.delete_network(delete(true)).await.expect("deletes");
    assert_eq!(refused(node.renew(&mesh).await), "removed");
    assert!(mesh.nodes().await.is_empty());
    assert_eq!(
        refused(admin.delete_network(delete(true)).await),
        "not-found"
    );
    let default = pb::DeleteNetworkRequest {
        name: "default".into(),
        force: true,
    };
    assert_eq!(refused(admin.delete_network(default).await), "invalid");
    mesh.network("lab").await;
}

#[tokio::test]
async fn nodes_are_found_by_name_address_and_id_and_renamed() {
    let mesh = Mesh::start().await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    mesh.joined(pb::Role::Worker, "other").await;
    let mut admin = mesh.admin().await;
    let addrs = OverlayAddrs::try_from(worker.answer.addrs.clone().expect("addresses"));
    let addrs = addrs.expect("valid");
    let id = mesh_types::NodeId::try_from(worker.answer.node_id.as_slice()).expect("an id");
    for name in [
        "worker".to_owned(),
        addrs.v4.to_string(),
        addrs.v6.to_string(),
        id.to_string(),
    ] {
        let request = pb::ShowNodeRequest {
            node: node_ref("", &name),
        };
        let shown = admin.show_node(request).await.expect("shows").into_inner();
        assert_eq!(shown.id, worker.answer.node_id, "{name}");
    }
    let rename = |from: &str, to: &str| pb::RenameNodeRequest {
        node: node_ref("", from),
        new_name: to.to_owned(),
    };
    let renamed = admin
        .rename_node(rename("worker", "web"))
        .await
        .expect("renames");
    assert_eq!(renamed.get_ref().name, "web");
    assert_eq!(renamed.get_ref().console_prefix, "/web/");
    assert_eq!(
        refused(admin.rename_node(rename("web", "other")).await),
        "exists"
    );
    assert_eq!(
        refused(admin.rename_node(rename("web", "Not a name")).await),
        "invalid"
    );
    assert_eq!(
        refused(admin.rename_node(rename("web", "n")).await),
        "invalid"
    );
    assert_eq!(
        refused(admin.rename_node(rename("worker", "x")).await),
        "not-found"
    );
    assert_eq!(
        mesh.joined(pb::Role::Worker, "worker").await.answer.name,
        "worker"
    );
}

#[tokio::test]
async fn a_token_is_listed_without_its_secret() {
    let mesh = Mesh::start().await;
    let token = mesh.token(pb::Role::Worker).await;
    Machine::new()
        .enrol(&mesh, &token, "worker")
        .await
        .expect("joins");
    let listed = mesh
        .admin()
        .await
        .list_tokens(pb::ListTokensRequest::default())
        .await;
    let tokens = listed.expect("lists").into_inner().tokens;
    assert_eq!(tokens.len(), 1);
    assert_eq!((tokens[0].uses, tokens[0].network.as_str()), (1, "default"));
    let state = mesh.dir.path().join("state");
    for entry in std::fs::read_dir(state).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let bytes = std::fs::read(&path).expect("reads");
            let found = bytes.windows(32).any(|window| window == token.secret);
            assert!(!found, "the secret is in {}", path.display());
        }
    }
}

#[tokio::test]
async fn events_are_told_live_in_order_and_by_network() {
    let mesh = Mesh::start().await;
    mesh.network("lab").await;
    let watch = pb::WatchEventsRequest {
        network: "lab".into(),
        follow: true,
        limit: 0,
    };
    let mut events = mesh
        .admin()
        .await
        .watch_events(watch)
        .await
        .expect("watches")
        .into_inner();
    let mut next = async || {
        let event = timeout(Duration::from_secs(5), events.message())
            .await
            .expect("in time");
        let event = event.expect("reads").expect("an event");
        (event.kind, event.subject)
    };
    assert_eq!(next().await.0, "network-created");
    mesh.joined(pb::Role::Worker, "elsewhere").await;
    mesh.joined_in("lab", pb::Role::Worker, "worker").await;
    mesh.remove("lab", "worker").await;
    assert_eq!(next().await.0, "token-created");
    assert_eq!(
        next().await,
        ("node-joined".to_owned(), "worker".to_owned())
    );
    assert_eq!(
        next().await,
        ("node-removed".to_owned(), "worker".to_owned())
    );
}

async fn certificate(
    channel: tonic::transport::Channel,
    wish: pb::IssueCertificateRequest,
) -> Result<pb::IssueCertificateResponse, tonic::Status> {
    let issued = SshServiceClient::new(channel)
        .issue_certificate(wish)
        .await?;
    Ok(issued.into_inner())
}

#[tokio::test]
async fn ssh_certificates_are_short_and_bound_to_the_deployers_addresses() {
    let mesh = Mesh::start().await;
    mesh.network("lab").await;
    let worker = mesh.joined(pb::Role::Worker, "worker").await;
    let elsewhere = mesh.joined_in("lab", pb::Role::Worker, "worker").await;
    let key = mesh_ssh::PrivateKey::generate().public_key();
    let wish = pb::IssueCertificateRequest {
        public_key: key.to_string(),
        principal: "root".into(),
        targets: vec![worker.answer.node_id.clone()],
        ..Default::default()
    };
    let operator = mesh.operator_channel().await;
    let status = certificate(operator.clone(), wish.clone())
        .await
        .expect_err("no deployer yet");
    assert_eq!(word(&status), "no-deployer");

    let deployer = mesh.joined(pb::Role::Deployer, "deploy").await;
    let channel = deployer.channel(&mesh).await;
    let issued = certificate(channel.clone(), wish.clone())
        .await
        .expect("issues");
    assert_eq!(
        issued.valid_before / 1_000_000,
        crate::harness::START.as_secs() + 300
    );
    let line: mesh_ssh::Certificate = issued.certificate.parse().expect("a certificate");
    assert_eq!(line.key_id(), "deployer:deploy");
    let by_operator = certificate(operator.clone(), wish.clone())
        .await
        .expect("issues");
    let line: mesh_ssh::Certificate = by_operator.certificate.parse().expect("a certificate");
    assert_eq!(line.key_id(), "operator:first");

    let operators = mesh
        .admin()
        .await
        .list_operators(pb::ListOperatorsRequest {})
        .await;
    let first = operators
        .expect("lists")
        .into_inner()
        .operators
        .remove(0)
        .id;
    let for_first = pb::IssueCertificateRequest {
        operator: first,
        ..wish.clone()
    };
    let issued = certificate(channel.clone(), for_first)
        .await
        .expect("issues");
    let line: mesh_ssh::Certificate = issued.certificate.parse().expect("a certificate");
    assert_eq!(line.key_id(), "deployer:deploy for operator:first");

    let nobody = pb::IssueCertificateRequest {
        operator: vec![9; 16],
        ..wish.clone()
    };
    assert_eq!(
        refused(certificate(channel.clone(), nobody).await),
        "not-found"
    );
    let other = pb::IssueCertificateRequest {
        network: "lab".into(),
        ..wish.clone()
    };
    assert_eq!(
        refused(certificate(channel.clone(), other).await),
        "wrong-network"
    );
    let target = pb::IssueCertificateRequest {
        targets: vec![elsewhere.answer.node_id],
        ..wish.clone()
    };
    assert_eq!(
        refused(certificate(channel.clone(), target).await),
        "not-found"
    );
    let principal = pb::IssueCertificateRequest {
        principal: "a,b".into(),
        ..wish
    };
    assert_eq!(refused(certificate(channel, principal).await), "invalid");
    let kinds: Vec<_> = mesh
        .events()
        .await
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(
        kinds
            .iter()
            .filter(|kind| *kind == "ssh-certificate-issued")
            .count(),
        3
    );
}

#[tokio::test]
async fn nodes_are_labelled_and_it_lasts() {
    let mesh = Mesh::start().await;
    mesh.joined(pb::Role::Worker, "worker").await;
    let mut admin = mesh.admin().await;
    let set = |labels: &[(&str, &str)], remove: &[&str]| pb::SetNodeRequest {
        node: node_ref("", "worker"),
        set_labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        remove_labels: remove.iter().map(|&key| key.to_owned()).collect(),
        ..pb::SetNodeRequest::default()
    };
    for bad in [
        set(&[], &[]),
        set(&[("", "x")], &[]),
        set(&[("env", "a b")], &[]),
    ] {
        assert_eq!(refused(admin.set_node(bad).await), "invalid");
    }
    let labelled = admin
        .set_node(set(&[("env", "prod"), ("gpu", "")], &[]))
        .await
        .expect("sets")
        .into_inner();
    assert_eq!(labelled.uptime_class(), pb::UptimeClass::AlwaysOn);
    let changed = admin
        .set_node(set(&[("env", "test")], &["gpu", "unknown"]))
        .await
        .expect("sets")
        .into_inner();
    let one = [("env".to_owned(), "test".to_owned())].into();
    assert_eq!(changed.labels, one);
    let (dir, clock) = mesh.stop().await;
    let mesh = Mesh::start_in(dir, clock).await;
    assert_eq!(mesh.nodes().await[0].labels, one);
}
