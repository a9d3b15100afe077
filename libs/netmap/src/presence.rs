//! Who is there, by their heartbeats.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mesh_types::{NodeId, NodeState, RelayId, Timestamp, UptimeClass};

/// Whose presence it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Node(NodeId),
    Relay(RelayId),
}

/// One node's or relay's presence.
///
/// ```text
/// Offline ──heartbeat──> Online ──time to live──> Stale ──60 s──> Offline
///                          ^──────heartbeat─────────┘
/// ```
#[derive(Debug, Clone, Copy)]
pub(crate) struct Presence {
    pub(crate) state: NodeState,
    pub(crate) last_seen: Option<Timestamp>,
    deadline: Option<Instant>,
}

/// When whose state will turn unless a heartbeat comes.
#[derive(Debug)]
pub(crate) struct Deadlines {
    ttl: Duration,
    stale: Duration,
    queue: BTreeSet<(Instant, Subject)>,
}

impl Deadlines {
    pub(crate) fn new(ttl: Duration, stale: Duration) -> Self {
        Self {
            ttl,
            stale,
            queue: BTreeSet::new(),
        }
    }

    /// The presence of somebody who was last seen so long before that time, or never.
    pub(crate) fn restore(
        &mut self,
        subject: Subject,
        last_seen: Option<Timestamp>,
        seen: Option<(Duration, Instant)>,
    ) -> Presence {
        let (state, deadline) = match seen {
            Some((ago, now)) if ago < self.ttl => (NodeState::Online, Some(now + self.ttl - ago)),
            Some((ago, now)) if ago < self.ttl + self.stale => {
                (NodeState::Stale, Some(now + self.ttl + self.stale - ago))
            }
            Some(_) | None => (NodeState::Offline, None),
        };
        self.queue.extend(deadline.map(|at| (at, subject)));
        Presence {
            state,
            last_seen,
            deadline,
        }
    }

    /// Takes a heartbeat; answers the state before it.
    pub(crate) fn beat(
        &mut self,
        subject: Subject,
        presence: &mut Presence,
        at: Timestamp,
        now: Instant,
    ) -> NodeState {
        self.cancel(subject, presence);
        let deadline = now + self.ttl;
        self.queue.insert((deadline, subject));
        presence.deadline = Some(deadline);
        presence.last_seen = Some(at);
        std::mem::replace(&mut presence.state, NodeState::Online)
    }

    /// Whose deadline has passed; [`Deadlines::expire`] must follow.
    pub(crate) fn due(&self, now: Instant) -> Option<Subject> {
        self.queue
            .first()
            .filter(|(at, _)| *at <= now)
            .map(|(_, subject)| *subject)
    }

    /// Turns the state of somebody who is due; answers the state before.
    pub(crate) fn expire(&mut self, subject: Subject, presence: &mut Presence) -> NodeState {
        let passed = presence.deadline;
        self.cancel(subject, presence);
        let (state, deadline) = match presence.state {
            NodeState::Online => (NodeState::Stale, passed.map(|at| at + self.stale)),
            NodeState::Stale | NodeState::Offline => (NodeState::Offline, None),
        };
        self.queue.extend(deadline.map(|at| (at, subject)));
        presence.deadline = deadline;
        std::mem::replace(&mut presence.state, state)
    }

    /// Forgets the deadline of somebody who is gone, or of nobody.
    pub(crate) fn cancel(&mut self, subject: Subject, presence: &mut Presence) {
        if let Some(at) = presence.deadline.take() {
            self.queue.remove(&(at, subject));
        }
    }

    /// Drops the first entry, whose subject is unknown.
    pub(crate) fn drop_first(&mut self) {
        self.queue.pop_first();
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }
}

/// Whether a node of this class may be absent at that time without anybody being told.
///
/// Working hours are Monday to Friday, 07:00 to 19:00 UTC.
pub fn absence_expected(class: UptimeClass, at: Timestamp) -> bool {
    match class {
        UptimeClass::AlwaysOn => false,
        UptimeClass::OnDemand => true,
        UptimeClass::WorkHours => {
            let days = at.as_secs().div_euclid(86_400);
            let hour = at.as_secs().rem_euclid(86_400) / 3_600;
            // 1970-01-01 was a Thursday: 0 is Monday.
            let weekday = (days + 3).rem_euclid(7);
            weekday >= 5 || !(7..19).contains(&hour)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_hours_are_weekdays_in_daytime() {
        let at = |secs| absence_expected(UptimeClass::WorkHours, Timestamp::from_secs(secs));
        // 2026-07-06 is a Monday.
        let monday = 1_783_296_000;
        assert!(at(monday + 6 * 3_600));
        assert!(!at(monday + 7 * 3_600));
        assert!(!at(monday + 19 * 3_600 - 1));
        assert!(at(monday + 19 * 3_600));
        assert!(at(monday + 5 * 86_400 + 12 * 3_600));
    }

    #[test]
    fn always_on_is_never_expected_to_be_absent_and_on_demand_always() {
        assert!(!absence_expected(
            UptimeClass::AlwaysOn,
            Timestamp::from_secs(0)
        ));
        assert!(absence_expected(
            UptimeClass::OnDemand,
            Timestamp::from_secs(0)
        ));
    }
}
