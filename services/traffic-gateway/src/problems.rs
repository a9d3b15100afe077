//! Which problem a request has, in words for people: what is the matter and what to do next.

use http::StatusCode;
use hyper_reverse_proxy::{BadRequest, ConnectError, ProxyError};
use mesh_types::{NodeName, NodeState};

use crate::pages::Problem;
use crate::route_table::{Destination, Resolved};

/// Nothing of ours has this host name.
pub fn unknown_host(host: &str) -> Problem {
    let host: String = host.chars().take(100).collect();
    Problem {
        status: StatusCode::MISDIRECTED_REQUEST,
        word: "unknown-host",
        title: "Unknown host".into(),
        message: format!("This gateway does not answer for \"{host}\"."),
        advice: "If it should, add the name to 'server.allowed_hosts' (or a domain for workers to \
                 'server.host_suffixes') in the gateway's configuration."
            .into(),
    }
}

/// A page of another site tried to open a WebSocket.
pub fn foreign_origin() -> Problem {
    Problem {
        status: StatusCode::FORBIDDEN,
        word: "origin",
        title: "Refused".into(),
        message: "A WebSocket may only be opened by a page of this very host.".into(),
        advice: String::new(),
    }
}

/// Plain HTTP past the proxy in front.
pub fn plain_http() -> Problem {
    Problem {
        status: StatusCode::FORBIDDEN,
        word: "plain-http",
        title: "Refused".into(),
        message: "From other machines this gateway is reached through the proxy in front of it: \
                  plain HTTP would send passwords in the clear."
            .into(),
        advice: "If you come from that proxy, its address is missing in 'server.trusted_proxies' \
                 of the gateway's configuration."
            .into(),
    }
}

/// As many clients are connected as may be.
pub fn full() -> Problem {
    Problem {
        status: StatusCode::SERVICE_UNAVAILABLE,
        word: "full",
        title: "Too many connections".into(),
        message: "This gateway has as many connections open as it may.".into(),
        advice: "Try again in a moment. If this lasts, raise 'server.max_connections' in the \
                 gateway's configuration."
            .into(),
    }
}

/// The request can be read in two ways, or in none.
pub fn bad_request(fault: BadRequest) -> Problem {
    Problem {
        status: StatusCode::BAD_REQUEST,
        word: "bad-request",
        title: "Bad request".into(),
        message: format!("This request is not forwarded: {fault}."),
        advice: String::new(),
    }
}

/// The client did not send the body that it announced.
fn broken_off(error: &ProxyError) -> Problem {
    Problem {
        status: error.status(),
        word: "bad-request",
        title: "The request broke off".into(),
        message: "The body of this request did not come whole, or not in time.".into(),
        advice: "Send it again.".into(),
    }
}

/// Only reading is possible here.
pub fn method() -> Problem {
    Problem {
        status: StatusCode::METHOD_NOT_ALLOWED,
        word: "method",
        title: "Method not allowed".into(),
        message: "This page of the gateway can only be read (GET or HEAD).".into(),
        advice: String::new(),
    }
}

/// The request leads nowhere; `None` for a request that leads somewhere.
pub fn unresolved(resolved: &Resolved<'_>) -> Option<Problem> {
    let (word, title, message, advice) = match resolved {
        Resolved::Forward { .. } | Resolved::Redirect(_) | Resolved::Fleet => return None,
        Resolved::UnknownPath => (
            "unknown-path",
            "Nothing here",
            "There is nothing at this address.".to_owned(),
            "Consoles are at '/<worker>/', and at '/n/<network>/<worker>/' in other networks than \
             the default one."
                .to_owned(),
        ),
        Resolved::UnknownNetwork(name) => (
            "unknown-network",
            "No such network",
            format!("This gateway is in no network named \"{}\".", short(name)),
            "Let it join one with 'traffic-gateway join --token-file FILE' and a token of \
             'mesh token create --role gateway --network NAME'."
                .to_owned(),
        ),
        Resolved::UnknownNode(name) => (
            "unknown-node",
            "No such worker",
            format!("There is no worker named \"{}\" in this network.", short(name)),
            "See 'mesh node list', or the list of all workers. A new worker shows up seconds after \
             it has joined."
                .to_owned(),
        ),
        Resolved::UnknownService { node, service } => (
            "unknown-service",
            "No such service",
            format!("{node} publishes no HTTP service named \"{}\".", short(service)),
            format!("On {node}: 'worker-agent publish {} PORT'.", short(service)),
        ),
        Resolved::NoConsole(node) => (
            "no-console",
            "No console",
            format!("{node} publishes no console."),
            format!("On {node}: 'worker-agent status' says why."),
        ),
    };
    let status = match resolved {
        Resolved::NoConsole(_) => StatusCode::BAD_GATEWAY,
        _ => StatusCode::NOT_FOUND,
    };
    Some(Problem {
        status,
        word,
        title: title.to_owned(),
        message,
        advice,
    })
}

/// At most as much of the client's own text as is of use.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The worker did not answer as it should.
pub fn upstream(error: &ProxyError, to: &Destination) -> Problem {
    let Destination {
        node,
        service,
        state,
        ..
    } = to;
    match error {
        ProxyError::Request(fault) => bad_request(*fault),
        client if client.is_clients() => broken_off(client),
        ProxyError::Connect(ConnectError::Refused(_)) => Problem {
            status: error.status(),
            word: "refused",
            title: format!("{node} refuses"),
            message: format!("{node} is there, but nothing answers for its {service}."),
            advice: format!("On {node}: 'worker-agent status' says what is wrong."),
        },
        ProxyError::Connect(ConnectError::TimedOut) if *state == NodeState::Online => Problem {
            status: error.status(),
            word: "slow",
            title: format!("{node} does not answer"),
            message: format!(
                "{node} sends heartbeats, but its {service} did not answer this gateway in time."
            ),
            advice: unreachable_advice(node),
        },
        ProxyError::Connect(ConnectError::TimedOut | ConnectError::Unreachable(_)) => Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            word: "unreachable",
            title: format!("{node} cannot be reached"),
            message: match state {
                NodeState::Online => format!(
                    "{node} sends heartbeats, but this gateway has no path to it at present."
                ),
                NodeState::Stale => format!("{node} has missed its last heartbeats."),
                NodeState::Offline => {
                    format!("{node} is offline: it has sent no heartbeat for some time.")
                }
            },
            advice: unreachable_advice(node),
        },
        ProxyError::FirstByte(limit) => Problem {
            status: error.status(),
            word: "slow",
            title: format!("{node} is too slow"),
            message: format!(
                "The {service} of {node} took the request and did not begin to answer within {} s.",
                limit.as_secs()
            ),
            advice: "Try again; if this is how long it takes, raise 'limits.first_byte'.".into(),
        },
        ProxyError::Upstream(_) | ProxyError::Upgrade => Problem {
            status: error.status(),
            word: "broken",
            title: format!("{node} broke off"),
            message: format!(
                "The {service} of {node} closed the connection or answered something that is not \
                 HTTP."
            ),
            advice: format!("On {node}: look at the log of what serves its {service}."),
        },
    }
}

/// Whether the worker did not answer because it is not there, as the coordinator had said before.
/// What refuses, or breaks off, is there.
pub fn is_offline(error: &ProxyError, to: &Destination) -> bool {
    to.state == NodeState::Offline
        && matches!(
            error,
            ProxyError::Connect(ConnectError::TimedOut | ConnectError::Unreachable(_))
        )
}

fn unreachable_advice(node: &NodeName) -> String {
    format!("See 'mesh node show {node}'; on {node}: 'worker-agent status'.")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper_reverse_proxy::{Mount, Upstream};
    use mesh_types::{NetworkName, ServiceKind};

    use super::*;
    use crate::route_table::{NetworkSlot, Target};

    fn destination(state: NodeState) -> Destination {
        let upstream = || Upstream {
            target: Target {
                slot: NetworkSlot(0),
                addr: ([100, 64, 0, 1], 9090).into(),
            },
            mount: Mount::root(),
            authority: None,
        };
        Destination {
            network: NetworkName::default_network(),
            node: "w1".parse().expect("a name"),
            service: "console".parse().expect("a name"),
            kind: ServiceKind::Console,
            state,
            shared: upstream(),
            own: upstream(),
            figures: Default::default(),
        }
    }

    #[test]
    fn a_dial_in_vain_is_told_apart_by_what_the_heartbeats_say() {
        let timed_out = || ProxyError::Connect(ConnectError::TimedOut);
        let status = |state| upstream(&timed_out(), &destination(state)).status.as_u16();
        assert_eq!(status(NodeState::Online), 504);
        assert_eq!(status(NodeState::Stale), 503);
        assert_eq!(status(NodeState::Offline), 503);
    }

    #[test]
    fn only_who_is_said_to_be_offline_and_is_not_there_counts_as_offline() {
        let gone = || ProxyError::Connect(ConnectError::TimedOut);
        let cut_off = || ProxyError::Connect(ConnectError::Unreachable("no path".into()));
        for error in [gone(), cut_off()] {
            assert!(is_offline(&error, &destination(NodeState::Offline)));
            assert!(!is_offline(&error, &destination(NodeState::Stale)));
            assert!(!is_offline(&error, &destination(NodeState::Online)));
        }
        for error in [
            ProxyError::Connect(ConnectError::Refused("reset".into())),
            ProxyError::FirstByte(Duration::from_secs(60)),
            ProxyError::Upgrade,
            ProxyError::Request(BadRequest::Host),
        ] {
            assert!(!is_offline(&error, &destination(NodeState::Offline)));
        }
    }

    #[test]
    fn a_problem_shows_no_more_of_the_request_than_is_of_use() {
        let long = "x".repeat(10_000);
        let shown = unresolved(&Resolved::UnknownNode(long.clone())).expect("a problem");
        assert!(shown.message.len() < 200);
        assert!(unknown_host(&long).message.len() < 200);
    }
}
