//! What a coordinator can rely on, case by case.
#![allow(
    clippy::disallowed_methods,
    reason = "a test needs some moment to count from"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_netmap::{
    Admission, EndReason, Engine, Event, NetworkRow, NodeRow, Opened, Output, PeerEncoder,
    Rejected, ReserveError, SessionId, Settings, Snapshot, Update,
};
use mesh_types::{
    Cursor, DiscoPublicKey, NetworkId, NodeId, NodeState, OverlayAddrs, Peer, PeerPatch, Role,
    Service, ServiceKind, Timestamp, UptimeClass, WgPublicKey,
};

const NETWORK: NetworkId = NetworkId::from_bytes([1; 16]);

/// Encodes the id only: enough to see who was told of whom.
struct Ids;

impl PeerEncoder for Ids {
    fn peer(&self, peer: &Peer) -> Bytes {
        peer.id.as_bytes().to_vec().into()
    }

    fn unreported_peer(&self, peer: &Peer) -> Bytes {
        self.peer(peer)
    }

    fn patch(&self, patch: &PeerPatch) -> Bytes {
        patch.id.as_bytes().to_vec().into()
    }
}

fn node(n: u16, role: Role, owner: &str) -> NodeRow {
    let [high, low] = n.to_be_bytes();
    let mut key = [0; 32];
    key[..2].copy_from_slice(&[high, low]);
    let ssh = Service {
        name: "ssh".parse().expect("a name"),
        kind: ServiceKind::Ssh,
        port: 22,
    };
    NodeRow {
        id: id(n),
        network: NETWORK,
        name: format!("n-{n}").parse().expect("a name"),
        role,
        owner: owner.into(),
        addrs: OverlayAddrs {
            v4: [100, 64, high, low].into(),
            v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, n].into(),
        },
        wg_key: WgPublicKey::from_bytes(key),
        disco_key: DiscoPublicKey::from_bytes(key),
        services: vec![ssh],
        routes: Vec::new(),
        ssh_host_keys: Vec::new(),
        ssh_user: String::new(),
        uptime: UptimeClass::AlwaysOn,
        changed_version: u64::from(n),
        last_seen: None,
        seen_ago: None,
    }
}

fn id(n: u16) -> NodeId {
    NodeId::from_parts(u64::from(n), [0; 10])
}

fn engine_with(settings: Settings, nodes: Vec<NodeRow>) -> Engine {
    let mut engine = Engine::new(settings, Box::new(Ids)).expect("usable ranges");
    let network = NetworkRow {
        id: NETWORK,
        name: "default".parse().expect("a name"),
        version: 0,
        trimmed: 0,
        ssh_ca: String::new(),
    };
    let snapshot = Snapshot {
        networks: vec![network],
        nodes,
        ..Snapshot::default()
    };
    engine
        .load(snapshot, Instant::now())
        .expect("consistent rows");
    engine
}

fn engine(nodes: Vec<NodeRow>) -> Engine {
    engine_with(Settings::new(1, [1; 32]), nodes)
}

fn open(engine: &mut Engine, session: u64, n: u16, cursor: Option<Cursor>) {
    let opened = engine.session_open(SessionId(session), id(n), cursor, Instant::now());
    assert_eq!(opened, Ok(Opened::Admitted));
}

/// Reads one whole update that fits one part.
fn read(engine: &mut Engine, session: u64) -> Update {
    match engine.poll_session(SessionId(session)) {
        Some(Output::Netmap(update)) if update.last => update,
        other => panic!("not a whole update: {other:?}"),
    }
}

fn ready(engine: &mut Engine) -> Vec<u64> {
    std::iter::from_fn(|| engine.poll_ready())
        .map(|session| session.0)
        .collect()
}

#[test]
fn a_slow_reader_is_told_the_newest_state_once() {
    let mut engine = engine(vec![node(1, Role::Worker, "a"), node(2, Role::Worker, "a")]);
    open(&mut engine, 1, 1, None);
    assert_eq!(ready(&mut engine), [1]);
    assert!(read(&mut engine, 1).full);
    assert_eq!(engine.poll_session(SessionId(1)), None);
    for port in 1..1_000 {
        engine
            .report(id(2), vec![([192, 0, 2, 1], port).into()], None)
            .expect("known");
    }
    assert_eq!(engine.pending(), 1);
    assert_eq!(ready(&mut engine), [1]);
    let update = read(&mut engine, 1);
    assert!(!update.full);
    assert_eq!((update.patches.len(), update.peers.len()), (1, 0));
    assert_eq!(engine.pending(), 0);
    assert_eq!(engine.poll_session(SessionId(1)), None);
}

#[test]
fn strangers_hear_nothing_of_each_other() {
    let mut engine = engine(vec![node(1, Role::Worker, "a"), node(2, Role::Worker, "b")]);
    open(&mut engine, 1, 1, None);
    assert!(read(&mut engine, 1).peers.is_empty());
    assert_eq!(engine.poll_session(SessionId(1)), None);
    let heard = ready(&mut engine);
    engine
        .report(id(2), vec![([192, 0, 2, 1], 1).into()], None)
        .expect("known");
    engine
        .heartbeat(id(2), Timestamp::default(), Instant::now())
        .expect("known");
    engine.node_removed(id(2), 3).expect("known");
    assert_eq!((heard, ready(&mut engine)), (vec![1], vec![]));
}

#[test]
fn a_removed_node_and_a_replaced_session_end_at_once() {
    let mut engine = engine(vec![node(1, Role::Worker, "a"), node(2, Role::Worker, "a")]);
    open(&mut engine, 1, 1, None);
    assert!(!engine.is_replaced(id(1), SessionId(1)));
    open(&mut engine, 2, 1, None);
    let replaced = |engine: &Engine| [1, 2].map(|n| engine.is_replaced(id(1), SessionId(n)));
    assert_eq!(replaced(&engine), [true, false], "before it was told so");
    let ended = |engine: &mut Engine, session| engine.poll_session(SessionId(session));
    assert_eq!(
        ended(&mut engine, 1),
        Some(Output::End(EndReason::Replaced))
    );
    assert_eq!(replaced(&engine), [true, false]);
    engine
        .watch_routes(SessionId(3), NETWORK, Some(id(1)))
        .expect("known");
    engine.node_removed(id(1), 3).expect("known");
    for session in [2, 3] {
        assert_eq!(
            ended(&mut engine, session),
            Some(Output::End(EndReason::Removed))
        );
        assert_eq!(ended(&mut engine, session), None);
    }
    let again = engine.session_open(SessionId(4), id(1), None, Instant::now());
    assert_eq!(again, Err(Rejected::UnknownNode));
}

#[test]
fn a_reconnect_storm_is_spread_and_everybody_keeps_their_turn() {
    let admission = Admission {
        burst: 1,
        per_second: 10,
    };
    let settings = Settings {
        admission,
        ..Settings::new(1, [1; 32])
    };
    let mut engine = engine_with(
        settings,
        (1..6).map(|n| node(n, Role::Worker, "a")).collect(),
    );
    let now = Instant::now();
    let mut ask = |session, n, now| engine.session_open(SessionId(session), id(n), None, now);
    let first: Vec<_> = (1..6)
        .map(|n| ask(u64::from(n), n, now).expect("known"))
        .collect();
    assert_eq!(first[..2], [Opened::Admitted, Opened::Admitted]);
    assert_eq!(first[4], Opened::Wait(Duration::from_millis(300)));
    let turn = now + Duration::from_millis(300);
    assert_eq!(ask(15, 5, turn), Ok(Opened::Admitted));
}

#[test]
fn a_change_that_was_committed_late_is_not_lost_to_a_cursor() {
    let mut engine = engine(vec![node(1, Role::Worker, "a"), node(2, Role::Worker, "a")]);
    let change = |engine: &mut Engine, n: u16, name: &str, version| {
        let mut row = node(n, Role::Worker, "a");
        row.name = name.parse().expect("a name");
        row.changed_version = version;
        engine.node_changed(row).expect("known");
    };
    change(&mut engine, 1, "one", 11);
    open(&mut engine, 1, 1, None);
    let cursor = read(&mut engine, 1).cursor;
    engine.session_close(SessionId(1));
    change(&mut engine, 2, "two", 10);
    open(&mut engine, 2, 1, Some(cursor));
    assert_eq!(read(&mut engine, 2).peers.len(), 1);
}

#[test]
fn one_more_worker_of_a_large_owner_changes_nobodys_filter() {
    let mut nodes: Vec<NodeRow> = (2..400).map(|n| node(n, Role::Worker, "a")).collect();
    nodes.push(node(1, Role::Gateway, ""));
    let mut engine = engine(nodes);
    open(&mut engine, 1, 5, None);
    let full = read(&mut engine, 1);
    let rules = full.filter.expect("a full map has one").rules;
    assert!(
        rules.iter().all(|rule| rule.sources.len() < 40),
        "{rules:?}"
    );
    engine
        .node_added(node(400, Role::Worker, "a"))
        .expect("new");
    let update = read(&mut engine, 1);
    assert_eq!((update.peers.len(), update.filter), (1, None));
    // A second gateway must stay out of SSH, so the filter is told with it.
    engine
        .node_added(node(450, Role::Gateway, ""))
        .expect("new");
    let update = read(&mut engine, 1);
    assert_eq!(update.peers.len(), 1);
    let gateway = std::net::IpAddr::from([100, 64, 1, 194]);
    let sources = update.filter.map(|filter| filter.rules).unwrap_or_default();
    let lets_in = sources
        .iter()
        .any(|rule| rule.sources.iter().any(|net| net.contains(&gateway)));
    assert!(
        !lets_in,
        "a gateway reaches pages, and this node has none: {sources:?}"
    );
}

#[test]
fn presence_goes_from_online_to_stale_to_offline() {
    let mut engine = engine(vec![node(1, Role::Worker, "a")]);
    let start = Instant::now();
    engine
        .heartbeat(id(1), Timestamp::from_secs(7), start)
        .expect("known");
    let mut states = Vec::new();
    let mut at = start;
    while let Some(due) = engine.poll_timeout() {
        at = due;
        engine.handle_timeout(due);
        states.push((due - start).as_secs());
    }
    assert_eq!(states, [45, 105]);
    let seen: Vec<_> = std::iter::from_fn(|| engine.poll_event())
        .map(|event| match event {
            Event::NodeState { to, .. } => to,
            Event::RelayState { .. } => panic!("there is no relay"),
        })
        .collect();
    assert_eq!(
        seen,
        [NodeState::Online, NodeState::Stale, NodeState::Offline]
    );
    engine.handle_timeout(at + Duration::from_secs(1_000));
    let node = engine.node(id(1)).expect("there");
    assert_eq!(node.last_seen(), Some(Timestamp::from_secs(7)));
    assert_eq!(engine.counts(NETWORK).offline, 1);
}

#[test]
fn after_a_restart_a_node_that_was_just_there_still_is() {
    let rows = [10, 60, 600].into_iter().zip(1..).map(|(secs, n)| NodeRow {
        seen_ago: Some(Duration::from_secs(secs)),
        ..node(n, Role::Worker, "a")
    });
    let engine = engine(rows.collect());
    let states = [1, 2, 3].map(|n| engine.node(id(n)).expect("there").state());
    assert_eq!(
        states,
        [NodeState::Online, NodeState::Stale, NodeState::Offline]
    );
}

#[test]
fn after_a_restart_a_node_that_missed_nothing_gets_no_full_map() {
    // By id, as a database lists them, versions fall: node 1 changed last.
    let rows = vec![
        NodeRow {
            changed_version: 3,
            ..node(1, Role::Worker, "a")
        },
        node(2, Role::Worker, "a"),
    ];
    let mut engine = engine(rows);
    let cursor = Cursor {
        version: 3,
        epoch: 99,
        volatile: 7,
    };
    open(&mut engine, 1, 2, Some(cursor));
    assert_eq!(ready(&mut engine), [1]);
    assert!(!read(&mut engine, 1).full);
}

#[test]
fn reservations_are_unique_until_they_are_used_or_given_back() {
    let mut engine = engine(vec![]);
    let wished = "web".parse().expect("a name");
    let first = engine.reserve(NETWORK, &wished).expect("room");
    let second = engine.reserve(NETWORK, &wished).expect("room");
    assert_eq!(
        (first.name.as_str(), second.name.as_str()),
        ("web", "web-1")
    );
    assert_ne!(first.addrs, second.addrs);
    engine.release(&first);
    assert!(engine.name_free(NETWORK, &wished));
    let row = NodeRow {
        name: second.name,
        addrs: second.addrs,
        ..node(1, Role::Worker, "a")
    };
    engine.node_added(row).expect("new");
    let third = engine.reserve(NETWORK, &wished).expect("room");
    assert_eq!((third.name, third.addrs), (first.name, first.addrs));
    let other = NetworkId::from_bytes([9; 16]);
    assert_eq!(
        engine.reserve(other, &wished),
        Err(ReserveError::UnknownNetwork)
    );
}

#[test]
fn rows_that_contradict_others_change_nothing() {
    let mut engine = engine(vec![node(1, Role::Worker, "a")]);
    let same_key = NodeRow {
        wg_key: node(1, Role::Worker, "a").wg_key,
        ..node(2, Role::Worker, "a")
    };
    let same_addr = NodeRow {
        addrs: node(1, Role::Worker, "a").addrs,
        ..node(2, Role::Worker, "a")
    };
    let same_name = NodeRow {
        name: node(1, Role::Worker, "a").name,
        ..node(2, Role::Worker, "a")
    };
    assert_eq!(engine.node_added(same_key), Err(Rejected::KeyTaken));
    assert_eq!(engine.node_added(same_addr), Err(Rejected::AddressTaken));
    assert_eq!(engine.node_added(same_name), Err(Rejected::NameTaken));
    assert_eq!(
        engine.node_changed(node(2, Role::Worker, "a")),
        Err(Rejected::UnknownNode)
    );
    assert_eq!(engine.nodes(NETWORK).count(), 1);
}
