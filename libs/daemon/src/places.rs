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
mod tests {
    use std::future::pending;

    use tokio::task::JoinSet;

    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    /// Connections that hold places.
    struct Lab {
        places: Places,
        shed: Counter,
        tasks: JoinSet<()>,
    }

    impl Lab {
        fn new(limit: usize) -> Self {
            let shed = Counter::default();
            Self {
                places: Places::new(limit, GRACE, shed.clone()),
                shed,
                tasks: JoinSet::new(),
            }
        }

        /// One more connection, unless there is no place.
        fn connect(&mut self) -> Option<Turn> {
            let place = self.places.take()?;
            let turn = place.turn().clone();
            turn.served_by(self.tasks.spawn(async move {
                let _place = place;
                pending::<()>().await;
            }));
            Some(turn)
        }

        fn open(&self) -> usize {
            self.places.0.lock().held.len()
        }

        /// How many tasks were ended.
        async fn ended(&mut self) -> usize {
            let mut ended = 0;
            tokio::task::yield_now().await;
            while let Some(end) = self.tasks.try_join_next() {
                assert!(end.expect_err("aborted").is_cancelled());
                ended += 1;
            }
            ended
        }
    }

    async fn pass(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_longest_makes_room_and_nobody_else() {
        let mut lab = Lab::new(3);
        let mut turns = Vec::new();
        for _ in 0..3 {
            turns.push(lab.connect().expect("a place"));
            pass(GRACE).await;
        }
        // The first one's request came and went, so it is the second one that waits longest.
        drop(turns[0].request().expect("still there"));
        pass(GRACE).await;
        let fourth = lab.connect().expect("one makes room");
        assert_eq!((lab.ended().await, lab.open(), lab.shed.get()), (1, 3, 1));
        assert!(turns[1].request().is_none(), "it was the second");
        assert!(turns[0].request().is_some() && turns[2].request().is_some());
        assert!(fourth.request().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_under_way_and_newcomers_keep_their_places() {
        let mut lab = Lab::new(2);
        let busy = lab.connect().expect("a place");
        let request = busy.request().expect("there");
        let second = busy.request().expect("there");
        pass(GRACE * 10).await;
        drop(second);
        let _young = lab.connect().expect("a place");
        assert!(lab.connect().is_none(), "one is at work, one has just come");
        pass(GRACE).await;
        assert!(lab.connect().is_some(), "the young one is old now");
        drop(request);
        assert!(lab.connect().is_none(), "its time begins with the end");
        pass(GRACE).await;
        assert!(lab.connect().is_some());
        assert_eq!((lab.ended().await, lab.open()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_settled_stays_and_places_come_back() {
        let mut lab = Lab::new(2);
        for _ in 0..2 {
            let turn = lab.connect().expect("a place");
            // As often as a connection may have requests.
            for _ in 0..100_000 {
                turn.settle();
            }
            drop(turn.request().expect("still there"));
        }
        pass(GRACE * 100).await;
        assert!(lab.connect().is_none());
        lab.tasks.abort_all();
        assert_eq!((lab.ended().await, lab.open(), lab.shed.get()), (2, 0, 0));
        assert!(lab.connect().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_before_anybody_came_is_not_theirs() {
        let mut lab = Lab::new(2);
        lab.connect().expect("a place").settle();
        // Nobody comes for long.
        let place = lab.places.take().expect("a place");
        pass(GRACE * 10).await;
        let turn = place.turn().clone();
        turn.served_by(lab.tasks.spawn(async move {
            let _place = place;
            pending::<()>().await;
        }));
        assert!(lab.places.take().is_none(), "who came has only just come");
        assert_eq!(lab.ended().await, 0);
        pass(GRACE).await;
        assert!(lab.places.take().is_some(), "and is old now");
        assert_eq!(lab.ended().await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_a_part_goes_at_once_and_each_makes_room_for_one() {
        let mut lab = Lab::new(640);
        for _ in 0..640 {
            lab.connect().expect("a place");
        }
        pass(GRACE).await;
        for _ in 0..10 {
            lab.connect().expect("a place");
        }
        assert_eq!(lab.shed.get(), 10, "one look, for ten newcomers");
        lab.connect().expect("a place");
        assert_eq!((lab.shed.get(), lab.open()), (20, 631));
        assert_eq!(lab.ended().await, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_place_gets_it_when_one_is_free_or_old_enough() {
        let mut lab = Lab::new(1);
        lab.connect().expect("a place");
        let begun = tokio::time::Instant::now();
        let place = lab.places.next().await;
        assert!(begun.elapsed() >= GRACE && begun.elapsed() < GRACE + 2 * LOOK);
        let places = lab.places.clone();
        let ((), next) = tokio::join!(async move { drop(place) }, places.next());
        drop(next);
        assert_eq!(lab.open(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_makes_room_before_somebody_comes() {
        let mut lab = Lab::new(1);
        lab.connect().expect("a place");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let at = listener.local_addr().expect("bound");
        let nobody = tokio::time::timeout(GRACE * 10, lab.places.accept(&listener)).await;
        assert!(nobody.is_err(), "nobody has come");
        assert_eq!((lab.shed.get(), lab.ended().await), (0, 0));
        let client = std::net::TcpStream::connect(at).expect("connected");
        let (_stream, from, _place) = lab.places.accept(&listener).await;
        assert_eq!(Some(from), client.local_addr().ok());
        assert_eq!((lab.shed.get(), lab.ended().await), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_looked_in_vain_does_not_look_again_at_once() {
        let places = Places::new(1, Duration::ZERO, Counter::default());
        let place = places.take().expect("a place");
        let turn = place.turn().clone();
        turn.served_by(tokio::spawn(pending::<()>()).abort_handle());
        let request = turn.request().expect("there");
        assert!(places.take().is_none(), "it is at work");
        drop(request);
        assert!(places.take().is_none(), "nobody was looked at");
        pass(IN_VAIN).await;
        assert!(places.take().is_some(), "it waits");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_no_request_was_under_way_for_so_long() {
        let turn = Turn::default();
        let begun = tokio::time::Instant::now();
        let request = turn.request().expect("nobody's place");
        let end = async {
            pass(GRACE * 5).await;
            drop(request);
        };
        let ((), ()) = tokio::join!(end, turn.idle_for(GRACE * 2));
        let idle = begun.elapsed();
        assert!(idle >= GRACE * 7 && idle <= GRACE * 9, "{idle:?}");
        turn.settle();
        let idle = tokio::time::timeout(GRACE * 100, turn.idle_for(GRACE)).await;
        assert!(idle.is_err(), "who has settled is never idle");
    }
}
