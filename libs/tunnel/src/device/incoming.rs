//! Datagrams from the UDP socket and from relays.

use std::time::{Duration, Instant};

use super::{Device, Source};
use crate::buffers::Out;
use crate::event::Event;
use crate::packet::{self, Addr, InvalidPacket};
use crate::router::Slot;
use crate::stats::DropReason;
use crate::wg::{self, Kind, Opened};
use crate::{disco, stun};

/// A peer that forgot our session is shaken hands with at most this often.
const REVIVAL: Duration = Duration::from_secs(5);
/// Who owns an underlay address is looked up at most this often.
const SCAN: Duration = Duration::from_millis(200);

/// What was found out for one datagram and most likely holds for the next of the same call.
#[derive(Debug, Default)]
struct Memo {
    /// The peer of a session index.
    index: Option<(u32, Slot)>,
    /// The peer that an inner source is routed to.
    source: Option<(Addr, Slot)>,
    /// The peer whose activity and underlay address were noted already.
    noted: Option<Slot>,
}

impl Device {
    /// Takes datagrams of one source: WireGuard, disco or STUN, side by side and each `stride`
    /// bytes long, except the last, which may be shorter. Decrypted IP packets that the filter
    /// lets in, and answers, are appended to `out`; everything else is dropped and counted.
    pub fn open(
        &mut self,
        source: Source,
        datagrams: &[u8],
        stride: usize,
        out: &mut Out,
        now: Instant,
    ) {
        self.now = now;
        let source = source.canonical();
        let mut memo = Memo::default();
        for datagram in datagrams.chunks(stride.max(1)) {
            match wg::classify(datagram) {
                Some(Kind::Data { receiver }) => {
                    self.open_data(source, receiver, datagram, &mut memo, out, now);
                }
                Some(Kind::Initiation) => self.open_initiation(source, datagram, out, now),
                Some(Kind::Answer { receiver }) => {
                    self.open_answer(source, receiver, datagram, out, now);
                }
                None if disco::is_disco(datagram) => self.open_disco(source, datagram, out, now),
                None if stun::is_stun(datagram) => self.open_stun(source, datagram, now),
                None => self.drops.count(DropReason::UnknownDatagram),
            }
        }
    }

    #[inline]
    fn open_data(
        &mut self,
        source: Source,
        receiver: u32,
        datagram: &[u8],
        memo: &mut Memo,
        out: &mut Out,
        now: Instant,
    ) {
        let index = receiver >> 8;
        let known = memo.index.filter(|&(known, _)| known == index);
        let slot = match known {
            Some((_, slot)) => slot,
            None => {
                let Some(&slot) = self.peers.by_index.get(&index) else {
                    self.drops.count(DropReason::UnknownSession);
                    self.revive(source, out, now);
                    return;
                };
                memo.index = Some((index, slot));
                slot
            }
        };
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let Some(session) = peer.session.as_deref_mut() else {
            return;
        };
        let established = session.established();
        let into = out.reserve_inner(datagram.len());
        let opened = session.open(receiver, datagram, into, now);
        let is_new = session.established() != established;
        let verdict = match opened {
            Opened::Packet(len) => {
                peer.counters.rx_bytes += len as u64;
                peer.counters.rx_packets += 1;
                if matches!(source, Source::Relay { .. }) {
                    peer.counters.rx_relay_bytes += len as u64;
                }
                match packet::parse(&into[..len]) {
                    Err(InvalidPacket::Malformed) => Err(DropReason::Malformed),
                    Err(InvalidPacket::TinyFragment) => Err(DropReason::Fragment),
                    // Cryptokey routing: only what would be routed to the peer may come from it.
                    Ok(header)
                        if memo.source != Some((header.src, slot))
                            && self.router.lookup(header.src) != Some(slot) =>
                    {
                        Err(DropReason::SpoofedSource)
                    }
                    Ok(header) => {
                        memo.source = Some((header.src, slot));
                        self.filter.admit(&header, now).map(|()| len)
                    }
                }
            }
            Opened::Keepalive => Ok(0),
            Opened::Invalid(DropReason::UnknownSession) => {
                self.drops.count(DropReason::UnknownSession);
                self.revive_peer(slot, out, now);
                return;
            }
            Opened::Invalid(reason) => {
                self.drops.count(reason);
                return;
            }
        };
        let mut woke = false;
        if memo.noted != Some(slot) {
            match source {
                Source::Direct(addr) => peer.paths.on_receive(addr, now),
                Source::Relay { relay, .. } => peer.seen_relay = Some(relay),
            }
            if opened != Opened::Keepalive {
                memo.noted = Some(slot);
                woke = peer.paths.on_activity(now);
            }
        }
        match verdict {
            Ok(0) => {}
            Ok(len) => out.commit_inner(peer.node, len),
            Err(reason) => self.drops.count(reason),
        }
        if woke {
            self.wake(slot, now);
        }
        if is_new {
            self.on_established(slot, out, now);
        }
    }

    /// A session can carry data: send what waited for it and tell the shell.
    pub(super) fn on_established(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        self.flush(slot, out, now);
        self.leave_queue(slot);
        self.is_there(slot);
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let peer = peer.node;
        self.push_event(Event::HandshakeDone { peer });
        self.tell_path(slot, now);
        self.wake(slot, now);
    }

    /// Data came for a session that we do not have, most likely because we restarted: if its
    /// sender is a peer, make a new session with it.
    fn revive(&mut self, source: Source, out: &mut Out, now: Instant) {
        let slot = match source {
            Source::Relay { from, .. } => self.peers.by_wg.get(&from).copied(),
            Source::Direct(addr) => {
                let lately = self
                    .last_scan
                    .is_some_and(|last| now.saturating_duration_since(last) < SCAN);
                if lately {
                    return;
                }
                self.last_scan = Some(now);
                self.peers.taken().find(|&slot| {
                    self.peers
                        .slot(slot)
                        .is_some_and(|peer| peer.paths.knows(addr))
                })
            }
        };
        if let Some(slot) = slot {
            self.revive_peer(slot, out, now);
        }
    }

    /// Asks the peer for a new session, unless that was done lately.
    pub(super) fn revive_peer(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let lately = peer
            .last_revival
            .is_some_and(|last| now.saturating_duration_since(last) < REVIVAL);
        if lately {
            return;
        }
        peer.last_revival = Some(now);
        self.shake_hands(slot, out, now);
    }

    fn open_stun(&mut self, source: Source, datagram: &[u8], now: Instant) {
        let Source::Direct(from) = source else {
            self.drops.count(DropReason::InvalidStun);
            return;
        };
        match self.mapped.on_response(from, datagram, now) {
            Some(true) => self.push_event(Event::EndpointsChanged),
            Some(false) => {}
            None => self.drops.count(DropReason::InvalidStun),
        }
    }
}
