//! For how long a node was on its stored netmap, as its heartbeats tell.

use super::*;

/// For how long the heartbeats among these say that it was on its stored netmap.
fn told(actions: &[Action]) -> Vec<Option<Duration>> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Heartbeat { stored_for, .. } => Some(*stored_for),
        _ => None,
    });
    told.collect()
}

#[test]
fn a_start_without_a_coordinator_is_told_until_a_heartbeat_counts() {
    let stored = Netmap::apply(None, full(7)).expect("whole");
    let mut bench = Bench::new(Some(stored));
    let begun = bench.now.at;
    while bench.now.at < begun + STARTING {
        bench.step();
        bench.machine.handle_closed("nobody".into(), bench.now);
    }
    bench.step();
    bench.actions();
    bench.welcome();
    let alone = Some(bench.now.at.duration_since(begun));
    assert_eq!(told(&bench.actions()), [alone]);
    bench.ack(Some(HeartbeatRefusal::Skew));
    bench.step();
    assert_eq!(told(&bench.actions()), [alone], "it was not taken");
    // Nor is it known whether this one was.
    bench.machine.handle_closed("gone".into(), bench.now);
    bench.step();
    bench.welcome();
    assert_eq!(told(&bench.actions()), [alone]);
    bench.ack(None);
    bench.step();
    assert_eq!(told(&bench.actions()), [None]);
    // The netmap of before an outage is not a stored one.
    bench.pass(STARTING.saturating_mul(4));
    bench.machine.handle_closed("gone".into(), bench.now);
    bench.pass(STARTING.saturating_mul(4));
    bench.step();
    bench.welcome();
    assert_eq!(told(&bench.actions()), [None]);
}

#[test]
fn an_ordinary_start_is_nothing_to_tell_of() {
    for stored in [Some(Netmap::apply(None, full(7)).expect("whole")), None] {
        let mut bench = Bench::new(stored);
        bench.step();
        bench.pass(STARTING.checked_sub(Duration::from_secs(1)).expect("less"));
        bench.welcome();
        assert_eq!(told(&bench.actions()), [None]);
    }
    // A relay, or a first start, has no netmap that could be old.
    let mut bench = Bench::new(None);
    bench.step();
    bench.pass(STARTING);
    bench.welcome();
    assert_eq!(told(&bench.actions()), [None]);
}
