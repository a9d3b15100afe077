//! The write guard on every path: while changes are held back each method that makes one says so,
//! and each other one works.

use std::sync::Arc;

use bytes::Bytes;
use mesh_api::identity::Identity;
use mesh_api::pb;
use mesh_types::JoinToken;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::harness::{Machine, Member, Mesh, node_ref, word};
use crate::rights::{Raw, methods};
use crate::session::{Stream, body, report};

/// Everybody and everything that a call may name.
struct Stage {
    mesh: Mesh,
    worker: Member,
    gateway: Member,
    relay: Member,
    token: JoinToken,
}

impl Stage {
    async fn new() -> Self {
        let mesh = Mesh::start().await;
        let worker = mesh.joined(pb::Role::Worker, "worker").await;
        let gateway = mesh.joined(pb::Role::Gateway, "gateway").await;
        mesh.joined(pb::Role::Deployer, "deployer").await;
        let relay = mesh.joined(pb::Role::Relay, "relay").await;
        mesh.network("lab").await;
        let csr = Identity::generate()
            .expect("a key")
            .csr_der()
            .expect("a request");
        let anna = pb::AddOperatorRequest {
            name: "anna".into(),
            csr,
        };
        let mut admin = mesh.admin().await;
        admin.add_operator(anna).await.expect("adds");
        // Its second host key waits to be accepted.
        let stream = Stream::open(&mesh, &worker, None).await;
        for _ in 0..2 {
            let key = ssh_key();
            let said = pb::NodeReport {
                ssh_host_keys: vec![key],
                ..report(&[])
            };
            stream.say(pb::sync_request::Message::Report(said)).await;
            crate::harness::eventually("the report is taken over", async || {
                let nodes = mesh.nodes().await;
                let node = nodes.iter().find(|node| node.name == "worker")?;
                (!node.ssh_host_keys.is_empty()).then_some(())
            })
            .await;
        }
        crate::harness::eventually("a key is held", async || {
            let nodes = mesh.nodes().await;
            let node = nodes.iter().find(|node| node.name == "worker")?;
            (!node.ssh_host_keys_held.is_empty()).then_some(())
        })
        .await;
        let token = mesh.token(pb::Role::Worker).await;
        Self {
            mesh,
            worker,
            gateway,
            relay,
            token,
        }
    }

    /// What the method is asked, by whom, and whether it makes a change. A method that is not named
    /// here fails the test until its row is written.
    #[allow(clippy::too_many_lines, reason = "a table with a row a method")]
    async fn call(&self, method: &str) -> (Channel, Vec<u8>, bool) {
        const CHANGES: bool = true;
        const READS: bool = false;

        let operator = || self.mesh.operator_channel();
        let anybody = || self.mesh.channel(None);
        let worker = || node_ref("", "worker");
        let csr = || {
            Identity::generate()
                .expect("a key")
                .csr_der()
                .expect("a request")
        };
        let (service, name) = method
            .trim_start_matches("/mesh.v1.")
            .split_once('/')
            .expect("two");
        let (message, changes) = match (service, name) {
            ("ControlService", "Challenge") => {
                let asked = pb::ChallengeRequest {}.encode_to_vec();
                return (anybody().await, asked, READS);
            }
            ("ControlService", "Enrol") => {
                let request = Machine::new()
                    .request(&self.mesh, &self.token, "late")
                    .await;
                return (anybody().await, request.encode_to_vec(), CHANGES);
            }
            ("ControlService", "Renew") => {
                let key = &self.worker.machine.identity;
                let request = self.worker.renewal(&self.mesh, key).await;
                return (anybody().await, request.encode_to_vec(), CHANGES);
            }
            ("ControlService", "Leave") => {
                let asked = pb::LeaveRequest {}.encode_to_vec();
                return (self.worker.channel(&self.mesh).await, asked, CHANGES);
            }
            ("ControlService", "Sync") => {
                let hello = pb::SyncRequest {
                    message: Some(pb::sync_request::Message::Hello(pb::SyncHello::default())),
                };
                return (
                    self.worker.channel(&self.mesh).await,
                    hello.encode_to_vec(),
                    READS,
                );
            }
            ("RelayService", "WatchClients") => {
                let asked = pb::WatchClientsRequest {}.encode_to_vec();
                return (self.relay.channel(&self.mesh).await, asked, READS);
            }
            ("GatewayService", "WatchRoutes") => {
                let asked = pb::WatchRoutesRequest {}.encode_to_vec();
                return (self.gateway.channel(&self.mesh).await, asked, READS);
            }
            // Its audit follows: it is needed most when something is broken.
            ("SshService", "IssueCertificate") => (
                pb::IssueCertificateRequest {
                    public_key: ssh_key(),
                    principal: "root".into(),
                    ..Default::default()
                }
                .encode_to_vec(),
                READS,
            ),
            ("AdminService", "Status") => (pb::AdminStatusRequest {}.encode_to_vec(), READS),
            ("AdminService", "ListNetworks") => (pb::ListNetworksRequest {}.encode_to_vec(), READS),
            ("AdminService", "ListTokens") => {
                (pb::ListTokensRequest::default().encode_to_vec(), READS)
            }
            ("AdminService", "ListNodes") => {
                (pb::ListNodesRequest::default().encode_to_vec(), READS)
            }
            ("AdminService", "ListOperators") => {
                (pb::ListOperatorsRequest {}.encode_to_vec(), READS)
            }
            ("AdminService", "WatchEvents") => {
                (pb::WatchEventsRequest::default().encode_to_vec(), READS)
            }
            ("AdminService", "ListAudit") => {
                (pb::ListAuditRequest::default().encode_to_vec(), READS)
            }
            ("AdminService", "ShowNode") => (
                pb::ShowNodeRequest { node: worker() }.encode_to_vec(),
                READS,
            ),
            ("AdminService", "CreateNetwork") => (
                pb::CreateNetworkRequest { name: "new".into() }.encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "DeleteNetwork") => (
                pb::DeleteNetworkRequest {
                    name: "lab".into(),
                    force: true,
                }
                .encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "CreateToken") => (
                pb::CreateTokenRequest {
                    role: pb::Role::Worker.into(),
                    ..Default::default()
                }
                .encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "RevokeToken") => (
                pb::RevokeTokenRequest {
                    id: self.token.id.as_bytes().to_vec(),
                }
                .encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "RenameNode") => (
                pb::RenameNodeRequest {
                    node: worker(),
                    new_name: "other".into(),
                }
                .encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "SetNode") => (
                pb::SetNodeRequest {
                    node: worker(),
                    uptime_class: pb::UptimeClass::OnDemand.into(),
                    ..Default::default()
                }
                .encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "RemoveNode") => (
                pb::RemoveNodeRequest { node: worker() }.encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "AcceptHostKey") => (
                pb::AcceptHostKeyRequest { node: worker() }.encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "PermitRejoin") => (
                pb::PermitRejoinRequest { node: worker() }.encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "AddOperator") => (
                pb::AddOperatorRequest {
                    name: "berta".into(),
                    csr: csr(),
                }
                .encode_to_vec(),
                CHANGES,
            ),
            ("AdminService", "RevokeOperator") => (
                pb::RevokeOperatorRequest {
                    name: "anna".into(),
                }
                .encode_to_vec(),
                CHANGES,
            ),
            _ => panic!("{service}/{name} has no row in this table"),
        };
        (operator().await, message, changes)
    }
}

fn ssh_key() -> String {
    mesh_ssh::PrivateKey::generate().public_key().to_string()
}

/// The first answer, if there is to be one.
async fn ask(channel: Channel, method: &str, message: Vec<u8>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("connected");
    let path = method.parse().expect("a path");
    let request = Request::new(Bytes::from(message));
    let answers = client.server_streaming(request, path, Raw).await?;
    answers.into_inner().message().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_changes_are_held_back_each_method_says_so_or_works() {
    let stage = Stage::new().await;
    let guard = stage.mesh.guard.clone();
    let nodes = Arc::new(stage.mesh.nodes().await);
    let mut failures = Vec::new();
    guard.hold("planted");
    for method in methods() {
        let (channel, message, changes) = stage.call(&method).await;
        let outcome = ask(channel, &method, message).await;
        let said = match &outcome {
            Ok(()) => "works".to_owned(),
            Err(status) => word(status).to_owned(),
        };
        let wanted = if changes {
            "store-unavailable"
        } else {
            "works"
        };
        if said != wanted {
            failures.push(format!("{method}: {said}, not {wanted}: {outcome:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // Nothing of it has happened.
    let names = |nodes: &[pb::Node]| -> Vec<_> {
        nodes
            .iter()
            .map(|node| (node.name.clone(), node.uptime_class))
            .collect()
    };
    assert_eq!(names(&stage.mesh.nodes().await), names(&nodes));
    // Streams and heartbeats go on.
    let mut stream = Stream::open(&stage.mesh, &stage.worker, None).await;
    let beat = body(&stage.mesh, &stage.worker, 1);
    assert_eq!(stream.beat(&stage.worker, beat).await.refusal, "");

    // Each of them was a good request: with the guard lifted all are let through to their end.
    guard.release();
    for method in methods() {
        let (channel, message, _) = stage.call(&method).await;
        if let Err(status) = ask(channel, &method, message).await {
            // What others of them took away: a node that has left, a network that is gone.
            let gone = ["not-found", "removed", "unauthenticated", "token-revoked"];
            if !gone.contains(&word(&status)) {
                failures.push(format!("{method}: {status:?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
