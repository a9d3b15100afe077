//! Places for connections: so many may be open, and whoever has waited longest without a request
//! makes room for newcomers.
//!
//! Who connects and says nothing, says it byte by byte or comes back to an old connection now and
//! then could otherwise keep everybody else out for as long as the slowest honest client may take.
//! Here silence costs such a client nothing while there are places, and its place when there are
//! none. A connection with a request under way keeps its place whatever comes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Finding out who waits longest takes a look at all, so this part of those who wait goes at once.
const PART: usize = 64;
/// How often somebody who waits for a place looks again: those who keep theirs grow older.
const LOOK: Duration = Duration::from_millis(100);
/// How long nobody looks again after a look in vain, which takes longest: so many who come while
/// all are at work cost no more than one.
const IN_VAIN: Duration = Duration::from_millis(10);

/// A seat's state: how many requests are under way in the upper 16 bits, and below since when it
/// waits, in milliseconds since its [`Places`] were made.
const REQUEST: u64 = 1 << 48;
const SINCE: u64 = REQUEST - 1;
/// It gave its place up.
const GONE: u64 = u64::MAX;

/// So many places, for the connections of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    grace: Duration,
    began: Instant,
    seats: Mutex<Seats>,
    freed: Notify,
    shed: Counter,
}

/// INVARIANT: `taken` counts the seats in `held`, and there are never more than `limit`.
#[derive(Debug, Default)]
struct Seats {
    held: BTreeMap<u64, Arc<Seat>>,
    next: u64,
    /// When nobody was found who could make room.
    in_vain: Option<Instant>,
}

#[derive(Debug)]
struct Seat {
    state: AtomicU64,
    settled: AtomicBool,
    began: Instant,
    task: OnceLock<AbortHandle>,
}

impl Places {
    /// `limit` places. Whoever waits keeps its place for `grace` in any case, since a newcomer's
    /// first request takes its time; `shed` counts those who gave theirs up.
    pub fn new(limit: usize, grace: Duration, shed: Counter) -> Self {
        Self(Arc::new(Shared {
            limit,
            grace,
            began: now(),
            seats: Mutex::default(),
            freed: Notify::new(),
            shed,
        }))
    }

    /// Takes a place, from whoever has waited longest when there is none; `None` when all who have
    /// one are at work or have only just come.
    pub fn take(&self) -> Option<Place> {
        self.take_at(now())
    }

    /// The next client, with a place for it. Nobody makes room before it has come, so one client
    /// at a time is let in and waits; it is disconnected when this is dropped. The others wait in
    /// the kernel's queue.
    pub async fn accept(&self, listener: &TcpListener) -> (TcpStream, SocketAddr, Place) {
        let (stream, from) = crate::net::accept(listener).await;
        (stream, from, self.next().await)
    }

    /// Waits for a place as long as it takes. Cancel-safe.
    async fn next(&self) -> Place {
        loop {
            let freed = self.0.freed.notified();
            if let Some(place) = self.take() {
                return place;
            }
            // Whether it was freed or has grown old is for the next look to tell.
            drop(tokio::time::timeout(LOOK, freed).await);
        }
    }

    fn take_at(&self, now: Instant) -> Option<Place> {
        let shared = &self.0;
        let mut seats = shared.lock();
        let in_vain = seats.in_vain.map(|at| now.saturating_duration_since(at));
        let shed = if seats.held.len() < shared.limit || in_vain.is_some_and(|ago| ago < IN_VAIN) {
            Vec::new()
        } else {
            shared.shed(&mut seats, now)
        };
        let place = (seats.held.len() < shared.limit).then(|| {
            let number = seats.next;
            seats.next += 1;
            let seat = Arc::new(Seat {
                state: AtomicU64::new(millis(shared.began, now)),
                settled: AtomicBool::new(false),
                began: shared.began,
                task: OnceLock::new(),
            });
            seats.held.insert(number, Arc::clone(&seat));
            Place {
                shared: Arc::clone(shared),
                number,
                turn: Turn(seat),
            }
        });
        drop(seats);
        // With the lock given back: a runtime that has ended drops the task, and its place, here.
        for seat in &shed {
            if let Some(task) = seat.task.get() {
                task.abort();
            }
        }
        place
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the places of those who have waited longest; their tasks are yet to be aborted.
    fn shed(&self, seats: &mut Seats, now: Instant) -> Vec<Arc<Seat>> {
        let at = now;
        let now = millis(self.began, at);
        let grace = u64::try_from(self.grace.as_millis()).unwrap_or(SINCE);
        let mut waiting: Vec<(u64, u64)> = seats
            .held
            .iter()
            .filter(|(_, seat)| seat.task.get().is_some())
            .filter_map(|(&number, seat)| Some((seat.waits_since()?, number)))
            .filter(|&(since, _)| now.saturating_sub(since) >= grace)
            .collect();
        let part = waiting.len().div_ceil(PART);
        seats.in_vain = (part == 0).then_some(at);
        if part == 0 {
            return Vec::new();
        }
        waiting.select_nth_unstable(part - 1);
        waiting.truncate(part);
        let give_up = |(since, number)| {
            let seat = seats.held.get(&number)?;
            // A request that has come in meanwhile wins.
            let state = &seat.state;
            state
                .compare_exchange(since, GONE, Ordering::AcqRel, Ordering::Relaxed)
                .ok()?;
            self.shed.inc();
            seats.held.remove(&number)
        };
        waiting.into_iter().filter_map(give_up).collect()
    }
}

impl Seat {
    fn waits_since(&self) -> Option<u64> {
        let state = self.state.load(Ordering::Relaxed);
        (state < REQUEST).then_some(state)
    }
}

/// tokio's clock, which tests can turn.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn millis(began: Instant, at: Instant) -> u64 {
    let passed = at.saturating_duration_since(began).as_millis();
    // 48 bits last for 8900 years.
    u64::try_from(passed).unwrap_or(SINCE).min(SINCE)
}

/// The place of one connection, free again once this is dropped.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    number: u64,
    turn: Turn,
}

impl Place {
    /// Whose turn it is on this connection.
    pub fn turn(&self) -> &Turn {
        &self.turn
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever gave its place up holds none any more.
        if self.shared.lock().held.remove(&self.number).is_some() {
            self.shared.freed.notify_one();
        }
    }
}

/// Whose turn it is on a connection: it has requests under way, or it waits for one. Clones speak
/// of the same connection.
#[derive(Debug, Clone)]
pub struct Turn(Arc<Seat>);

impl Default for Turn {
    /// Of a connection that takes nobody's place.
    fn default() -> Self {
        Self(Arc::new(Seat {
            state: AtomicU64::new(0),
            settled: AtomicBool::new(false),
            began: now(),
            task: OnceLock::new(),
        }))
    }
}

impl Turn {
    /// The task that serves the connection. It is aborted when the connection gives its place up;
    /// without one a connection gives up nothing.
    pub fn served_by(&self, task: AbortHandle) {
        // The place may have been kept for whoever would come since long before anybody came.
        let came = |state: u64| (state < REQUEST).then(|| millis(self.0.began, now()));
        let _before = self
            .0
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, came);
        // INVARIANT: a connection is served by one task.
        drop(self.0.task.set(task));
    }

    /// A request begins; it is over when this is dropped. `None` when the place was given up, and
    /// then the connection's task ends at its next await.
    #[must_use = "the request is over when this is dropped"]
    pub fn request(&self) -> Option<UnderWay> {
        self.begin().then(|| UnderWay(Arc::clone(&self.0)))
    }

    /// From now on the connection keeps its place to its end, and is never idle. May be said again.
    pub fn settle(&self) {
        if !self.0.settled.swap(true, Ordering::Relaxed) {
            self.begin();
        }
    }

    fn begin(&self) -> bool {
        // There is no room for one more in `GONE`.
        let another = |state: u64| state.checked_add(REQUEST);
        self.0
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, another)
            .is_ok()
    }

    /// Ends when no request was under way for `limit`, give or take as much again.
    pub async fn idle_for(&self, limit: Duration) {
        let mut rest = limit;
        loop {
            tokio::time::sleep(rest).await;
            if self.0.settled.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            rest = match self.0.waits_since() {
                None => limit,
                Some(since) => {
                    let waited = millis(self.0.began, now()).saturating_sub(since);
                    limit.saturating_sub(Duration::from_millis(waited))
                }
            };
            if rest.is_zero() {
                return;
            }
        }
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct UnderWay(Arc<Seat>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let over = |state: u64| {
            let left = state - REQUEST;
            // With the last one the connection waits again, from now on.
            let is_last = left < REQUEST;
            Some(if is_last {
                millis(self.0.began, now())
            } else {
                left
            })
        };
        // INVARIANT: who has a request under way gives nothing up, so its state is no `GONE`.
        let _before = self
            .0
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, over);
    }
}

#[cfg(test)]
mod tests;
