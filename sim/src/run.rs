//! Runs of one seed or many.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::identity::Identity;

use crate::planted::Bug;
use crate::trace::Trace;
use crate::world::World;

/// How a seed is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The fault that is planted.
    pub bug: Option<Bug>,
    /// Whether every event is printed.
    pub print: bool,
    /// Whether it is a life of 35 days.
    pub month: bool,
}

/// What became of one seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which one.
    pub seed: u64,
    /// What was found, and where; `None` when all was as it must be.
    pub failure: Option<String>,
    /// Everything that happened.
    pub trace: Trace,
    /// How long the world lived, by its own clock.
    pub lived: Duration,
}

/// What became of many.
#[derive(Debug, Default)]
pub struct Report {
    /// How many seeds were run.
    pub ran: u64,
    /// Those that failed, lowest first, and why.
    pub failures: BTreeMap<u64, String>,
    /// How many events of each kind there were.
    pub counts: BTreeMap<&'static str, u64>,
    /// How long the worlds lived together, by their own clocks.
    pub lived: Duration,
    /// How long that took.
    pub took: Duration,
}

thread_local! {
    /// The panic that a world of this thread ended with, when one is expected.
    static FOUND: RefCell<Option<String>> = const { RefCell::new(None) };
    static WATCHED: RefCell<bool> = const { RefCell::new(false) };
}

/// Keeps panics of worlds to be told by us; those of others are told as ever.
fn catch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !WATCHED.with_borrow(|watched| *watched) {
                default(info);
                return;
            }
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let text = text_of(info.payload());
            FOUND.set(Some(format!("{text} ({place})")));
        }));
    });
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

/// Keys for the nodes of all worlds: making them is slow, and nothing depends on which they are.
pub(crate) fn identities() -> Vec<Arc<Identity>> {
    static KEYS: OnceLock<Vec<Arc<Identity>>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let key = |_| Arc::new(Identity::generate().expect("the system has randomness"));
        (0..16).map(key).collect()
    })
    .clone()
}

/// Where virtual time begins: for all at the same instant, since it matters to nobody.
pub(crate) fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(1)
}

/// Lets a world of this thread live; what was found, if anything.
pub(crate) fn watched(live: impl FnOnce()) -> Option<String> {
    catch_panics();
    WATCHED.set(true);
    let lived = panic::catch_unwind(AssertUnwindSafe(live));
    WATCHED.set(false);
    let found = FOUND.take();
    lived
        .err()
        .map(|payload| found.unwrap_or_else(|| text_of(payload.as_ref())))
}

/// Lets a world live by this seed.
pub fn seed(seed: u64, options: Options) -> Outcome {
    let trace = Trace::new(options.print);
    let (start, keys) = (start(), identities());
    let (world, failure) = if options.month {
        let mut world = World::for_month(seed, options.bug, trace, start, keys);
        let failure = watched(|| world.month());
        (world, failure)
    } else {
        let mut world = World::new(seed, options.bug, trace, start, keys);
        let failure = watched(|| world.live());
        (world, failure)
    };
    Outcome {
        seed,
        failure,
        trace: world.trace().clone(),
        lived: world.age(),
    }
}

/// Runs all these seeds on so many threads; until the first that fails, if `only_first`.
pub fn many(seeds: Range<u64>, options: Options, threads: usize, only_first: bool) -> Report {
    let begun = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds.end {
                        break;
                    }
                    let outcome = seed(number, options);
                    if only_first && outcome.failure.is_some() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    report.add(outcome);
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.took = begun.elapsed();
    report
}

impl Report {
    fn add(&mut self, outcome: Outcome) {
        self.ran += 1;
        self.lived += outcome.lived;
        for (kind, count) in outcome.trace.counts() {
            *self.counts.entry(kind).or_default() += count;
        }
        if let Some(failure) = outcome.failure {
            self.failures.insert(outcome.seed, failure);
        }
    }
}
