//! WireGuard handshake messages from peers.

use std::time::{Duration, Instant};

use super::{Device, Source};
use crate::buffers::Out;
use crate::path::Via;
use crate::router::Slot;
use crate::stats::DropReason;
use crate::wg::{Handled, Initiator, MAX_HANDSHAKE};

/// Copies of an initiation arrive within this.
const LATE_COPY: Duration = Duration::from_secs(1);
/// First byte of a cookie reply.
const COOKIE: u8 = 3;

impl Device {
    /// A peer asks for a session. Its key decides who it is; a valid and newer initiation replaces
    /// what we knew of where it is.
    pub(super) fn open_initiation(
        &mut self,
        source: Source,
        datagram: &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        let mut answer = [0; MAX_HANDSHAKE];
        let key = match self
            .identity
            .initiator(source.cookie_ip(), datagram, &mut answer, now)
        {
            Initiator::Peer(key) => key,
            Initiator::AskCookie(len) => {
                self.drops.count(DropReason::UnderLoad);
                self.answer_stranger(source, &answer[..len], out);
                return;
            }
            Initiator::Invalid(reason) => {
                self.drops.count(reason);
                return;
            }
        };
        let Some(&slot) = self.peers.by_wg.get(&key) else {
            self.drops.count(DropReason::UnknownPeer);
            return;
        };
        if matches!(source, Source::Relay { from, .. } if from != key) {
            self.drops.count(DropReason::Unauthentic);
            return;
        }
        let is_new = self.ensure_session(slot, now);
        let handled = self.session_handshake(slot, source, datagram, &mut answer, now);
        let authentic = matches!(handled, Handled::Reply(_)) && answer[0] != COOKIE;
        if is_new && !authentic {
            // Anybody can claim a peer's key as far as this; it is no reason to keep a session.
            self.let_go(slot);
        }
        match handled {
            Handled::Reply(len) if answer[0] == COOKIE => {
                self.drops.count(DropReason::UnderLoad);
                self.answer_stranger(source, &answer[..len], out);
            }
            Handled::Reply(len) => {
                self.is_there(slot);
                let Some(peer) = self.peers.slot_mut(slot) else {
                    return;
                };
                match source {
                    Source::Direct(addr) => peer.paths.on_newer_session(addr, now),
                    Source::Relay { relay, .. } => {
                        peer.seen_relay = Some(relay);
                        peer.gone = None;
                        peer.paths.doubt();
                    }
                }
                self.answer_peer(slot, source, &answer[..len], out, now);
                self.wake(slot, now);
            }
            Handled::Nothing => {}
            Handled::Invalid(reason) => {
                self.drops.count(reason);
                if reason == DropReason::Replayed {
                    self.on_old_initiation(slot, source, out, now);
                }
            }
        }
    }

    /// A peer asked for a session with a time stamp that is not above its last one. Most likely it
    /// is a copy that came by another way, or late. But when the peer has been silent, its clock may
    /// have gone back and it restarted, and it will not be heard until the clock has caught up:
    /// we ask it in its place. What a stranger gains by repeating an old message is a handshake
    /// between peers now and then.
    fn on_old_initiation(&mut self, slot: Slot, source: Source, out: &mut Out, now: Instant) {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let is_silent = peer
            .session
            .as_deref()
            .and_then(|session| session.silence(now))
            .is_some_and(|silence| silence >= LATE_COPY);
        if is_silent {
            if matches!(source, Source::Relay { .. }) {
                peer.paths.doubt();
            }
            self.revive_peer(slot, out, now);
        }
    }

    /// A peer answers a handshake of ours: with a response, or with a cookie.
    pub(super) fn open_answer(
        &mut self,
        source: Source,
        receiver: u32,
        datagram: &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        let Some(&slot) = self.peers.by_index.get(&(receiver >> 8)) else {
            self.drops.count(DropReason::UnknownSession);
            return;
        };
        // Room for the keepalive that confirms the session.
        let mut answer = [0; MAX_HANDSHAKE];
        match self.session_handshake(slot, source, datagram, &mut answer, now) {
            Handled::Reply(len) if answer[0] == COOKIE => {
                self.drops.count(DropReason::UnderLoad);
                self.answer_stranger(source, &answer[..len], out);
            }
            Handled::Reply(len) => {
                if let Some(peer) = self.peers.slot_mut(slot) {
                    match source {
                        Source::Direct(addr) => peer.paths.on_receive(addr, now),
                        Source::Relay { relay, .. } => peer.seen_relay = Some(relay),
                    }
                }
                self.answer_peer(slot, source, &answer[..len], out, now);
                self.on_established(slot, out, now);
            }
            Handled::Nothing => {}
            Handled::Invalid(reason) => self.drops.count(reason),
        }
    }

    fn session_handshake(
        &mut self,
        slot: Slot,
        source: Source,
        datagram: &[u8],
        answer: &mut [u8; MAX_HANDSHAKE],
        now: Instant,
    ) -> Handled {
        self.peers
            .slot_mut(slot)
            .and_then(|peer| peer.session.as_deref_mut())
            .map_or(Handled::Invalid(DropReason::UnknownSession), |session| {
                session.handshake(source.cookie_ip(), datagram, answer, now)
            })
    }

    /// Answers the way the message came, and by relay too while that way is not proven to work in
    /// our direction.
    fn answer_peer(
        &mut self,
        slot: Slot,
        source: Source,
        message: &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        let via = match source {
            Source::Direct(addr) => Via::Direct(addr),
            Source::Relay { relay, .. } => Via::Relay(relay),
        };
        self.send_via(slot, via, message, out);
        if let Some(peer) = self.peers.slot(slot)
            && matches!(via, Via::Direct(_))
            && !peer.paths.is_trusted(now)
            && let Some(relay) = peer.relay(&self.relays.connected, self.relays.home, now)
        {
            self.send_via(slot, Via::Relay(relay), message, out);
        }
    }

    /// Sends a cookie back, knowing nothing about the sender but where the message came from.
    fn answer_stranger(&self, source: Source, message: &[u8], out: &mut Out) {
        match source {
            Source::Direct(to) => {
                out.reserve_direct(message.len()).copy_from_slice(message);
                out.commit_direct(to, message.len());
            }
            Source::Relay { relay, from } => {
                out.reserve_relayed(message.len()).copy_from_slice(message);
                out.commit_relayed(relay, &from, message.len());
            }
        }
    }
}
