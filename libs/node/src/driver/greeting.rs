//! Whom a node that was restarted shakes hands with, and when.
//!
//! Its peers hold sessions that it has lost, and send into the void until it says so. There may be
//! thousands of them, and each handshake takes some work of both ends: a few go at once, the rest at
//! a rate that leaves room for those who work. Whoever does not answer is asked again by the tunnel
//! as any peer is: 22 times within 90 s.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use mesh_types::NodeId;

/// Handshakes that may begin at once.
const AT_ONCE: u32 = 64;
/// Between two of them after that: 200 a second. 10 000 peers take 50 s.
const APART: Duration = Duration::from_millis(5);

/// Peers that are to be greeted, in the order in which they were named: those with traffic last come
/// first.
#[derive(Debug)]
pub(super) struct Greeting {
    /// Those who have not answered.
    unanswered: BTreeSet<NodeId>,
    order: Vec<NodeId>,
    /// Those who are to be greeted. The first one has not answered; of the others some may have
    /// meanwhile.
    queue: VecDeque<NodeId>,
    /// The handshakes that have begun, each for the time of [`APART`], less the time that passed
    /// until `at`.
    spent: Duration,
    at: Instant,
}

impl Greeting {
    /// Nobody is greeted before [`Self::begin`].
    pub(super) fn new(peers: Vec<NodeId>, now: Instant) -> Self {
        let mut unanswered = BTreeSet::new();
        let mut order = peers;
        order.retain(|peer| unanswered.insert(*peer));
        Self {
            unanswered,
            order,
            queue: VecDeque::new(),
            spent: Duration::ZERO,
            at: now,
        }
    }

    /// There is a way to reach them, or another one, which is seldom: whoever has not answered is
    /// greeted from the first one on, whether they still wait for the time before or not.
    pub(super) fn begin(&mut self) {
        self.order.retain(|peer| self.unanswered.contains(peer));
        self.queue = self.order.iter().copied().collect();
    }

    /// This peer has a session, whoever asked for it.
    pub(super) fn answered(&mut self, peer: NodeId) {
        self.unanswered.remove(&peer);
        self.skip_answered();
    }

    /// Whom to greet now; to be asked until `None`.
    pub(super) fn next(&mut self, now: Instant) -> Option<NodeId> {
        if self.poll_timeout()? > now {
            return None;
        }
        let peer = self.queue.pop_front()?;
        self.skip_answered();
        let passed = now.saturating_duration_since(self.at);
        self.spent = self.spent.saturating_sub(passed) + APART;
        self.at = now;
        Some(peer)
    }

    /// When the next one is to be greeted, which may have been long ago.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let over = (self.spent + APART).saturating_sub(APART * AT_ONCE);
        (!self.queue.is_empty()).then(|| self.at + over)
    }

    fn skip_answered(&mut self) {
        while let Some(peer) = self.queue.front()
            && !self.unanswered.contains(peer)
        {
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
