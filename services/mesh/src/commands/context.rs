//! `mesh context`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mesh_api::context::{Contexts, DeployManager};
use mesh_api::pb;
use mesh_types::NodeId;
use serde_json::json;
use tokio::net::TcpStream;

use super::Session;
use crate::args::ContextVerb;
use crate::output;

/// How long a deploy-manager that was just started is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);
/// How long an address that is saved may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

pub(super) async fn run(session: &Session, verb: ContextVerb) -> Result<()> {
    let contexts = Contexts::of_user()?;
    match verb {
        ContextVerb::List => list(session, &contexts),
        ContextVerb::Use { name } => {
            let context = contexts.load(Some(&name))?;
            contexts.save(&name, &context, true)?;
            let text = format!("using {name} ({})", context.coordinators.join(", "));
            session.done("context use", &name, &text)
        }
        ContextVerb::Set {
            socks,
            deploy,
            deploy_node,
            gateway,
            network,
        } => {
            let name = match &session.name {
                Some(name) => name.clone(),
                None => contexts.current()?.context("there is no current context")?,
            };
            let mut context = contexts.load(Some(&name))?;
            let addrs = socks.iter().map(|(_, addr)| addr).chain(&deploy);
            warn_of_silence(addrs).await;
            context.socks.extend(
                socks
                    .into_iter()
                    .map(|(network, addr)| (network.into(), addr)),
            );
            if let Some(addr) = deploy {
                let node = deployer(session, deploy_node.as_deref()).await?;
                context.deploy = Some(DeployManager { addr, node });
            }
            context.gateway = gateway.or(context.gateway);
            context.network = network.map_or(context.network, String::from);
            contexts.save(&name, &context, false)?;
            session.done("context set", &name, &format!("saved {name}"))
        }
    }
}

/// An address at which nobody answers is taken all the same: it may be right tomorrow.
async fn warn_of_silence(addrs: impl Iterator<Item = &String>) {
    for addr in addrs {
        let reason = match tokio::time::timeout(ANSWER, TcpStream::connect(addr)).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {} s", ANSWER.as_secs()),
        };
        eprintln!("warning: nothing is reached at {addr} from here ({reason}); saved all the same");
    }
}

fn list(session: &Session, contexts: &Contexts) -> Result<()> {
    let current = contexts.current()?;
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for name in contexts.names() {
        let context = contexts.load(Some(&name))?;
        let chosen = current.as_deref() == Some(name.as_str());
        values.push(json!({
            "name": name,
            "current": chosen,
            "coordinators": context.coordinators,
            "network": context.network,
        }));
        let mark = if chosen { "*" } else { "" };
        rows.push([
            mark.to_owned(),
            name,
            context.coordinators.join(", "),
            context.network,
        ]);
    }
    if session.json {
        return output::print_json("mesh.contexts/1", "contexts", values);
    }
    if rows.is_empty() {
        say!("No contexts. Start a mesh here: mesh up   or join one: mesh login --request FILE");
        return Ok(());
    }
    say!(
        "{}",
        output::table(["", "NAME", "COORDINATOR", "NETWORK"], rows)
    );
    Ok(())
}

/// The id of the deploy-manager so named, or of the only one there is.
async fn deployer(session: &Session, name: Option<&str>) -> Result<NodeId> {
    let (context, mut admin) = session.admin().await?;
    let request = pb::ListNodesRequest {
        network: context.network.clone(),
    };
    let give_up = Instant::now() + PATIENCE;
    let mut said = false;
    loop {
        let nodes = admin.list_nodes(request.clone()).await?.into_inner().nodes;
        match find_deployer(&nodes, name) {
            Err(_) if nodes.iter().all(is_other) && Instant::now() < give_up => {
                if !std::mem::replace(&mut said, true) {
                    eprintln!("waiting for a deploy-manager to join");
                }
                tokio::time::sleep(AGAIN).await;
            }
            found => return found,
        }
    }
}

fn is_other(node: &pb::Node) -> bool {
    node.role != i32::from(pb::Role::Deployer)
}

fn find_deployer(nodes: &[pb::Node], name: Option<&str>) -> Result<NodeId> {
    let deployers: Vec<_> = nodes
        .iter()
        .filter(|node| node.role == i32::from(pb::Role::Deployer))
        .filter(|node| name.is_none_or(|name| node.name == name))
        .collect();
    match deployers.as_slice() {
        [one] => Ok(NodeId::try_from(one.id.as_slice())?),
        [] => bail!(
            "no deploy-manager has joined: make it a token with 'mesh token create --role deployer'"
        ),
        several => {
            let names: Vec<_> = several.iter().map(|node| node.name.as_str()).collect();
            bail!(
                "there are several deploy-managers: add --deploy-node with one of {}",
                names.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: pb::Role) -> pb::Node {
        pb::Node {
            id: vec![1; 16],
            name: name.into(),
            role: role.into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_only_deploy_manager_is_found_and_several_must_be_told_apart() {
        let one = [node("a", pb::Role::Worker), node("b", pb::Role::Deployer)];
        assert!(find_deployer(&one, None).is_ok());
        let two = [node("b", pb::Role::Deployer), node("c", pb::Role::Deployer)];
        assert!(find_deployer(&two, None).is_err());
        assert!(find_deployer(&two, Some("c")).is_ok());
        assert!(find_deployer(&two[..0], None).is_err());
    }
}
