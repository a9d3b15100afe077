//! IP packets of this node on their way to peers.

use std::time::Instant;

use rand::Rng;

use super::{Device, random_tx};
use crate::buffers::{Batch, Out, WG_OVERHEAD};
use crate::event::{Event, PathKind};
use crate::packet::{self, Addr};
use crate::path::Via;
use crate::router::Slot;
use crate::stats::DropReason;
use crate::wg::{MAX_HANDSHAKE, Sealed, Session};

/// The packets of a batch by peer, each peer's in their order. Grouping them makes the datagrams
/// for one address lie side by side, whatever the order in the batch.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// For each packet of the batch the next one of its group.
    next: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    slot: Slot,
    first: u32,
    last: u32,
}

const END: u32 = u32::MAX;

impl Group {
    /// Its packets' places in the batch.
    #[inline]
    fn packets(self, next: &[u32]) -> impl Iterator<Item = usize> {
        let mut at = self.first;
        std::iter::from_fn(move || {
            let packet = (at != END).then_some(at as usize)?;
            at = next[packet];
            Some(packet)
        })
    }
}

impl Groups {
    fn clear(&mut self) {
        self.groups.clear();
        self.next.clear();
    }

    #[inline]
    fn append(&mut self, slot: Slot, packet: u32) {
        let same_as_last = self
            .groups
            .last()
            .is_some_and(|group| group.slot == slot)
            .then(|| self.groups.len() - 1);
        let at = same_as_last.or_else(|| self.groups.iter().position(|g| g.slot == slot));
        match at {
            Some(at) => {
                let group = &mut self.groups[at];
                self.next[group.last as usize] = packet;
                group.last = packet;
            }
            None => self.groups.push(Group {
                slot,
                first: packet,
                last: packet,
            }),
        }
    }
}

impl Device {
    /// Encrypts the packets of this node and empties the batch. Packets to a peer without a
    /// session start a handshake and wait for it, up to 256 of them; packets that cannot go
    /// anywhere are dropped and counted, and cost no session. To whom no way is known, one is
    /// looked for while there is traffic.
    pub fn seal(&mut self, batch: &mut Batch, out: &mut Out, now: Instant) {
        self.now = now;
        let mut groups = std::mem::take(&mut self.groups);
        groups.clear();
        // The destination of the packet before, and its peer.
        let mut memo = None;
        for at in 0..batch.len() {
            groups.next.push(END);
            match self.route(batch.packet(at), &mut memo, now) {
                Ok(slot) => groups.append(slot, u32::try_from(at).unwrap_or(END)),
                Err(reason) => self.drops.count(reason),
            }
        }
        for group in &groups.groups {
            self.seal_group(*group, &groups.next, batch, out, now);
        }
        self.groups = groups;
        batch.clear();
    }

    /// Finds the peer that a packet is for and notes its flow.
    #[inline]
    fn route(
        &mut self,
        bytes: &[u8],
        memo: &mut Option<(Addr, Slot)>,
        now: Instant,
    ) -> Result<Slot, DropReason> {
        if bytes.len() > self.mtu {
            return Err(DropReason::TooLong);
        }
        let header = packet::parse(bytes).map_err(|_| DropReason::Malformed)?;
        if !self.filter.is_own(header.src) {
            return Err(DropReason::ForeignSource);
        }
        let slot = match *memo {
            Some((dst, slot)) if dst == header.dst => slot,
            _ => self.router.lookup(header.dst).ok_or(DropReason::NoRoute)?,
        };
        *memo = Some((header.dst, slot));
        self.filter.note_outgoing(&header, now);
        Ok(slot)
    }

    fn seal_group(
        &mut self,
        group: Group,
        next: &[u32],
        batch: &Batch,
        out: &mut Out,
        now: Instant,
    ) {
        let slot = group.slot;
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let woke = peer.paths.on_activity(now);
        let relay = peer.relay(&self.relays.connected, self.relays.home, now);
        let path = peer.paths.choose(relay, now);
        let via = match path {
            PathKind::Direct(to) => Via::Direct(to),
            PathKind::Relay(relay) => Via::Relay(relay),
            PathKind::None => {
                // Not even an initiation could be sent, so there is nothing to make a session for.
                for _ in group.packets(next) {
                    self.drops.count(DropReason::NoPath);
                }
                if woke {
                    self.wake(slot, now);
                }
                return;
            }
        };
        self.ensure_session(slot, now);
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let Some(session) = peer.session.as_deref_mut() else {
            return;
        };
        let mut initiation = [0; MAX_HANDSHAKE];
        let mut initiation_len = None;
        for i in group.packets(next) {
            let len = batch.packet(i).len();
            let padded = batch.padded(i, self.mtu);
            let room = (padded.len() + WG_OVERHEAD).max(MAX_HANDSHAKE);
            let into = match via {
                Via::Direct(_) => out.reserve_direct(room),
                Via::Relay(_) => out.reserve_relayed(room),
            };
            match session.seal(padded, into, now) {
                Sealed::Data(sealed) => match via {
                    Via::Direct(to) => out.commit_direct(to, sealed),
                    Via::Relay(relay) => {
                        peer.counters.tx_relay_bytes += len as u64;
                        out.commit_relayed(relay, &peer.wg_key, sealed);
                    }
                },
                Sealed::Initiation(sealed) => {
                    initiation[..sealed].copy_from_slice(&into[..sealed]);
                    initiation_len = Some(sealed);
                }
                Sealed::Waits => {}
            }
            peer.counters.tx_bytes += len as u64;
            peer.counters.tx_packets += 1;
        }
        if let Some(len) = initiation_len {
            self.send_or_wait(slot, &initiation[..len], out, now);
        }
        if woke || initiation_len.is_some() {
            self.wake(slot, now);
        }
    }

    /// Makes the peer's session if it has none: this is where an idle peer starts to cost more
    /// than its facts. True when it had none.
    pub(super) fn ensure_session(&mut self, slot: Slot, now: Instant) -> bool {
        let has_one = self
            .peers
            .slot(slot)
            .is_none_or(|peer| peer.session.is_some());
        if has_one {
            return false;
        }
        // Random, so that indices tell nobody how many peers there are (WireGuard, 5.4.2).
        let index = loop {
            let index = self.rng.next_u32() >> 8;
            if !self.peers.by_index.contains_key(&index) {
                break index;
            }
        };
        self.peers.by_index.insert(index, slot);
        if let Some(peer) = self.peers.slot_mut(slot) {
            let session = Session::new(&self.identity, &peer.wg_key, index, now);
            peer.session = Some(Box::new(session));
            peer.index = Some(index);
        }
        true
    }

    /// Takes the session away again, with what waited for it.
    pub(super) fn let_go(&mut self, slot: Slot) {
        if let Some(peer) = self.peers.slot_mut(slot) {
            peer.session = None;
            if let Some(index) = peer.index.take() {
                self.peers.by_index.remove(&index);
            }
        }
    }

    /// Whether a handshake message would go anywhere.
    pub(super) fn has_way(&self, slot: Slot, now: Instant) -> bool {
        self.peers
            .slot(slot)
            .is_some_and(|peer| self.path_of(peer, now) != PathKind::None)
    }

    /// Sends a handshake message every way that the peer may be reached: over the trusted path if
    /// there is one, else to all candidates, and by relay unless that path is sure. Duplicates do
    /// no harm.
    pub(super) fn send_handshake(
        &mut self,
        slot: Slot,
        message: &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        let Some(peer) = self.peers.slot(slot) else {
            return;
        };
        for to in peer.paths.handshake_targets(now) {
            out.reserve_direct(message.len()).copy_from_slice(message);
            out.commit_direct(to, message.len());
        }
        if !peer.paths.is_sure(now)
            && let Some(relay) = peer.relay(&self.relays.connected, self.relays.home, now)
        {
            out.reserve_relayed(message.len()).copy_from_slice(message);
            out.commit_relayed(relay, &peer.wg_key, message.len());
        }
    }

    /// Sends one datagram to a peer by the given way.
    pub(super) fn send_via(&self, slot: Slot, via: Via, message: &[u8], out: &mut Out) {
        match via {
            Via::Direct(to) => {
                out.reserve_direct(message.len()).copy_from_slice(message);
                out.commit_direct(to, message.len());
            }
            Via::Relay(relay) => {
                if let Some(peer) = self.peers.slot(slot) {
                    out.reserve_relayed(message.len()).copy_from_slice(message);
                    out.commit_relayed(relay, &peer.wg_key, message.len());
                }
            }
        }
    }

    /// Sends what waited for the session, after it was established.
    pub(super) fn flush(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        let room = self.mtu + WG_OVERHEAD + MAX_HANDSHAKE;
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let relay = peer.relay(&self.relays.connected, self.relays.home, now);
        let path = peer.paths.choose(relay, now);
        let Some(session) = peer.session.as_deref_mut() else {
            return;
        };
        match path {
            PathKind::Direct(to) => {
                while let Some(len) = session.flush(out.reserve_direct(room), now) {
                    out.commit_direct(to, len);
                }
            }
            PathKind::Relay(relay) => {
                while let Some(len) = session.flush(out.reserve_relayed(room), now) {
                    peer.counters.tx_relay_bytes += len as u64;
                    out.commit_relayed(relay, &peer.wg_key, len);
                }
            }
            PathKind::None => {}
        }
    }

    /// Sends what the peer's paths asked for in `self.actions`.
    pub(super) fn perform_actions(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        use crate::disco::Message;
        use crate::path::Action;

        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Ping { via, tx } => {
                    let wg_key = self.wg_public;
                    self.send_disco(slot, via, &Message::Ping { tx, wg_key }, out);
                }
                Action::CallMeMaybe { relay } => {
                    let mut endpoints = self.endpoints();
                    for seen in self.mapped.seen(now) {
                        if !endpoints.contains(&seen) {
                            endpoints.push(seen);
                        }
                    }
                    if !endpoints.is_empty() {
                        let message = Message::CallMeMaybe { endpoints };
                        self.send_disco(slot, Via::Relay(relay), &message, out);
                    }
                }
            }
        }
        self.actions = actions;
    }

    /// Tells the shell when packets to the peer take another way than it was last told. What would
    /// happen to packets that nobody sends is not worth telling.
    pub(super) fn tell_path(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.slot(slot) else {
            return;
        };
        let path = self.path_of(peer, now);
        if let Some(peer) = self.peers.slot_mut(slot)
            && peer.told != path
            && peer.paths.is_active(now)
        {
            peer.told = path;
            let peer = peer.node;
            self.push_event(Event::PathChanged { peer, path });
        }
    }

    /// Runs the peer's path timers.
    pub(super) fn poll_paths(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let relay = peer.relay(&self.relays.connected, self.relays.home, now);
        let rng = &mut self.rng;
        let mut random = || random_tx(rng);
        peer.paths.poll(relay, &mut random, &mut self.actions, now);
        self.perform_actions(slot, out, now);
    }
}
