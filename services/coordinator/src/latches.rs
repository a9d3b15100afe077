//! Keeps what the endpoint of health says of store and bus true, and tells of their outages.

use std::sync::Arc;
use std::time::Duration;

use mesh_daemon::Latch;
use tokio::sync::watch;

use crate::app::Core;
use crate::app::happening::Outages;
use crate::bus::BusState;
use crate::record::EventKind;

/// How often the store is tried, for readiness.
const STORE_TRIAL: Duration = Duration::from_secs(5);
/// How often it is tried while it takes no changes.
const STORE_TRIAL_DOWN: Duration = Duration::from_secs(1);

/// Tells by the endpoint of health how the bus does, which nobody's work depends on; never returns.
pub(crate) async fn watch_bus(core: Arc<Core>, mut state: watch::Receiver<BusState>, latch: Latch) {
    let mut outages = Outages::default();
    let kinds = [EventKind::BusDown, EventKind::BusUp];
    loop {
        let is = state.borrow_and_update().clone();
        let problem = is.problem();
        if is != BusState::NotTried {
            core.note_outage(&mut outages, "bus", &kinds, problem.as_deref());
        }
        match problem {
            None => latch.ready(),
            Some(reason) => {
                latch.degraded(&format!("Redis: {reason}; everything goes on without it"));
            }
        }
        if state.changed().await.is_err() {
            // INVARIANT: the bus lives as long as the core, and with it the sender.
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps readiness true to whether the store takes changes. Returns when this process must end
/// because the database is another coordinator's.
pub(crate) async fn watch_store(core: Arc<Core>, latch: Latch) {
    let mut watch = core.watch_store();
    let mut outages = Outages::default();
    let kinds = [EventKind::StoreDown, EventKind::StoreUp];
    core.examine_store().await;
    let reason = loop {
        if let Some(reason) = core.end_reason() {
            break reason;
        }
        let problem = core.write_problem();
        core.note_outage(&mut outages, "store", &kinds, problem.as_deref());
        match problem {
            None => latch.ready(),
            Some(problem) => latch.not_ready(&problem),
        }
        watch.changed().await;
    };
    latch.not_ready(&reason);
}

/// Tries the store now and then, and more often while it takes no changes, so that it heals without
/// a hand. Returns like [`watch_store`], which never waits for a trial.
pub(crate) async fn try_store(core: Arc<Core>) {
    let mut watch = core.watch_store();
    while core.end_reason().is_none() {
        let pause = match core.write_problem() {
            None => STORE_TRIAL,
            Some(_) => STORE_TRIAL_DOWN,
        };
        tokio::select! {
            () = watch.changed() => continue,
            () = tokio::time::sleep(pause) => {}
        }
        core.examine_store().await;
        if core.write_problem().is_none() {
            core.write_deferred().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_daemon::{Metrics, Readiness};
    use tokio::time::timeout;

    use super::*;
    use crate::app::bootstrap::open;
    use crate::clock::SystemClock;
    use crate::config::Config;
    use crate::grpc_message::ProtoEncoder;

    const SOON: Duration = Duration::from_secs(15);

    #[tokio::test]
    async fn a_redis_that_was_not_tried_yet_is_no_outage_and_one_that_fails_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config {
            state_dir: dir.path().join("state"),
            ..Config::default()
        };
        let (encoder, metrics) = (Box::new(ProtoEncoder), Metrics::default());
        let opened = open(&config, Arc::new(SystemClock), encoder, &metrics).await;
        let mut opened = opened.expect("opens");
        let readiness = Readiness::default();
        let latch = readiness.latch("bus", "the bus was not opened yet");
        let (bus, state) = watch::channel(BusState::NotTried);
        let watching = tokio::spawn(watch_bus(Arc::clone(&opened.core), state, latch));
        // Once the latch is ready, whatever that is worth, the watcher has taken note.
        while !readiness.is_ready() {
            tokio::task::yield_now().await;
        }
        let worse = readiness.degraded();
        assert!(worse[0].reason.contains("not connected yet"), "{worse:?}");
        assert!(opened.happened.try_recv().is_err(), "nothing is known yet");
        for (state, kind) in [
            (BusState::Down("refused".to_owned()), EventKind::BusDown),
            (BusState::Up, EventKind::BusUp),
        ] {
            bus.send_replace(state);
            let told = timeout(SOON, opened.happened.recv()).await;
            assert_eq!(told.expect("in time").expect("told").kind, kind);
        }
        assert!(readiness.degraded().is_empty());
        watching.abort();
    }
}
