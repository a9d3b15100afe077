//! Every gRPC method × role. A method without a row fails.

use std::collections::{BTreeMap, BTreeSet};

use integration::grpc::{self, Outcome};
use integration::raw::{Applicant, RawNode, anonymous};
use integration::{Cli, MeshUp, MeshUpOptions};
use mesh_api::context::Context;
use mesh_api::pb;
use mesh_api::tls::{COORDINATOR_NAME, deploy_name};
use mesh_types::JoinToken;
use prost::Message as _;
use tonic::transport::Channel;

/// Who calls. `Other` is a deployer of another network that asks for things of `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    Anonymous,
    Worker,
    Gateway,
    Deployer,
    Relay,
    Operator,
    Removed,
    Other,
}

use Caller::{Anonymous, Deployer, Gateway, Operator, Other, Relay, Removed, Worker};

const CALLERS: [Caller; 8] = [
    Anonymous, Worker, Gateway, Deployer, Relay, Operator, Removed, Other,
];
const OPERATOR: &[Caller] = &[Operator];
const EVERYONE: &[Caller] = &CALLERS;
const NODES: &[Caller] = &[Worker, Gateway, Deployer, Relay, Other];

/// Each method with those it answers. The last row ends the nodes that call it.
const TABLE: &[(&str, &[Caller])] = &[
    ("AdminService/AcceptHostKey", OPERATOR),
    ("AdminService/AddOperator", OPERATOR),
    ("AdminService/CreateNetwork", OPERATOR),
    ("AdminService/CreateToken", OPERATOR),
    ("AdminService/DeleteNetwork", OPERATOR),
    ("AdminService/ListAudit", OPERATOR),
    // Deployers see their own network; the request here asks for `default`.
    ("AdminService/ListNetworks", &[Operator, Deployer, Other]),
    ("AdminService/ListNodes", &[Operator, Deployer]),
    ("AdminService/ListOperators", OPERATOR),
    ("AdminService/ListTokens", OPERATOR),
    ("AdminService/PermitRejoin", OPERATOR),
    ("AdminService/RemoveNode", OPERATOR),
    ("AdminService/RenameNode", OPERATOR),
    ("AdminService/RevokeOperator", OPERATOR),
    ("AdminService/RevokeToken", OPERATOR),
    ("AdminService/SetNode", OPERATOR),
    ("AdminService/ShowNode", OPERATOR),
    ("AdminService/Status", OPERATOR),
    ("AdminService/WatchEvents", OPERATOR),
    ("ControlService/Challenge", EVERYONE),
    ("ControlService/Enrol", EVERYONE),
    ("ControlService/Renew", EVERYONE),
    ("ControlService/Sync", NODES),
    ("DeployService/Exec", OPERATOR),
    ("DeployService/Status", OPERATOR),
    ("GatewayService/WatchRoutes", &[Gateway]),
    ("RelayService/WatchClients", &[Relay]),
    ("SshService/IssueCertificate", &[Operator, Deployer]),
    ("ControlService/Leave", NODES),
];

/// A request that means something where an empty one would not ask for anything of `default`.
fn request(method: &str, worker: &RawNode) -> Vec<u8> {
    match method {
        "AdminService/ListNodes" => pb::ListNodesRequest {
            network: "default".to_owned(),
        }
        .encode_to_vec(),
        // To a target that there is not, whose end is told at once.
        "DeployService/Exec" => pb::ExecRequest {
            network: "default".to_owned(),
            targets: vec!["nowhere".to_owned()],
            command: "true".to_owned(),
            user: "nobody".to_owned(),
            ..Default::default()
        }
        .encode_to_vec(),
        "ControlService/Sync" => {
            let hello = pb::SyncHello {
                cursor: None,
                version: "test".to_owned(),
            };
            let message = Some(pb::sync_request::Message::Hello(hello));
            pb::SyncRequest { message }.encode_to_vec()
        }
        "SshService/IssueCertificate" => pb::IssueCertificateRequest {
            public_key: "ssh-ed25519 \
                         AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
                .to_owned(),
            network: "default".to_owned(),
            principal: "nobody".to_owned(),
            targets: vec![worker.enrolled.node_id.clone()],
            ..Default::default()
        }
        .encode_to_vec(),
        _ => Vec::new(),
    }
}

struct Callers {
    context: Context,
    nodes: BTreeMap<Caller, RawNode>,
}

impl Callers {
    async fn join(cli: &Cli) -> Self {
        cli.mesh_ok(&["network", "create", "other"]);
        let mut nodes = BTreeMap::new();
        for (caller, role, network) in [
            (Worker, "worker", "default"),
            (Gateway, "gateway", "default"),
            (Deployer, "deployer", "default"),
            (Relay, "relay", "default"),
            (Removed, "worker", "default"),
            (Other, "deployer", "other"),
        ] {
            let token: JoinToken = cli
                .token(&["--role", role, "--network", network])
                .parse()
                .expect("a join token");
            let name = format!("{caller:?}").to_lowercase();
            let node = Applicant::new(&name)
                .expect("keys")
                .join(&token)
                .await
                .expect("joins");
            nodes.insert(caller, node);
        }
        cli.mesh_ok(&["node", "remove", "--yes", "removed"]);
        Self {
            context: cli.context().expect("a context"),
            nodes,
        }
    }

    async fn channel(&self, caller: Caller, deploy: bool) -> Channel {
        let manager = self
            .context
            .deploy
            .clone()
            .expect("the context names the deploy-manager");
        let (addrs, name) = if deploy {
            (vec![manager.addr.clone()], deploy_name(manager.node))
        } else {
            (
                self.context.coordinators.clone(),
                COORDINATOR_NAME.to_owned(),
            )
        };
        match caller {
            Anonymous => anonymous(&self.context, &addrs, &name).expect("TLS"),
            Operator if deploy => self
                .context
                .deploy_manager(&manager)
                .await
                .expect("the deploy-manager"),
            Operator => self.context.coordinator().await.expect("the coordinator"),
            node => self.nodes[&node].channel(&addrs, &name).expect("TLS"),
        }
    }
}

/// What the answer must be; `None` when it is as it must be.
fn fault(caller: Caller, allowed: bool, outcome: &Outcome) -> Option<&'static str> {
    let fine = match (allowed, caller, outcome) {
        (true, _, outcome) => *outcome == Outcome::Allowed,
        // A caller without a certificate may be told so, or be cut off before any call.
        (false, Anonymous, outcome) => *outcome == Outcome::Unauthenticated,
        (false, _, outcome) => matches!(outcome, Outcome::Denied | Outcome::Unauthenticated),
    };
    match (fine, allowed) {
        (true, _) => None,
        (false, true) => Some("must be allowed"),
        (false, false) => Some("must be refused"),
    }
}

#[test]
fn every_method_answers_exactly_those_it_is_for() {
    let known: BTreeSet<String> = grpc::methods().expect("proto files").into_iter().collect();
    let rows: BTreeSet<String> = TABLE
        .iter()
        .map(|(method, _)| (*method).to_owned())
        .collect();
    assert_eq!(
        rows, known,
        "every method needs a row, and every row a method"
    );

    let cli = Cli::new().expect("folders");
    let up = MeshUp::start(
        &cli,
        MeshUpOptions {
            demo: false,
            ..MeshUpOptions::default()
        },
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let faults = runtime.block_on(async {
        let callers = Callers::join(&cli).await;
        let worker = &callers.nodes[&Worker];
        let mut faults = Vec::new();
        for (method, allowed) in TABLE {
            let deploy = method.starts_with("DeployService/");
            let message = request(method, worker);
            let calls = CALLERS.map(|caller| {
                let (callers, message) = (&callers, message.clone());
                async move {
                    let channel = callers.channel(caller, deploy).await;
                    (caller, grpc::call(channel, method, message).await)
                }
            });
            for (caller, outcome) in futures_util::future::join_all(calls).await {
                if let Some(fault) = fault(caller, allowed.contains(&caller), &outcome) {
                    faults.push(format!("{method} by {caller:?} {fault}: {outcome:?}"));
                }
            }
        }
        faults
    });
    assert!(
        faults.is_empty(),
        "{} cells are wrong:\n{}",
        faults.len(),
        faults.join("\n")
    );
    up.child().assert_log_clean(&[]);
}
