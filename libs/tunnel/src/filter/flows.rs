//! The bounded table of flows: who opened them, and when they were last used.
//!
//! Entries live in a slab, so that cursors can walk them: expiry looks at a few per call, and a
//! full table makes room by taking, of a small sample, the entry that would expire first. The two
//! directions have separate bounds: peers cannot push out the flows that this node opened.
//!
//! An entry that has expired counts as absent, whether or not it was swept away yet. What is
//! absent never becomes ours by an answer:
//! - TCP: only a segment that opens (SYN alone) makes a flow ours. Anything else that leaves
//!   without an entry makes none, so what peers sent on that connection still needs a rule.
//! - UDP has no such mark. What leaves a port that a rule lets this peer open counts as an answer
//!   and stands on that rule; anything else is ours. A flow that was cut stays cut for
//!   [`CUT`] seconds after its last packet, whatever we send, and is evicted after all others.
//! - ICMP: only echo requests make entries; replies to peers' requests make none.

use std::collections::HashMap;

use crate::hash::Seeded;
use crate::packet::Addr;

/// Kinds of flow; their idle limits differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Tcp,
    Udp,
    /// Echo requests and replies; the identifier is the local port.
    Echo,
}

/// The local address is the node's own of the remote one's family, so it is not part of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlowKey {
    pub(super) remote: Addr,
    pub(super) local_port: u16,
    pub(super) remote_port: u16,
    pub(super) kind: Kind,
}

impl std::hash::Hash for FlowKey {
    #[inline]
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u128(self.remote.to_bits());
        let ports = u64::from(self.local_port) << 16 | u64::from(self.remote_port);
        state.write_u64(ports << 8 | self.kind as u64);
    }
}

/// Who opened a flow, and so whether it depends on a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opener {
    /// This node: answers pass without a rule.
    Us,
    /// A peer, by a rule that still stands.
    Peer,
    /// A peer, by a rule that is gone: nothing of it passes, whatever we answer.
    Cut,
}

/// Idle limits in seconds: RFC 5382 (TCP, established), RFC 4787 (UDP), RFC 5508 (ICMP).
const TCP_ESTABLISHED: u32 = 7440;
const TCP_OPENING: u32 = 60;
const TCP_CLOSING: u32 = 30;
const UDP: u32 = 180;
const ECHO: u32 = 60;
/// For how long after its last packet a flow whose rule was withdrawn cannot become ours: as long
/// as any connection may be quiet, so that a service that is still sending finds it cut.
const CUT: u32 = TCP_ESTABLISHED;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Whether a segment opens a connection.
#[inline]
fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | FIN | RST) == SYN
}

/// How many entries an expiry call looks at.
const EXPIRY_STEP: usize = 256;
/// How many entries compete for being evicted.
const EVICTION_SAMPLE: usize = 16;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy)]
enum Way {
    Out = 1,
    In = 2,
}

/// Both sides have sent their FIN.
const BOTH: u8 = Way::Out as u8 | Way::In as u8;

#[derive(Debug, Clone, Copy)]
struct Flow {
    key: FlowKey,
    opener: Opener,
    /// The [`Way`]s in which a FIN went.
    fins: u8,
    used: u32,
    idle_limit: u32,
}

impl Flow {
    fn new(key: FlowKey, opener: Opener, way: Way, flags: u8, now: u32) -> Self {
        let mut flow = Self {
            key,
            opener,
            fins: 0,
            used: now,
            idle_limit: match key.kind {
                Kind::Tcp if flags & SYN != 0 => TCP_OPENING,
                Kind::Tcp => TCP_ESTABLISHED,
                Kind::Udp => UDP,
                Kind::Echo => ECHO,
            },
        };
        flow.touch(way, flags, now);
        flow
    }

    /// The last second in which the entry counts.
    #[inline]
    fn expires_at(&self) -> u32 {
        self.used.saturating_add(self.idle_limit)
    }

    #[inline]
    fn is_idle(&self, now: u32) -> bool {
        now > self.expires_at()
    }

    #[inline]
    fn touch(&mut self, way: Way, flags: u8, now: u32) {
        self.used = now;
        if self.key.kind != Kind::Tcp || self.opener == Opener::Cut {
            return;
        }
        if opens(flags) && self.opener == Opener::Peer {
            // The ports of an earlier connection, used again.
            self.fins = 0;
            self.idle_limit = TCP_OPENING;
            return;
        }
        if flags & FIN != 0 {
            self.fins |= way as u8;
        }
        if flags & (FIN | RST) != 0 {
            self.idle_limit = TCP_CLOSING;
        } else if flags & (SYN | ACK) == ACK && self.fins != BOTH {
            // Also after one FIN, the other side may go on sending for long (RFC 9293, 3.6); and
            // after a reset that the other side did not believe (RFC 5961, 3).
            self.idle_limit = TCP_ESTABLISHED;
        }
    }

    /// The rule on which it stood is gone.
    fn cut(&mut self) {
        self.opener = Opener::Cut;
        self.idle_limit = CUT;
    }
}

#[derive(Debug)]
pub(super) struct FlowTable {
    index: HashMap<FlowKey, u32, Seeded>,
    flows: Vec<Flow>,
    /// Bound of the flows that we opened, and of those that peers opened, each.
    max: usize,
    ours: usize,
    /// Where expiry goes on.
    swept: usize,
    /// Where eviction goes on.
    sampled: usize,
}

impl FlowTable {
    pub(super) fn new(seed: u64, max: usize) -> Self {
        Self {
            index: HashMap::with_hasher(Seeded::new(seed)),
            flows: Vec::new(),
            max: max.max(1),
            ours: 0,
            swept: 0,
            sampled: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn clear(&mut self) {
        self.index.clear();
        self.flows.clear();
        self.ours = 0;
        self.swept = 0;
        self.sampled = 0;
    }

    #[inline]
    fn find(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        let &at = self.index.get(key)?;
        self.flows.get_mut(at as usize)
    }

    /// A packet leaves. `stands` tells whether a rule lets the peer open this flow.
    #[inline]
    pub(super) fn note_outgoing(
        &mut self,
        key: FlowKey,
        flags: u8,
        now: u32,
        stands: impl FnOnce() -> bool,
    ) {
        let fresh = key.kind == Kind::Tcp && opens(flags);
        if let Some(flow) = self.find(&key) {
            if !fresh && !flow.is_idle(now) {
                flow.touch(Way::Out, flags, now);
                return;
            }
            self.forget(&key);
        }
        let opener = match key.kind {
            Kind::Tcp if !fresh => return,
            Kind::Udp if stands() => Opener::Peer,
            Kind::Tcp | Kind::Udp | Kind::Echo => Opener::Us,
        };
        self.insert(Flow::new(key, opener, Way::Out, flags, now), now);
    }

    /// A packet arrived: whose flow it belongs to, if any.
    #[inline]
    pub(super) fn note_incoming(&mut self, key: &FlowKey, flags: u8, now: u32) -> Option<Opener> {
        let flow = self.find(key)?;
        if flow.is_idle(now) {
            self.forget(key);
            return None;
        }
        if flow.opener != Opener::Cut {
            flow.touch(Way::In, flags, now);
        }
        Some(flow.opener)
    }

    pub(super) fn open_by_peer(&mut self, key: FlowKey, flags: u8, now: u32) {
        self.insert(Flow::new(key, Opener::Peer, Way::In, flags, now), now);
    }

    pub(super) fn is_alive(&self, key: &FlowKey, now: u32) -> bool {
        self.index
            .get(key)
            .and_then(|&at| self.flows.get(at as usize))
            .is_some_and(|flow| !flow.is_idle(now) && flow.opener != Opener::Cut)
    }

    /// Applies new rules to the flows that peers opened.
    pub(super) fn reconsider(&mut self, now: u32, allowed: impl Fn(&FlowKey) -> bool) {
        for flow in &mut self.flows {
            if flow.opener == Opener::Us || flow.is_idle(now) {
                continue;
            }
            match (flow.opener, allowed(&flow.key)) {
                (Opener::Peer, false) => flow.cut(),
                // Nothing is known of what came meanwhile.
                (Opener::Cut, true) => {
                    *flow = Flow::new(flow.key, Opener::Peer, Way::In, ACK, flow.used);
                }
                _ => {}
            }
        }
    }

    /// Forgets expired flows among the next few.
    pub(super) fn expire(&mut self, now: u32) {
        for _ in 0..EXPIRY_STEP.min(self.flows.len()) {
            if self.swept >= self.flows.len() {
                self.swept = 0;
            }
            let Some(flow) = self.flows.get(self.swept) else {
                return;
            };
            if flow.is_idle(now) {
                // The last entry takes its place and is looked at next.
                let key = flow.key;
                self.forget(&key);
            } else {
                self.swept += 1;
            }
        }
    }

    fn insert(&mut self, flow: Flow, now: u32) {
        let is_ours = flow.opener == Opener::Us;
        let count = if is_ours {
            self.ours
        } else {
            self.flows.len() - self.ours
        };
        if count >= self.max {
            self.evict(is_ours, now);
        }
        // INVARIANT: `index` holds exactly the keys of `flows`, each at its place.
        let Ok(at) = u32::try_from(self.flows.len()) else {
            return;
        };
        if self.index.insert(flow.key, at).is_none() {
            self.ours += usize::from(is_ours);
            self.flows.push(flow);
        }
    }

    /// Makes room in one direction: of the next few entries of that direction the one that would
    /// expire first goes, what is cut after all others.
    fn evict(&mut self, ours: bool, now: u32) {
        let mut sampled = 0;
        let mut first: Option<((bool, u32, u32), FlowKey)> = None;
        for _ in 0..self.flows.len() {
            self.sampled = (self.sampled + 1) % self.flows.len();
            let flow = &self.flows[self.sampled];
            if (flow.opener == Opener::Us) != ours {
                continue;
            }
            let cut = flow.opener == Opener::Cut && !flow.is_idle(now);
            let rank = (cut, flow.expires_at(), flow.used);
            if first.is_none_or(|(least, _)| rank < least) {
                first = Some((rank, flow.key));
            }
            sampled += 1;
            if sampled == EVICTION_SAMPLE {
                break;
            }
        }
        if let Some((_, key)) = first {
            self.forget(&key);
        }
    }

    fn forget(&mut self, key: &FlowKey) {
        let Some(at) = self.index.remove(key) else {
            return;
        };
        let removed = self.flows.swap_remove(at as usize);
        self.ours -= usize::from(removed.opener == Opener::Us);
        if let Some(moved) = self.flows.get(at as usize) {
            self.index.insert(moved.key, at);
        }
    }
}
