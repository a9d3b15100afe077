//! What this program asks the coordinator.

use std::collections::BTreeMap;

use anyhow::Context as _;
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_api::pb::ssh_service_client::SshServiceClient;
use mesh_ssh::PublicKey;
use mesh_types::{Labels, NetworkName, NodeId, OverlayAddrs};
use tonic::transport::Channel;

use crate::target::Node;

/// The nodes of the network.
pub async fn nodes(coordinator: Channel, network: &NetworkName) -> anyhow::Result<Vec<Node>> {
    let network = network.to_string();
    let answer = AdminServiceClient::with_interceptor(coordinator, mesh_trace::propagate)
        .list_nodes(pb::ListNodesRequest { network })
        .await
        .map_err(refused)?;
    let nodes = answer.into_inner().nodes;
    // Relays are nodes without overlay addresses; nothing runs on them.
    let nodes = nodes.into_iter().filter(|node| node.addrs.is_some());
    nodes.map(Node::try_from).collect()
}

/// A fresh certificate line for `key` as `user` on `targets`.
pub async fn issue(
    coordinator: Channel,
    network: &NetworkName,
    key: &PublicKey,
    user: &str,
    targets: &[NodeId],
) -> anyhow::Result<String> {
    let request = pb::IssueCertificateRequest {
        public_key: key.to_string(),
        network: network.to_string(),
        principal: user.to_owned(),
        targets: targets.iter().map(|id| id.as_bytes().to_vec()).collect(),
        ..pb::IssueCertificateRequest::default()
    };
    let mut client = SshServiceClient::with_interceptor(coordinator, mesh_trace::propagate);
    let answer = client.issue_certificate(request).await.map_err(refused)?;
    Ok(answer.into_inner().certificate)
}

/// The coordinator is not there, or cannot do this now.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator cannot do this now: {0}")]
pub struct Unavailable(String);

/// What a refused call says to people.
fn refused(status: tonic::Status) -> anyhow::Error {
    if status.code() == tonic::Code::Unavailable {
        Unavailable(status.message().to_owned()).into()
    } else {
        anyhow::anyhow!("the coordinator refused: {}", status.message())
    }
}

impl TryFrom<pb::Node> for Node {
    type Error = anyhow::Error;

    fn try_from(node: pb::Node) -> anyhow::Result<Self> {
        let is_worker = node.role() == pb::Role::Worker;
        let addrs = node.addrs.context("a node without overlay addresses")?;
        Ok(Self {
            id: NodeId::try_from(node.id.as_slice())?,
            addrs: OverlayAddrs::try_from(addrs)?,
            is_worker,
            // A key of a kind this program does not know cannot be the one that is presented.
            host_keys: node
                .ssh_host_keys
                .iter()
                .filter_map(|line| line.parse().ok())
                .collect(),
            name: node.name,
            user: node.ssh_user,
            console_prefix: node.console_prefix,
            labels: Labels::try_from(BTreeMap::from_iter(node.labels))?,
        })
    }
}
