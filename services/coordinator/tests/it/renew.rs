//! Renewal, with time that the test moves.

use std::time::Duration;

use mesh_api::identity::{Identity, renew_bytes};
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::tls::ClientCert;

use crate::harness::{Mesh, refused};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test]
async fn an_expired_node_renews_and_is_back() {
    let mesh = Mesh::start().await;
    let mut node = mesh.joined(pb::Role::Worker, "worker").await;
    mesh.clock.advance(40 * DAY);

    // The expired certificate still opens a connection, and nothing else.
    let channel = mesh
        .channel(Some(ClientCert {
            ..node.certificate()
        }))
        .await;
    let mut control = ControlServiceClient::new(channel);
    assert_eq!(
        refused(control.leave(pb::LeaveRequest {}).await),
        "certificate-expired"
    );
    let request = node.renewal(&mesh, &node.machine.identity).await;
    let renewed = control.renew(request).await.expect("renews").into_inner();
    assert_eq!(renewed.ca_certificate, mesh.ca.as_ref());

    node.answer.certificate = renewed.certificate;
    let mut control = ControlServiceClient::new(node.channel(&mesh).await);
    control
        .leave(pb::LeaveRequest {})
        .await
        .expect("authorised again");
}

#[tokio::test]
async fn a_renewal_moves_the_end_that_operators_see() {
    let mesh = Mesh::start().await;
    let node = mesh.joined(pb::Role::Worker, "worker").await;
    let before = mesh.nodes().await[0].certificate_not_after;
    mesh.clock.advance(20 * DAY);
    node.renew(&mesh).await.expect("renews");
    let after = mesh.nodes().await[0].certificate_not_after;
    assert_eq!(
        after - before,
        i64::try_from((20 * DAY).as_micros()).unwrap()
    );
}

#[tokio::test]
async fn only_the_enrolled_key_renews_and_each_nonce_once() {
    let mesh = Mesh::start().await;
    let node = mesh.joined(pb::Role::Worker, "worker").await;
    let mut client = mesh.anonymous().await;

    let stranger = Identity::generate().expect("a key");
    let forged = node.renewal(&mesh, &stranger).await;
    assert_eq!(refused(client.renew(forged).await), "bad-signature");

    let good = node.renewal(&mesh, &node.machine.identity).await;
    client.renew(good.clone()).await.expect("renews");
    assert_eq!(refused(client.renew(good).await), "nonce-unknown");

    let mut unknown = node.renewal(&mesh, &node.machine.identity).await;
    unknown.node_id = vec![9; 16];
    assert_eq!(refused(client.renew(unknown).await), "unknown-node");
}

#[tokio::test]
async fn an_operator_renews_until_revoked() {
    let mesh = Mesh::start().await;
    let key = Identity::generate().expect("a key");
    let csr = key.csr_der().expect("a request");
    let wish = pb::AddOperatorRequest {
        name: "anna".into(),
        csr: csr.clone(),
    };
    let made = mesh
        .admin()
        .await
        .add_operator(wish)
        .await
        .expect("adds")
        .into_inner();
    mesh.clock.advance(80 * DAY);
    let mut client = mesh.anonymous().await;
    let mut renewal = async || {
        let challenge = client
            .challenge(pb::ChallengeRequest {})
            .await
            .expect("a challenge");
        let nonce = challenge.into_inner().nonce;
        let id = made.id.as_slice().try_into().expect("16 bytes");
        let signature = key.sign(&renew_bytes(&nonce, &id, &csr)).expect("signs");
        let request = pb::RenewRequest {
            node_id: made.id.clone(),
            nonce,
            csr: csr.clone(),
            signature,
        };
        client.renew(request).await
    };
    let renewed = renewal().await.expect("renews").into_inner();
    mesh.clock.advance(80 * DAY);
    let certificate = ClientCert {
        certificate: renewed.certificate.into(),
        key_pkcs8: zeroize::Zeroizing::new(key.pkcs8().to_vec()),
    };
    let channel = mesh.channel(Some(certificate)).await;
    let mut admin = pb::admin_service_client::AdminServiceClient::new(channel);
    admin
        .status(pb::AdminStatusRequest {})
        .await
        .expect("still an operator after 160 days");
    let revoke = pb::RevokeOperatorRequest {
        name: "first".into(),
    };
    admin.revoke_operator(revoke).await.expect("two are left");
    let revoke = pb::RevokeOperatorRequest {
        name: "anna".into(),
    };
    assert_eq!(
        refused(admin.revoke_operator(revoke).await),
        "invalid",
        "the last one stays"
    );
}

#[tokio::test]
async fn a_removed_node_or_relay_is_told_so() {
    let mesh = Mesh::start().await;
    let node = mesh.joined(pb::Role::Worker, "worker").await;
    let relay = mesh.joined(pb::Role::Relay, "relay").await;
    relay.renew(&mesh).await.expect("a relay renews too");
    mesh.remove("", "worker").await;
    mesh.remove("", "relay").await;
    assert_eq!(refused(node.renew(&mesh).await), "removed");
    assert_eq!(refused(relay.renew(&mesh).await), "removed");
}

#[tokio::test]
async fn the_first_operators_credential_is_made_anew_at_a_start_before_it_expires() {
    let mesh = Mesh::start().await;
    let (dir, clock) = mesh.stop().await;
    clock.advance(85 * DAY);
    let mesh = Mesh::start_in(dir, clock).await;
    mesh.clock.advance(10 * DAY);
    assert!(
        mesh.nodes().await.is_empty(),
        "the operator is still let in"
    );
}
