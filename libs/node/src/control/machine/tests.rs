use mesh_types::{
    DiscoPublicKey, NetworkId, NetworkName, NodeId, NodeState, OverlayAddrs, PacketFilter, Peer,
    Role, SelfNode, WgPublicKey,
};
use proptest::prelude::*;

use super::*;

mod certificate;
mod stored;

const DAY: Duration = Duration::from_secs(86_400);

/// A machine with both clocks, stepped by hand.
struct Bench {
    machine: Machine,
    now: Now,
}

impl Bench {
    fn new(netmap: Option<Netmap>) -> Self {
        let now = Now {
            at: Instant::now(),
            wall: Timestamp::from_secs(1_000_000),
        };
        let validity = Validity {
            from: now.wall.minus(DAY),
            until: now.wall.plus(DAY.saturating_mul(29)),
        };
        Self {
            machine: Machine::new(netmap, validity, [5; 32], now),
            now,
        }
    }

    fn pass(&mut self, by: Duration) {
        self.now = Now {
            at: self.now.at + by,
            wall: self.now.wall.plus(by),
        };
    }

    /// To the next deadline, and over it; says how long that was.
    fn step(&mut self) -> Duration {
        let due = self.machine.poll_timeout().expect("a deadline");
        let by = due.saturating_duration_since(self.now.at);
        self.pass(by);
        self.machine.handle_timeout(self.now);
        by
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action())
            .filter(|action| *action != Action::StateChanged)
            .collect()
    }

    fn hear(&mut self, message: Incoming) {
        self.machine.handle_message(message, self.now);
    }

    /// By a coordinator whose clock is as this machine's.
    fn ack(&mut self, refusal: Option<HeartbeatRefusal>) {
        let server_time = self.now.wall;
        self.hear(Incoming::HeartbeatAck {
            refusal,
            server_time,
        });
    }

    fn welcome(&mut self) {
        let server_time = self.now.wall;
        self.hear(Incoming::Welcome {
            nonce: b"nonce".to_vec(),
            server_time,
        });
    }

    fn live() -> Self {
        let mut bench = Self::new(None);
        bench.step();
        bench.actions();
        bench.welcome();
        bench.actions();
        bench
    }

    fn state(&self) -> ControlState {
        self.machine.state().0
    }
}

fn full(version: u64) -> NetmapUpdate {
    NetmapUpdate {
        cursor: Cursor {
            version,
            epoch: 1,
            volatile: 0,
        },
        full: true,
        node: Some(SelfNode {
            id: NodeId::from_bytes([1; 16]),
            network: NetworkId::from_bytes([2; 16]),
            network_name: NetworkName::default_network(),
            name: "node".parse().expect("a name"),
            role: Role::Worker,
            addrs: OverlayAddrs {
                v4: "100.64.0.1".parse().expect("an address"),
                v6: "fd7a:115c:a1e0::1".parse().expect("an address"),
            },
            console_prefix: String::new(),
            ssh_ca: String::new(),
        }),
        filter: Some(PacketFilter::default()),
        relays: Some(Vec::new()),
        ..NetmapUpdate::default()
    }
}

fn heartbeat(sequence: u64, time: Timestamp) -> Action {
    Action::Heartbeat {
        nonce: b"nonce".to_vec(),
        sequence,
        time,
        stored_for: None,
    }
}

#[test]
fn it_connects_at_once_and_resumes_from_the_stored_netmap() {
    let stored = Netmap::apply(None, full(7)).expect("whole");
    let mut bench = Bench::new(Some(stored));
    assert_eq!(bench.step(), Duration::ZERO);
    let cursor = Some(Cursor {
        version: 7,
        epoch: 1,
        volatile: 0,
    });
    assert_eq!(bench.actions(), [Action::Open { cursor }]);
    assert_eq!(bench.state(), ControlState::Connecting);
}

#[test]
fn heartbeats_start_with_one_and_follow_every_15_seconds() {
    let mut bench = Bench::new(None);
    bench.step();
    bench.actions();
    bench.welcome();
    assert_eq!(bench.actions(), [heartbeat(1, bench.now.wall)]);
    for sequence in 2..5 {
        assert_eq!(bench.step(), HEARTBEAT_INTERVAL);
        assert_eq!(bench.actions(), [heartbeat(sequence, bench.now.wall)]);
        bench.ack(None);
    }
}

#[test]
fn a_new_stream_counts_from_one_again_and_repeats_the_report() {
    let mut bench = Bench::live();
    let report = NodeReport {
        ssh_user: "anna".into(),
        ..NodeReport::default()
    };
    bench.machine.handle_report(report.clone());
    assert_eq!(bench.actions(), [Action::Report(report.clone())]);
    bench.machine.handle_report(report.clone());
    assert_eq!(bench.actions(), [], "the same report is not sent twice");
    bench.machine.handle_closed("gone".into(), bench.now);
    assert_eq!(bench.actions(), [Action::Close]);
    bench.step();
    assert_eq!(bench.actions(), [Action::Open { cursor: None }]);
    bench.welcome();
    assert_eq!(
        bench.actions(),
        [Action::Report(report), heartbeat(1, bench.now.wall)]
    );
}

#[test]
fn silence_ends_the_stream() {
    let mut bench = Bench::live();
    let mut beats = 0;
    while bench.state() == ControlState::Connected {
        bench.step();
        beats += 1;
        assert!(beats < 10, "still connected");
    }
    assert_eq!(bench.actions().last(), Some(&Action::Close));
    assert!(
        bench
            .machine
            .state()
            .1
            .expect("a reason")
            .contains("silent")
    );
}

#[test]
fn back_off_grows_with_jitter_and_never_passes_five_seconds() {
    let mut bench = Bench::new(None);
    let mut waits = Vec::new();
    for _ in 0..12 {
        waits.push(bench.step());
        assert_eq!(bench.actions(), [Action::Open { cursor: None }]);
        bench
            .machine
            .handle_closed("nobody there".into(), bench.now);
        bench.actions();
    }
    assert_eq!(waits[0], Duration::ZERO);
    assert!(
        waits[1] <= BACKOFF_START && waits[1] >= BACKOFF_START / 2,
        "{waits:?}"
    );
    assert!(waits.iter().all(|wait| *wait <= BACKOFF_CAP), "{waits:?}");
    assert!(
        waits[8..].iter().all(|wait| *wait >= BACKOFF_CAP / 2),
        "{waits:?}"
    );
    let distinct: std::collections::BTreeSet<_> = waits[8..].iter().collect();
    assert!(distinct.len() > 1, "no jitter: {waits:?}");
}

#[test]
fn a_welcome_resets_the_back_off() {
    let mut bench = Bench::new(None);
    for _ in 0..8 {
        bench.step();
        bench
            .machine
            .handle_closed("nobody there".into(), bench.now);
    }
    bench.step();
    bench.welcome();
    bench.machine.handle_closed("gone".into(), bench.now);
    assert!(bench.step() <= BACKOFF_START);
}

#[test]
fn removal_is_final() {
    let mut bench = Bench::live();
    bench.hear(Incoming::Goodbye(Goodbye::Removed));
    assert_eq!(bench.actions(), [Action::Close]);
    assert_eq!(bench.state(), ControlState::Removed);
    assert_eq!(bench.machine.poll_timeout(), None);
    bench.machine.handle_closed("gone".into(), bench.now);
    bench.machine.handle_timeout(bench.now);
    bench.welcome();
    assert_eq!(
        (bench.actions(), bench.state()),
        (vec![], ControlState::Removed)
    );
}

#[test]
fn removal_may_be_the_first_word_of_a_stream() {
    let mut bench = Bench::new(None);
    bench.step();
    bench.hear(Incoming::Goodbye(Goodbye::Removed));
    assert_eq!(bench.state(), ControlState::Removed);
}

#[test]
fn a_replaced_stream_does_not_race_back() {
    let mut bench = Bench::live();
    bench.hear(Incoming::Goodbye(Goodbye::Replaced));
    assert!(bench.step() >= BACKOFF_CAP / 2);
}

#[test]
fn netmaps_are_followed_and_the_cursor_moves() {
    let mut bench = Bench::live();
    bench.hear(Incoming::Partial);
    bench.hear(Incoming::Netmap(full(3)));
    assert_eq!(bench.actions(), [Action::NetmapChanged]);
    let cursor = Cursor {
        version: 4,
        epoch: 1,
        volatile: 9,
    };
    bench.hear(Incoming::Netmap(NetmapUpdate {
        cursor,
        ..NetmapUpdate::default()
    }));
    bench.actions();
    bench.machine.handle_closed("gone".into(), bench.now);
    bench.actions();
    bench.step();
    assert_eq!(
        bench.actions(),
        [Action::Open {
            cursor: Some(cursor)
        }]
    );
}

#[test]
fn a_full_netmap_of_a_fresh_coordinator_keeps_where_peers_were() {
    let peer = |endpoints: &[&str]| Peer {
        id: NodeId::from_bytes([3; 16]),
        name: "peer".parse().expect("a name"),
        role: Role::Worker,
        addrs: OverlayAddrs {
            v4: "100.64.0.3".parse().expect("an address"),
            v6: "fd7a:115c:a1e0::3".parse().expect("an address"),
        },
        routes: Vec::new(),
        wg_key: WgPublicKey::from_bytes([3; 32]),
        disco_key: DiscoPublicKey::from_bytes([3; 32]),
        services: Vec::new(),
        ssh_host_keys: Vec::new(),
        ssh_user: String::new(),
        endpoints: endpoints
            .iter()
            .map(|addr| addr.parse().expect("an address"))
            .collect(),
        home_relay: None,
        state: NodeState::Online,
    };
    let mut bench = Bench::live();
    bench.hear(Incoming::Netmap(NetmapUpdate {
        peers: vec![peer(&["192.0.2.3:51820"])],
        ..full(3)
    }));
    bench.hear(Incoming::Netmap(NetmapUpdate {
        peers: vec![peer(&[])],
        unreported: [peer(&[]).id].into(),
        ..full(4)
    }));
    let netmap = bench.machine.netmap().expect("a netmap");
    assert_eq!(netmap.cursor.version, 4);
    let [known] = netmap.peers.values().collect::<Vec<_>>()[..] else {
        panic!("one peer, not {:?}", netmap.peers);
    };
    assert_eq!(known, &peer(&["192.0.2.3:51820"]));
}

#[test]
fn a_bad_update_ends_the_stream_and_keeps_the_last_good_netmap() {
    let mut bench = Bench::live();
    bench.hear(Incoming::Netmap(full(3)));
    bench.actions();
    bench.hear(Incoming::Netmap(NetmapUpdate {
        node: None,
        ..full(4)
    }));
    assert_eq!(bench.actions(), [Action::Close]);
    assert_eq!(
        bench.machine.netmap().map(|netmap| netmap.cursor.version),
        Some(3)
    );
    let mut fresh = Bench::live();
    fresh.hear(Incoming::Netmap(NetmapUpdate::default()));
    assert_eq!(fresh.actions(), [Action::Close]);
}

#[test]
fn a_clock_that_is_off_is_told() {
    let mut bench = Bench::new(None);
    bench.step();
    let server_time = bench.now.wall.minus(DAY);
    bench.hear(Incoming::Welcome {
        nonce: vec![],
        server_time,
    });
    let text = bench.machine.state().1.expect("a text").to_owned();
    assert!(text.contains("86400 s ahead of"), "{text}");
    let skewed = |server_time| Incoming::HeartbeatAck {
        refusal: Some(HeartbeatRefusal::Skew),
        server_time,
    };
    bench.hear(skewed(server_time));
    // It goes on saying how far and which way.
    assert_eq!(bench.machine.state().1, Some(text.as_str()));

    // The clock went off since the welcome, is set too far, and then right.
    let mut bench = Bench::live();
    for (server_time, way) in [
        (bench.now.wall.plus(DAY), "86400 s behind"),
        (bench.now.wall.minus(DAY), "86400 s ahead of"),
    ] {
        bench.hear(skewed(server_time));
        let text = bench.machine.state().1.expect("a text");
        assert!(text.contains(way) && text.contains(OWN_CLOCK), "{text}");
    }
    // Right again by the time of the answer.
    bench.ack(Some(HeartbeatRefusal::Skew));
    let text = bench.machine.state().1.expect("a text");
    assert!(text.contains("clock skew"), "{text}");
    bench.ack(None);
    assert_eq!(bench.machine.state().1, None);
}

proptest! {
    #[test]
    fn whatever_happens_there_is_a_deadline_until_removal(steps in prop::collection::vec(0u8..10, 1..60)) {
        let mut bench = Bench::new(None);
        for step in steps {
            match step {
                0..3 => { if bench.machine.poll_timeout().is_some() { bench.step(); } }
                3 => bench.welcome(),
                4 => bench.hear(Incoming::Netmap(full(1))),
                5 => bench.hear(Incoming::Netmap(NetmapUpdate::default())),
                6 => bench.machine.handle_closed("x".into(), bench.now),
                7 => bench.hear(Incoming::Goodbye(Goodbye::Shutdown)),
                8 => bench.pass(Duration::from_secs(7)),
                _ => bench.ack(None),
            }
            bench.actions();
            prop_assert!(bench.machine.poll_timeout().is_some());
            prop_assert!(bench.state() != ControlState::Removed);
        }
    }
}
