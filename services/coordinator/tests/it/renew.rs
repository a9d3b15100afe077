//! Renewal, with time that the test moves.

use std::time::Duration;

use mesh_api::identity::{Identity, renew_bytes};
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::tls::ClientCert;

use crate::harness::{Member, Mesh, refused};
use crate::rights::{answer, methods};
use crate::session::{Stream, body, state_of};

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
    let told = mesh.told("certificate-renewed-late", "worker").await;
    assert_eq!(told, "it had ended 10 days before");
}

#[tokio::test]
async fn a_renewal_moves_the_end_that_operators_see() {
    let mesh = Mesh::start().await;
    let node = mesh.joined(pb::Role::Worker, "worker").await;
    let before = mesh.nodes().await[0].certificate_not_after;
    mesh.clock.advance(20 * DAY);
    node.renew(&mesh).await.expect("renews");
    let events = mesh.events().await;
    let late = |event: &pb::Event| event.kind == "certificate-renewed-late";
    assert!(!events.iter().any(late), "in good time: {events:?}");
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
    mesh.remove("default", "relay").await;
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

/// Days until the node's certificate ends.
fn days_left(mesh: &Mesh, until: i64) -> i64 {
    use coordinator::Clock as _;

    let day = i64::try_from(DAY.as_micros()).expect("a day");
    (until - mesh.clock.now().as_micros()) / day
}

/// Takes a new certificate when a third of the old one's life is left, as nodes do.
async fn renew_when_due(mesh: &Mesh, node: &mut Member, renewals: &mut u32) {
    let seen = mesh.nodes().await;
    let own = seen.iter().find(|seen| seen.id == node.answer.node_id);
    if days_left(mesh, own.expect("listed").certificate_not_after) < 10 {
        node.answer.certificate = node.renew(mesh).await.expect("renews").certificate;
        *renewals += 1;
    }
}

#[tokio::test]
async fn a_node_lives_past_a_day_and_past_thirty_days_by_renewing() {
    let mesh = Mesh::start().await;
    let mut node = mesh.joined(pb::Role::Worker, "worker").await;
    let idle = mesh.joined(pb::Role::Worker, "idle").await;
    let mut renewals = 0;
    for half_day in 1..=130_u32 {
        mesh.clock.advance(DAY / 2);
        renew_when_due(&mesh, &mut node, &mut renewals).await;
        // A new stream each time: it is opened with the certificate of that day.
        let mut stream = Stream::open(&mesh, &node, None).await;
        let ack = stream.beat(&node, body(&mesh, &node, 1)).await;
        assert_eq!(ack.refusal, "", "after {} days", half_day / 2);
        assert_eq!(state_of(&mesh, "worker").await, pb::NodeState::Online);
    }
    assert_eq!(renewals, 3, "every 20 to 21 days of 65");
    // Who did not renew is out, until it does.
    let mut control = ControlServiceClient::new(idle.channel(&mesh).await);
    let refusal = refused(control.leave(pb::LeaveRequest {}).await);
    assert_eq!(refusal, "certificate-expired");
    idle.renew(&mesh).await.expect("renews");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_opens_nothing_but_the_way_to_a_new_one() {
    let mesh = Mesh::start().await;
    let mut callers = Vec::new();
    for (name, role) in [
        ("worker", pb::Role::Worker),
        ("gateway", pb::Role::Gateway),
        ("deployer", pb::Role::Deployer),
        ("relay", pb::Role::Relay),
    ] {
        callers.push((name, mesh.joined(role, name).await.channel(&mesh).await));
    }
    callers.push(("operator", mesh.operator_channel().await));
    // Past the ends of all certificates; connections that are open now stay open.
    mesh.clock.advance(100 * DAY);
    let open = ["Challenge", "Enrol", "Renew"];
    let mut failures = Vec::new();
    for method in methods() {
        let name = method.rsplit('/').next().expect("a name");
        for (caller, channel) in &callers {
            let expired = answer(channel, &method).await.as_deref() == Some("certificate-expired");
            if expired == open.contains(&name) {
                failures.push(format!("{method} × {caller}: expired = {expired}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test]
async fn a_renewal_is_bound_to_its_nonce_its_node_and_its_request() {
    let mesh = Mesh::start().await;
    let node = mesh.joined(pb::Role::Worker, "worker").await;
    let other = mesh.joined(pb::Role::Worker, "other").await;
    mesh.clock.advance(40 * DAY);
    let mut client = mesh.anonymous().await;
    let own = &node.machine.identity;

    let mut for_other = node.renewal(&mesh, own).await;
    for_other.node_id.clone_from(&other.answer.node_id);
    assert_eq!(refused(client.renew(for_other).await), "bad-signature");

    let mut fresher = node.renewal(&mesh, own).await;
    fresher.nonce = node.renewal(&mesh, own).await.nonce;
    assert_eq!(refused(client.renew(fresher).await), "bad-signature");

    // Another key in the request, with the old key's signature over it or without.
    let stolen = Identity::generate()
        .expect("a key")
        .csr_der()
        .expect("a request");
    let mut swapped = node.renewal(&mesh, own).await;
    swapped.csr.clone_from(&stolen);
    assert_eq!(refused(client.renew(swapped).await), "bad-signature");
    let mut handed_over = node.renewal(&mesh, own).await;
    let id = handed_over.node_id.as_slice().try_into().expect("16 bytes");
    let signed = renew_bytes(&handed_over.nonce, &id, &stolen);
    handed_over.signature = own.sign(&signed).expect("signs");
    handed_over.csr = stolen;
    let refusal = refused(client.renew(handed_over).await);
    assert_ne!(
        refusal, "bad-signature",
        "the signature is good, the key is not"
    );

    let late = node.renewal(&mesh, own).await;
    mesh.clock.advance(Duration::from_secs(61));
    assert_eq!(refused(client.renew(late).await), "nonce-unknown");
    node.renew(&mesh).await.expect("a fresh nonce renews");
}
