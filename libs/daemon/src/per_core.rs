//! Numbers that busy threads add to, each at a place of its own, so that no two of them write the
//! same cache line.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::metrics::counter::{Atomic, Counter};

/// Places; threads beyond that share.
pub(crate) const PLACES: usize = 4;

/// The calling thread's place.
pub(crate) fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PLACE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    PLACE.with(|place| {
        if place.get() == usize::MAX {
            place.set(NEXT.fetch_add(1, Ordering::Relaxed) % PLACES);
        }
        place.get()
    })
}

/// A counter for what happens on every request.
pub type BusyCounter = Counter<u64, PerCore>;

/// What a [`BusyCounter`] counts in.
#[derive(Debug, Default)]
pub struct PerCore([Place; PLACES]);

/// Two cache lines, since processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place(AtomicU64);

impl Atomic<u64> for PerCore {
    fn inc(&self) -> u64 {
        self.inc_by(1)
    }

    fn inc_by(&self, by: u64) -> u64 {
        self.0[place()].0.fetch_add(by, Ordering::Relaxed)
    }

    fn get(&self) -> u64 {
        let places = self.0.iter();
        places.map(|place| place.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let counter = BusyCounter::default();
        std::thread::scope(|scope| {
            for _ in 0..PLACES + 2 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counter.inc();
                    }
                });
            }
        });
        assert_eq!(counter.get(), (PLACES as u64 + 2) * 1000);
    }
}
