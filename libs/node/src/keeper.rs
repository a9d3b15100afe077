//! Keeps the stored netmap fresh, so that a restart without the coordinator finds its peers; and
//! the coordinator told of what only this node sees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_types::{Netmap, NodeId, Timestamp};
use tokio::sync::watch;

use crate::control::ControlStatus;
use crate::counters::add;
use crate::node::{Shared, stopped};
use crate::state_dir::{StateDir, StoredNetmap};

/// A change waits for others for so long.
const SETTLE: Duration = Duration::from_millis(500);
/// Endpoints and the like change all the time; they alone are stored no more often than this.
const VOLATILE: Duration = Duration::from_secs(10);
/// How often it is stored without a change: it says when it was last known to be current.
const REFRESH: Duration = Duration::from_secs(300);
/// How often it is looked whether there is traffic with somebody new.
const LOOK: Duration = Duration::from_secs(2);
/// How often open files are counted.
const COUNT: Duration = Duration::from_secs(5);
/// Newcomers to greet are stored no more often than this.
const APART: Duration = Duration::from_secs(5);
/// Who was silent for this long is not greeted after a restart.
const RECENT: Duration = Duration::from_secs(300);

/// With whom there was traffic lately, and what is on disk; decides what is worth another write.
#[derive(Debug)]
struct Memory {
    /// When there last was traffic with a peer.
    recent: BTreeMap<NodeId, Instant>,
    stored: Option<Stored>,
}

/// What is on disk.
#[derive(Debug)]
struct Stored {
    at: Instant,
    version: u64,
    /// Whom a restart would greet.
    greeted: BTreeSet<NodeId>,
    /// It is not what it should be: endpoints and the like changed, or it could not be written.
    is_old: bool,
}

impl Memory {
    /// After a start from this file.
    fn new(file: Option<&StoredNetmap>, now: Instant) -> Self {
        let greeted = file.iter().flat_map(|file| file.active.iter().copied());
        let greeted: BTreeSet<NodeId> = greeted.collect();
        Self {
            recent: greeted.iter().map(|peer| (*peer, now)).collect(),
            stored: file.map(|file| Stored {
                at: now,
                version: file.netmap.cursor.version,
                greeted,
                is_old: false,
            }),
        }
    }

    /// There is traffic with these peers; `changed`: the netmap is another one.
    fn look(&mut self, active: impl IntoIterator<Item = NodeId>, changed: bool, now: Instant) {
        self.recent
            .extend(active.into_iter().map(|peer| (peer, now)));
        self.recent
            .retain(|_, last| now.saturating_duration_since(*last) < RECENT);
        if let Some(stored) = &mut self.stored {
            stored.is_old |= changed;
        }
    }

    /// Whom a restart should greet: those there was traffic with last.
    fn greeted(&self) -> Vec<NodeId> {
        let mut recent: Vec<_> = self.recent.iter().collect();
        recent.sort_by_key(|(_, last)| std::cmp::Reverse(**last));
        recent.into_iter().map(|(peer, _)| *peer).collect()
    }

    /// Whether a netmap of this version is to be stored now.
    fn is_due(&self, version: u64, now: Instant) -> bool {
        let Some(stored) = &self.stored else {
            return true;
        };
        let mut recent = self.recent.keys();
        let after = if version != stored.version {
            // Somebody may be gone for good, whom a restart without a coordinator must not know.
            Duration::ZERO
        } else if recent.any(|peer| !stored.greeted.contains(peer)) {
            APART
        } else if stored.is_old {
            VOLATILE
        } else {
            // One who went quiet is no reason at all: he is greeted once too often.
            REFRESH
        };
        now.saturating_duration_since(stored.at) >= after
    }

    /// It was stored, or could not be.
    fn wrote(&mut self, version: u64, greeted: Vec<NodeId>, failed: bool, now: Instant) {
        self.stored = Some(Stored {
            at: now,
            version,
            greeted: greeted.into_iter().collect(),
            // A disk that is full may have room again soon.
            is_old: failed,
        });
    }
}

/// Runs until the node stops or is removed, and stores (or removes) once more then.
pub(crate) async fn run(
    shared: Arc<Shared>,
    state: StateDir,
    mut netmap: watch::Receiver<Option<Arc<Netmap>>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut memory = Memory::new(shared.control().stored(), Instant::now());
    let mut count_at = Instant::now();
    loop {
        look_aside(&shared, &state).await;
        let (mut last, changed) = tokio::select! {
            () = stopped(&mut stop) => (true, false),
            changed = netmap.changed() => (changed.is_err(), true),
            () = tokio::time::sleep(LOOK) => (false, false),
        };
        if changed && !last {
            let settled = tokio::time::timeout(SETTLE, stopped(&mut stop));
            last = settled.await.is_ok();
        }
        let current = netmap.borrow_and_update().clone();
        if let Some(current) = current {
            let (version, now) = (current.cursor.version, Instant::now());
            memory.look(shared.active_peers(), changed, now);
            if last || memory.is_due(version, now) {
                let status = shared.control().status().borrow().clone();
                let greeted = memory.greeted();
                let failed = keep(status, greeted.clone(), &state, &current).await;
                memory.wrote(version, greeted, failed.is_some(), now);
                note(&shared, failed);
            }
        }
        if last {
            return;
        }
        if Instant::now() >= count_at {
            shared.files.look().await;
            count_at = Instant::now() + COUNT;
        }
        let troubles = shared.troubles(Timestamp::from(SystemTime::now()));
        shared.control().troubles(troubles);
    }
}

/// Looks whether a netmap that was set aside is still there: somebody should look at it.
async fn look_aside(shared: &Shared, state: &StateDir) {
    let state = state.clone();
    let looked = tokio::task::spawn_blocking(move || state.netmap_aside()).await;
    // The runtime is stopping when there is no answer.
    let file = looked.ok().flatten();
    shared.set_aside(file.map(|file| file.display().to_string()));
}

/// Tells of a disk that takes nothing once, and once more when it does again.
fn note(shared: &Shared, failed: Option<String>) {
    if failed.is_some() {
        add(&shared.counters.netmap_store_failures, 1);
    }
    let before = shared.set_unsaved(failed.clone());
    match (before, failed) {
        (None, Some(error)) => {
            tracing::warn!(
                error,
                "the netmap was not stored; a restart needs the coordinator"
            );
        }
        (Some(_), None) => tracing::info!("the netmap is stored again"),
        (None, None) | (Some(_), Some(_)) => {}
    }
}

/// Stores the netmap, or removes the stored one when this node was removed: after a restart
/// without its coordinator it would otherwise greet peers that are its own no more. Gives what went
/// wrong, if anything.
pub(crate) async fn keep(
    status: ControlStatus,
    active: Vec<NodeId>,
    state: &StateDir,
    netmap: &Arc<Netmap>,
) -> Option<String> {
    let now = Timestamp::from(SystemTime::now());
    let (state, netmap) = (state.clone(), Arc::clone(netmap));
    let stored = tokio::task::spawn_blocking(move || {
        if status.is_removed() {
            return state.remove_netmap();
        }
        state.store_netmap(&StoredNetmap {
            saved: status.stale_since.unwrap_or(now),
            active,
            netmap: Netmap::clone(&netmap),
        })
    })
    .await;
    match stored {
        Ok(Err(error)) => {
            let source = std::error::Error::source(&error);
            Some(source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}")))
        }
        // The runtime is stopping when there is no answer.
        Ok(Ok(())) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u16) -> NodeId {
        NodeId::from_parts(u64::from(n), [0; 10])
    }

    /// A memory that has just been written at version 1 with these peers, and a clock.
    fn written(peers: std::ops::Range<u16>) -> (Memory, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let mut memory = Memory::new(None, start);
        memory.look(peers.map(peer), true, start);
        assert!(memory.is_due(1, start), "there is none yet");
        memory.wrote(1, memory.greeted(), false, start);
        (memory, move |secs| start + Duration::from_secs(secs))
    }

    #[test]
    fn somebody_new_to_greet_is_stored_within_seconds_and_not_at_each_packet() {
        let (mut memory, at) = written(0..2);
        for secs in 1..60 {
            memory.look([peer(0), peer(1)], false, at(secs));
            assert!(!memory.is_due(1, at(secs)), "nothing new at {secs} s");
        }
        // The last write was long ago.
        memory.look([peer(2)], false, at(60));
        assert!(memory.is_due(1, at(60)));
        memory.wrote(1, memory.greeted(), false, at(60));
        memory.look([peer(3)], false, at(62));
        assert!(
            !memory.is_due(1, at(62)),
            "with those who come in the next seconds"
        );
        memory.look([peer(4)], false, at(65));
        assert!(memory.is_due(1, at(65)));
        assert_eq!(memory.greeted().len(), 5);
    }

    #[test]
    fn whoever_is_silent_is_forgotten_without_a_write_of_its_own() {
        let (mut memory, at) = written(0..2);
        memory.look([peer(1)], false, at(200));
        memory.look([], false, at(299));
        assert!(!memory.is_due(1, at(299)));
        memory.look([], false, at(300));
        assert_eq!(memory.greeted(), [peer(1)]);
        assert!(memory.is_due(1, at(300)), "it says when it was current");
    }

    #[test]
    fn another_version_is_stored_at_once_and_endpoints_every_ten_seconds() {
        let (mut memory, at) = written(0..2);
        memory.look([], true, at(1));
        assert!(memory.is_due(2, at(1)));
        assert!(!memory.is_due(1, at(9)));
        assert!(memory.is_due(1, at(10)));
        memory.wrote(1, memory.greeted(), true, at(10));
        memory.look([], false, at(19));
        assert!(!memory.is_due(1, at(19)));
        assert!(memory.is_due(1, at(20)), "what failed is tried again");
    }

    #[test]
    fn everybody_there_was_traffic_with_is_greeted_the_last_ones_first() {
        let (mut memory, at) = written(0..2000);
        memory.look([peer(2000)], false, at(100));
        assert!(memory.is_due(1, at(100)));
        let greeted = memory.greeted();
        assert_eq!((greeted.len(), greeted[0]), (2001, peer(2000)));
    }

    #[test]
    fn a_second_start_greets_those_of_the_first_one_too() {
        let start = Instant::now();
        let file = StoredNetmap {
            saved: Timestamp::from_secs(1),
            active: vec![peer(1), peer(2)],
            netmap: netmap(),
        };
        let mut memory = Memory::new(Some(&file), start);
        memory.look([], false, start + LOOK);
        assert!(!memory.is_due(7, start + LOOK), "it is on disk");
        memory.look([peer(3)], true, start + APART);
        assert!(memory.is_due(8, start + APART));
        assert_eq!(memory.greeted(), [peer(3), peer(1), peer(2)]);
    }

    fn netmap() -> Netmap {
        use mesh_types::{
            Cursor, NetworkId, NetworkName, OverlayAddrs, PacketFilter, Role, SelfNode,
        };
        Netmap {
            cursor: Cursor {
                version: 7,
                ..Cursor::default()
            },
            node: SelfNode {
                id: peer(9),
                network: NetworkId::from_bytes([1; 16]),
                network_name: NetworkName::default_network(),
                name: "own".parse().expect("a name"),
                role: Role::Worker,
                addrs: OverlayAddrs {
                    v4: [100, 64, 0, 9].into(),
                    v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 9].into(),
                },
                console_prefix: String::new(),
                ssh_ca: String::new(),
            },
            peers: BTreeMap::new(),
            filter: PacketFilter::default(),
            relays: Vec::new(),
        }
    }
}
