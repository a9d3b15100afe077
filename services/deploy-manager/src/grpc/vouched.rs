//! For whom the coordinator vouched lately. While it cannot be asked, nobody else may use a key of
//! their own, and a revoked operator at most this much longer. Kept in memory only: after a start
//! the coordinator must be asked first. Sans-IO.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_types::OperatorId;

/// How long the coordinator's word counts when it cannot be asked.
pub(super) const LIFE: Duration = Duration::from_secs(5 * 60);
/// How many are remembered; there are fewer operators.
const CAPACITY: usize = 4_096;

/// When the coordinator vouched last for each operator.
#[derive(Debug, Default)]
pub(super) struct Vouched(Mutex<HashMap<OperatorId, Instant>>);

impl Vouched {
    fn lock(&self) -> MutexGuard<'_, HashMap<OperatorId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The coordinator vouched just now.
    pub(super) fn renew(&self, operator: OperatorId, now: Instant) {
        let mut known = self.lock();
        if known.len() >= CAPACITY {
            known.retain(|_, at| now.saturating_duration_since(*at) < LIFE);
        }
        if known.len() < CAPACITY {
            known.insert(operator, now);
        }
    }

    /// The coordinator refused.
    pub(super) fn end(&self, operator: OperatorId) {
        self.lock().remove(&operator);
    }

    /// Whether the coordinator's word still counts.
    pub(super) fn holds(&self, operator: OperatorId, now: Instant) -> bool {
        let known = self.lock();
        let at = known.get(&operator);
        at.is_some_and(|at| now.saturating_duration_since(*at) < LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_counts_for_a_while_and_a_refusal_ends_it() {
        let vouched = Vouched::default();
        let (one, two) = (
            OperatorId::from_bytes([1; 16]),
            OperatorId::from_bytes([2; 16]),
        );
        let now = Instant::now();
        assert!(!vouched.holds(one, now), "nobody vouched yet");
        vouched.renew(one, now);
        assert!(vouched.holds(one, now + LIFE - Duration::from_millis(1)));
        assert!(!vouched.holds(one, now + LIFE));
        assert!(!vouched.holds(two, now));
        vouched.end(one);
        assert!(!vouched.holds(one, now));
    }

    #[test]
    fn a_full_table_lets_nobody_in_for_that() {
        let vouched = Vouched::default();
        let now = Instant::now();
        let id = |n: u64| OperatorId::from_parts(n, [0; 10]);
        for n in 0..5_000 {
            vouched.renew(id(n), now);
        }
        assert!(!vouched.holds(id(4_999), now));
        let later = now + LIFE;
        vouched.renew(id(4_999), later);
        assert!(vouched.holds(id(4_999), later));
    }
}
