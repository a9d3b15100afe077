use std::collections::BTreeMap;

use mesh_api::client::{NAME_UNKNOWN, OWN_CLOCK};
use mesh_testkit::assert_found;
use mesh_types::{OverlayAddrs, RelayId, Role, Severity};

use super::*;
use crate::control::{ControlState, ControlStatus, TOOK_OVER};
use crate::state_dir::Enrolled;
use crate::status::RelayStatus;

const NOW: i64 = 1_700_000_000;
const DAY: u64 = 86_400;

fn now() -> Timestamp {
    Timestamp::from_secs(NOW)
}

fn ago(secs: u64) -> Timestamp {
    now().minus(Duration::from_secs(secs))
}

fn ahead(secs: u64) -> Timestamp {
    now().plus(Duration::from_secs(secs))
}

fn addrs(last: u8) -> OverlayAddrs {
    OverlayAddrs {
        v4: format!("100.64.0.{last}").parse().expect("an address"),
        v6: format!("fd7a:115c:a1e0::{last}")
            .parse()
            .expect("an address"),
    }
}

fn relay_id() -> RelayId {
    RelayId::from_bytes([7; 16])
}

fn peer(name: &str, state: NodeState, path: PeerPath) -> PeerStatus {
    PeerStatus {
        id: mesh_types::NodeId::from_bytes([9; 16]),
        name: name.parse().expect("a name"),
        role: Role::Gateway,
        addrs: addrs(2),
        state,
        path,
        last_handshake: Some(ago(60)),
        rx_bytes: 0,
        tx_bytes: 0,
        rx_relay_bytes: 0,
        tx_relay_bytes: 0,
        rtt_ms: None,
        active: true,
        services: Vec::new(),
    }
}

fn direct() -> PeerPath {
    PeerPath::Direct {
        addr: ([192, 0, 2, 1], 51820).into(),
    }
}

/// A node an hour after its start, with which nothing is wrong.
fn healthy() -> NodeStatus {
    let enrolled = Enrolled {
        node: mesh_types::NodeId::from_bytes([1; 16]),
        name: "web".parse().expect("a name"),
        role: Role::Worker,
        network: None,
        network_id: None,
        addrs: Some(addrs(1)),
        console_prefix: "/web/".into(),
        owner: "anna".into(),
        coordinators: vec!["mesh.example.org:8080".into()],
    };
    NodeStatus {
        name: enrolled.name.clone(),
        addrs: enrolled.addrs,
        enrolled,
        shell: ShellStatus::Userspace,
        wg_port: 51820,
        endpoints: Vec::new(),
        control: ControlStatus {
            state: ControlState::Connected,
            since: ago(3600),
            last_error: None,
            stale_since: None,
            certificate_until: ahead(25 * DAY),
        },
        started: ago(3600),
        has_netmap: true,
        stale_since: None,
        netmap_stored: false,
        netmap_unsaved: None,
        netmap_aside: None,
        udp_heard: Some(ago(3)),
        has_stun: true,
        home_relay: Some(relay_id()),
        relays: vec![RelayStatus {
            id: relay_id(),
            connected: true,
            local_addr: None,
            latency_ms: None,
            error: None,
        }],
        services: Vec::new(),
        peers: vec![peer("gateway", NodeState::Online, direct())],
        counters: BTreeMap::new(),
        drops: BTreeMap::new(),
    }
}

fn away(status: &mut NodeStatus, error: &str) {
    status.control.state = ControlState::Waiting;
    status.control.last_error = Some(error.into());
    status.control.stale_since = Some(ago(120));
    status.stale_since = Some(ago(120));
}

fn relayed(status: &mut NodeStatus) {
    for peer in &mut status.peers {
        peer.path = PeerPath::Relay { id: relay_id() };
    }
}

/// A fault, how it is done to a healthy node, and what must be said: code, severity, a part of what
/// is wrong, a part of the next command.
type Row = (
    fn(&mut NodeStatus),
    &'static str,
    Severity,
    &'static str,
    &'static str,
);

const ROWS: [Row; 20] = [
    (
        |status| {
            let error = "cannot reach the server; mesh.example.org:8080: what answers there does \
                         not speak TLS as a mesh server does (wrong port?)";
            away(status, error);
        },
        "wrong-address",
        Severity::Warning,
        "does not speak TLS as a mesh server does (wrong port?); acting on the netmap",
        "is that the coordinator's address",
    ),
    (
        |status| {
            away(
                status,
                "cannot reach the server; mesh.example.org:8080: nothing answers there",
            )
        },
        "coordinator-unreachable",
        Severity::Warning,
        "acting on the netmap as it was 120 s ago",
        "systemctl status mesh-coordinator",
    ),
    (
        |status| {
            away(status, "nothing answers there");
            status.netmap_stored = true;
        },
        "netmap-stored",
        Severity::Warning,
        "the stored netmap of 2023-11-14 22:11 UTC",
        "mesh.example.org:8080",
    ),
    (
        |status| {
            away(status, "nothing answers there");
            status.has_netmap = false;
        },
        "no-netmap",
        Severity::Error,
        "nothing works until the coordinator answers",
        "systemctl status mesh-coordinator",
    ),
    (
        |status| {
            let error = format!("cannot reach the server; mesh.example.org:8080: {NAME_UNKNOWN}");
            away(status, &error);
        },
        "name-unknown",
        Severity::Warning,
        "its name leads to no address",
        "resolvectl status",
    ),
    (
        |status| {
            let text = format!("{OWN_CLOCK} is 86400 s ahead of the coordinator's");
            status.control.last_error = Some(text);
        },
        "clock-skew",
        Severity::Error,
        "86400 s ahead",
        "timedatectl set-ntp true",
    ),
    (
        |status| {
            let text =
                format!("the server's certificate is not valid at this time: check {OWN_CLOCK}");
            away(status, &text);
        },
        "clock-skew",
        Severity::Error,
        "not valid at this time",
        "timedatectl",
    ),
    (
        |status| {
            status.control.last_error =
                Some("the coordinator refused a heartbeat: replayed".into());
        },
        "heartbeat-refused",
        Severity::Error,
        "replayed",
        "mesh events",
    ),
    (
        |status| {
            status.control.last_error = Some("the certificate was not renewed: no room".into());
        },
        "renewal-failed",
        Severity::Warning,
        "not renewed: no room",
        "tried again each minute",
    ),
    (
        |status| away(status, TOOK_OVER),
        "identity-twice",
        Severity::Error,
        "another machine uses this node's identity",
        "worker-agent join",
    ),
    (
        |status| status.control.state = ControlState::Removed,
        "node-removed",
        Severity::Error,
        "removed this node",
        "worker-agent leave",
    ),
    (
        |status| status.control.certificate_until = ago(60),
        "certificate-ended",
        Severity::Error,
        "ended at 2023-11-14 22:12 UTC",
        "timedatectl",
    ),
    (
        |status| {
            status.control.certificate_until = ahead(4 * DAY);
            away(status, "the certificate was not renewed: no room");
        },
        "certificate-low",
        Severity::Warning,
        "ends in 4 days and should have been renewed by now (the certificate was not renewed: no room)",
        "renews by itself",
    ),
    (
        |status| status.netmap_unsaved = Some("cannot write netmap: no space left".into()),
        "netmap-unsaved",
        Severity::Warning,
        "no space left",
        "df -h",
    ),
    (
        |status| status.netmap_aside = Some("/var/lib/mesh/netmap.bad".into()),
        "netmap-set-aside",
        Severity::Notice,
        "set aside as /var/lib/mesh/netmap.bad",
        "rm /var/lib/mesh/netmap.bad",
    ),
    (
        |status| {
            status.shell = ShellStatus::Tun {
                device: "mesh0".into(),
                present: true,
                ipv6: true,
                routes: 1,
                problem: Some("it does not take an address".into()),
            };
        },
        "tun-trouble",
        Severity::Error,
        "mesh0: it does not take an address; it is tried again",
        "ip link show mesh0",
    ),
    (
        |status| {
            status.shell = ShellStatus::Tun {
                device: "mesh0".into(),
                present: false,
                ipv6: false,
                routes: 0,
                problem: Some("somebody removed it".into()),
            };
        },
        "tun-trouble",
        Severity::Error,
        "mesh0 is gone (somebody removed it): programs of this machine reach no peer; it is made \
         again by itself, tried every 10 s",
        "ip link show mesh0",
    ),
    (
        |status| {
            status.relays[0].connected = false;
            status.relays[0].error = Some("connection refused".into());
        },
        "relay-down",
        Severity::Warning,
        "no relay is connected (connection refused)",
        "systemctl status mesh-relay",
    ),
    (
        |status| {
            status.udp_heard = Some(ago(91));
            relayed(status);
        },
        "udp-blocked",
        Severity::Warning,
        "everything goes through relays",
        "nft list ruleset",
    ),
    (
        |status| {
            status
                .peers
                .push(peer("attic", NodeState::Offline, PeerPath::None))
        },
        "peer-offline",
        Severity::Notice,
        "1 of 2 peers offline: attic",
        "mesh node show attic",
    ),
];

#[test]
fn nothing_is_wrong_with_a_healthy_node() {
    assert_eq!(advice(&healthy(), now()), []);
}

#[test]
fn each_fault_has_its_word_what_is_wrong_and_the_next_command() {
    for (fault, code, severity, what, next) in ROWS {
        let mut status = healthy();
        fault(&mut status);
        assert_found(&advice(&status, now()), code, severity, what, next);
    }
}

#[test]
fn each_program_is_told_how_it_itself_joins_again() {
    for (role, wanted) in [
        (Role::Worker, "worker-agent leave"),
        (
            Role::Gateway,
            "remove network-lab in its state directory; then traffic-gateway join",
        ),
        (
            Role::Deployer,
            "then deploy-manager join --token-file FILE, with a token of 'mesh token create --role deployer'",
        ),
    ] {
        let mut status = healthy();
        status.enrolled.role = role;
        status.enrolled.network = Some("lab".parse().expect("a name"));
        status.control.state = ControlState::Removed;
        let next = &advice(&status, now())[0].next;
        assert!(next.contains(wanted), "{role}: {next}");
    }
}

#[test]
fn of_several_networks_each_trouble_names_its_own() {
    let in_network = |name: &str| {
        let mut status = healthy();
        status.enrolled.network = Some(name.parse().expect("a name"));
        status
    };
    let (mut home, lab) = (in_network("default"), in_network("lab"));
    home.netmap_unsaved = Some("no space left".into());
    let of_one = advice_of_all(Role::Gateway, std::slice::from_ref(&home), now());
    assert_eq!(of_one, advice(&home, now()), "there is only one to mean");
    let found = advice_of_all(Role::Gateway, &[home, lab], now());
    let [finding] = &found[..] else {
        panic!("the lab is well: {found:?}");
    };
    assert_eq!(finding.code, "netmap-unsaved");
    assert!(
        finding
            .what
            .starts_with("in network default: the netmap cannot be stored"),
        "{finding}"
    );
}

#[test]
fn paths_that_are_not_there_are_told() {
    let mut status = healthy();
    let codes = |status: &NodeStatus| -> Vec<String> {
        let found = advice(status, now());
        found.into_iter().map(|finding| finding.code).collect()
    };
    // It is only an address to try.
    status.peers[0].last_handshake = None;
    assert_eq!(codes(&status), ["peer-unreached"]);
    status.peers[0].path = PeerPath::None;
    assert_eq!(codes(&status), ["peer-unreached"]);
    status.relays.clear();
    assert_eq!(codes(&status), ["no-relay"]);
    status.peers[0].active = false;
    assert_eq!(codes(&status), Vec::<String>::new());
}

#[test]
fn what_is_only_starting_or_quiet_is_no_fault() {
    let mut status = healthy();
    status.started = ago(5);
    status.relays[0].connected = false;
    status.udp_heard = None;
    status.control.state = ControlState::Connecting;
    status.control.stale_since = Some(ago(5));
    assert_eq!(advice(&status, now()), []);
    // UDP that is silent for want of anybody who would answer.
    let mut status = healthy();
    relayed(&mut status);
    status.udp_heard = None;
    status.has_stun = false;
    assert_eq!(advice(&status, now()), []);
}

#[test]
fn a_removed_node_is_told_of_that_alone() {
    let mut status = healthy();
    status.control.state = ControlState::Removed;
    status.control.last_error = Some("this node was removed from its network".into());
    status.relays.clear();
    status.control.certificate_until = ago(60);
    assert_eq!(advice(&status, now()).len(), 1);
}
