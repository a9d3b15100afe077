//! From what the coordinator tells to what is wrong and what to type: the one place that knows, for
//! `mesh status`, `mesh node show` and the support bundle. Pure; `now` is the caller's.

use std::time::Duration;

use mesh_api::client::{NAME_UNKNOWN, OWN_CLOCK, leads_elsewhere};
use mesh_api::model::enums;
use mesh_api::pb;
use mesh_types::heartbeat::MAX_SKEW_SECS;
use mesh_types::{Finding, NodeState, OpenFiles, Role, Timestamp, Trouble, UptimeClass};

use crate::text;

/// A refused heartbeat is told of for this long; there is an event a minute while it goes on.
const RECENT: Duration = Duration::from_secs(180);
/// Certificates are renewed with a third of their life left, nodes' (30 days) as well as
/// operators' (90 days): less than this means that it fails.
const CERTIFICATE_LOW: Duration = Duration::from_secs(5 * 86_400);

/// What the coordinator told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) status: &'a pb::AdminStatusResponse,
    pub(crate) nodes: &'a [pb::Node],
    /// The latest ones.
    pub(crate) events: &'a [pb::Event],
}

/// What is wrong with the mesh, the most far-reaching first. `operator_until` is the end of the
/// asking operator's certificate.
pub(crate) fn of_mesh(
    told: Told<'_>,
    operator_until: Option<Timestamp>,
    now: Timestamp,
) -> Vec<Finding> {
    let status = told.status;
    let mut found = Vec::new();
    if !status.writable {
        found.push(store_down(&status.store_problem));
    }
    found.extend(skew(Timestamp::from_micros(status.server_time), now));
    if !status.bus_problem.is_empty() {
        found.push(Finding::warning(
            "bus-down",
            format!(
                "Redis does not answer ({}): everything goes on, changes spread slower",
                status.bus_problem
            ),
            "systemctl status redis (or: docker compose ps redis); it heals by itself",
        ));
    }
    let open_files = OpenFiles {
        used: status.open_files,
        limit: status.open_files_limit,
    };
    found.extend(open_files.finding(false, "the coordinator", "mesh-coordinator"));
    found.extend(relays(&status.relays));
    found.extend(operator_until.and_then(|until| operator(until, now)));
    for node in told.nodes {
        found.extend(of_node(node, told.events, now));
    }
    found
}

/// The coordinator does not answer; `error` says why, address by address.
pub(crate) fn unreachable(error: &str) -> Finding {
    let what = format!(
        "{error}. What runs goes on: tunnels, consoles, SOCKS5 and SSH; changes and joins wait"
    );
    if error.contains(OWN_CLOCK) {
        return Finding::error("clock-skew", what, "timedatectl set-ntp true");
    }
    if error.contains(NAME_UNKNOWN) {
        return Finding::error(
            "name-unknown",
            what,
            "resolvectl status (or: cat /etc/resolv.conf)",
        );
    }
    if leads_elsewhere(error) {
        return Finding::error(
            "wrong-address",
            what,
            "mesh context list (is that the coordinator's address?); another mesh: mesh context \
             use NAME; has it moved, on its machine: mesh login --coordinator-state DIR",
        );
    }
    Finding::error(
        "coordinator-unreachable",
        what,
        "on the coordinator's machine: systemctl status mesh-coordinator, or 'mesh up' where that \
         is what runs it; another mesh: mesh context use NAME",
    )
}

/// The events cannot be read, so refused heartbeats are not known.
pub(crate) fn events_unread(error: &str) -> Finding {
    Finding::notice(
        "events-unread",
        format!("events cannot be read: {error}. Refused heartbeats are not told meanwhile"),
        "mesh status says whether the store is down; else, on the coordinator's machine: \
         journalctl -u mesh-coordinator -n 50",
    )
}

fn store_down(problem: &str) -> Finding {
    let has = |words: &[&str]| {
        let problem = problem.to_lowercase();
        words.iter().any(|word| problem.contains(word))
    };
    let next = if has(&["full", "no space"]) {
        "on the coordinator's machine: df -h (make room); it heals by itself"
    } else if has(&["malformed", "not a database", "corrupt"]) {
        "stop the coordinator, then: mesh db check (docs/database.md, docs/failures.md)"
    } else if has(&["another coordinator", "held by"]) {
        "stop the other coordinator, or this one: one database serves one"
    } else if has(&["read-only", "readonly", "permission"]) {
        "on the coordinator's machine: findmnt -T /var/lib/mesh (is it mounted read-only?)"
    } else if has(&[
        "reached",
        "answer",
        "connection",
        "shutting down",
        "starting up",
    ]) {
        "systemctl status postgresql (or: docker compose ps postgres); it heals by itself"
    } else {
        "on the coordinator's machine: journalctl -u mesh-coordinator -n 50"
    };
    Finding::error(
        "store-down",
        format!("the store is down, changes are refused: {problem}"),
        next,
    )
}

/// Between this machine and the coordinator.
fn skew(server: Timestamp, now: Timestamp) -> Option<Finding> {
    let off = now.since(server).max(server.since(now)).as_secs();
    let way = if now > server { "ahead of" } else { "behind" };
    (off > MAX_SKEW_SECS).then(|| {
        Finding::error(
            "clock-skew",
            format!("{OWN_CLOCK} is {off} s {way} the coordinator's"),
            "timedatectl set-ntp true, on the one that is wrong",
        )
    })
}

fn relays(relays: &[pb::RelayStatus]) -> Vec<Finding> {
    if relays.is_empty() {
        return vec![Finding::warning(
            "no-relay",
            "there is no relay: nodes that cannot reach each other directly stay apart",
            "mesh token create --role relay",
        )];
    }
    let is_online = |relay: &&pb::RelayStatus| enums::node_state(relay.state) == NodeState::Online;
    let rest = relays.iter().any(|relay| is_online(&relay));
    let down = relays.iter().filter(|relay| !is_online(relay));
    down.map(|relay| {
        let state = enums::node_state(relay.state);
        let next = format!(
            "on its machine: systemctl status mesh-relay; gone for good: mesh node remove {}",
            relay.name
        );
        if rest {
            let what = format!("relay {} is {state}; its peers use another", relay.name);
            Finding::warning("relay-down", what, next)
        } else {
            let what = format!(
                "relay {} is {state}, and no other is online: nodes that do not reach each other \
                 directly are cut off",
                relay.name
            );
            Finding::error("relay-down", what, next)
        }
    })
    .collect()
}

fn operator(until: Timestamp, now: Timestamp) -> Option<Finding> {
    (until.since(now) < CERTIFICATE_LOW).then(|| {
        Finding::warning(
            "certificate-low",
            format!(
                "your operator certificate ends {}; it should have been renewed by now",
                text::relative(until.as_micros(), now)
            ),
            "mesh login --request FILE, and on another operator's machine: mesh operator add",
        )
    })
}

/// What is wrong with a node, as the coordinator sees it.
pub(crate) fn of_node(node: &pb::Node, events: &[pb::Event], now: Timestamp) -> Vec<Finding> {
    let at = if node.network == "default" {
        String::new()
    } else {
        format!(" --network {}", node.network)
    };
    let mut found = Vec::new();
    found.extend(twice(node, events, now));
    found.extend(refused(node, events, &at, now));
    found.extend(presence(node, &at, now));
    found.extend(certificate(node, now));
    found.extend(troubles(node));
    if !node.ssh_host_keys_held.is_empty() {
        found.push(Finding::error(
            "host-key-held",
            format!(
                "the SSH host key of {} changed, so SSH to it is refused",
                node.name
            ),
            format!(
                "if that was you: mesh node host-key accept {}{at}",
                node.name
            ),
        ));
    }
    found
}

/// The latest event of one of these kinds of a node, when that was lately.
fn latest<'a>(
    node: &pb::Node,
    events: &'a [pb::Event],
    kinds: &[&str],
    now: Timestamp,
) -> Option<&'a pb::Event> {
    events.iter().rev().find(|event| {
        kinds.contains(&event.kind.as_str())
            && event.subject == node.name
            && event.network == node.network
            && now.since(Timestamp::from_micros(event.time)) < RECENT
    })
}

/// Two machines take turns with its identity.
fn twice(node: &pb::Node, events: &[pb::Event], now: Timestamp) -> Option<Finding> {
    let event = latest(node, events, &["identity-twice"], now)?;
    let program = enums::role(node.role).unwrap_or(Role::Worker).program();
    Some(Finding::error(
        "identity-twice",
        format!("{}: {}", node.name, event.detail),
        format!(
            "find the copy (a cloned disk, a copied state directory); there: remove its state \
             directory, then {program} join with a new token"
        ),
    ))
}

/// Its heartbeats are refused: often the very reason why it is not online.
fn refused(node: &pb::Node, events: &[pb::Event], at: &str, now: Timestamp) -> Option<Finding> {
    let kinds = ["heartbeat-refused", "heartbeat-accepted"];
    let latest = latest(node, events, &kinds, now)?;
    if latest.kind == "heartbeat-accepted" {
        return None;
    }
    let (code, next) = if latest.detail.starts_with("skew") {
        let next = format!("on {}: timedatectl set-ntp true", node.name);
        ("clock-skew", next)
    } else {
        let next = format!(
            "is there a copy of that machine? If not: mesh node remove {}{at}, and join it anew",
            node.name
        );
        ("heartbeat-refused", next)
    };
    let what = format!("heartbeats of {} are refused: {}", node.name, latest.detail);
    Some(Finding::error(code, what, next))
}

fn presence(node: &pb::Node, at: &str, now: Timestamp) -> Option<Finding> {
    let state = enums::node_state(node.state);
    let expected = enums::uptime_class(node.uptime_class) == UptimeClass::AlwaysOn;
    if state == NodeState::Online || !expected {
        return None;
    }
    let program = enums::role(node.role).unwrap_or(Role::Worker).program();
    let next = format!(
        "on that machine: systemctl status mesh-{program} (or: {program} run); gone for good: mesh \
         node remove {}{at}",
        node.name
    );
    let seen = text::relative(node.last_seen, now);
    if node.last_seen == 0 {
        let what = format!("{} joined and was never seen since", node.name);
        return Some(Finding::error("node-offline", what, next));
    }
    let what = format!("{} is {state}, seen {seen}", node.name);
    Some(match state {
        NodeState::Stale => Finding::warning("node-stale", what, next),
        _ => Finding::error("node-offline", what, next),
    })
}

fn certificate(node: &pb::Node, now: Timestamp) -> Option<Finding> {
    let until = Timestamp::from_micros(node.certificate_not_after);
    if node.certificate_not_after == 0 || until.since(now) >= CERTIFICATE_LOW {
        return None;
    }
    let ends = text::relative(node.certificate_not_after, now);
    if enums::node_state(node.state) == NodeState::Online {
        let what = format!(
            "the certificate of {} ends {ends}; it should have been renewed by now",
            node.name
        );
        let next = format!("on {}: worker-agent status (it says why)", node.name);
        return Some(Finding::warning("certificate-low", what, next));
    }
    // Expiry strands nobody: whoever comes back renews with the key it enrolled.
    (now >= until).then(|| {
        let what = format!("the certificate of {} ended {ends}", node.name);
        let next = "nothing: it renews by itself when it comes back".to_owned();
        Finding::notice("certificate-ended", what, next)
    })
}

/// What it says of itself. A word that a later program says is told as it is.
fn troubles(node: &pb::Node) -> impl Iterator<Item = Finding> {
    node.troubles.iter().map(|word| {
        let known = Trouble::ALL
            .into_iter()
            .find(|known| known.as_str() == word);
        let what = match known {
            Some(trouble) => format!("{} {}", node.name, trouble.what()),
            None => format!("{} says: {word}", node.name),
        };
        let program = enums::role(node.role).unwrap_or(Role::Worker).program();
        let next = format!("on {}: {program} status (it says why)", node.name);
        match known {
            Some(Trouble::DeviceFault) => Finding::error(word, what, next),
            _ => Finding::warning(word, what, next),
        }
    })
}

#[cfg(test)]
mod tests;
