//! `mesh status`: how the mesh is doing, what is wrong, and what to type next.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use mesh_api::model::enums;
use mesh_api::pb;
use mesh_types::{NodeState, RelayId, Role, UptimeClass};
use serde::Serialize;
use serde_json::json;

use super::Session;
use crate::{output, text};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Problem {
    /// What is wrong.
    problem: String,
    /// What to type next.
    next: String,
}

fn problem(problem: impl Into<String>, next: impl Into<String>) -> Problem {
    Problem {
        problem: problem.into(),
        next: next.into(),
    }
}

/// Prints the status; the exit code is 1 when something is wrong.
pub(super) async fn run(session: &Session) -> Result<ExitCode> {
    let (context, mut admin) = session.admin().await.context(
        "no mesh answers: start it with 'mesh up' (or 'coordinator' on its machine), or choose \
         another one with 'mesh context use NAME'",
    )?;
    let status = admin.status(pb::AdminStatusRequest {}).await?.into_inner();
    let request = pb::ListNodesRequest {
        network: String::new(),
    };
    let nodes = admin.list_nodes(request).await?.into_inner().nodes;
    let problems = problems(&status, &nodes, text::now().as_micros());
    if session.json {
        let value = json!({
            "coordinators": context.coordinators,
            "version": status.version,
            "started_at": text::rfc3339(status.started_at),
            "writable": status.writable,
            "networks": status.networks.iter().map(|network| json!({
                "name": network.name,
                "online": network.online,
                "stale": network.stale,
                "offline": network.offline,
            })).collect::<Vec<_>>(),
            "relays": status.relays.iter().map(|relay| json!({
                "id": RelayId::try_from(relay.id.as_slice()).ok(),
                "name": relay.name,
                "state": enums::node_state(relay.state),
                "derp": relay.derp,
                "stun": relay.stun,
            })).collect::<Vec<_>>(),
            "gateway": context.gateway,
            "problems": problems,
        });
        output::print_json("mesh.status/1", "status", value)?;
    } else {
        show(&context, &status, &problems);
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(
    context: &mesh_api::context::Context,
    status: &pb::AdminStatusResponse,
    problems: &[Problem],
) {
    let coloured = output::coloured();
    say!(
        "coordinator {} {} (version {}, up {})",
        context.coordinators.join(", "),
        output::state(NodeState::Online, coloured),
        status.version,
        text::span(text::now().since(mesh_types::Timestamp::from_micros(status.started_at))),
    );
    if let Some(gateway) = &context.gateway {
        say!("gateway     {gateway}");
    }
    say!();
    let rows = status.networks.iter().map(|network| {
        [
            network.name.clone(),
            network.online.to_string(),
            network.stale.to_string(),
            network.offline.to_string(),
        ]
    });
    say!(
        "{}",
        output::table(["NETWORK", "ONLINE", "STALE", "OFFLINE"], rows.collect())
    );
    if !status.relays.is_empty() {
        say!();
        let rows = status.relays.iter().map(|relay| {
            let state = output::state(enums::node_state(relay.state), coloured);
            [relay.name.clone(), state, relay.derp.join(", ")]
        });
        say!(
            "{}",
            output::table(["RELAY", "STATE", "DERP"], rows.collect())
        );
    }
    say!();
    if problems.is_empty() {
        say!(
            "{}",
            output::paint("Nothing is wrong.", output::Colour::Green, coloured)
        );
        return;
    }
    for Problem { problem, next } in problems {
        say!(
            "{} {problem}",
            output::paint("!", output::Colour::Red, coloured)
        );
        say!("  next: {next}");
    }
}

/// What is wrong, the most far-reaching first.
fn problems(status: &pb::AdminStatusResponse, nodes: &[pb::Node], now: i64) -> Vec<Problem> {
    let mut found = Vec::new();
    if !status.writable {
        let text = format!(
            "the store is down, changes are refused: {}",
            status.store_problem
        );
        found.push(problem(
            text,
            "make room or mend the database; it heals by itself",
        ));
    }
    let skew = (status.server_time - now).abs() / 1_000_000;
    if skew > 30 {
        let text = format!("this machine's clock differs from the coordinator's by {skew} s");
        found.push(problem(text, "timedatectl set-ntp true"));
    }
    if status.relays.is_empty() {
        let text = "there is no relay: nodes that cannot reach each other directly stay apart";
        found.push(problem(text, "mesh token create --role relay"));
    }
    for relay in &status.relays {
        if enums::node_state(relay.state) != NodeState::Online {
            let text = format!("relay {} is {}", relay.name, enums::node_state(relay.state));
            found.push(problem(text, "start it again: relay run"));
        }
    }
    for node in nodes {
        found.extend(node_problem(node));
    }
    found
}

fn node_problem(node: &pb::Node) -> Vec<Problem> {
    let mut found = Vec::new();
    let at = if node.network == "default" {
        String::new()
    } else {
        format!(" --network {}", node.network)
    };
    let state = enums::node_state(node.state);
    let expected = enums::uptime_class(node.uptime_class) == UptimeClass::AlwaysOn;
    if state != NodeState::Online && expected {
        let program = match enums::role(node.role) {
            Ok(Role::Gateway) => "traffic-gateway",
            Ok(Role::Deployer) => "deploy-manager",
            Ok(Role::Relay) => "relay",
            Ok(Role::Worker | Role::Router | Role::Client) | Err(_) => "worker-agent",
        };
        let text = if node.last_seen == 0 {
            format!("{} joined and was never seen since", node.name)
        } else {
            format!(
                "{} is {state}, seen {}",
                node.name,
                text::relative(node.last_seen, text::now())
            )
        };
        found.push(problem(
            text,
            format!(
                "on that machine: {program} run; or: mesh node remove {}{at}",
                node.name
            ),
        ));
    }
    if !node.ssh_host_keys_held.is_empty() {
        let text = format!(
            "the SSH host key of {} changed, so SSH to it is refused",
            node.name
        );
        found.push(problem(
            text,
            format!("mesh node host-key accept {}{at}", node.name),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> pb::AdminStatusResponse {
        let relay = pb::RelayStatus {
            state: pb::NodeState::Online.into(),
            ..Default::default()
        };
        pb::AdminStatusResponse {
            writable: true,
            relays: vec![relay],
            ..Default::default()
        }
    }

    fn node(state: pb::NodeState) -> pb::Node {
        pb::Node {
            name: "web".into(),
            network: "default".into(),
            role: pb::Role::Worker.into(),
            state: state.into(),
            last_seen: 1,
            ..Default::default()
        }
    }

    #[test]
    fn a_healthy_mesh_has_no_problem() {
        assert_eq!(problems(&healthy(), &[node(pb::NodeState::Online)], 0), []);
    }

    #[test]
    fn an_always_on_node_that_is_gone_is_a_problem_and_an_on_demand_one_is_not() {
        let gone = node(pb::NodeState::Offline);
        assert_eq!(
            problems(&healthy(), std::slice::from_ref(&gone), 0).len(),
            1
        );
        let laptop = pb::Node {
            uptime_class: pb::UptimeClass::OnDemand.into(),
            ..gone
        };
        assert_eq!(problems(&healthy(), &[laptop], 0), []);
    }

    #[test]
    fn each_fault_names_the_next_command() {
        let status = pb::AdminStatusResponse {
            writable: false,
            ..Default::default()
        };
        let mut changed = node(pb::NodeState::Online);
        changed.ssh_host_keys_held = vec!["ssh-ed25519 AAAA".into()];
        let found = problems(&status, &[changed], 120_000_000);
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|problem| !problem.next.is_empty()));
        assert!(found[3].next.contains("mesh node host-key accept web"));
    }
}
