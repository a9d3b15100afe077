//! The packet filter: what a node lets in. Default deny, stateful for replies.
//!
//! Only arriving packets are judged. A packet passes when a rule lets its sender open that port,
//! or when it belongs to a flow that this node opened itself. Packets that leave are noted so that
//! their answers pass; answers to a flow that a peer opened never make it a flow of ours, also
//! after its entry expired or was evicted, so taking a permission away cuts the flows that stood
//! on it. What counts as opening is told in `flows`.

mod flows;
mod rules;

use std::time::Instant;

use mesh_types::{OverlayAddrs, PacketFilter, Protocol};

use crate::packet::{Addr, FragmentId, Header, Quoted, Transport};
use crate::stats::DropReason;

use flows::{FlowKey, FlowTable, Kind, Opener};
use rules::Rules;

/// Most first fragments that are remembered so that the later ones pass.
const MAX_FRAGMENTS: usize = 256;
/// For how long, in seconds.
const FRAGMENT_LIFE: u32 = 10;

/// Flows kept at most in each direction; the least recently used ones make room.
pub const MAX_FLOWS: usize = 32_768;

/// The filter of one node. Rules come from the netmap; flows from the packets themselves.
#[derive(Debug)]
pub struct Filter {
    started: Instant,
    own: Option<[Addr; 2]>,
    rules: Rules,
    source: PacketFilter,
    flows: FlowTable,
    fragments: Vec<Fragment>,
    next_fragment: usize,
}

#[derive(Debug, Clone, Copy)]
struct Fragment {
    src: Addr,
    id: FragmentId,
    at: u32,
}

impl Filter {
    /// A filter without rules and without an own address: everything is denied.
    pub fn new(seed: u64, max_flows: usize, now: Instant) -> Self {
        Self {
            started: now,
            own: None,
            rules: Rules::default(),
            source: PacketFilter::default(),
            flows: FlowTable::new(seed, max_flows),
            fragments: Vec::new(),
            next_fragment: 0,
        }
    }

    /// The node's own addresses: the only destinations that packets are let in for.
    pub fn set_own(&mut self, addrs: OverlayAddrs) {
        let own = Some([addrs.v4.into(), addrs.v6.into()]);
        if self.own != own {
            self.own = own;
            self.flows.clear();
        }
    }

    /// Replaces the rules. Flows that peers opened under rules that are gone are cut; flows that
    /// this node opened stay.
    pub fn set_rules(&mut self, filter: &PacketFilter, now: Instant) {
        if self.source == *filter {
            return;
        }
        self.source = filter.clone();
        self.rules = Rules::compile(filter);
        let rules = &self.rules;
        self.flows.reconsider(self.seconds(now), |key| {
            protocol(key.kind)
                .is_some_and(|protocol| rules.allow(key.remote, protocol, key.local_port))
        });
    }

    /// Whether `addr` is one of the node's own.
    #[inline]
    pub fn is_own(&self, addr: Addr) -> bool {
        self.own.is_some_and(|[v4, v6]| addr == v4 || addr == v6)
    }

    /// How many flows are remembered.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Notes a packet that leaves, so that its answers are let in.
    #[inline]
    pub fn note_outgoing(&mut self, header: &Header, now: Instant) {
        let now = self.seconds(now);
        let (kind, local_port, remote_port, flags) = match header.transport {
            Transport::Tcp { src, dst, flags } => (Kind::Tcp, src, dst, flags),
            Transport::Udp { src, dst } => (Kind::Udp, src, dst, 0),
            Transport::Echo { request: true, id } => (Kind::Echo, id, 0, 0),
            // Replies, errors and later fragments ask for no answer.
            _ => return,
        };
        let key = FlowKey {
            remote: header.dst,
            local_port,
            remote_port,
            kind,
        };
        let rules = &self.rules;
        self.flows.note_outgoing(key, flags, now, || {
            protocol(kind).is_some_and(|protocol| rules.allow(key.remote, protocol, key.local_port))
        });
    }

    /// Judges a packet that arrived from a peer to whom its source address belongs.
    ///
    /// # Errors
    /// Why it must be dropped.
    #[inline]
    pub fn admit(&mut self, header: &Header, now: Instant) -> Result<(), DropReason> {
        if !self.is_own(header.dst) {
            return Err(DropReason::NotForUs);
        }
        let now = self.seconds(now);
        self.judge(header, now)?;
        if let Some(id) = header.fragment
            && header.transport != Transport::LaterFragment
        {
            self.remember_fragment(header.src, id, now);
        }
        Ok(())
    }

    #[inline]
    fn judge(&mut self, header: &Header, now: u32) -> Result<(), DropReason> {
        let (kind, local_port, remote_port, flags) = match header.transport {
            Transport::Tcp { src, dst, flags } => (Kind::Tcp, dst, src, flags),
            Transport::Udp { src, dst } => (Kind::Udp, dst, src, 0),
            Transport::Echo { request: false, id } => (Kind::Echo, id, 0, 0),
            Transport::Echo { request: true, .. } => {
                return if self.rules.allow(header.src, Protocol::Icmp, 0) {
                    Ok(())
                } else {
                    Err(DropReason::Filtered)
                };
            }
            Transport::IcmpError(quoted) => return self.judge_error(header, &quoted, now),
            Transport::LaterFragment => return self.judge_fragment(header, now),
            Transport::OtherIcmp(_) => return Err(DropReason::Filtered),
            Transport::Other(_) => return Err(DropReason::UnknownProtocol),
        };
        let key = FlowKey {
            remote: header.src,
            local_port,
            remote_port,
            kind,
        };
        match self.flows.note_incoming(&key, flags, now) {
            Some(Opener::Us | Opener::Peer) => Ok(()),
            Some(Opener::Cut) => Err(DropReason::Filtered),
            None => {
                let allowed = protocol(kind)
                    .is_some_and(|protocol| self.rules.allow(header.src, protocol, local_port));
                if !allowed {
                    return Err(DropReason::Filtered);
                }
                self.flows.open_by_peer(key, flags, now);
                Ok(())
            }
        }
    }

    /// An error passes when it is about a packet of a living flow with its sender's network: the
    /// quoted packet must be one that we sent.
    fn judge_error(&self, header: &Header, quoted: &Quoted, now: u32) -> Result<(), DropReason> {
        let kind = match quoted.protocol {
            6 => Kind::Tcp,
            17 => Kind::Udp,
            _ => Kind::Echo,
        };
        let key = FlowKey {
            remote: quoted.dst,
            local_port: quoted.src_port,
            remote_port: quoted.dst_port,
            kind,
        };
        let ours = quoted.src == header.dst && quoted.dst == header.src;
        if ours && self.flows.is_alive(&key, now) {
            Ok(())
        } else {
            Err(DropReason::UnrelatedIcmpError)
        }
    }

    fn judge_fragment(&self, header: &Header, now: u32) -> Result<(), DropReason> {
        let known = self.fragments.iter().any(|fragment| {
            Some(fragment.id) == header.fragment
                && fragment.src == header.src
                && now.saturating_sub(fragment.at) <= FRAGMENT_LIFE
        });
        if known {
            Ok(())
        } else {
            Err(DropReason::Fragment)
        }
    }

    fn remember_fragment(&mut self, src: Addr, id: FragmentId, at: u32) {
        let fragment = Fragment { src, id, at };
        if self.fragments.len() < MAX_FRAGMENTS {
            self.fragments.push(fragment);
        } else {
            self.fragments[self.next_fragment] = fragment;
            self.next_fragment = (self.next_fragment + 1) % MAX_FRAGMENTS;
        }
    }

    /// Forgets some of the flows that were idle for too long; to be called now and then.
    pub fn expire(&mut self, now: Instant) {
        let now = self.seconds(now);
        self.flows.expire(now);
    }

    #[inline]
    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.started).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

fn protocol(kind: Kind) -> Option<Protocol> {
    match kind {
        Kind::Tcp => Some(Protocol::Tcp),
        Kind::Udp => Some(Protocol::Udp),
        // Echo replies pass only as answers.
        Kind::Echo => None,
    }
}
