use mesh_daemon::Metrics;

use super::*;
use crate::app::bootstrap::{Opened, open};
use crate::app::tests as testing;
use crate::clock::ManualClock;
use crate::config::Config;
use crate::grpc_message::ProtoEncoder;
use crate::store::Cutoffs;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn at(secs: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(secs))
}

#[test]
fn an_outage_is_told_at_both_ends_and_a_flapping_one_once_a_minute() {
    let mut outages = Outages::default();
    assert_eq!(outages.note(false, at(0)), None, "it never was away");
    assert_eq!(outages.note(true, at(1)), Some(Turn::Began));
    assert_eq!(outages.note(true, at(2)), None, "another reason");
    let ended = Some(Turn::Ended(Duration::from_secs(4)));
    assert_eq!(outages.note(false, at(5)), ended);
    for secs in (6..60).step_by(2) {
        assert_eq!(outages.note(true, at(secs)), None);
        assert_eq!(outages.note(false, at(secs + 1)), None);
    }
    assert_eq!(outages.note(true, at(61)), Some(Turn::Began));
}

#[test]
fn reconnects_are_no_copy_and_turns_are_one() {
    let mut take_overs = TakeOvers::default();
    // A machine with a bad link: every 20 s.
    let told = (0..30).filter(|n| take_overs.tells([1; 16], at(n * 20)));
    assert_eq!(told.count(), 0);
    // Two machines: every 4 s for five minutes.
    let told = (0..75).filter(|n| take_overs.tells([2; 16], at(n * 4)));
    assert_eq!(told.count(), 5, "once a minute");
}

#[test]
fn a_renewal_is_late_with_less_than_five_days_left() {
    let day = 86_400;
    assert_eq!(renewed_late(at(5 * day), NOW), None);
    let late = renewed_late(at(2 * day), NOW).expect("late");
    assert_eq!(late, "2 days before its end");
    let ended = renewed_late(NOW, at(3 * day)).expect("late");
    assert_eq!(ended, "it had ended 3 days before");
}

/// A start at this time, and whether it is stopped or just ends; what is told of it.
async fn run(dir: &tempfile::TempDir, secs: u64, stops: bool) -> String {
    let (core, mut happened) = testing::opened(dir, at(secs)).await;
    core.note_start().await;
    let record = happened.recv().await.expect("told");
    assert_eq!(record.kind, EventKind::CoordinatorStarted);
    let stored = core.store_events(std::slice::from_ref(&record)).await;
    stored.expect("stored");
    if stops {
        core.note_stop().await.expect("stored");
    }
    core.close(Duration::from_secs(3)).await;
    record.detail
}

#[tokio::test]
async fn a_start_tells_how_long_there_was_no_coordinator() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(run(&dir, 0, true).await, "for the first time");
    assert_eq!(run(&dir, 90, false).await, "it was stopped 90 s before");
    let killed = run(&dir, 100, false).await;
    assert_eq!(killed, "it had ended without a word, 10 s before at most");
    let core = testing::core(&dir).await;
    let mut all = core.store.event_list(None, 0, 100).await.expect("reads");
    all.retain(|event| event.subject == "coordinator");
    let kinds: Vec<_> = all.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "coordinator-initialised",
            "coordinator-started",
            "coordinator-stopped",
            "coordinator-started",
            "coordinator-started"
        ]
    );
}

#[tokio::test]
async fn a_start_that_failed_is_no_sign_of_a_coordinator() {
    let dir = tempfile::tempdir().expect("a directory");
    run(&dir, 0, false).await;
    let (core, _happened) = testing::opened(&dir, at(5)).await;
    let failed = EventRecord {
        id: 0,
        time: at(80),
        network: None,
        kind: EventKind::CoordinatorNotStarted,
        subject: "coordinator".to_owned(),
        detail: "no key".to_owned(),
    };
    let stored = core.store_events(std::slice::from_ref(&failed)).await;
    stored.expect("stored");
    core.close(Duration::from_secs(3)).await;
    drop(core);
    let told = run(&dir, 100, true).await;
    assert_eq!(told, "it had ended without a word, 100 s before at most");
}

#[tokio::test]
async fn a_start_is_the_first_only_when_it_made_the_mesh() {
    let dir = tempfile::tempdir().expect("a directory");
    run(&dir, 0, true).await;
    let core = testing::core(&dir).await;
    // So it looks too after an upgrade from a program that noted no starts.
    let forgotten = Cutoffs {
        events: at(3_600),
        tokens: at(0),
        tombstones: at(0),
        audit: None,
    };
    let txn = core.store.write().await.expect("begins");
    assert!(txn.prune(&forgotten).await.expect("forgets").events > 0);
    txn.commit().await.expect("commits");
    core.close(Duration::from_secs(3)).await;
    drop(core);
    assert_eq!(run(&dir, 90, true).await, "");
    assert_eq!(run(&dir, 100, true).await, "it was stopped 10 s before");
}

#[tokio::test]
async fn that_it_was_stopped_is_stored_whatever_becomes_of_the_last_seen_times() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config {
        state_dir: dir.path().join("state"),
        ..Config::default()
    };
    let (clock, metrics) = (Arc::new(ManualClock::new(NOW)), Metrics::default());
    let opened = open(&config, clock, Box::new(ProtoEncoder), &metrics).await;
    let Opened { core, owner, .. } = opened.expect("opens");
    // Nobody tells who was seen.
    drop(owner);
    assert!(core.note_last_seen(NOW).await.is_err());
    core.note_end(Duration::from_secs(15)).await;
    let kinds = [EventKind::CoordinatorStopped];
    let stopped = core.store.event_newest(&kinds).await.expect("reads");
    assert!(stopped.is_some());
}

#[tokio::test]
async fn a_certificate_that_was_not_renewed_is_told_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (core, mut happened) = testing::opened(&dir, at(0)).await;
    let mut told = HashMap::new();
    core.look_at_certificates(&mut told).await;
    assert!(happened.try_recv().is_err(), "the operator's is new");
    let operator = core.members.operators().remove(0);
    core.members.put_operator(crate::record::OperatorRecord {
        certificate_not_after: at(3 * 86_400),
        ..Arc::unwrap_or_clone(operator)
    });
    for _ in 0..2 {
        core.look_at_certificates(&mut told).await;
    }
    let event = happened.try_recv().expect("told");
    assert_eq!(event.kind, EventKind::CertificateLow);
    assert_eq!(event.subject, "operator first");
    assert_eq!(event.detail, "it ends in 3 days and was not renewed");
    assert!(happened.try_recv().is_err(), "once");
}
