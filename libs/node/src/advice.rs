//! From a node's status to what is wrong with it and what to type: the one place that knows, for
//! every program that is a node. Pure; `now` is the caller's.

use std::time::Duration;

use mesh_api::client::{NAME_UNKNOWN, OWN_CLOCK, leads_elsewhere};
use mesh_types::{Finding, NodeState, Role, Timestamp};

use crate::control::{ControlState, TOOK_OVER};
use crate::enrol::utc;
use crate::status::{NodeStatus, PeerPath, PeerStatus, ShellStatus};
use crate::tun::MADE_WITHIN;

/// A node starts, connects and finds its relay within this time: until then nothing is wrong.
const STARTING: Duration = Duration::from_secs(15);
/// STUN is asked every 25 s and answers at once: whoever hears nothing for so long is shut off.
const UDP_SILENCE: Duration = Duration::from_secs(90);
/// A certificate is renewed with a third of its 30 days left, so less than this means that the
/// renewal fails.
const CERTIFICATE_LOW: Duration = Duration::from_secs(5 * 86_400);
/// Names listed of many peers.
const LISTED: usize = 5;

/// What is wrong with a node of this status, the most far-reaching first.
pub fn advice(status: &NodeStatus, now: Timestamp) -> Vec<Finding> {
    if status.control.is_removed() {
        return vec![Finding::error(
            "node-removed",
            "an operator removed this node from its network; what it was is of no use any more",
            join_anew(status),
        )];
    }
    let mut found = Vec::new();
    found.extend(coordinator(status, now));
    found.extend(certificate(status, now));
    found.extend(disk(status));
    found.extend(device(status));
    found.extend(relay(status, now));
    found.extend(udp(status, now));
    found.extend(peers(status));
    found
}

/// What is wrong with a program that is a node in several networks, one status for each. With more
/// than one, what is said begins with the network's name.
pub fn advice_of_all(statuses: &[NodeStatus], now: Timestamp) -> Vec<Finding> {
    let mut found = Vec::new();
    for status in statuses {
        let mut of_one = advice(status, now);
        if let Some(network) = &status.enrolled.network
            && statuses.len() > 1
        {
            for finding in &mut of_one {
                finding.what = format!("in network {network}: {}", finding.what);
            }
        }
        found.extend(of_one);
    }
    found
}

/// How a program that lost its identity gets another one.
fn join_anew(status: &NodeStatus) -> String {
    let role = status.enrolled.role;
    let network = status.enrolled.network.as_ref();
    let network = network.map_or("default", |network| network.as_str());
    match role {
        Role::Gateway | Role::Deployer => format!(
            "stop this program and remove network-{network} in its state directory; then {} join \
             --token-file FILE, with a token of 'mesh token create --role {role}'",
            role.program()
        ),
        _ => "worker-agent leave, then join again with a token of 'mesh token create'".to_owned(),
    }
}

/// Between this node and its coordinator.
fn coordinator(status: &NodeStatus, now: Timestamp) -> Option<Finding> {
    let control = &status.control;
    let error = control.last_error.as_deref();
    if let Some(error) = error {
        if error.contains(OWN_CLOCK) {
            return Some(Finding::error(
                "clock-skew",
                error,
                "timedatectl set-ntp true (then: timedatectl)",
            ));
        }
        if error == TOOK_OVER {
            return Some(Finding::error(
                "identity-twice",
                "another machine uses this node's identity: a copied state directory, a cloned disk",
                format!(
                    "on the copy: remove its state directory, then {} join with a new token",
                    status.enrolled.role.program()
                ),
            ));
        }
    }
    match (control.state, error) {
        (ControlState::Connected, Some(error)) if error.contains("heartbeat") => {
            Some(Finding::error(
                "heartbeat-refused",
                error,
                "where an operator is: mesh events -n 50",
            ))
        }
        (ControlState::Connected, Some(error)) => Some(Finding::warning(
            "renewal-failed",
            error,
            "it is tried again each minute; where the coordinator runs: mesh status",
        )),
        (ControlState::Connecting | ControlState::Waiting, _) => away(status, now),
        _ => None,
    }
}

/// The coordinator is not connected.
fn away(status: &NodeStatus, now: Timestamp) -> Option<Finding> {
    let control = &status.control;
    let error = control.last_error.as_deref();
    // Without an error nothing has failed yet.
    let error = error?;
    let since = status.stale_since.unwrap_or(control.since);
    let (code, next) = if error.contains(NAME_UNKNOWN) {
        (
            "name-unknown",
            "resolvectl status (or: cat /etc/resolv.conf)".to_owned(),
        )
    } else if leads_elsewhere(error) {
        let next = format!(
            "is that the coordinator's address, here and there? Once it has moved for good: {}",
            join_anew(status)
        );
        ("wrong-address", next)
    } else {
        let addrs = status.enrolled.coordinators.join(" ");
        let next = format!(
            "where the coordinator runs ({addrs}): systemctl status mesh-coordinator; here: is its \
             port open?"
        );
        ("coordinator-unreachable", next)
    };
    // Names are looked up to find the coordinator only, so both mean the same to everything else.
    if !status.has_netmap {
        let what = format!(
            "{error}; there is no netmap from before to act on, so nothing works until the \
             coordinator answers"
        );
        return Some(Finding::error("no-netmap", what, next));
    }
    let stored = || format!("acting on the stored netmap of {}", utc(since));
    let (code, held) = match (code, status.netmap_stored) {
        ("coordinator-unreachable", true) => ("netmap-stored", stored()),
        (code, true) => (code, stored()),
        (code, false) => {
            let secs = now.since(since).as_secs();
            (code, format!("acting on the netmap as it was {secs} s ago"))
        }
    };
    let what = format!("{error}; {held}: traffic with known peers goes on, changes wait");
    Some(Finding::warning(code, what, next))
}

fn certificate(status: &NodeStatus, now: Timestamp) -> Option<Finding> {
    let until = status.control.certificate_until;
    let why = status
        .control
        .last_error
        .as_deref()
        .map_or_else(String::new, |error| format!(" ({error})"));
    let next = "is the coordinator reached, is the clock right? timedatectl; then restart this \
                program: it renews by itself";
    if now >= until {
        let what = format!("this node's certificate ended at {}{why}", utc(until));
        return Some(Finding::error("certificate-ended", what, next));
    }
    (until.since(now) < CERTIFICATE_LOW).then(|| {
        let days = until.since(now).as_secs() / 86_400;
        let what = format!(
            "this node's certificate ends in {days} days and should have been renewed by now{why}"
        );
        Finding::warning("certificate-low", what, next)
    })
}

fn disk(status: &NodeStatus) -> Option<Finding> {
    let error = status.netmap_unsaved.as_deref()?;
    Some(Finding::warning(
        "netmap-unsaved",
        format!("the netmap cannot be stored, so a restart would need the coordinator: {error}"),
        "df -h (make room); it is tried again every 10 s",
    ))
}

fn device(status: &NodeStatus) -> Option<Finding> {
    let ShellStatus::Tun {
        device,
        present,
        problem: Some(problem),
        ..
    } = &status.shell
    else {
        return None;
    };
    let what = if *present {
        format!("the network device {device}: {problem}; it is tried again each second")
    } else {
        format!(
            "the network device {device} is gone ({problem}): programs of this machine reach no \
             peer; it is made again by itself, tried every {} s at least, and what this program \
             serves goes on",
            MADE_WITHIN.as_secs()
        )
    };
    let next = format!("ip link show {device}; then this program's log");
    Some(Finding::error("tun-trouble", what, next))
}

fn relay(status: &NodeStatus, now: Timestamp) -> Option<Finding> {
    if status.relays.iter().any(|relay| relay.connected) || is_starting(status, now) {
        return None;
    }
    if status.relays.is_empty() {
        // Switched off here, or none in the network: peers that answer directly are all there is.
        return unreached(status).next().map(|_| {
            Finding::warning(
                "no-relay",
                "there is no relay, so peers that do not answer directly cannot be reached",
                "where an operator is: mesh token create --role relay",
            )
        });
    }
    let errors: Vec<&str> = status
        .relays
        .iter()
        .filter_map(|relay| relay.error.as_deref())
        .collect();
    let why = errors.first().copied().unwrap_or("not connected yet");
    Some(Finding::warning(
        "relay-down",
        format!("no relay is connected ({why}): only peers that answer directly are reached"),
        "on the relay's machine: systemctl status mesh-relay; where an operator is: mesh status",
    ))
}

/// Whether it has not run for long enough to judge.
fn is_starting(status: &NodeStatus, now: Timestamp) -> bool {
    now.since(status.started) < STARTING
}

/// Datagrams go out, and nothing comes back: not even from STUN servers.
fn udp(status: &NodeStatus, now: Timestamp) -> Option<Finding> {
    let relayed = |peer: &PeerStatus| matches!(peer.path, PeerPath::Relay { .. });
    let silent = now.since(status.udp_heard.unwrap_or(status.started)) > UDP_SILENCE;
    let by_relay =
        status.relays.iter().any(|relay| relay.connected) && status.peers.iter().any(relayed);
    (status.has_stun && silent && by_relay).then(|| {
        Finding::warning(
            "udp-blocked",
            format!(
                "no UDP datagram has arrived for {} s: everything goes through relays, which is \
                 slower",
                UDP_SILENCE.as_secs()
            ),
            format!(
                "let UDP out of this network, or to port {} of this machine: nft list ruleset",
                status.wg_port
            ),
        )
    })
}

/// Peers that are there and that no packet reaches.
fn unreached(status: &NodeStatus) -> impl Iterator<Item = &PeerStatus> {
    status.peers.iter().filter(|peer| {
        peer.state == NodeState::Online && peer.active && peer.path == PeerPath::None
    })
}

fn peers(status: &NodeStatus) -> Vec<Finding> {
    let mut found = Vec::new();
    let unreached: Vec<&PeerStatus> = unreached(status).collect();
    if !unreached.is_empty() && status.relays.iter().any(|relay| relay.connected) {
        found.push(Finding::warning(
            "peer-unreached",
            format!(
                "no path leads to {}, neither directly nor by relay",
                names(&unreached)
            ),
            "there: worker-agent status (is its relay connected?)",
        ));
    }
    let offline: Vec<&PeerStatus> = status
        .peers
        .iter()
        .filter(|peer| peer.state == NodeState::Offline)
        .collect();
    // While the coordinator is away, who is offline is old news.
    if let Some(first) = offline.first()
        && status.control.is_connected()
    {
        found.push(Finding::notice(
            "peer-offline",
            format!(
                "{} of {} peers offline: {}",
                offline.len(),
                status.peers.len(),
                names(&offline)
            ),
            format!("where an operator is: mesh node show {}", first.name),
        ));
    }
    found
}

fn names(peers: &[&PeerStatus]) -> String {
    let mut text: Vec<String> = peers
        .iter()
        .take(LISTED)
        .map(|peer| peer.name.to_string())
        .collect();
    if peers.len() > LISTED {
        text.push(format!("{} more", peers.len() - LISTED));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests;
