//! When a device that was lost is made again.

use std::time::{Duration, Instant};

/// The first wait, and the longest.
const FIRST: Duration = Duration::from_secs(1);
pub(super) const LONGEST: Duration = Duration::from_secs(10);
/// A device that stood for so long counts as wanted by the machine: its loss is a new one.
const STEADY: Duration = Duration::from_secs(60);

/// At once when the device before stood for [`STEADY`] or there was none; else after a wait that
/// doubles up to [`LONGEST`]. So nobody who removes the device again and again fights with us over
/// it, and who does it once does not notice.
#[derive(Debug)]
pub(super) struct Pace {
    stands_since: Option<Instant>,
    wait: Duration,
    next: Instant,
}

impl Pace {
    /// Of a device that stands since `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            stands_since: Some(now),
            wait: Duration::ZERO,
            next: now,
        }
    }

    /// It is gone, or could not be made.
    pub(super) fn lost(&mut self, now: Instant) {
        let stood = self
            .stands_since
            .take()
            .map(|since| now.duration_since(since));
        if stood.is_some_and(|stood| stood >= STEADY) {
            self.wait = Duration::ZERO;
        }
        self.next = now + self.wait;
        self.wait = (self.wait * 2).clamp(FIRST, LONGEST);
    }

    /// Whether it is time to make it.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// It was made.
    pub(super) fn made(&mut self, now: Instant) {
        self.stands_since = Some(now);
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a test needs some instant to start from"
)]
mod tests {
    use super::*;

    /// How long the pace lets a device that is lost at `now` wait, in seconds.
    fn wait(pace: &mut Pace, now: Instant) -> u64 {
        pace.lost(now);
        let due = |secs: &u64| pace.is_due(now + Duration::from_secs(*secs));
        (0..=60).find(due).expect("it is made again")
    }

    #[test]
    fn a_device_is_made_again_at_once_and_then_ever_later() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for expected in [0, 1, 2, 4, 8, 10, 10] {
            let waited = wait(&mut pace, now);
            assert_eq!(waited, expected);
            now += Duration::from_secs(waited);
            // Made, and taken away once more.
            pace.made(now);
        }
    }

    #[test]
    fn attempts_that_fail_are_spread_out_too() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for expected in [0, 1, 2, 4, 8, 10] {
            let waited = wait(&mut pace, now);
            assert_eq!(waited, expected);
            now += Duration::from_secs(waited);
        }
    }

    #[test]
    fn a_device_that_stood_for_a_minute_is_made_again_at_once() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..5 {
            wait(&mut pace, now);
        }
        pace.made(now);
        now += STEADY;
        assert_eq!(wait(&mut pace, now), 0);
        assert_eq!(wait(&mut pace, now), 1);
    }
}
