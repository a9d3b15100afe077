//! The passing of time.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{Device, SWEEP, random_tx};
use crate::buffers::Out;
use crate::event::{Event, PathKind};
use crate::path::Via;
use crate::router::Slot;
use crate::wg::{Due, MAX_HANDSHAKE};

/// How often a peer's timers run while a handshake is under way or there is traffic, and while a
/// session is merely alive; up to a third is added, so that peers do not move in step.
const LIVELY: Duration = Duration::from_millis(300);
const CALM: Duration = Duration::from_millis(1000);
/// A relay without a session is asked for this often while there is traffic to a peer on it.
const RELAY_WANTED: Duration = Duration::from_secs(5);

impl Device {
    /// Does what is due: handshakes, keepalives, probes, expiry.
    pub fn handle_timeout(&mut self, out: &mut Out, now: Instant) {
        self.now = now;
        self.identity.reset_load(now);
        while let Some((at, slot)) = self.timers.pop_due(now) {
            let Some(peer) = self.peers.slot_mut(slot) else {
                continue;
            };
            if peer.due == Some(at) {
                peer.due = None;
                self.tick_peer(slot, out, now);
            }
        }
        self.serve_turns(out, now);
        let rng = &mut self.rng;
        self.mapped.poll(
            || random_tx(rng),
            |to, request| {
                out.reserve_direct(request.len()).copy_from_slice(request);
                out.commit_direct(to, request.len());
            },
            now,
        );
        if self.next_sweep <= now {
            self.next_sweep = now + SWEEP;
            self.filter.expire(now);
        }
    }

    fn tick_peer(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        self.tick_session(slot, out, now);
        self.ask_again(slot, now);
        self.poll_paths(slot, out, now);
        self.tell_path(slot, now);
        self.want_relay(slot, now);
        self.schedule_next(slot, now);
    }

    fn tick_session(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        let mut message = [0; MAX_HANDSHAKE];
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let Some(session) = peer.session.as_deref_mut() else {
            return;
        };
        let due = session.tick(&mut message, now);
        let unreachable = session.take_unreachable().then_some(peer.node);
        match due {
            Due::Initiation(len) => self.send_or_wait(slot, &message[..len], out, now),
            Due::Keepalive(len) => {
                let path = self.peers.slot(slot).map(|peer| self.path_of(peer, now));
                let via = match path {
                    Some(PathKind::Direct(to)) => Some(Via::Direct(to)),
                    Some(PathKind::Relay(relay)) => Some(Via::Relay(relay)),
                    Some(PathKind::None) | None => None,
                };
                if let Some(via) = via {
                    self.send_via(slot, via, &message[..len], out);
                }
            }
            Due::Nothing => {}
        }
        if let Some(peer) = unreachable {
            self.leave_queue(slot);
            self.push_event(Event::PeerUnreachable { peer });
        }
    }

    /// Asks the shell for the peer's home relay while there is traffic and no direct path.
    fn want_relay(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let Some(relay) = peer.home_relay else {
            return;
        };
        let lately = peer
            .relay_wanted
            .is_some_and(|last| now.saturating_duration_since(last) < RELAY_WANTED);
        if lately
            || self.relays.connected.contains(&relay)
            || !peer.paths.is_active(now)
            || peer.paths.is_trusted(now)
        {
            return;
        }
        peer.relay_wanted = Some(now);
        self.push_event(Event::RelayWanted { relay });
    }

    pub(super) fn schedule_next(&mut self, slot: Slot, now: Instant) {
        let spread = self.rng.next_u32();
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let session = peer.session.as_deref();
        // Who waits for a turn is called when it comes.
        let waits = peer.place.is_some();
        let initiation = session.and_then(|session| session.next_initiation());
        let keys = session.is_some_and(|session| !session.is_silent(now));
        let active = peer.paths.is_active(now);
        let pause = if active || initiation.is_some() {
            LIVELY
        } else {
            CALM
        };
        let pause = pause + pause / 3 * (spread % 1000) / 1000;
        let due = [
            (active || keys).then(|| now + pause),
            initiation.filter(|_| !waits),
            session.and_then(|session| session.ends()),
            peer.greeting.and_then(|greeting| greeting.next),
            peer.paths.next_due(now),
        ];
        let Some(due) = due.into_iter().flatten().min() else {
            return;
        };
        let due = due
            // What is due already was done just now.
            .max(now + Duration::from_millis(20));
        if peer.due.is_none_or(|scheduled| scheduled > due) {
            peer.due = Some(due);
            self.timers.schedule(slot, due);
        }
    }
}
