//! The peers' deadlines, soonest first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::router::Slot;

/// Entries are never taken back: a peer remembers its own deadline, and an entry that differs from
/// it is stale and ignored when it comes up.
#[derive(Debug, Default)]
pub(crate) struct Timers(BinaryHeap<Reverse<(Instant, Slot)>>);

impl Timers {
    pub(crate) fn schedule(&mut self, slot: Slot, at: Instant) {
        self.0.push(Reverse((at, slot)));
    }

    /// The soonest entry, stale or not.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the soonest entry when it is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, Slot)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(entry)| entry)
    }
}
