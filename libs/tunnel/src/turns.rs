//! Whose handshake is asked for next, when many are.
//!
//! An initiation costs both ends some work, and peers that are switched off answer none: a node that
//! knows ten thousand of them would ask 2700 times a second, for as long as there is traffic for
//! them. So each initiation takes a turn, in one of two lanes. What is asked because of traffic, and
//! again while no answer comes, has one; greetings after a restart, for which nobody waits, have the
//! other. Neither takes turns of the other, so greetings delay no traffic, and traffic for
//! peers that are gone keeps nobody from being greeted. Together they are
//! [`MOST_AT_ONCE`] at once and [`MOST_PER_SECOND`] a second at most, however many peers there are.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::router::Slot;

/// Turns of traffic that may be taken at once, and the pause between them after that.
const TRAFFIC: (u32, Duration) = (256, Duration::from_millis(2));
/// The same of greetings. 10 000 peers take 50 s.
const GREETINGS: (u32, Duration) = (64, Duration::from_millis(5));

/// Initiations at most that are sent at one moment, after a rest.
pub const MOST_AT_ONCE: u32 = TRAFFIC.0 + GREETINGS.0;
/// Initiations at most that are sent in each second beyond that.
pub const MOST_PER_SECOND: u32 = 500 + 200;

/// Why a handshake is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// There is something to send, or the peer sent what we cannot read.
    Traffic,
    /// The peer may hold a session that we lost in a restart.
    Greeting,
}

/// Where somebody stands who waits for a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) lane: Lane,
    key: Key,
}

/// How often it was asked already, then the rank: the least goes first.
type Key = (u32, u64, Slot);

#[derive(Debug)]
struct Queue {
    at_once: u32,
    apart: Duration,
    /// The turns that were taken, each for the time of `apart`, less the time that passed until `at`.
    spent: Duration,
    at: Instant,
    waiting: BTreeSet<Key>,
}

/// Both lanes.
#[derive(Debug)]
pub(crate) struct Turns {
    traffic: Queue,
    greetings: Queue,
    order: u64,
}

impl Turns {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            traffic: Queue::new(TRAFFIC, now),
            greetings: Queue::new(GREETINGS, now),
            order: 0,
        }
    }

    /// Takes a turn at once. False when there is none left, or somebody waits for it already.
    #[must_use]
    pub(crate) fn take(&mut self, lane: Lane, now: Instant) -> bool {
        let queue = self.queue(lane);
        let free = queue.waiting.is_empty() && queue.due() <= now;
        if free {
            queue.spend(now);
        }
        free
    }

    /// A rank behind all that were given before.
    pub(crate) fn rank(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// Waits for a turn, behind all who were asked as often and have a lower rank. Nobody may wait
    /// twice.
    pub(crate) fn wait(&mut self, lane: Lane, tries: u32, rank: u64, slot: Slot) -> Place {
        // Of traffic those who were never asked go first, whether they are there is not known yet;
        // all others in turn, or who was asked often would never be asked again.
        let tries = match lane {
            Lane::Traffic => tries.min(1),
            Lane::Greeting => tries,
        };
        let key = (tries, rank, slot);
        self.queue(lane).waiting.insert(key);
        Place { lane, key }
    }

    pub(crate) fn leave(&mut self, place: Place) {
        self.queue(place.lane).waiting.remove(&place.key);
    }

    /// Whose turn it is; to be asked until `None`.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(Lane, Slot)> {
        [Lane::Traffic, Lane::Greeting]
            .into_iter()
            .find_map(|lane| Some((lane, self.queue(lane).next(now)?)))
    }

    /// When it is somebody's turn, which may have been long ago.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [&self.traffic, &self.greetings]
            .into_iter()
            .filter(|queue| !queue.waiting.is_empty())
            .map(Queue::due)
            .min()
    }

    fn queue(&mut self, lane: Lane) -> &mut Queue {
        match lane {
            Lane::Traffic => &mut self.traffic,
            Lane::Greeting => &mut self.greetings,
        }
    }
}

impl Queue {
    fn new((at_once, apart): (u32, Duration), now: Instant) -> Self {
        Self {
            at_once,
            apart,
            spent: Duration::ZERO,
            at: now,
            waiting: BTreeSet::new(),
        }
    }

    fn due(&self) -> Instant {
        self.at + (self.spent + self.apart).saturating_sub(self.apart * self.at_once)
    }

    fn spend(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.spent = self.spent.saturating_sub(passed) + self.apart;
        self.at = self.at.max(now);
    }

    fn next(&mut self, now: Instant) -> Option<Slot> {
        if self.due() > now {
            return None;
        }
        let (_, _, slot) = self.waiting.pop_first()?;
        self.spend(now);
        Some(slot)
    }
}

#[cfg(test)]
mod tests;
