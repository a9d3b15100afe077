//! Admission of sessions: a reconnect storm is spread out, everybody keeps the turn they were given.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_types::NodeId;

/// How many sessions may open at once, and how fast after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// So many open without waiting when nobody came for a while.
    pub burst: u32,
    /// So many a second after that; not 0.
    pub per_second: u32,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            burst: 512,
            per_second: 1000,
        }
    }
}

/// Virtual scheduling (the generic cell rate algorithm, ITU-T I.371), with the turns it gave out.
///
/// Holds at most one turn per node.
#[derive(Debug)]
pub(crate) struct Gate {
    interval: Duration,
    tolerance: Duration,
    next: Option<Instant>,
    turns: BTreeMap<NodeId, Instant>,
}

impl Gate {
    pub(crate) fn new(settings: Admission) -> Self {
        let interval = Duration::from_secs(1) / settings.per_second.max(1);
        Self {
            interval,
            tolerance: interval * settings.burst,
            next: None,
            turns: BTreeMap::new(),
        }
    }

    /// `None`: come in. Otherwise how long to wait; a node that comes back then is let in.
    pub(crate) fn ask(&mut self, node: NodeId, now: Instant) -> Option<Duration> {
        if let Some(turn) = self.turns.get(&node) {
            let wait = turn.saturating_duration_since(now);
            if wait.is_zero() {
                self.turns.remove(&node);
                return None;
            }
            return Some(wait);
        }
        let next = self.next.map_or(now, |next| next.max(now));
        self.next = Some(next + self.interval);
        let wait = next
            .saturating_duration_since(now)
            .saturating_sub(self.tolerance);
        if wait.is_zero() {
            return None;
        }
        self.turns.insert(node, now + wait);
        Some(wait)
    }

    /// The node is gone for good.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.turns.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    #[test]
    fn a_storm_is_let_in_at_the_rate_and_everybody_gets_in_at_their_turn() {
        let mut gate = Gate::new(Admission {
            burst: 10,
            per_second: 10,
        });
        let start = Instant::now();
        let waits: Vec<_> = (0..50).map(|n| gate.ask(node(n), start)).collect();
        assert_eq!(waits.iter().filter(|w| w.is_none()).count(), 11);
        assert_eq!(waits[49], Some(Duration::from_millis(3_900)));
        for (n, wait) in (0..50).zip(waits) {
            if let Some(wait) = wait {
                assert!(gate.ask(node(n), start + wait / 2).is_some());
                assert_eq!(gate.ask(node(n), start + wait), None);
            }
        }
    }

    #[test]
    fn after_a_quiet_time_nobody_waits() {
        let mut gate = Gate::new(Admission {
            burst: 2,
            per_second: 1,
        });
        let start = Instant::now();
        assert!((0..9).any(|n| gate.ask(node(n), start).is_some()));
        assert_eq!(gate.ask(node(100), start + Duration::from_secs(60)), None);
    }
}
