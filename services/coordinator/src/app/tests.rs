//! A whole core for unit tests, on SQLite in a directory of the test's.

use std::sync::Arc;

use mesh_api::identity::Identity;
use mesh_daemon::Metrics;
use mesh_types::{RelayId, Timestamp};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::bootstrap::open;
use super::{Core, relay_row};
use crate::clock::ManualClock;
use crate::config::Config;

use crate::grpc_message::ProtoEncoder;
use crate::record::{EventRecord, RelayRecord};

pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// A relay of this id, nowhere to be found.
pub(crate) fn relay(id: RelayId) -> RelayRecord {
    RelayRecord {
        id,
        name: "relay".parse().expect("a name"),
        owner: "first".to_owned(),
        identity: Identity::generate().expect("a key").public_key().clone(),
        derp: Vec::new(),
        stun: Vec::new(),
        version: String::new(),
        created_at: NOW,
        last_seen: None,
        certificate_not_after: NOW,
    }
}

/// Enrols such a relay.
pub(crate) async fn enrolled(core: &Core, id: RelayId) -> Arc<RelayRecord> {
    let record = core.members.put_relay(relay(id));
    let row = relay_row(&record, None);
    let added = core.netmap.with(move |engine, _| engine.relay_added(row));
    added.await.expect("runs").expect("adds");
    record
}

/// Opens a core; the owner of its engine runs as long as the test does.
pub(crate) async fn core(dir: &TempDir) -> Arc<Core> {
    opened(dir, NOW).await.0
}

/// The same at another time, with what happens of itself.
pub(super) async fn opened(
    dir: &TempDir,
    now: Timestamp,
) -> (Arc<Core>, mpsc::Receiver<EventRecord>) {
    let config = Config {
        state_dir: dir.path().join("state"),
        ..Config::default()
    };
    let clock = Arc::new(ManualClock::new(now));
    let opened = open(&config, clock, Box::new(ProtoEncoder), &Metrics::default()).await;
    let opened = opened.expect("opens");
    tokio::spawn(opened.owner);
    (opened.core, opened.happened)
}
