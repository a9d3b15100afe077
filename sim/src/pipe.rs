//! TCP as the parts above it know it: bytes come in order or not at all, a cut delays them, and one
//! end may not know for long that the other is gone.

use std::collections::VecDeque;
use std::time::Duration;

use crate::underlay::{Place, Underlay};

/// One connection; never used twice.
pub(crate) type ConnId = u64;

/// How often a cut connection tries again, once a second.
const TRIES: u32 = 20;
/// So much waits in one direction at most.
pub(crate) const MAX_WAITING: usize = 512;

/// The ends of a connection: a node opened it to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

impl End {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Bytes(Vec<u8>),
    /// The other end closed.
    Fin,
}

/// What arrives at one end.
#[derive(Debug)]
struct Lane {
    queue: VecDeque<(Duration, Item)>,
    /// Whether there is anybody to take it.
    open: bool,
    last: Duration,
    scheduled: bool,
    tries: u32,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    /// Index of the node that opened it.
    pub(crate) node: usize,
    pub(crate) server: Place,
    lanes: [Lane; 2],
}

/// What became of a moment at which something may arrive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// These, and more at that time.
    Items(Vec<Item>, Option<Duration>),
    /// Nothing before then.
    Later(Duration),
    /// The sender gives up, or learns that nobody is there: its end is closed.
    Broken,
}

impl Conn {
    pub(crate) fn new(node: usize, server: Place, now: Duration) -> Self {
        let lane = || Lane {
            queue: VecDeque::new(),
            open: true,
            // Two round trips for TCP and TLS, before the first byte.
            last: now + 4 * Underlay::latency(Place::Node(node), server),
            scheduled: false,
            tries: 0,
        };
        Self {
            node,
            server,
            lanes: [lane(), lane()],
        }
    }

    fn lane(&mut self, end: End) -> &mut Lane {
        match end {
            End::Client => &mut self.lanes[0],
            End::Server => &mut self.lanes[1],
        }
    }

    pub(crate) fn is_open(&mut self, end: End) -> bool {
        self.lane(end).open
    }

    /// Nobody is at this end any more.
    pub(crate) fn close(&mut self, end: End) {
        self.lane(end).open = false;
        self.lane(end).queue.clear();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lanes.iter().all(|lane| !lane.open)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lanes.iter().map(|lane| lane.queue.len()).sum()
    }

    /// Puts an item on its way to `end`; says when to look whether it arrived, unless that is
    /// planned already. What does not fit is lost, as in a full outbox.
    pub(crate) fn send(&mut self, end: End, item: Item, now: Duration) -> Option<Duration> {
        let latency = Underlay::latency(Place::Node(self.node), self.server);
        let lane = self.lane(end);
        if lane.queue.len() >= MAX_WAITING {
            return None;
        }
        let at = (now + latency).max(lane.last);
        lane.last = at;
        lane.queue.push_back((at, item));
        (!std::mem::replace(&mut lane.scheduled, true)).then_some(at)
    }

    /// What arrives at `end` now.
    pub(crate) fn arrive(&mut self, end: End, cut: bool, now: Duration) -> Arrival {
        let lane = self.lane(end);
        if cut {
            lane.tries += 1;
            if lane.tries > TRIES {
                lane.queue.clear();
                lane.scheduled = false;
                return Arrival::Broken;
            }
            return Arrival::Later(now + Duration::from_secs(1));
        }
        lane.tries = 0;
        lane.scheduled = false;
        if !lane.open {
            lane.queue.clear();
            return Arrival::Broken;
        }
        let mut items = Vec::new();
        while lane.queue.front().is_some_and(|(at, _)| *at <= now) {
            items.extend(lane.queue.pop_front().map(|(_, item)| item));
        }
        let next = lane.queue.front().map(|(at, _)| *at);
        lane.scheduled = next.is_some();
        Arrival::Items(items, next)
    }
}
