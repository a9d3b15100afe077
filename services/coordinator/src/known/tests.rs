use std::task::{Context, Poll, Waker};

use mesh_api::identity::Identity;
use mesh_api::uri::Subject;
use mesh_types::{
    DiscoPublicKey, IdentityPublicKey, Labels, NetworkId, NodeId, OperatorId, OverlayAddrs,
    RelayId, Role, Timestamp, UptimeClass, WgPublicKey,
};

use super::*;
use crate::app::tests as testing;
use crate::members::NetworkInfo;
use crate::record::{NetworkRecord, NodeRecord, OperatorRecord, SshFacts};

const NOW: Timestamp = testing::NOW;
const NETWORK: NetworkId = NetworkId::from_bytes([8; 16]);

fn identity() -> IdentityPublicKey {
    Identity::generate().expect("a key").public_key().clone()
}

fn network(name: &str) -> NetworkInfo {
    let record = NetworkRecord {
        id: NETWORK,
        name: name.parse().expect("a name"),
        version: 0,
        created_at: NOW,
    };
    NetworkInfo {
        record,
        ssh_ca: String::new(),
        ssh_ca_sealed: Vec::new(),
    }
}

fn node(n: u8) -> NodeRecord {
    NodeRecord {
        id: NodeId::from_bytes([n; 16]),
        network: NETWORK,
        name: format!("node-{n}").parse().expect("a name"),
        role: Role::Worker,
        owner: "first".to_owned(),
        identity: identity(),
        wg_key: WgPublicKey::from_bytes([n; 32]),
        disco_key: DiscoPublicKey::from_bytes([n; 32]),
        addrs: OverlayAddrs {
            v4: [100, 64, 0, n].into(),
            v6: [0xfd, 0, 0, 0, 0, 0, 0, n.into()].into(),
        },
        uptime_class: UptimeClass::default(),
        labels: Labels::default(),
        version: String::new(),
        created_at: NOW,
        last_seen: None,
        certificate_not_after: NOW,
        services: Vec::new(),
        ssh: SshFacts::default(),
        changed_version: 0,
    }
}

fn operator(n: u8) -> OperatorRecord {
    OperatorRecord {
        id: OperatorId::from_bytes([n; 16]),
        name: format!("operator-{n}"),
        identity: identity(),
        created_at: NOW,
        certificate_not_after: NOW,
        revoked_at: None,
    }
}

fn shows(members: &Members, subject: Subject, identity: &IdentityPublicKey) -> Entry {
    members.known().enter(PeerCertificate {
        subject,
        identity: identity.clone(),
        not_after: NOW,
    })
}

fn of_node(members: &Members, node: &NodeRecord) -> Entry {
    let subject = Subject::Node {
        network: "lab".parse().expect("a name"),
        node: node.id,
    };
    shows(members, subject, &node.identity)
}

/// Whether somebody who begins to wait now would wait.
fn is_over(entry: &Entry) -> bool {
    let over = std::pin::pin!(entry.shown().over());
    over.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
}

/// A lab with two nodes that are connected.
fn lab() -> (Members, [NodeRecord; 2], [Entry; 2]) {
    let members = Members::default();
    members.put_network(network("lab"));
    let nodes = [node(1), node(2)];
    for node in &nodes {
        members.put_node(node.clone());
    }
    let entries = [0, 1].map(|n| of_node(&members, &nodes[n]));
    (members, nodes, entries)
}

#[test]
fn a_removed_node_is_told_on_each_of_its_connections_and_nobody_else_is() {
    let (members, [one, _], [first, other]) = lab();
    let second = of_node(&members, &one);
    members.remove_node(one.id);
    assert!(is_over(&first) && is_over(&second));
    assert!(!is_over(&other));
}

#[test]
fn who_waits_is_woken_by_the_end_and_by_nothing_before_it() {
    let (members, [one, two], [entry, _]) = lab();
    let woken = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut over = std::pin::pin!(entry.shown().over());
    let mut poll = || over.as_mut().poll(&mut Context::from_waker(&waker));
    assert_eq!(poll(), Poll::Pending);
    // A renewal, a report, another node's end, somebody new.
    members.put_node(NodeRecord {
        certificate_not_after: NOW.plus(Duration::from_secs(86_400)),
        version: "2".to_owned(),
        ..one.clone()
    });
    members.remove_node(two.id);
    members.put_node(node(3));
    assert_eq!(woken.0.load(Ordering::Relaxed), 0);
    // Another machine, by an operator's permit.
    members.put_node(NodeRecord {
        identity: identity(),
        ..one
    });
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert_eq!(poll(), Poll::Ready(()));
}

#[derive(Default)]
struct Count(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn an_end_stays_though_the_same_key_is_enrolled_again() {
    let (members, [one, _], [entry, _]) = lab();
    members.remove_node(one.id);
    members.put_node(one);
    assert!(is_over(&entry));
}

#[test]
fn relays_and_operators_are_told_too() {
    let members = Members::default();
    let relay = testing::relay(RelayId::from_bytes([3; 16]));
    let (kept, revoked) = (operator(4), operator(5));
    members.put_relay(relay.clone());
    members.put_operator(kept.clone());
    members.put_operator(revoked.clone());
    let of_operator =
        |record: &OperatorRecord| shows(&members, Subject::Operator(record.id), &record.identity);
    let of_relay = shows(&members, Subject::Relay(relay.id), &relay.identity);
    let (of_kept, of_revoked) = (of_operator(&kept), of_operator(&revoked));
    members.put_operator(OperatorRecord {
        revoked_at: Some(NOW),
        ..revoked
    });
    assert!(is_over(&of_revoked) && !is_over(&of_kept) && !is_over(&of_relay));
    members.remove_relay(relay.id);
    assert!(is_over(&of_relay) && !is_over(&of_kept));
}

#[test]
fn a_network_that_goes_or_gets_another_name_ends_its_members() {
    let (members, _, [entry, _]) = lab();
    members.put_network(network("lab"));
    assert!(!is_over(&entry));
    members.put_network(network("other"));
    assert!(is_over(&entry));
    let (members, _, [entry, _]) = lab();
    members.remove_network(NETWORK);
    assert!(is_over(&entry));
}

#[tokio::test]
async fn whoever_was_not_told_is_found_by_the_next_look() {
    let dir = tempfile::tempdir().expect("a directory");
    let core = testing::core(&dir).await;
    let relay = testing::relay(RelayId::from_bytes([3; 16]));
    // Of a relay that was removed before, so that nobody tells it any more.
    let entry = shows(&core.members, Subject::Relay(relay.id), &relay.identity);
    assert!(!is_over(&entry));
    tokio::time::pause();
    let watch = tokio::spawn(core.members.known().clone().watch(Arc::clone(&core)));
    entry.shown().over().await;
    watch.abort();
}

#[test]
fn a_connection_that_has_ended_is_forgotten() {
    let (members, _, entries) = lab();
    assert_eq!(members.known().lock().shown.len(), 2);
    drop(entries);
    assert_eq!(members.known().lock().shown.len(), 0);
}
