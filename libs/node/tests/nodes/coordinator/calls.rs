//! What it answers.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_api::identity::{ENROL_DISCO, ENROL_WG, verify, verify_enrol_proof};
use mesh_api::model::node::NodeReport;
use mesh_api::pb;
use mesh_api::pb::control_service_server::ControlService;
use mesh_types::heartbeat::signed_bytes;
use mesh_types::{IdentityPublicKey, NodeId, OverlayAddrs, Timestamp, TokenId};
use prost::Message as _;
use rcgen::CertificateSigningRequestParams;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use x25519_dalek::{PublicKey, StaticSecret};

use super::super::authority::Ca;
use super::port::Shown;
use super::{Facts, Member, NETWORK, Shared};

pub(super) struct Service(pub(super) Arc<Shared>);

fn wall(facts: &Facts) -> i64 {
    Timestamp::from(SystemTime::now()).as_micros() + facts.clock_offset
}

fn refused(word: &'static str, text: &str) -> Status {
    let mut status = Status::permission_denied(text);
    status
        .metadata_mut()
        .insert("mesh-error", word.parse().expect("ASCII"));
    status
}

fn spki(csr: &[u8]) -> Option<IdentityPublicKey> {
    use rcgen::PublicKeyData as _;
    let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).ok()?;
    IdentityPublicKey::from_spki_der(&csr.public_key.subject_public_key_info()).ok()
}

#[tonic::async_trait]
impl ControlService for Service {
    async fn challenge(
        &self,
        _: Request<pb::ChallengeRequest>,
    ) -> Result<Response<pb::ChallengeResponse>, Status> {
        let mut facts = self.0.lock();
        let mut nonce = vec![0; 32];
        let mut secret = [0; 32];
        let random = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&random, &mut nonce).expect("randomness");
        ring::rand::SecureRandom::fill(&random, &mut secret).expect("randomness");
        let secret = StaticSecret::from(secret);
        let dh_public = PublicKey::from(&secret).as_bytes().to_vec();
        facts.challenges.insert(nonce.clone(), secret);
        let server_time = wall(&facts);
        Ok(Response::new(pb::ChallengeResponse {
            nonce,
            dh_public,
            server_time,
        }))
    }

    async fn enrol(
        &self,
        request: Request<pb::EnrolRequest>,
    ) -> Result<Response<pb::EnrolResponse>, Status> {
        let request = request.into_inner();
        let response = {
            let mut facts = self.0.lock();
            enrol(&mut facts, &self.0.ca, &request)?
        };
        self.0.version.send_modify(|version| *version += 1);
        let mut facts = self.0.lock();
        if facts.lose_answers > 0 {
            facts.lose_answers -= 1;
            return Err(Status::unknown("the answer was lost"));
        }
        Ok(Response::new(response))
    }

    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        let pb::RenewRequest {
            node_id,
            nonce,
            csr,
            signature,
        } = request.into_inner();
        let mut facts = self.0.lock();
        facts
            .challenges
            .remove(&nonce)
            .ok_or_else(|| Status::aborted("no such challenge"))?;
        let id = NodeId::try_from(node_id.as_slice()).expect("an id");
        let life = facts.certificate_life;
        let member = facts
            .nodes
            .get(&id)
            .ok_or_else(|| refused("removed", "unknown"))?;
        let signed = mesh_api::identity::renew_bytes(&nonce, id.as_bytes(), &csr);
        if !verify(&member.identity, &signed, &signature) {
            return Err(Status::unauthenticated("bad signature"));
        }
        let certificate = self.0.ca.node(&csr, id, life);
        facts.renewals += 1;
        Ok(Response::new(pb::RenewResponse {
            certificate,
            ca_certificate: self.0.ca.der.to_vec(),
        }))
    }

    type SyncStream = ReceiverStream<Result<pb::SyncResponse, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<pb::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let shown = request
            .extensions()
            .get::<Shown>()
            .and_then(|shown| shown.0.clone());
        let shown = shown.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let subject = mesh_api::uri::Subject::from_certificate(&shown);
        let Ok(mesh_api::uri::Subject::Node { network: _, node }) = subject else {
            return Err(Status::unauthenticated("not a node"));
        };
        if self
            .0
            .lock()
            .nodes
            .get(&node)
            .is_none_or(|member| member.removed)
        {
            return Err(refused("removed", "this node was removed from the mesh"));
        }
        let (out, responses) = mpsc::channel(64);
        tokio::spawn(session(
            Arc::clone(&self.0),
            node,
            request.into_inner(),
            out,
        ));
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveResponse>, Status> {
        let shown = request
            .extensions()
            .get::<Shown>()
            .and_then(|shown| shown.0.clone());
        let shown = shown.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        if let Ok(mesh_api::uri::Subject::Node { network: _, node }) =
            mesh_api::uri::Subject::from_certificate(&shown)
        {
            self.0.lock().nodes.remove(&node);
            self.0.version.send_modify(|version| *version += 1);
        }
        Ok(Response::new(pb::LeaveResponse {}))
    }
}

fn enrol(
    facts: &mut Facts,
    ca: &Ca,
    request: &pb::EnrolRequest,
) -> Result<pb::EnrolResponse, Status> {
    let secret = facts
        .challenges
        .remove(&request.nonce)
        .ok_or_else(|| refused("nonce-unknown", "no such challenge"))?;
    if request.token_secret == [99; 32] {
        return Err(refused("token-revoked", "this join token was revoked"));
    }
    let identity = spki(&request.csr).ok_or_else(|| Status::invalid_argument("bad CSR"))?;
    let keys = [
        (ENROL_WG, &request.wg_key, &request.wg_proof),
        (ENROL_DISCO, &request.disco_key, &request.disco_proof),
    ];
    for (context, key, proof) in keys {
        let key = <[u8; 32]>::try_from(key.as_slice()).expect("a key");
        let shared = secret.diffie_hellman(&PublicKey::from(key));
        let spki = identity.as_spki_der();
        if !verify_enrol_proof(context, shared.as_bytes(), &request.nonce, spki, proof) {
            return Err(refused("bad-proof", "not proven"));
        }
    }
    let token = TokenId::try_from(request.token_id.as_slice()).expect("an id");
    let known = facts.nodes.iter().find(|(_, member)| member.token == token);
    let id = match known {
        Some((id, member)) if member.identity == identity => *id,
        Some(_) => return Err(refused("token-used", "this join token has been used")),
        None => {
            let n = u8::try_from(facts.nodes.len() + 1).expect("few nodes");
            let id = NodeId::from_bytes([n; 16]);
            let addrs = OverlayAddrs {
                v4: std::net::Ipv4Addr::new(100, 64, 0, n),
                v6: format!("fd7a:115c:a1e0::{n:x}")
                    .parse()
                    .expect("an address"),
            };
            let member = Member {
                identity,
                token,
                name: request.hostname.clone(),
                addrs,
                wg: request.wg_key.as_slice().try_into().expect("a key"),
                disco: request.disco_key.as_slice().try_into().expect("a key"),
                report: NodeReport::default(),
                removed: false,
            };
            facts.nodes.insert(id, member);
            id
        }
    };
    let member = &facts.nodes[&id];
    Ok(pb::EnrolResponse {
        node_id: id.as_bytes().to_vec(),
        network: "default".into(),
        network_id: NETWORK.to_vec(),
        name: member.name.clone(),
        role: pb::Role::Worker.into(),
        addrs: Some(member.addrs.into()),
        certificate: ca.node(&request.csr, id, facts.certificate_life),
        ca_certificate: ca.der.to_vec(),
        console_prefix: format!("/{}/", member.name),
        owner: "owner".into(),
    })
}

async fn session(
    shared: Arc<Shared>,
    node: NodeId,
    mut requests: Streaming<pb::SyncRequest>,
    out: mpsc::Sender<Result<pb::SyncResponse, Status>>,
) {
    use pb::sync_response::Message;
    let say = |message| {
        out.send(Ok(pb::SyncResponse {
            message: Some(message),
        }))
    };
    let hello = requests.message().await;
    let Ok(Some(pb::SyncRequest {
        message: Some(pb::sync_request::Message::Hello(_)),
    })) = hello
    else {
        return;
    };
    let nonce = b"a nonce of the stream".to_vec();
    let server_time = wall(&shared.lock());
    let welcome = pb::SyncWelcome {
        nonce: nonce.clone(),
        server_time,
    };
    let _gone = say(Message::Welcome(welcome)).await;
    let mut version = shared.version.subscribe();
    version.mark_changed();
    let mut sequence = 0;
    loop {
        tokio::select! {
            changed = version.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = *version.borrow_and_update();
                let message = {
                    let facts = shared.lock();
                    match facts.nodes.get(&node) {
                        Some(member) if !member.removed => Message::Netmap(facts.netmap(node, now)),
                        _ => Message::Goodbye(pb::SyncGoodbye {
                            reason: pb::sync_goodbye::Reason::Removed.into(),
                        }),
                    }
                };
                let last = matches!(message, Message::Goodbye(_));
                if say(message).await.is_err() || last {
                    return;
                }
            }
            request = requests.message() => {
                let Ok(Some(pb::SyncRequest { message: Some(message) })) = request else { return };
                match message {
                    pb::sync_request::Message::Report(report) => {
                        let report = NodeReport::try_from(report).expect("a good report");
                        let mut facts = shared.lock();
                        if let Some(member) = facts.nodes.get_mut(&node) {
                            member.report = report;
                        }
                        drop(facts);
                        shared.version.send_modify(|version| *version += 1);
                    }
                    pb::sync_request::Message::Heartbeat(beat) => {
                        let refusal = check(&shared, node, &nonce, &beat, &mut sequence);
                        let ack = pb::HeartbeatAck { sequence, refusal, server_time };
                        let _gone = say(Message::HeartbeatAck(ack)).await;
                    }
                    pb::sync_request::Message::Hello(_) => return,
                }
            }
        }
    }
}

fn check(
    shared: &Shared,
    node: NodeId,
    nonce: &[u8],
    beat: &pb::Heartbeat,
    sequence: &mut u64,
) -> String {
    let mut facts = shared.lock();
    let Some(member) = facts.nodes.get(&node) else {
        return "wrong-node".into();
    };
    let signed = verify(
        &member.identity,
        &signed_bytes(nonce, &beat.body),
        &beat.signature,
    );
    let body = pb::HeartbeatBody::decode(beat.body.as_slice()).expect("a body");
    let word = if !signed {
        "bad-signature"
    } else if body.node_id != node.as_bytes() {
        "wrong-node"
    } else if body.sequence != *sequence + 1 {
        "replay"
    } else {
        ""
    };
    *sequence = body.sequence;
    facts.heartbeats += 1;
    if !word.is_empty() {
        facts.refused.push(word.to_owned());
    }
    word.to_owned()
}
