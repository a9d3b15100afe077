//! Waiting for a condition with a deadline.

use std::thread;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The first `Ok` of `probe`, which is asked again until `within` has passed.
///
/// # Panics
/// When the deadline passes, with `what` and the last reason.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> anyhow::Result<T>,
) -> T {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(reason) => {
                assert!(
                    started.elapsed() < within,
                    "not within {within:?}: {what}; last: {reason:#}"
                );
            }
        }
        rest(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Checks that `probe` keeps answering `Ok` for `span`, asking about ten times a second.
///
/// # Panics
/// At the first `Err`, with `what` and the reason.
#[track_caller]
pub fn holds_for(what: &str, span: Duration, mut probe: impl FnMut() -> anyhow::Result<()>) {
    let started = Instant::now();
    loop {
        if let Err(reason) = probe() {
            panic!("{what} stopped after {:?}: {reason:#}", started.elapsed());
        }
        if started.elapsed() >= span {
            return;
        }
        rest(LONGEST_PAUSE);
    }
}

/// Leaves the processor alone for `pause`: between two looks at something, never in place of one.
/// The whole of it, also where something unparks this thread, as the end of a [`thread::scope`]
/// does.
pub fn rest(pause: Duration) {
    let begun = Instant::now();
    loop {
        let left = pause.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "this is what takes its place")]
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_not_cut_short() {
        let begun = Instant::now();
        thread::current().unpark();
        rest(Duration::from_millis(20));
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn it_returns_the_first_success() {
        let mut asked = 0;
        let value = eventually("three", Duration::from_secs(5), || {
            asked += 1;
            anyhow::ensure!(asked == 3, "only {asked}");
            Ok(asked)
        });
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "last: still no")]
    fn it_tells_the_last_reason_at_the_deadline() {
        eventually(
            "never",
            Duration::from_millis(20),
            || -> anyhow::Result<()> { anyhow::bail!("still no") },
        );
    }

    #[test]
    #[should_panic(expected = "stopped after")]
    fn a_condition_that_stops_holding_is_noticed() {
        let mut left = 2;
        holds_for("countdown", Duration::from_secs(5), || {
            left -= 1;
            anyhow::ensure!(left > 0, "zero");
            Ok(())
        });
    }
}
