//! Between an identity and its coordinator: what is the same for nodes and relays.

use std::time::Duration;

use mesh_api::client::{NAME_UNKNOWN, OWN_CLOCK, leads_elsewhere};
use mesh_types::{Finding, Role, Timestamp};

use crate::control::{ControlState, ControlStatus, TOOK_OVER};
use crate::enrol::utc;
use crate::state_dir::Enrolled;

/// A certificate is renewed with a third of its 30 days left, so less than this means that the
/// renewal fails.
const CERTIFICATE_LOW: Duration = Duration::from_secs(5 * 86_400);

/// The coordinator is not connected.
#[derive(Debug)]
pub struct Away<'a> {
    /// The finding's word by its cause, such as `coordinator-unreachable`.
    pub code: &'static str,
    /// Why, in a sentence.
    pub error: &'a str,
    /// What to type about it.
    pub next: String,
}

/// What is wrong between an identity and its coordinator, the most far-reaching first. What a
/// coordinator that is away means to whoever has the identity, `away` says.
pub fn of_membership(
    enrolled: &Enrolled,
    control: &ControlStatus,
    now: Timestamp,
    away: impl FnOnce(Away<'_>) -> Finding,
) -> Vec<Finding> {
    if control.is_removed() {
        let what = match enrolled.role {
            Role::Relay => "an operator removed this relay from the mesh",
            _ => "an operator removed this node from its network",
        };
        return vec![Finding::error(
            "node-removed",
            format!("{what}; what it was is of no use any more"),
            join_anew(enrolled),
        )];
    }
    let mut found = Vec::new();
    found.extend(coordinator(enrolled, control, away));
    found.extend(certificate(control, now));
    found
}

/// How a program that lost its identity gets another one.
fn join_anew(enrolled: &Enrolled) -> String {
    let role = enrolled.role;
    let network = enrolled.network.as_ref();
    let network = network.map_or("default", |network| network.as_str());
    match role {
        Role::Gateway | Role::Deployer => format!(
            "stop this program and remove network-{network} in its state directory; then {} join \
             --token-file FILE, with a token of 'mesh token create --role {role}'",
            role.program()
        ),
        Role::Relay => "stop this program and empty its state directory; then relay join \
                        --token-file FILE, with a token of 'mesh token create --role relay'"
            .to_owned(),
        _ => "worker-agent leave, then join again with a token of 'mesh token create'".to_owned(),
    }
}

fn coordinator(
    enrolled: &Enrolled,
    control: &ControlStatus,
    away: impl FnOnce(Away<'_>) -> Finding,
) -> Option<Finding> {
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
                    enrolled.role.program()
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
        // Without an error nothing has failed yet.
        (ControlState::Connecting | ControlState::Waiting, Some(error)) => {
            Some(away(unconnected(enrolled, error)))
        }
        _ => None,
    }
}

fn unconnected<'a>(enrolled: &Enrolled, error: &'a str) -> Away<'a> {
    let (code, next) = if error.contains(NAME_UNKNOWN) {
        (
            "name-unknown",
            "resolvectl status (or: cat /etc/resolv.conf)".to_owned(),
        )
    } else if leads_elsewhere(error) {
        let next = format!(
            "is that the coordinator's address, here and there? Once it has moved for good: {}",
            join_anew(enrolled)
        );
        ("wrong-address", next)
    } else {
        let addrs = enrolled.coordinators.join(" ");
        let next = format!(
            "where the coordinator runs ({addrs}): systemctl status mesh-coordinator; here: is its \
             port open?"
        );
        ("coordinator-unreachable", next)
    };
    Away { code, error, next }
}

fn certificate(control: &ControlStatus, now: Timestamp) -> Option<Finding> {
    let until = control.certificate_until;
    let why = control
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
