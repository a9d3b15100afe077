//! Asking peers for sessions: because there is traffic, again while they do not answer, and after a
//! restart. Each initiation takes its turn ([`crate::turns`]).

use std::time::{Duration, Instant};

use mesh_types::{NodeId, RelayId};
use rand::Rng;

use super::Device;
use crate::buffers::Out;
use crate::peer::Greeting;
use crate::router::Slot;
use crate::turns::Lane;
use crate::wg::MAX_HANDSHAKE;

/// Times that a peer is greeted, unless there is news of it.
const GREETINGS: u32 = 2;
/// Between these times.
const GREET_AGAIN: Duration = Duration::from_millis(700);

impl Device {
    /// Tells these peers that this node has started again: they may hold sessions that it lost, and
    /// send into the void until they know. Each is asked for a session by relay and at every
    /// address that it may have, in the order in which they are named, twice at most, and then once
    /// there is traffic, other news of it in the netmap, or another way to it. Who has a session
    /// and who is not in the netmap is left out; to whom there is no way yet waits for one.
    pub fn greet(&mut self, peers: &[NodeId], now: Instant) {
        self.now = now;
        for node in peers {
            let Some(&slot) = self.peers.by_node.get(node) else {
                continue;
            };
            let rank = self.turns.rank();
            if let Some(peer) = self.peers.slot_mut(slot)
                && peer.greeting.is_none()
                && peer
                    .session
                    .as_deref()
                    .is_none_or(|session| session.is_silent(now))
            {
                peer.greeting = Some(Greeting::new(rank));
                self.greet_anew(slot);
            }
        }
    }

    /// Greets all who have not answered and would now be reached by this relay.
    pub(super) fn greet_by(&mut self, relay: RelayId, now: Instant) {
        for slot in self.peers.taken() {
            let by_it = self.peers.slot(slot).is_some_and(|peer| {
                peer.greeting.is_some()
                    && peer.relay(&self.relays.connected, self.relays.home, now) == Some(relay)
            });
            if by_it {
                self.greet_anew(slot);
            }
        }
    }

    /// Greets a peer that has not answered as if it had never been greeted.
    pub(super) fn greet_anew(&mut self, slot: Slot) {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let asked = peer
            .session
            .as_deref()
            .is_some_and(|session| session.tries().is_some());
        let Some(greeting) = peer.greeting.as_mut().filter(|_| !asked) else {
            return;
        };
        *greeting = Greeting::new(greeting.rank);
        self.wait_in(slot, Lane::Greeting, 0);
    }

    /// There is news of where a peer is, or that it is there.
    pub(super) fn on_news(&mut self, slot: Slot, now: Instant) {
        let asked = self
            .peers
            .slot_mut(slot)
            .and_then(|peer| peer.session.as_deref_mut())
            .is_some_and(|session| session.begin_anew(now));
        if asked {
            self.wait_in(slot, Lane::Traffic, 0);
        } else {
            self.greet_anew(slot);
        }
    }

    /// The peer knows of us: there is nothing to tell it.
    pub(super) fn is_there(&mut self, slot: Slot) {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        peer.greeting = None;
        if peer.place.is_some_and(|place| place.lane == Lane::Greeting) {
            self.leave_queue(slot);
        }
    }

    /// Asks for a session, because the peer showed that it needs one, until it answers.
    pub(super) fn shake_hands(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        self.ensure_session(slot, now);
        let session = self.peers.slot_mut(slot);
        let Some(session) = session.and_then(|peer| peer.session.as_deref_mut()) else {
            return;
        };
        session.begin_anew(now);
        session.begin(now);
        if self.turns.take(Lane::Traffic, now) {
            self.leave_queue(slot);
            self.initiate(slot, out, now);
        } else {
            self.wait_in(slot, Lane::Traffic, 0);
        }
    }

    /// Sends an initiation that boringtun made of itself, if there is a turn; else the peer waits
    /// for one, and then another initiation is made.
    pub(super) fn send_or_wait(&mut self, slot: Slot, message: &[u8], out: &mut Out, now: Instant) {
        let waits = self
            .peers
            .slot(slot)
            .and_then(|peer| peer.place)
            .is_some_and(|place| place.lane == Lane::Traffic);
        if waits {
            return;
        }
        if self.turns.take(Lane::Traffic, now) {
            self.leave_queue(slot);
            self.on_sent(slot, now);
            self.send_handshake(slot, message, out, now);
        } else {
            self.wait_in(slot, Lane::Traffic, 0);
        }
    }

    /// Puts a peer in the queue that did not answer in time, and gives back what is not needed for
    /// one that never did.
    pub(super) fn ask_again(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let session = peer.session.as_deref();
        let tries = session.and_then(|session| session.tries());
        let next = session.and_then(|session| session.next_initiation());
        let waits = peer.place.is_some_and(|place| place.lane == Lane::Traffic);
        let greeting = peer.greeting.as_mut();
        let greet = greeting.and_then(|greeting| {
            // Asking does what greeting would.
            let due = tries.is_some() || greeting.next.is_some_and(|at| at <= now);
            due.then(|| greeting.next.take())?.map(|_| greeting.tries)
        });
        match (tries, greet) {
            (Some(tries), _) if !waits && next.is_some_and(|at| at <= now) => {
                self.wait_in(slot, Lane::Traffic, tries);
            }
            (None, Some(tries)) => self.wait_in(slot, Lane::Greeting, tries),
            _ => {}
        }
        let spent = self
            .peers
            .slot(slot)
            .and_then(|peer| peer.session.as_deref())
            .is_some_and(|session| session.is_spent(now));
        if spent {
            self.let_go(slot);
        }
    }

    /// Asks those whose turn it is.
    pub(super) fn serve_turns(&mut self, out: &mut Out, now: Instant) {
        while let Some((lane, slot)) = self.turns.next(now) {
            let has_way = self.has_way(slot, now);
            let Some(peer) = self.peers.slot_mut(slot) else {
                continue;
            };
            peer.place = None;
            if lane == Lane::Greeting
                && let Some(greeting) = &mut peer.greeting
            {
                if !has_way {
                    // A relay, or news of the peer, calls for it again.
                    continue;
                }
                greeting.tries += 1;
                greeting.next = (greeting.tries < GREETINGS).then_some(now + GREET_AGAIN);
            }
            self.ensure_session(slot, now);
            self.initiate(slot, out, now);
        }
    }

    /// Sends an initiation: its turn was taken.
    fn initiate(&mut self, slot: Slot, out: &mut Out, now: Instant) {
        let mut message = [0; MAX_HANDSHAKE];
        let len = self
            .peers
            .slot_mut(slot)
            .and_then(|peer| peer.session.as_deref_mut())
            .and_then(|session| session.initiation(&mut message, now));
        if let Some(len) = len {
            self.on_sent(slot, now);
            self.send_handshake(slot, &message[..len], out, now);
        }
        self.schedule_next(slot, now);
    }

    fn on_sent(&mut self, slot: Slot, now: Instant) {
        let jitter = self.rng.next_u32();
        let session = self.peers.slot_mut(slot);
        if let Some(session) = session.and_then(|peer| peer.session.as_deref_mut()) {
            session.on_sent(jitter, now);
        }
    }

    /// Waits for a turn in this lane, and in no other.
    fn wait_in(&mut self, slot: Slot, lane: Lane, tries: u32) {
        self.leave_queue(slot);
        if let Some(peer) = self.peers.slot_mut(slot) {
            let rank = match (lane, peer.greeting) {
                (Lane::Greeting, Some(greeting)) => greeting.rank,
                _ => self.turns.rank(),
            };
            peer.place = Some(self.turns.wait(lane, tries, rank, slot));
        }
    }

    pub(super) fn leave_queue(&mut self, slot: Slot) {
        if let Some(place) = self.peers.slot_mut(slot).and_then(|peer| peer.place.take()) {
            self.turns.leave(place);
        }
    }
}
