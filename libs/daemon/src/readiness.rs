//! Readiness: who in this process is not ready yet, and why.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// What keeps the process from being ready. Clones share one list.
#[derive(Clone, Default)]
pub struct Readiness {
    shared: Arc<Mutex<Shared>>,
    prefix: String,
}

#[derive(Default)]
struct Shared {
    draining: bool,
    next_id: u64,
    latches: Vec<Entry>,
}

struct Entry {
    id: u64,
    name: String,
    /// Why not; `None` when ready.
    reason: Option<String>,
    /// Ready, but not as it should be: why.
    worse: Option<String>,
}

/// One thing that is not ready, or worse than it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NotReady {
    /// Which part, such as `coordinator/store`.
    pub name: String,
    /// What it waits for.
    pub reason: String,
}

impl Readiness {
    /// Adds something that is not ready, for `reason`, until [`Latch::ready`] is called.
    pub fn latch(&self, name: &str, reason: &str) -> Latch {
        let mut shared = self.lock();
        let id = shared.next_id;
        shared.next_id += 1;
        shared.latches.push(Entry {
            id,
            name: format!("{}{name}", self.prefix),
            reason: Some(reason.to_owned()),
            worse: None,
        });
        Latch {
            id,
            readiness: self.clone(),
        }
    }

    /// The same list, with `part/` in front of each name added through this handle.
    #[must_use]
    pub fn scoped(&self, part: &str) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            prefix: format!("{}{part}/", self.prefix),
        }
    }

    /// From now on not ready: the process shuts down.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Whether everything is ready and nothing shuts down.
    pub fn is_ready(&self) -> bool {
        self.report().is_empty()
    }

    /// What is not ready, in the order it was added; empty when ready.
    pub fn report(&self) -> Vec<NotReady> {
        let shared = self.lock();
        let draining = shared.draining.then(|| NotReady {
            name: "process".to_owned(),
            reason: "shutting down".to_owned(),
        });
        let waiting = shared.latches.iter().filter_map(|entry| {
            let reason = entry.reason.clone()?;
            Some(NotReady {
                name: entry.name.clone(),
                reason,
            })
        });
        draining.into_iter().chain(waiting).collect()
    }

    /// What is ready and yet worse than it should be, in the order it was added.
    pub fn degraded(&self) -> Vec<NotReady> {
        let shared = self.lock();
        let worse = shared.latches.iter().filter_map(|entry| {
            let reason = entry.worse.clone()?;
            Some(NotReady {
                name: entry.name.clone(),
                reason,
            })
        });
        worse.collect()
    }

    /// Every latch with whether it is ready, in the order they were added.
    pub fn latches(&self) -> Vec<(String, bool)> {
        let shared = self.lock();
        let latches = shared.latches.iter();
        latches
            .map(|entry| (entry.name.clone(), entry.reason.is_none()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // INVARIANT: no code between lock and unlock can panic half way through a change.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.report()).finish()
    }
}

/// One thing that must be ready; it counts as long as this value lives.
#[derive(Debug)]
pub struct Latch {
    id: u64,
    readiness: Readiness,
}

impl Latch {
    /// It is ready.
    pub fn ready(&self) {
        self.update(None, None);
    }

    /// It is ready, though something that it can do without fails: what.
    pub fn degraded(&self, reason: &str) {
        self.update(None, Some(reason.to_owned()));
    }

    /// It is not ready (any more), and why.
    pub fn not_ready(&self, reason: &str) {
        self.update(Some(reason.to_owned()), None);
    }

    /// Follows something that the process can do without, for as long as somebody tells its state:
    /// degraded when `worse` finds a reason, else ready.
    pub async fn follow<T>(
        self,
        mut state: watch::Receiver<T>,
        mut worse: impl FnMut(&T) -> Option<String>,
    ) {
        loop {
            let reason = worse(&state.borrow_and_update());
            match reason {
                Some(reason) => self.degraded(&reason),
                None => self.ready(),
            }
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    fn update(&self, reason: Option<String>, worse: Option<String>) {
        let mut shared = self.readiness.lock();
        if let Some(entry) = shared.latches.iter_mut().find(|entry| entry.id == self.id) {
            entry.reason = reason;
            entry.worse = worse;
        }
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.readiness
            .lock()
            .latches
            .retain(|entry| entry.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_must_be_ready_and_each_reason_is_named() {
        let readiness = Readiness::default();
        let store = readiness
            .scoped("coordinator")
            .latch("store", "opening the database");
        let relay = readiness.latch("relay", "no key list yet");
        assert_eq!(readiness.report().len(), 2);
        store.ready();
        assert_eq!(
            readiness.report(),
            [NotReady {
                name: "relay".to_owned(),
                reason: "no key list yet".to_owned()
            }]
        );
        relay.ready();
        assert!(readiness.is_ready());
        store.not_ready("the disk is full");
        assert_eq!(readiness.report()[0].name, "coordinator/store");
        drop(store);
        assert!(readiness.is_ready());
    }

    #[test]
    fn what_one_can_do_without_keeps_nobody_from_being_ready() {
        let readiness = Readiness::default();
        let bus = readiness.latch("bus", "not tried yet");
        bus.degraded("Redis does not answer");
        assert!(readiness.is_ready());
        assert_eq!(readiness.degraded()[0].name, "bus");
        bus.ready();
        assert_eq!(readiness.degraded(), []);
    }

    #[tokio::test]
    async fn a_followed_state_is_told_for_as_long_as_it_is_known() {
        let readiness = Readiness::default();
        let latch = readiness.latch("coordinator", "not tried yet");
        let (tell, told) = watch::channel(Some("refused"));
        let following = tokio::spawn(latch.follow(told, |state| state.map(str::to_owned)));
        while !readiness.is_ready() {
            tokio::task::yield_now().await;
        }
        assert_eq!(readiness.degraded()[0].reason, "refused");
        tell.send(None).expect("followed");
        while !readiness.degraded().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(tell);
        following.await.expect("it ends");
        assert_eq!(readiness.latches(), []);
    }

    #[test]
    fn a_draining_process_is_not_ready() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        readiness.drain();
        assert_eq!(readiness.report()[0].reason, "shutting down");
    }
}
