//! `mesh node`.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mesh_api::context::Context;
use mesh_api::model::enums;
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_types::{
    Finding, Label, Labels, NodeId, OverlayAddrs, RelayId, Role, Selector, Service, UptimeClass,
};
use serde_json::json;
use tonic::transport::Channel;

use super::status::{events_or_why, say_findings};
use super::{Session, network_or};
use crate::advice;
use crate::args::{HostKeyVerb, NodeArg, NodeVerb};
use crate::{output, text};

/// Does what was typed; the exit code is 1 when `show` tells of something that should work and does
/// not.
pub(super) async fn run(session: &Session, verb: NodeVerb) -> Result<ExitCode> {
    let (context, mut admin) = session.admin().await?;
    let at = |node: &NodeArg| Some(reference(&context, node));
    match verb {
        NodeVerb::List {
            network,
            all_networks,
            selector,
        } => {
            let network = if all_networks {
                String::new()
            } else {
                network_or(&context, network)
            };
            let request = pb::ListNodesRequest { network };
            let nodes = admin.list_nodes(request).await?.into_inner().nodes;
            list_selected(session, nodes, selector.as_ref())?;
        }
        NodeVerb::Show(node) => {
            let findings = show_told(session, &mut admin, at(&node)).await?;
            if Finding::any_error(&findings) {
                return Ok(ExitCode::FAILURE);
            }
        }
        NodeVerb::Rename { node, new_name } => {
            let request = pb::RenameNodeRequest {
                node: at(&node),
                new_name: new_name.into(),
            };
            let renamed = admin.rename_node(request).await?.into_inner();
            if session.json {
                output::print_json("mesh.node/1", "node", json_of(&renamed))?;
            } else {
                say!("{} is now {}", node.node, renamed.name);
            }
        }
        NodeVerb::Set {
            node,
            uptime,
            label,
            unlabel,
        } => {
            let uptime_class = uptime.map(pb::UptimeClass::from).unwrap_or_default();
            let request = pb::SetNodeRequest {
                node: at(&node),
                uptime_class: uptime_class.into(),
                set_labels: label.into_iter().map(Label::into_pair).collect(),
                remove_labels: unlabel,
            };
            say_set(session, &admin.set_node(request).await?.into_inner())?;
        }
        NodeVerb::Remove { node, yes } => {
            if !yes {
                confirm(&format!("Remove {} and end its connections?", node.node))?;
            }
            let request = pb::RemoveNodeRequest { node: at(&node) };
            admin.remove_node(request).await?;
            session.done("node remove", &node.node, &format!("removed {}", node.node))?;
        }
        NodeVerb::HostKey(HostKeyVerb::Accept(node)) => {
            let request = pb::AcceptHostKeyRequest { node: at(&node) };
            let node = admin.accept_host_key(request).await?.into_inner();
            if session.json {
                output::print_json("mesh.node/1", "node", json_of(&node))?;
            } else {
                say!(
                    "{}: {} SSH host key(s) pinned",
                    node.name,
                    node.ssh_host_keys.len()
                );
            }
        }
        NodeVerb::Permit(node) => {
            let request = pb::PermitRejoinRequest { node: at(&node) };
            let permit = admin.permit_rejoin(request).await?.into_inner().permit;
            let permit = URL_SAFE_NO_PAD.encode(permit);
            if session.json {
                output::print_json("mesh.permit/1", "permit", permit)?;
            } else {
                say!("{permit}");
                eprintln!("For one enrolment: worker-agent join --token-file FILE --permit PERMIT");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn reference(context: &Context, node: &NodeArg) -> pb::NodeRef {
    pb::NodeRef {
        network: network_or(context, node.network.clone()),
        name: node.node.clone(),
    }
}

fn confirm(question: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("{question} Say so with --yes, since there is nobody to ask");
    }
    print!("{question} [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        bail!("nothing was changed")
    }
}

/// Lists the nodes whose labels match.
fn list_selected(
    session: &Session,
    mut nodes: Vec<pb::Node>,
    selector: Option<&Selector>,
) -> Result<()> {
    if let Some(selector) = selector {
        nodes.retain(|node| selector.matches(&labels(node)));
        if nodes.is_empty() && !session.json {
            say!("No node has labels that match {selector}.");
            return Ok(());
        }
    }
    list(session, &nodes)
}

fn list(session: &Session, nodes: &[pb::Node]) -> Result<()> {
    if session.json {
        let nodes: Vec<_> = nodes.iter().map(json_of).collect();
        return output::print_json("mesh.nodes/1", "nodes", nodes);
    }
    if nodes.is_empty() {
        say!("No nodes. Make a token for the first one: mesh token create --role worker");
        return Ok(());
    }
    let (now, coloured) = (text::now(), output::coloured());
    let rows = nodes.iter().map(|node| {
        let seen = if node.state == i32::from(pb::NodeState::Online) {
            "now".to_owned()
        } else {
            text::relative(node.last_seen, now)
        };
        [
            node.name.clone(),
            node.network.clone(),
            role(node),
            output::state(enums::node_state(node.state), coloured),
            address(node),
            node.owner.clone(),
            labels(node).to_string(),
            seen,
        ]
    });
    let head = [
        "NAME", "NETWORK", "ROLE", "STATE", "ADDRESS", "OWNER", "LABELS", "SEEN",
    ];
    say!("{}", output::table(head, rows.collect()));
    Ok(())
}

/// Shows a node and what is wrong with it; gives the latter.
async fn show_told(
    session: &Session,
    admin: &mut AdminServiceClient<Channel>,
    node: Option<pb::NodeRef>,
) -> Result<Vec<Finding>> {
    let request = pb::ShowNodeRequest { node };
    let node = admin.show_node(request).await?.into_inner();
    let (events, unread) = events_or_why(admin).await;
    let mut findings = advice::of_node(&node, &events, text::now());
    findings.extend(unread);
    show(session, &node, &findings)?;
    Ok(findings)
}

fn show(session: &Session, node: &pb::Node, findings: &[Finding]) -> Result<()> {
    if session.json {
        let mut node = json_of(node);
        node["findings"] = serde_json::to_value(findings)?;
        return output::print_json("mesh.node/1", "node", node);
    }
    let (now, coloured) = (text::now(), output::coloured());
    let services: Vec<String> = services(node)
        .iter()
        .map(|service| format!("{} ({}, port {})", service.name, service.kind, service.port))
        .collect();
    let endpoints = endpoints(node).join(", ");
    let addrs = addrs(node)
        .map(|addrs| format!("{}, {}", addrs.v4, addrs.v6))
        .unwrap_or_default();
    let mut rows = vec![
        [
            "name".to_owned(),
            output::paint(&node.name, output::Colour::Bold, coloured),
        ],
        ["id".to_owned(), id(node)],
        ["network".to_owned(), node.network.clone()],
        ["role".to_owned(), role(node)],
        ["owner".to_owned(), node.owner.clone()],
        ["labels".to_owned(), labels(node).to_string()],
        [
            "state".to_owned(),
            output::state(enums::node_state(node.state), coloured),
        ],
        ["seen".to_owned(), text::relative(node.last_seen, now)],
        ["addresses".to_owned(), addrs],
        ["endpoints".to_owned(), endpoints],
        [
            "relay".to_owned(),
            relay(node).unwrap_or_else(|| "none".to_owned()),
        ],
        ["services".to_owned(), services.join(", ")],
        ["console".to_owned(), node.console_prefix.clone()],
        ["SSH user".to_owned(), node.ssh_user.clone()],
        [
            "SSH host keys".to_owned(),
            format!("{} pinned", node.ssh_host_keys.len()),
        ],
        ["WireGuard key".to_owned(), STANDARD.encode(&node.wg_key)],
        ["version".to_owned(), node.version.clone()],
        ["joined".to_owned(), text::relative(node.created_at, now)],
        [
            "certificate".to_owned(),
            format!("ends {}", text::relative(node.certificate_not_after, now)),
        ],
    ];
    rows.retain(|[_, value]| !value.is_empty());
    say!("{}", output::table(["", ""], rows).trim_start_matches('\n'));
    say_findings(findings);
    Ok(())
}

/// What a node is now, after it was set.
fn say_set(session: &Session, node: &pb::Node) -> Result<()> {
    if session.json {
        return output::print_json("mesh.node/1", "node", json_of(node));
    }
    let class: UptimeClass = enums::uptime_class(node.uptime_class);
    match labels(node) {
        none if none.is_empty() => say!("{} is expected {}", node.name, class.as_str()),
        labels => say!("{} is expected {}; {labels}", node.name, class.as_str()),
    }
    Ok(())
}

/// None when the coordinator's are not what this version takes for labels.
fn labels(node: &pb::Node) -> Labels {
    let labels: BTreeMap<_, _> = node.labels.clone().into_iter().collect();
    Labels::try_from(labels).unwrap_or_default()
}

fn id(node: &pb::Node) -> String {
    NodeId::try_from(node.id.as_slice())
        .map(|id| id.to_string())
        .unwrap_or_default()
}

fn role(node: &pb::Node) -> String {
    enums::role(node.role).map_or("?", Role::as_str).to_owned()
}

fn addrs(node: &pb::Node) -> Option<OverlayAddrs> {
    node.addrs.clone().and_then(|addrs| addrs.try_into().ok())
}

fn address(node: &pb::Node) -> String {
    addrs(node)
        .map(|addrs| addrs.v4.to_string())
        .unwrap_or_default()
}

fn relay(node: &pb::Node) -> Option<String> {
    RelayId::try_from(node.home_relay.as_slice())
        .ok()
        .map(|id| id.to_string())
}

fn endpoints(node: &pb::Node) -> Vec<String> {
    let parsed = node
        .endpoints
        .iter()
        .cloned()
        .filter_map(|wire| wire.try_into().ok());
    parsed
        .map(|addr: std::net::SocketAddr| addr.to_string())
        .collect()
}

fn services(node: &pb::Node) -> Vec<Service> {
    node.services
        .iter()
        .cloned()
        .filter_map(|wire| wire.try_into().ok())
        .collect()
}

pub(super) fn json_of(node: &pb::Node) -> serde_json::Value {
    let class: UptimeClass = enums::uptime_class(node.uptime_class);
    json!({
        "id": id(node),
        "name": node.name,
        "network": node.network,
        "role": role(node),
        "owner": node.owner,
        "state": enums::node_state(node.state),
        "uptime_class": class.as_str(),
        "labels": labels(node),
        "addrs": addrs(node).map(|addrs| vec![addrs.v4.to_string(), addrs.v6.to_string()]),
        "endpoints": endpoints(node),
        "home_relay": relay(node),
        "services": services(node),
        "console_prefix": node.console_prefix,
        "ssh_user": node.ssh_user,
        "ssh_host_keys": node.ssh_host_keys,
        "ssh_host_keys_held": node.ssh_host_keys_held,
        "wg_key": STANDARD.encode(&node.wg_key),
        "troubles": node.troubles,
        "version": node.version,
        "created_at": text::rfc3339(node.created_at),
        "last_seen": text::rfc3339(node.last_seen),
        "certificate_not_after": text::rfc3339(node.certificate_not_after),
    })
}
