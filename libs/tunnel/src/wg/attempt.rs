//! When a handshake without an answer is asked for again, and when it is given up.

use std::time::{Duration, Instant};

/// A handshake without an answer is given up after this long (WireGuard: REKEY_ATTEMPT_TIME).
const GIVE_UP: Duration = Duration::from_secs(90);
/// Pauses between initiations; the last one repeats. WireGuard's REKEY_TIMEOUT is 5 s; the first
/// ones are shorter because a path may open any moment, and the last one is a little shorter so
/// that the jitter is ours, not boringtun's.
const RETRY: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(4500),
];
/// Up to this is added to each pause.
const JITTER_MILLIS: u32 = 333;

/// A handshake that somebody waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    since: Instant,
    next: Instant,
    /// Initiations that were sent, since the pauses last began anew.
    tries: u32,
}

impl Attempt {
    /// Nothing was sent yet: the first initiation is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            next: now,
            tries: 0,
        }
    }

    /// An initiation was sent; `jitter` is any random number.
    pub(super) fn on_sent(&mut self, jitter: u32, now: Instant) {
        let pause = RETRY.get(self.tries as usize);
        let pause = *pause.unwrap_or(&RETRY[RETRY.len() - 1]);
        let jitter = Duration::from_millis(u64::from(jitter % JITTER_MILLIS));
        self.tries = self.tries.saturating_add(1);
        self.next = now + pause + jitter;
    }

    /// Another way to the peer may be open: the next initiation is due, and the pauses are the
    /// short ones again.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.next = now;
        self.tries = self.tries.min(1);
    }

    /// There is news of this very peer: as if nothing had been sent yet.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.next = now;
        self.tries = 0;
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    pub(super) fn ends(&self) -> Instant {
        self.since + GIVE_UP
    }
}
