//! From a node's status to what is wrong with it and what to type: the one place that knows, for
//! every program that is a node. Pure; `now` is the caller's.

use std::time::Duration;

use mesh_types::{Finding, NodeState, Role, Timestamp};

use crate::enrol::utc;
use crate::status::{NodeStatus, PeerPath, PeerStatus, ShellStatus};
use crate::tun::MADE_WITHIN;

mod membership;
mod stopped;

pub use membership::{Away, of_membership};
use stopped::of_no_network;
pub use stopped::{of_damaged, of_silent, of_stopped};

/// A node starts, connects and finds its relay within this time: until then nothing is wrong.
pub const STARTING: Duration = Duration::from_secs(15);
/// STUN is asked every 25 s and answers at once: whoever hears nothing for so long is shut off.
const UDP_SILENCE: Duration = Duration::from_secs(90);
/// Names listed of many peers.
const LISTED: usize = 5;

/// What is wrong with a node of this status, the most far-reaching first.
pub fn advice(status: &NodeStatus, now: Timestamp) -> Vec<Finding> {
    let (enrolled, control) = (&status.enrolled, &status.control);
    let mut found = of_membership(enrolled, control, now, |why| away(status, why, now));
    if control.is_removed() {
        return found;
    }
    found.extend(disk(status));
    found.extend(aside(status));
    found.extend(device(status));
    found.extend(relay(status, now));
    found.extend(udp(status, now));
    found.extend(peers(status));
    found
}

/// What is wrong with a program that is a node in several networks, one status for each. With more
/// than one, what is said begins with the network's name; in none, that is what is wrong.
pub fn advice_of_all(role: Role, statuses: &[NodeStatus], now: Timestamp) -> Vec<Finding> {
    if statuses.is_empty() {
        return vec![of_no_network(role)];
    }
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

/// What goes on while the coordinator is not connected.
fn away(status: &NodeStatus, away: Away<'_>, now: Timestamp) -> Finding {
    let Away { code, error, next } = away;
    let since = status.stale_since.unwrap_or(status.control.since);
    // Names are looked up to find the coordinator only, so both mean the same to everything else.
    if !status.has_netmap {
        let what = format!(
            "{error}; there is no netmap from before to act on, so nothing works until the \
             coordinator answers"
        );
        return Finding::error("no-netmap", what, next);
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
    Finding::warning(code, what, next)
}

fn disk(status: &NodeStatus) -> Option<Finding> {
    let error = status.netmap_unsaved.as_deref()?;
    Some(Finding::warning(
        "netmap-unsaved",
        format!("the netmap cannot be stored, so a restart would need the coordinator: {error}"),
        "df -h (make room); it is tried again every 10 s",
    ))
}

fn aside(status: &NodeStatus) -> Option<Finding> {
    let file = status.netmap_aside.as_deref()?;
    Some(Finding::notice(
        "netmap-set-aside",
        format!(
            "a stored netmap was damaged, or another node's, and was set aside as {file}: a start \
             then waits for the coordinator"
        ),
        format!("is the disk well (dmesg)? Then: rm {file}"),
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

/// What tells whether UDP gets through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Udp {
    /// The netmap has relays that answer STUN.
    pub(crate) has_stun: bool,
    /// A relay is connected, and a peer is reached through one.
    pub(crate) by_relay: bool,
    /// When a datagram last arrived, or the node started.
    pub(crate) heard: Timestamp,
}

impl Udp {
    /// Datagrams go out, and nothing comes back: not even from STUN servers.
    pub(crate) fn is_blocked(self, now: Timestamp) -> bool {
        self.has_stun && self.by_relay && now.since(self.heard) > UDP_SILENCE
    }
}

fn udp(status: &NodeStatus, now: Timestamp) -> Option<Finding> {
    let relayed = |peer: &PeerStatus| matches!(peer.path, PeerPath::Relay { .. });
    let udp = Udp {
        has_stun: status.has_stun,
        by_relay: status.relays.iter().any(|relay| relay.connected)
            && status.peers.iter().any(relayed),
        heard: status.udp_heard.unwrap_or(status.started),
    };
    udp.is_blocked(now).then(|| {
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

/// Peers that are there and that no packet reaches. Without a relay a direct path may be no more than
/// an address to try: nobody has answered there as long as there is no session.
fn unreached(status: &NodeStatus) -> impl Iterator<Item = &PeerStatus> {
    let leads = |peer: &PeerStatus| match peer.path {
        PeerPath::Direct { .. } => peer.last_handshake.is_some(),
        PeerPath::Relay { .. } => true,
        PeerPath::None => false,
    };
    status
        .peers
        .iter()
        .filter(move |peer| peer.state == NodeState::Online && peer.active && !leads(peer))
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
