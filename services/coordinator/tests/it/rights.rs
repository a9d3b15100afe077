//! Every gRPC method × every kind of caller, against the real port.

use std::collections::BTreeMap;
use std::error::Error as _;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use mesh_api::pb;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::harness::{Mesh, word};

/// Sends and takes message bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Words that mean "not you", as opposed to "not like that".
const REFUSALS: [&str; 7] = [
    "unauthenticated",
    "not-allowed",
    "removed",
    "revoked",
    "wrong-network",
    "certificate-replaced",
    "certificate-expired",
];

/// Whether an empty message to this method is let through to its service.
async fn let_through(channel: &Channel, path: &str) -> bool {
    let word = answer(channel, path).await;
    !word.is_some_and(|word| REFUSALS.contains(&word.as_str()))
}

/// The word of the refusal that an empty message to this method meets, if any.
pub(crate) async fn answer(channel: &Channel, path: &str) -> Option<String> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    let path: PathAndQuery = path.parse().expect("a path");
    for _ in 0..10 {
        client.ready().await.expect("connected");
        let outcome = client
            .server_streaming(Request::new(Bytes::new()), path.clone(), Raw)
            .await;
        match outcome {
            Ok(_) => return None,
            // The connection of whoever is removed ends, which may be just now: what the
            // coordinator answers is heard on the next one. Its own refusals have no source.
            Err(status) if status.source().is_some() => {}
            Err(status) => return Some(word(&status).to_owned()),
        }
    }
    panic!("{path}: one connection after the other ended");
}

/// `/mesh.v1.Service/Method` of each method in the contract but the deploy-manager's.
pub(crate) fn methods() -> Vec<String> {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/mesh/v1/");
    let mut methods = Vec::new();
    for file in ["control.proto", "admin.proto", "gateway.proto"] {
        let text = std::fs::read_to_string(format!("{proto}{file}")).expect("the contract");
        let mut service = "";
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("service ") {
                service = rest.split(' ').next().expect("a name");
            } else if let Some(rest) = line.strip_prefix("rpc ") {
                let method = rest.split('(').next().expect("a name");
                methods.push(format!("/mesh.v1.{service}/{method}"));
            }
        }
    }
    methods
}

/// Who may call the method; the three open ones are for everybody. A method that is not named
/// here is nobody's, so a new one fails the test until its row is written.
fn allowed(method: &str) -> &'static [&'static str] {
    let (service, method) = method
        .trim_start_matches("/mesh.v1.")
        .split_once('/')
        .expect("two");
    match (service, method) {
        ("ControlService", "Challenge" | "Enrol" | "Renew") => &[
            "anonymous",
            "worker",
            "gateway",
            "router",
            "deployer",
            "client",
            "relay",
            "operator",
            "removed",
            "other network",
        ],
        ("ControlService", "Sync" | "Leave") => &[
            "worker",
            "gateway",
            "router",
            "deployer",
            "client",
            "relay",
            "other network",
        ],
        ("RelayService", "WatchClients") => &["relay"],
        ("GatewayService", "WatchRoutes") => &["gateway"],
        ("SshService", "IssueCertificate") => &["operator", "deployer"],
        ("AdminService", "ListNodes" | "ListNetworks") => &["operator", "deployer"],
        (
            "AdminService",
            "Status" | "CreateNetwork" | "DeleteNetwork" | "CreateToken" | "ListTokens"
            | "RevokeToken" | "ShowNode" | "RenameNode" | "SetNode" | "RemoveNode"
            | "AcceptHostKey" | "PermitRejoin" | "AddOperator" | "ListOperators" | "RevokeOperator"
            | "ListAudit" | "WatchEvents",
        ) => &["operator"],
        _ => panic!("{service}/{method} has no row in this table"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_lets_exactly_its_callers_through() {
    let mesh = Mesh::start().await;
    mesh.network("lab").await;
    let methods = methods();
    assert!(methods.len() >= 25, "{methods:?}");
    let mut failures = Vec::new();
    for method in &methods {
        let mut callers: BTreeMap<&str, Channel> = BTreeMap::new();
        callers.insert("anonymous", mesh.channel(None).await);
        callers.insert("operator", mesh.operator_channel().await);
        // `Leave` takes its caller away, so everybody joins anew for it; the rest is reused.
        for (name, role) in [
            ("worker", pb::Role::Worker),
            ("gateway", pb::Role::Gateway),
            ("router", pb::Role::Router),
            ("deployer", pb::Role::Deployer),
            ("client", pb::Role::Client),
            ("relay", pb::Role::Relay),
        ] {
            callers.insert(name, mesh.joined(role, name).await.channel(&mesh).await);
        }
        let removed = mesh.joined(pb::Role::Worker, "removed").await;
        callers.insert("removed", removed.channel(&mesh).await);
        mesh.remove("", &removed.answer.name).await;
        let other = mesh.joined_in("lab", pb::Role::Worker, "other").await;
        callers.insert("other network", other.channel(&mesh).await);

        let row = allowed(method);
        for (caller, channel) in &callers {
            let through = let_through(channel, method).await;
            if through != row.contains(caller) {
                failures.push(format!("{method} × {caller}: let through = {through}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented_for_everybody() {
    let mesh = Mesh::start().await;
    for path in [
        "/mesh.v1.AdminService/Nothing",
        "/mesh.v1.Nothing/At",
        "/mesh.v1.DeployService/Exec",
    ] {
        for channel in [mesh.channel(None).await, mesh.operator_channel().await] {
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.expect("connected");
            let path = path.parse().expect("a path");
            let outcome = client.unary(Request::new(Bytes::new()), path, Raw).await;
            let status = outcome.expect_err("refused");
            assert_eq!(status.code(), tonic::Code::Unimplemented);
        }
    }
}

#[tokio::test]
async fn a_deployer_lists_its_own_network_only() {
    let mesh = Mesh::start().await;
    mesh.network("lab").await;
    let deployer = mesh.joined_in("lab", pb::Role::Deployer, "deploy").await;
    mesh.joined_in("lab", pb::Role::Worker, "mine").await;
    mesh.joined(pb::Role::Worker, "theirs").await;
    let channel = deployer.channel(&mesh).await;
    let mut admin = pb::admin_service_client::AdminServiceClient::new(channel);
    let nodes = admin
        .list_nodes(pb::ListNodesRequest::default())
        .await
        .expect("lists");
    let names: Vec<_> = nodes
        .into_inner()
        .nodes
        .into_iter()
        .map(|node| node.name)
        .collect();
    assert_eq!(names, ["deploy", "mine"]);
    let networks = admin
        .list_networks(pb::ListNetworksRequest {})
        .await
        .expect("lists");
    assert_eq!(networks.into_inner().networks.len(), 1);
    let other = pb::ListNodesRequest {
        network: "default".into(),
    };
    let status = admin.list_nodes(other).await.expect_err("another network");
    assert_eq!(word(&status), "wrong-network");
}

#[tokio::test]
async fn a_revoked_operator_is_out_at_the_next_call() {
    let mesh = Mesh::start().await;
    let key = mesh_api::identity::Identity::generate().expect("a key");
    let wish = pb::AddOperatorRequest {
        name: "anna".into(),
        csr: key.csr_der().expect("a request"),
    };
    let made = mesh
        .admin()
        .await
        .add_operator(wish)
        .await
        .expect("adds")
        .into_inner();
    let certificate = mesh_api::tls::ClientCert {
        certificate: made.certificate.into(),
        key_pkcs8: zeroize::Zeroizing::new(key.pkcs8().to_vec()),
    };
    let channel = mesh.channel(Some(certificate)).await;
    let mut anna = pb::admin_service_client::AdminServiceClient::new(channel);
    anna.status(pb::AdminStatusRequest {})
        .await
        .expect("an operator");
    let watch = pb::WatchEventsRequest {
        follow: true,
        ..Default::default()
    };
    let mut events = anna
        .watch_events(watch)
        .await
        .expect("watches")
        .into_inner();

    let revoke = pb::RevokeOperatorRequest {
        name: "anna".into(),
    };
    mesh.admin()
        .await
        .revoke_operator(revoke)
        .await
        .expect("revokes");
    let status = anna
        .status(pb::AdminStatusRequest {})
        .await
        .expect_err("revoked");
    assert_eq!(word(&status), "revoked");
    let ended = tokio::time::timeout(std::time::Duration::from_secs(2), async {
        loop {
            if let Err(status) = events.message().await {
                return status;
            }
        }
    });
    assert_eq!(word(&ended.await.expect("within 2 s")), "revoked");

    let last = pb::RevokeOperatorRequest {
        name: "first".into(),
    };
    let status = mesh
        .admin()
        .await
        .revoke_operator(last)
        .await
        .expect_err("the last one");
    assert!(
        status.message().contains("last operator"),
        "{}",
        status.message()
    );
}
