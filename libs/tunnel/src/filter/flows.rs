//! The bounded table of flows: who opened them, and when they were last used.
//!
//! Entries live in a slab, so that a cursor can walk them: expiry looks at a few per call, and a
//! full table makes room by taking the least recently used of a small sample. The two directions
//! have separate bounds: peers cannot push out the flows that this node opened.

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

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// How many entries an expiry call looks at.
const EXPIRY_STEP: usize = 256;
/// How many entries compete for being evicted.
const EVICTION_SAMPLE: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Flow {
    key: FlowKey,
    opener: Opener,
    used: u32,
    idle_limit: u32,
}

impl Flow {
    fn new(key: FlowKey, opener: Opener, flags: u8, now: u32) -> Self {
        let idle_limit = match key.kind {
            Kind::Tcp if flags & (FIN | RST) != 0 => TCP_CLOSING,
            Kind::Tcp if flags & SYN != 0 => TCP_OPENING,
            Kind::Tcp => TCP_ESTABLISHED,
            Kind::Udp => UDP,
            Kind::Echo => ECHO,
        };
        Self {
            key,
            opener,
            used: now,
            idle_limit,
        }
    }

    #[inline]
    fn is_idle(&self, now: u32) -> bool {
        now.saturating_sub(self.used) > self.idle_limit
    }

    #[inline]
    fn touch(&mut self, flags: u8, now: u32) {
        self.used = now;
        if self.key.kind == Kind::Tcp {
            if flags & (FIN | RST) != 0 {
                self.idle_limit = TCP_CLOSING;
            } else if flags & (SYN | ACK) == ACK && self.idle_limit == TCP_OPENING {
                self.idle_limit = TCP_ESTABLISHED;
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct FlowTable {
    index: HashMap<FlowKey, u32, Seeded>,
    flows: Vec<Flow>,
    /// Bound of the flows that we opened, and of those that peers opened, each.
    max: usize,
    ours: usize,
    cursor: usize,
}

impl FlowTable {
    pub(super) fn new(seed: u64, max: usize) -> Self {
        Self {
            index: HashMap::with_hasher(Seeded::new(seed)),
            flows: Vec::new(),
            max: max.max(1),
            ours: 0,
            cursor: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn clear(&mut self) {
        self.index.clear();
        self.flows.clear();
        self.ours = 0;
        self.cursor = 0;
    }

    #[inline]
    fn find(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        let &at = self.index.get(key)?;
        self.flows.get_mut(at as usize)
    }

    /// A packet leaves: an unknown or idle flow becomes ours.
    #[inline]
    pub(super) fn note_outgoing(&mut self, key: FlowKey, flags: u8, now: u32) {
        if let Some(flow) = self.find(&key) {
            // A fresh connection on the ports of a cut one is ours; answers to the cut one are not.
            let fresh = key.kind == Kind::Tcp && flags & (SYN | ACK) == SYN;
            if !(flow.is_idle(now) || flow.opener == Opener::Cut && fresh) {
                flow.touch(flags, now);
                return;
            }
            self.forget(&key);
        }
        self.insert(Flow::new(key, Opener::Us, flags, now), now);
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
            flow.touch(flags, now);
        }
        Some(flow.opener)
    }

    pub(super) fn open_by_peer(&mut self, key: FlowKey, flags: u8, now: u32) {
        self.insert(Flow::new(key, Opener::Peer, flags, now), now);
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
            if flow.opener != Opener::Us {
                let opener = if allowed(&flow.key) {
                    Opener::Peer
                } else {
                    Opener::Cut
                };
                if flow.opener != opener {
                    flow.opener = opener;
                    flow.used = now;
                }
            }
        }
    }

    /// Forgets idle flows among the next few.
    pub(super) fn expire(&mut self, now: u32) {
        for _ in 0..EXPIRY_STEP.min(self.flows.len()) {
            if self.cursor >= self.flows.len() {
                self.cursor = 0;
            }
            let Some(flow) = self.flows.get(self.cursor) else {
                return;
            };
            if flow.is_idle(now) {
                let key = flow.key;
                self.forget(&key);
            } else {
                self.cursor += 1;
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

    /// Makes room in one direction: the longest idle of the next few entries of that direction.
    fn evict(&mut self, ours: bool, now: u32) {
        let mut sampled = 0;
        let mut worst: Option<(u32, FlowKey)> = None;
        for _ in 0..self.flows.len() {
            self.cursor = (self.cursor + 1) % self.flows.len();
            let flow = &self.flows[self.cursor];
            if (flow.opener == Opener::Us) != ours {
                continue;
            }
            let idle = now.saturating_sub(flow.used);
            if worst.is_none_or(|(longest, _)| idle > longest) {
                worst = Some((idle, flow.key));
            }
            sampled += 1;
            if sampled == EVICTION_SAMPLE {
                break;
            }
        }
        if let Some((_, key)) = worst {
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
