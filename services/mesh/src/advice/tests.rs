use mesh_testkit::assert_found;
use mesh_types::Severity;

use super::*;

const NOW: i64 = 1_700_000_000;
const DAY: u64 = 86_400;

fn now() -> Timestamp {
    Timestamp::from_secs(NOW)
}

fn ago(secs: u64) -> i64 {
    now().minus(Duration::from_secs(secs)).as_micros()
}

fn ahead(secs: u64) -> i64 {
    now().plus(Duration::from_secs(secs)).as_micros()
}

/// A mesh with which nothing is wrong: two relays and a node.
#[derive(Debug)]
struct Mesh {
    status: pb::AdminStatusResponse,
    nodes: Vec<pb::Node>,
    events: Vec<pb::Event>,
    operator_until: i64,
}

impl Mesh {
    fn healthy() -> Self {
        let relay = |name: &str| pb::RelayStatus {
            name: name.into(),
            state: pb::NodeState::Online.into(),
            ..Default::default()
        };
        Self {
            status: pb::AdminStatusResponse {
                writable: true,
                server_time: ago(1),
                relays: vec![relay("relay-1"), relay("relay-2")],
                open_files: 30,
                open_files_limit: 1024,
                ..Default::default()
            },
            nodes: vec![pb::Node {
                name: "web".into(),
                network: "default".into(),
                role: pb::Role::Worker.into(),
                state: pb::NodeState::Online.into(),
                last_seen: ago(2),
                certificate_not_after: ahead(25 * DAY),
                ..Default::default()
            }],
            events: Vec::new(),
            operator_until: ahead(80 * DAY),
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let told = Told {
            status: &self.status,
            nodes: &self.nodes,
            events: &self.events,
        };
        of_mesh(
            told,
            Some(Timestamp::from_micros(self.operator_until)),
            now(),
        )
    }

    fn store_down(&mut self, problem: &str) {
        self.status.writable = false;
        self.status.store_problem = problem.into();
    }

    fn refused(&mut self, secs: u64, detail: &str) {
        self.happened(secs, "heartbeat-refused", detail);
    }

    fn happened(&mut self, secs: u64, kind: &str, detail: &str) {
        self.events.push(pb::Event {
            time: ago(secs),
            network: "default".into(),
            kind: kind.into(),
            subject: "web".into(),
            detail: detail.into(),
        });
    }
}

type Row = (
    fn(&mut Mesh),
    &'static str,
    Severity,
    &'static str,
    &'static str,
);

const ROWS: [Row; 23] = [
    (
        |mesh| mesh.happened(60, "identity-twice", "its streams take turns"),
        "identity-twice",
        Severity::Error,
        "web: its streams take turns",
        "find the copy",
    ),
    (
        |mesh| mesh.store_down("database or disk is full"),
        "store-down",
        Severity::Error,
        "changes are refused: database or disk is full",
        "df -h",
    ),
    (
        |mesh| mesh.store_down("the database cannot be reached"),
        "store-down",
        Severity::Error,
        "cannot be reached",
        "systemctl status postgresql",
    ),
    (
        |mesh| mesh.store_down("database disk image is malformed"),
        "store-down",
        Severity::Error,
        "malformed",
        "mesh db check",
    ),
    (
        |mesh| mesh.store_down("attempt to write a readonly database"),
        "store-down",
        Severity::Error,
        "readonly",
        "findmnt",
    ),
    (
        |mesh| mesh.store_down("something new"),
        "store-down",
        Severity::Error,
        "something new",
        "journalctl -u mesh-coordinator",
    ),
    (
        |mesh| mesh.status.bus_problem = "connection refused".into(),
        "bus-down",
        Severity::Warning,
        "connection refused",
        "systemctl status redis",
    ),
    (
        |mesh| mesh.status.server_time = ago(31),
        "clock-skew",
        Severity::Error,
        "31 s ahead of",
        "timedatectl set-ntp true",
    ),
    (
        |mesh| mesh.status.open_files = 1000,
        "descriptors-low",
        Severity::Warning,
        "the coordinator has 1000 of 1024",
        "LimitNOFILE",
    ),
    (
        |mesh| mesh.status.relays.clear(),
        "no-relay",
        Severity::Warning,
        "no relay",
        "mesh token create --role relay",
    ),
    (
        |mesh| mesh.status.relays[0].state = pb::NodeState::Offline.into(),
        "relay-down",
        Severity::Warning,
        "relay-1 is offline; its peers use another",
        "mesh node remove relay-1",
    ),
    (
        |mesh| {
            for relay in &mut mesh.status.relays {
                relay.state = pb::NodeState::Offline.into();
            }
        },
        "relay-down",
        Severity::Error,
        "are cut off",
        "systemctl status mesh-relay",
    ),
    (
        |mesh| mesh.operator_until = ahead(4 * DAY),
        "certificate-low",
        Severity::Warning,
        "your operator certificate ends in 4 days",
        "mesh login --request",
    ),
    (
        |mesh| mesh.nodes[0].state = pb::NodeState::Offline.into(),
        "node-offline",
        Severity::Error,
        "web is offline, seen 2 s ago",
        "mesh node remove web",
    ),
    (
        |mesh| mesh.nodes[0].state = pb::NodeState::Stale.into(),
        "node-stale",
        Severity::Warning,
        "web is stale",
        "systemctl status mesh-worker-agent",
    ),
    (
        |mesh| mesh.refused(60, "skew: its time is too far off"),
        "clock-skew",
        Severity::Error,
        "heartbeats of web are refused: skew",
        "on web: timedatectl",
    ),
    (
        |mesh| mesh.refused(60, "replay: seen before"),
        "heartbeat-refused",
        Severity::Error,
        "replay",
        "mesh node remove web",
    ),
    (
        |mesh| mesh.nodes[0].certificate_not_after = ahead(3 * DAY),
        "certificate-low",
        Severity::Warning,
        "the certificate of web ends in 3 days",
        "worker-agent status",
    ),
    (
        |mesh| mesh.nodes[0].troubles = vec!["netmap-unsaved".into()],
        "netmap-unsaved",
        Severity::Warning,
        "web cannot store its netmap",
        "on web: worker-agent status",
    ),
    (
        |mesh| mesh.nodes[0].troubles = vec!["descriptors-low".into()],
        "descriptors-low",
        Severity::Warning,
        "web has hardly any file descriptors left",
        "on web: worker-agent status",
    ),
    (
        |mesh| mesh.nodes[0].troubles = vec!["tun-trouble".into(), "udp-blocked".into()],
        "tun-trouble",
        Severity::Error,
        "web has trouble with its network device",
        "on web: worker-agent status",
    ),
    (
        |mesh| mesh.nodes[0].troubles = vec!["later".into()],
        "later",
        Severity::Warning,
        "web says: later",
        "on web: worker-agent status",
    ),
    (
        |mesh| mesh.nodes[0].ssh_host_keys_held = vec!["ssh-ed25519 AAAA".into()],
        "host-key-held",
        Severity::Error,
        "SSH host key of web changed",
        "mesh node host-key accept web",
    ),
];

#[test]
fn nothing_is_wrong_with_a_healthy_mesh() {
    assert_eq!(Mesh::healthy().findings(), []);
}

#[test]
fn each_fault_has_its_word_what_is_wrong_and_the_next_command() {
    for (fault, code, severity, what, next) in ROWS {
        let mut mesh = Mesh::healthy();
        fault(&mut mesh);
        assert_found(&mesh.findings(), code, severity, what, next);
    }
}

#[test]
fn an_absence_that_is_expected_is_no_fault() {
    let mut mesh = Mesh::healthy();
    mesh.nodes[0].state = pb::NodeState::Offline.into();
    mesh.nodes[0].uptime_class = pb::UptimeClass::OnDemand.into();
    assert_eq!(mesh.findings(), []);
    // Its certificate ends meanwhile, and that does no harm either.
    mesh.nodes[0].certificate_not_after = ago(60);
    let found = mesh.findings();
    assert_eq!(found.len(), 1);
    assert!(!Finding::any_error(&found), "{found:?}");
}

#[test]
fn a_heartbeat_that_counts_ends_what_was_wrong_with_those_before() {
    let mut mesh = Mesh::healthy();
    mesh.refused(120, "skew: its time is too far off");
    assert!(Finding::any_error(&mesh.findings()));
    mesh.happened(100, "heartbeat-accepted", "after skew");
    assert_eq!(mesh.findings(), []);
    mesh.refused(40, "skew: its time is too far off");
    assert!(Finding::any_error(&mesh.findings()), "again");
}

#[test]
fn a_refusal_of_another_node_or_time_says_nothing() {
    let mut mesh = Mesh::healthy();
    mesh.refused(181, "skew: long ago");
    mesh.refused(1, "skew: another");
    mesh.events[1].subject = "attic".into();
    mesh.refused(1, "skew: elsewhere");
    mesh.events[2].network = "lab".into();
    assert_eq!(mesh.findings(), []);
}

#[test]
fn a_coordinator_that_does_not_answer_is_told_by_its_cause() {
    for (error, code, next) in [
        (
            "cannot reach the server; a:1: nothing answers there".to_owned(),
            "coordinator-unreachable",
            "mesh up",
        ),
        (
            "cannot reach the server; a:1: the server there does not belong to this mesh's \
             certificate authority (another installation)"
                .to_owned(),
            "wrong-address",
            "mesh context list",
        ),
        (
            format!("cannot reach the server; a:1: {NAME_UNKNOWN}"),
            "name-unknown",
            "resolvectl",
        ),
        (
            format!("the server's certificate is not valid at this time: check {OWN_CLOCK}"),
            "clock-skew",
            "timedatectl",
        ),
    ] {
        let finding = unreachable(&error);
        assert_eq!(finding.code, code);
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.what.contains(&error) && finding.next.contains(next));
    }
}
