//! Joining: what a token lets in, and every way it does not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::identity::Identity;
use mesh_api::pb;
use mesh_api::tls::{COORDINATOR_NAME, fingerprint};
use mesh_api::uri::Subject;
use mesh_types::JoinToken;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use tonic::Code;

use crate::harness::{Machine, Mesh, node_ref, refused, send, word};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_machines_with_a_one_use_token_exactly_one_gets_in() {
    let mesh = Arc::new(Mesh::start().await);
    let token = Arc::new(mesh.token(pb::Role::Worker).await);
    let mut joins = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (mesh, token) = (Arc::clone(&mesh), Arc::clone(&token));
        joins.spawn(async move {
            Machine::new()
                .enrol(&mesh, &token, &format!("racer-{n}"))
                .await
        });
    }
    let outcomes = joins.join_all().await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for outcome in lost {
        assert_eq!(refused(outcome), "token-used");
    }
    assert_eq!(mesh.nodes().await.len(), 1);
}

#[tokio::test]
async fn a_machine_gets_name_addresses_and_a_certificate() {
    let mesh = Mesh::start().await;
    let token = mesh.token(pb::Role::Worker).await;
    assert_eq!(Some(token.ca_fingerprint), fingerprint(&mesh.ca));
    assert_eq!(token.coordinators, [mesh.addr.to_string()]);
    let answer = Machine::new()
        .enrol(&mesh, &token, "Anna_s.Laptop")
        .await
        .expect("joins");
    assert_eq!(answer.name, "anna-s");
    assert_eq!(answer.network, "default");
    assert_eq!(answer.role(), pb::Role::Worker);
    assert_eq!(answer.console_prefix, "/anna-s/");
    assert_eq!(answer.owner, "first");
    assert_eq!(answer.ca_certificate, mesh.ca.as_ref());
    let addrs = answer.addrs.expect("addresses");
    assert_eq!(addrs.v4[0], 100);
    assert!((64..128).contains(&addrs.v4[1]));
    assert!(addrs.v6.starts_with(&[0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0]));
    let subject = Subject::from_certificate(&answer.certificate).expect("a subject");
    assert!(matches!(subject, Subject::Node { node, .. } if node.as_bytes()[..] == answer.node_id));
}

#[tokio::test]
async fn a_retry_after_a_lost_answer_gets_the_same_identity() {
    let mesh = Mesh::start().await;
    let token = mesh.token(pb::Role::Worker).await;
    let machine = Machine::new();
    let first = machine.enrol(&mesh, &token, "worker").await.expect("joins");
    mesh.clock.advance(Duration::from_secs(3600));
    let again = machine
        .enrol(&mesh, &token, "worker")
        .await
        .expect("also when expired by now");
    assert_eq!((again.node_id, again.name), (first.node_id, first.name));
    assert_eq!(again.addrs, first.addrs);
    assert_eq!(mesh.nodes().await.len(), 1);
}

#[tokio::test]
async fn a_token_that_is_not_genuine_is_refused_without_a_write() {
    let mesh = Mesh::start().await;
    let genuine = mesh.token(pb::Role::Worker).await;
    let (mut altered, mut unknown) = (genuine.clone(), genuine.clone());
    altered.secret = [7; 32];
    unknown.id = mesh_types::TokenId::from_bytes([9; 16]);
    mesh.guard.hold("no writes");
    let refusal = async |token| refused(Machine::new().enrol(&mesh, token, "worker").await);
    assert_eq!(refusal(&unknown).await, "token-unknown");
    assert_eq!(refusal(&altered).await, "token-wrong-secret");
    assert_eq!(refusal(&genuine).await, "store-unavailable");
    mesh.guard.release();
    Machine::new()
        .enrol(&mesh, &genuine, "worker")
        .await
        .expect("joins");
}

#[tokio::test]
async fn used_expired_revoked_unknown_and_altered_tokens_each_have_their_own_refusal() {
    let mesh = Mesh::start().await;
    let used = mesh.token(pb::Role::Worker).await;
    Machine::new()
        .enrol(&mesh, &used, "first")
        .await
        .expect("joins");

    let revoked = mesh.token(pb::Role::Worker).await;
    let request = pb::RevokeTokenRequest {
        id: revoked.id.as_bytes().to_vec(),
    };
    mesh.admin()
        .await
        .revoke_token(request)
        .await
        .expect("revokes");

    let expired = mesh.token(pb::Role::Worker).await;
    let (mut altered, mut unknown): (JoinToken, JoinToken) = (expired.clone(), expired.clone());
    altered.secret = [7; 32];
    unknown.id = mesh_types::TokenId::from_bytes([9; 16]);

    let mut texts = BTreeSet::new();
    let mut codes = BTreeSet::new();
    let mut refusal = |status: tonic::Status| {
        texts.insert(status.message().to_owned());
        codes.insert(i32::from(status.code()));
        assert!(
            status.message().contains("mesh token create"),
            "{}",
            status.message()
        );
        word(&status).to_owned()
    };
    let machine = Machine::new();
    let outcome = machine.enrol(&mesh, &altered, "x").await;
    assert_eq!(refusal(outcome.expect_err("altered")), "token-wrong-secret");
    let outcome = machine.enrol(&mesh, &unknown, "x").await;
    assert_eq!(refusal(outcome.expect_err("unknown")), "token-unknown");
    let outcome = machine.enrol(&mesh, &used, "x").await;
    assert_eq!(refusal(outcome.expect_err("used")), "token-used");
    let outcome = machine.enrol(&mesh, &revoked, "x").await;
    assert_eq!(refusal(outcome.expect_err("revoked")), "token-revoked");
    mesh.clock.advance(Duration::from_secs(1800));
    let outcome = machine.enrol(&mesh, &expired, "x").await;
    assert_eq!(refusal(outcome.expect_err("expired")), "token-expired");
    assert_eq!((texts.len(), codes.len()), (5, 5));
    assert_eq!(mesh.nodes().await.len(), 1);
    let kinds: Vec<_> = mesh
        .events()
        .await
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(
        kinds.iter().filter(|kind| *kind == "join-refused").count(),
        3
    );
}

#[tokio::test]
async fn a_token_lives_as_long_as_it_was_told_within_limits() {
    let mesh = Mesh::start().await;
    let wish = |lifetime_secs| pb::CreateTokenRequest {
        role: pb::Role::Worker.into(),
        lifetime_secs,
        ..Default::default()
    };
    let token = mesh.token_with(wish(60)).await;
    mesh.clock.advance(Duration::from_secs(59));
    Machine::new()
        .enrol(&mesh, &token, "in-time")
        .await
        .expect("joins");
    for bad in [59, 86_401] {
        assert_eq!(
            refused(mesh.admin().await.create_token(wish(bad)).await),
            "invalid"
        );
    }
}

#[tokio::test]
async fn a_reusable_token_lets_many_in_and_hostnames_get_suffixes() {
    let mesh = Mesh::start().await;
    let wish = pb::CreateTokenRequest {
        role: pb::Role::Worker.into(),
        reusable: true,
        ..Default::default()
    };
    let token = mesh.token_with(wish).await;
    let mut names = Vec::new();
    for _ in 0..3 {
        let answer = Machine::new()
            .enrol(&mesh, &token, "web")
            .await
            .expect("joins");
        names.push(answer.name);
    }
    assert_eq!(names, ["web", "web-1", "web-2"]);
    let reserved = Machine::new()
        .enrol(&mesh, &token, "health")
        .await
        .expect("joins");
    assert_eq!(
        reserved.name, "health-1",
        "the gateway answers /health itself"
    );
    assert_eq!(
        refused(Machine::new().enrol(&mesh, &token, "___").await),
        "hostname-invalid"
    );
}

#[tokio::test]
async fn a_nonce_is_good_once_and_for_a_minute() {
    let mesh = Mesh::start().await;
    let token = mesh.token(pb::Role::Worker).await;
    let machine = Machine::new();
    let late = machine.request(&mesh, &token, "worker").await;
    mesh.clock.advance(Duration::from_secs(60));
    assert_eq!(refused(send(&mesh, late).await), "nonce-unknown");
    let request = machine.request(&mesh, &token, "worker").await;
    send(&mesh, request.clone()).await.expect("joins");
    assert_eq!(refused(send(&mesh, request).await), "nonce-unknown");
}

#[tokio::test]
async fn nobody_enrols_somebody_elses_key() {
    let mesh = Mesh::start().await;
    let victim = mesh.joined(pb::Role::Worker, "victim").await;
    let token = mesh.token(pb::Role::Worker).await;

    // Without the private half there is no proof.
    let thief = Machine::new();
    let mut request = thief.request(&mesh, &token, "thief").await;
    request.wg_key = victim.wg_key();
    assert_eq!(refused(send(&mesh, request).await), "bad-proof");
    let mut request = thief.request(&mesh, &token, "thief").await;
    request.disco_proof[0] ^= 1;
    assert_eq!(refused(send(&mesh, request).await), "bad-proof");

    // With a copied state directory but another identity, the key is taken.
    let copy = Machine {
        wg: victim.machine.wg.clone(),
        ..Machine::new()
    };
    assert_eq!(
        refused(copy.enrol(&mesh, &token, "copy").await),
        "key-taken"
    );
    let copy = Machine {
        disco: victim.machine.disco.clone(),
        ..Machine::new()
    };
    assert_eq!(
        refused(copy.enrol(&mesh, &token, "copy").await),
        "key-taken"
    );

    // Nothing of this burnt the token.
    Machine::new()
        .enrol(&mesh, &token, "honest")
        .await
        .expect("joins");
}

#[tokio::test]
async fn a_request_for_server_rights_is_refused() {
    let mesh = Mesh::start().await;
    let token = mesh.token(pb::Role::Worker).await;
    let machine = Machine::new();
    let key = KeyPair::from_pkcs8_der_and_sign_algo(
        &machine.identity.pkcs8().into(),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    )
    .expect("a key");
    let csr = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        change(&mut params);
        params
            .serialize_request(&key)
            .expect("a request")
            .der()
            .to_vec()
    };
    let wishes = [
        csr(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        csr(&|p| {
            let name = COORDINATOR_NAME.try_into().expect("a name");
            p.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        }),
    ];
    for csr in wishes {
        let mut request = machine.request(&mesh, &token, "worker").await;
        request.csr = csr;
        let status = send(&mesh, request).await.expect_err("refused");
        assert_eq!(word(&status), "csr-server-rights");
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("only") || status.message().contains("nothing but"));
    }
    let mut request = machine.request(&mesh, &token, "worker").await;
    request.csr = b"junk".to_vec();
    assert_eq!(refused(send(&mesh, request).await), "csr-invalid");
    machine.enrol(&mesh, &token, "worker").await.expect("joins");
}

#[tokio::test]
async fn an_existing_node_is_taken_over_by_nobody_but_its_old_key_or_a_permit() {
    let mesh = Mesh::start().await;
    mesh.network("lab").await;
    let node = mesh.joined(pb::Role::Worker, "worker").await;

    // The same hostname with a fresh token is another node.
    let other = mesh.joined(pb::Role::Worker, "worker").await;
    assert_eq!(other.answer.name, "worker-1");
    assert_ne!(other.answer.node_id, node.answer.node_id);

    // The old key with a fresh token is the same node, and uses the token up.
    let token = mesh.token(pb::Role::Worker).await;
    let again = node
        .machine
        .enrol(&mesh, &token, "renamed")
        .await
        .expect("the old key");
    assert_eq!(
        (&again.node_id, &again.name),
        (&node.answer.node_id, &node.answer.name)
    );
    assert_eq!(
        refused(Machine::new().enrol(&mesh, &token, "x").await),
        "token-used"
    );

    // Its certificate request, caught on the way, is worth nothing without its WireGuard key.
    let (thief, token) = (Machine::new(), mesh.token(pb::Role::Worker).await);
    let identity = Identity::from_pkcs8(node.machine.identity.pkcs8()).expect("its own form");
    let replayed = Machine { identity, ..thief };
    assert_eq!(
        refused(replayed.enrol(&mesh, &token, "worker").await),
        "takeover"
    );

    // The old key cannot carry the node into another network or role.
    for wish in [
        pb::CreateTokenRequest {
            network: "lab".into(),
            role: pb::Role::Worker.into(),
            ..Default::default()
        },
        pb::CreateTokenRequest {
            role: pb::Role::Gateway.into(),
            ..Default::default()
        },
        pb::CreateTokenRequest {
            role: pb::Role::Relay.into(),
            ..Default::default()
        },
    ] {
        let token = mesh.token_with(wish).await;
        assert_eq!(
            refused(node.machine.enrol(&mesh, &token, "worker").await),
            "takeover"
        );
    }
}

#[tokio::test]
async fn a_permit_lets_a_machine_without_its_keys_be_the_node_again_once() {
    let mesh = Mesh::start().await;
    let node = mesh.joined(pb::Role::Worker, "worker").await;
    let wish = pb::PermitRejoinRequest {
        node: node_ref("", "worker"),
    };
    let permit = mesh
        .admin()
        .await
        .permit_rejoin(wish)
        .await
        .expect("permits")
        .into_inner()
        .permit;

    let token = mesh.token(pb::Role::Worker).await;
    let (wrong, fresh) = (Machine::new(), Machine::new());
    let mut request = wrong.request(&mesh, &token, "worker").await;
    request.permit = vec![1; 32];
    assert_eq!(refused(send(&mesh, request).await), "permit-invalid");

    let mut request = fresh.request(&mesh, &token, "worker").await;
    request.permit = permit.clone();
    let answer = send(&mesh, request).await.expect("permitted");
    assert_eq!(answer.node_id, node.answer.node_id);
    assert_eq!(answer.addrs, node.answer.addrs);

    let token = mesh.token(pb::Role::Worker).await;
    let mut request = wrong.request(&mesh, &token, "worker").await;
    request.permit = permit;
    assert_eq!(refused(send(&mesh, request).await), "permit-invalid");

    // The old certificate is worth nothing now.
    let channel = node.channel(&mesh).await;
    let mut old = pb::control_service_client::ControlServiceClient::new(channel);
    assert_eq!(
        refused(old.leave(pb::LeaveRequest {}).await),
        "certificate-replaced"
    );
}

#[tokio::test]
async fn a_removed_machine_needs_a_new_token() {
    let mesh = Mesh::start().await;
    let token = mesh.token(pb::Role::Worker).await;
    let machine = Machine::new();
    let first = machine.enrol(&mesh, &token, "worker").await.expect("joins");
    mesh.remove("", "worker").await;
    assert_eq!(
        refused(machine.enrol(&mesh, &token, "worker").await),
        "removed"
    );
    let token = mesh.token(pb::Role::Worker).await;
    let second = machine
        .enrol(&mesh, &token, "worker")
        .await
        .expect("joins again");
    assert_ne!(second.node_id, first.node_id);
    assert_eq!(second.name, "worker");
}

#[tokio::test]
async fn a_token_for_another_program_is_refused_and_not_used_up() {
    let mesh = Mesh::start().await;
    for (role, program, asked) in [
        (pb::Role::Worker, "relay", pb::Role::Relay),
        (pb::Role::Worker, "traffic-gateway", pb::Role::Gateway),
        (pb::Role::Relay, "worker-agent", pb::Role::Worker),
    ] {
        let token = mesh.token(role).await;
        let machine = Machine::new();
        let before = mesh.nodes().await.len();
        let mut wrong = machine.request(&mesh, &token, "wrong").await;
        wrong.roles = vec![asked.into()];
        let status = send(&mesh, wrong).await.expect_err("refused");
        assert_eq!(word(&status), "token-role");
        let text = status.message();
        let made = format!(
            "mesh token create --role {}",
            asked.as_str_name().to_lowercase().replace("role_", "")
        );
        assert!(text.contains(program) && text.contains(&made), "{text}");
        assert_eq!(mesh.nodes().await.len(), before, "nobody is left behind");
        // Whoever it is for gets in with it, by the same machine too.
        let mut right = machine.request(&mesh, &token, "right").await;
        right.roles = vec![pb::Role::Gateway.into(), role.into()];
        send(&mesh, right).await.expect("joins");
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_without_harm() {
    let mesh = Mesh::start().await;
    let token = mesh.token(pb::Role::Worker).await;
    let machine = Machine::new();
    let good = machine.request(&mesh, &token, "worker").await;
    let mut bad = vec![pb::EnrolRequest::default()];
    bad.push(pb::EnrolRequest {
        token_id: vec![1; 15],
        ..good.clone()
    });
    bad.push(pb::EnrolRequest {
        wg_key: vec![1; 31],
        ..good.clone()
    });
    for request in bad {
        assert_eq!(refused(send(&mesh, request).await), "invalid");
    }
    let mut without = machine.request(&mesh, &token, "worker").await;
    (without.wg_key, without.wg_proof) = (Vec::new(), Vec::new());
    assert_eq!(refused(send(&mesh, without).await), "invalid");
    send(&mesh, good)
        .await
        .expect("the challenge and the token are untouched");
}
