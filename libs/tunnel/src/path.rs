//! How to reach one peer: candidates, probes, and the choice between direct and relay.
//!
//! A direct path is used only while it is *trusted*: a probe over it was answered within
//! [`TRUST`]. While there is traffic the path in use is probed every [`PROBE_BEST`], and all
//! candidates every [`PROBE_ALL`] in search of a faster one. Without a trusted path packets go by
//! relay and all candidates are probed in rounds, quickly at first and then every
//! [`PROBE_RELAYED`]; with each round the peer is asked over the relay to probe us as well, so
//! that both sides open their NATs. Without traffic nothing is sent.

mod candidates;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::RelayId;

use crate::disco::TxId;
use crate::event::PathKind;

use candidates::{Candidate, Candidates, MAX_NETMAP};

/// How long an answered probe vouches for a direct path.
pub(crate) const TRUST: Duration = Duration::from_secs(6);
/// A path with a probe unanswered for this long, and nothing received since, is given up early.
const SUSPECT: Duration = Duration::from_secs(3);
/// The same when there is a sign that the peer moved or lost the path.
const SUSPECT_DOUBTED: Duration = Duration::from_millis(400);
/// How often the path in use is probed.
const PROBE_BEST: Duration = Duration::from_millis(1500);
/// How often all candidates are probed while a direct path is trusted.
const PROBE_ALL: Duration = Duration::from_secs(20);
/// How often all candidates are probed while relayed.
const PROBE_RELAYED: Duration = Duration::from_secs(5);
/// The first rounds while relayed come sooner.
const FIRST_ROUNDS: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_secs(2),
];
/// A candidate is not probed more often than this.
const PROBE_GAP: Duration = Duration::from_millis(200);
/// Without traffic for this long nothing is probed.
pub(crate) const ACTIVE: Duration = Duration::from_secs(30);
/// For how long probes go to who is quiet, to tell of this node's new place.
const SOUGHT: Duration = Duration::from_secs(5);
/// An unanswered probe is forgotten after this long.
const PROBE_LIFE: Duration = Duration::from_secs(5);
/// A peer's call-me-maybe is acted on no more often than this.
const CALL_GAP: Duration = Duration::from_millis(250);

/// Unanswered probes remembered at most.
const MAX_PROBES: usize = 96;

/// Where a datagram goes to or came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Direct(SocketAddr),
    Relay(RelayId),
}

/// What the path wants sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Ping { via: Via, tx: TxId },
    CallMeMaybe { relay: RelayId },
}

#[derive(Debug, Clone, Copy)]
struct Best {
    addr: SocketAddr,
    trusted_until: Instant,
}

#[derive(Debug)]
struct Probe {
    tx: TxId,
    via: Via,
    sent: Instant,
}

/// The paths to one peer.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    candidates: Candidates,
    best: Option<Best>,
    relay_rtt: Option<Duration>,
    probes: Vec<Probe>,
    next_all: Option<Instant>,
    rounds: usize,
    last_activity: Option<Instant>,
    /// Until then it is probed without traffic too.
    sought_until: Option<Instant>,
    last_call: Option<Instant>,
    /// There is a sign that the best path does not work for the peer; its next answer clears it.
    doubted: bool,
}

impl Paths {
    /// Takes the endpoints that the netmap names; learned ones stay.
    pub(crate) fn set_netmap_endpoints(&mut self, endpoints: &[SocketAddr], now: Instant) {
        let keep = self.best_addr();
        self.candidates.set_netmap(endpoints, keep, now);
        self.probe_soon(now);
    }

    /// The peer told us where it may be reached and is about to probe us: probe it at once, which
    /// opens our side's NAT. This is no traffic, so it starts nothing that goes on.
    pub(crate) fn on_call_me_maybe(
        &mut self,
        endpoints: &[SocketAddr],
        random: &mut impl FnMut() -> TxId,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        let lately = self
            .last_call
            .is_some_and(|last| now.saturating_duration_since(last) < CALL_GAP);
        if lately {
            return;
        }
        self.last_call = Some(now);
        for &addr in endpoints {
            self.learn(addr, now);
        }
        // A peer that asks has no path that it trusts; ours may be gone too.
        self.doubted = true;
        self.ping_all(random, actions, now);
    }

    fn ping_all(
        &mut self,
        random: &mut impl FnMut() -> TxId,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        for addr in self.candidates.addrs() {
            self.ping(addr, PROBE_GAP, random, actions, now);
        }
    }

    /// Something authentic arrived from this address.
    pub(crate) fn on_receive(&mut self, addr: SocketAddr, now: Instant) {
        match self.candidates.find_mut(addr) {
            Some(candidate) => candidate.last_receive = Some(now),
            None => {
                if let Some(candidate) = self.learn(addr, now) {
                    candidate.last_receive = Some(now);
                }
                // The peer moved, or prefers another of its addresses: find out at once.
                self.doubted = true;
                self.next_all = Some(now);
            }
        }
    }

    /// A new session was asked for from this address: the peer is there now.
    pub(crate) fn on_newer_session(&mut self, addr: SocketAddr, now: Instant) {
        self.on_receive(addr, now);
        if self.best.is_some_and(|best| best.addr != addr) {
            self.best = None;
        }
        self.next_all = Some(now);
    }

    /// Data was sent or received. True when the path was idle before.
    #[inline]
    pub(crate) fn on_activity(&mut self, now: Instant) -> bool {
        let was_active = self.is_active(now);
        self.last_activity = Some(now);
        if !was_active {
            self.rounds = 0;
            self.next_all = Some(now);
        }
        !was_active
    }

    #[inline]
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.last_activity
            .is_some_and(|last| now.saturating_duration_since(last) < ACTIVE)
    }

    /// Probes without traffic, for a while.
    pub(crate) fn seek(&mut self, now: Instant) {
        self.sought_until = Some(now + SOUGHT);
    }

    fn is_probed(&self, now: Instant) -> bool {
        self.is_active(now) || self.sought_until.is_some_and(|until| now < until)
    }

    /// Nothing that was proven holds any more: the network changed.
    pub(crate) fn reset(&mut self, now: Instant) {
        if let Some(best) = &mut self.best {
            best.trusted_until = now;
        }
        self.probes.clear();
        for candidate in self.candidates.iter_mut() {
            candidate.last_ping = None;
        }
        self.probe_soon(now);
    }

    /// Starts the quick rounds over.
    pub(crate) fn probe_soon(&mut self, now: Instant) {
        self.rounds = 0;
        self.next_all = Some(now);
    }

    /// A probe of ours was answered, the same way that it went. True when it was one of ours.
    pub(crate) fn on_pong(&mut self, tx: &TxId, direct: bool, now: Instant) -> bool {
        let Some(at) = self.probes.iter().position(|probe| probe.tx == *tx) else {
            return false;
        };
        if matches!(self.probes[at].via, Via::Direct(_)) != direct {
            return false;
        }
        let Probe { via, sent, .. } = self.probes.swap_remove(at);
        let rtt = now.saturating_duration_since(sent);
        match via {
            Via::Relay(_) => self.relay_rtt = Some(smooth(self.relay_rtt, rtt)),
            Via::Direct(addr) => {
                // Answers to earlier probes of this path say nothing more.
                self.probes
                    .retain(|probe| probe.via != via || probe.sent > sent);
                if let Some(candidate) = self.candidates.find_mut(addr) {
                    candidate.rtt = Some(smooth(candidate.rtt, rtt));
                    candidate.last_pong = Some(now);
                    candidate.last_receive = Some(now);
                }
                if self.best.is_some_and(|best| best.addr == addr) {
                    self.doubted = false;
                }
                self.consider(addr, now);
            }
        }
        true
    }

    /// Decides whether an address that just answered replaces the best one.
    fn consider(&mut self, addr: SocketAddr, now: Instant) {
        let fresh = Best {
            addr,
            trusted_until: now + TRUST,
        };
        let Some(best) = self.best else {
            self.best = Some(fresh);
            return;
        };
        if best.addr == addr
            || best.trusted_until <= now
            || self.is_suspect(best.addr, SUSPECT / 3, now)
        {
            self.best = Some(fresh);
            return;
        }
        // Hysteresis: clearly faster, not just luckier.
        let rtt = |addr| self.candidates.find(addr).and_then(|c| c.rtt);
        if let (Some(new), Some(old)) = (rtt(addr), rtt(best.addr))
            && new + (old / 5).max(Duration::from_millis(2)) < old
        {
            self.best = Some(fresh);
        }
    }

    /// Whether the address left a probe unanswered for too long, and was silent since.
    fn is_suspect(&self, addr: SocketAddr, limit: Duration, now: Instant) -> bool {
        let limit = if self.doubted {
            let rtt = self.rtt(PathKind::Direct(addr)).unwrap_or_default();
            SUSPECT_DOUBTED.max(rtt * 4).min(limit)
        } else {
            limit
        };
        self.silent_since(addr)
            .is_some_and(|since| now.saturating_duration_since(since) >= limit)
    }

    /// When the oldest unanswered probe of the address was sent, if nothing came from there since.
    fn silent_since(&self, addr: SocketAddr) -> Option<Instant> {
        let oldest = self
            .probes
            .iter()
            .filter(|probe| probe.via == Via::Direct(addr))
            .map(|probe| probe.sent)
            .min()?;
        let heard = self.candidates.find(addr).and_then(|c| c.last_receive);
        heard.is_none_or(|heard| heard < oldest).then_some(oldest)
    }

    /// Whether the address is a candidate.
    pub(crate) fn knows(&self, addr: SocketAddr) -> bool {
        self.candidates.find(addr).is_some()
    }

    #[inline]
    pub(crate) fn is_trusted(&self, now: Instant) -> bool {
        self.best.is_some_and(|best| best.trusted_until > now)
    }

    /// A trusted path that nothing speaks against.
    pub(crate) fn is_sure(&self, now: Instant) -> bool {
        self.is_trusted(now) && !self.doubted
    }

    /// The peer did what only somebody does who trusts no direct path to us: find out at once
    /// whether ours works.
    pub(crate) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// How packets go: over a trusted direct path, else by relay, else by the best guess.
    #[inline]
    pub(crate) fn choose(&self, relay: Option<RelayId>, now: Instant) -> PathKind {
        match (self.best, relay) {
            (Some(best), _) if best.trusted_until > now => PathKind::Direct(best.addr),
            (_, Some(relay)) => PathKind::Relay(relay),
            (best, None) => self.guess(best),
        }
    }

    /// Without proof and without a relay: the address last heard from, else the last good one,
    /// else any.
    fn guess(&self, best: Option<Best>) -> PathKind {
        self.candidates
            .iter()
            .filter(|c| c.last_receive.is_some())
            .max_by_key(|c| c.last_receive)
            .map(|c| c.addr)
            .or(best.map(|best| best.addr))
            .or_else(|| self.candidates.iter().next().map(|c| c.addr))
            .map_or(PathKind::None, PathKind::Direct)
    }

    /// Where a handshake goes: every candidate while none is proven.
    pub(crate) fn handshake_targets(&self, now: Instant) -> impl Iterator<Item = SocketAddr> + '_ {
        let trusted = self
            .best
            .filter(|best| best.trusted_until > now)
            .map(|best| best.addr);
        self.candidates
            .iter()
            .map(|c| c.addr)
            .filter(move |&addr| trusted.is_none_or(|trusted| trusted == addr))
            .take(MAX_NETMAP)
    }

    pub(crate) fn rtt(&self, path: PathKind) -> Option<Duration> {
        match path {
            PathKind::Direct(addr) => self.candidates.find(addr)?.rtt,
            PathKind::Relay(_) => self.relay_rtt,
            PathKind::None => None,
        }
    }

    /// Sends what is due. `random` makes transaction ids.
    pub(crate) fn poll(
        &mut self,
        relay: Option<RelayId>,
        random: &mut impl FnMut() -> TxId,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        self.forget_old(now);
        if !self.is_probed(now) {
            return;
        }
        if let Some(best) = self.best
            && best.trusted_until > now
        {
            if self.is_suspect(best.addr, SUSPECT, now) {
                self.leave(best, now);
            } else {
                let hurry = self.doubted || self.is_suspect(best.addr, PROBE_BEST / 3, now);
                let gap = if hurry { PROBE_BEST / 3 } else { PROBE_BEST };
                self.ping(best.addr, gap, random, actions, now);
            }
        }
        let due = self.next_all.is_some_and(|at| at <= now);
        if !due {
            return;
        }
        let trusted = self.is_trusted(now);
        let pause = if trusted {
            self.rounds = 0;
            PROBE_ALL
        } else {
            let pause = FIRST_ROUNDS.get(self.rounds).copied();
            self.rounds = self.rounds.saturating_add(1);
            pause.unwrap_or(PROBE_RELAYED)
        };
        self.next_all = Some(now + pause);
        self.ping_all(random, actions, now);
        if let Some(relay) = relay
            && !trusted
        {
            actions.push(Action::CallMeMaybe { relay });
            let tx = random();
            self.remember(tx, Via::Relay(relay), now);
            actions.push(Action::Ping {
                via: Via::Relay(relay),
                tx,
            });
        }
    }

    /// The best path went silent: take another that was answered lately, else trust none.
    fn leave(&mut self, silent: Best, now: Instant) {
        let other = self
            .candidates
            .iter()
            .filter(|c| c.addr != silent.addr)
            .filter_map(|c| Some((c.last_pong? + TRUST, c.addr)))
            .filter(|&(trusted_until, _)| trusted_until > now)
            .max();
        self.best = Some(match other {
            Some((trusted_until, addr)) => Best {
                addr,
                trusted_until,
            },
            None => Best {
                trusted_until: now,
                ..silent
            },
        });
        self.probe_soon(now);
    }

    /// When `poll` wants to be called next, while it probes.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        if !self.is_probed(now) {
            return None;
        }
        let best = self
            .best
            .filter(|best| best.trusted_until > now)
            .map(|_| now + PROBE_BEST / 3);
        [best, self.next_all].into_iter().flatten().min()
    }

    /// Probes one address unless that was done within `gap`. Unknown addresses are learned first.
    pub(crate) fn ping(
        &mut self,
        addr: SocketAddr,
        gap: Duration,
        random: &mut impl FnMut() -> TxId,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        let Some(candidate) = self.candidates.find_mut(addr) else {
            return;
        };
        if candidate
            .last_ping
            .is_some_and(|last| now.saturating_duration_since(last) < gap)
        {
            return;
        }
        candidate.last_ping = Some(now);
        let tx = random();
        let via = Via::Direct(addr);
        self.remember(tx, via, now);
        actions.push(Action::Ping { via, tx });
    }

    /// The peer probed us from this address: it is worth a probe back.
    pub(crate) fn on_ping(
        &mut self,
        addr: SocketAddr,
        random: &mut impl FnMut() -> TxId,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        self.on_receive(addr, now);
        let proven = self
            .candidates
            .find(addr)
            .and_then(|c| c.last_pong)
            .is_some_and(|last| now.saturating_duration_since(last) < TRUST);
        if !proven || !self.is_trusted(now) {
            self.ping(addr, Duration::from_secs(1), random, actions, now);
        }
        if self.doubted
            && let Some(best) = self.best
        {
            self.ping(best.addr, PROBE_GAP, random, actions, now);
        }
    }

    fn remember(&mut self, tx: TxId, via: Via, sent: Instant) {
        if self.probes.len() >= MAX_PROBES {
            self.probes.remove(0);
        }
        self.probes.push(Probe { tx, via, sent });
    }

    fn forget_old(&mut self, now: Instant) {
        let age = |then: Instant| now.saturating_duration_since(then);
        self.probes.retain(|probe| age(probe.sent) < PROBE_LIFE);
        let keep = self.best_addr();
        self.candidates.forget_old(keep, now);
    }

    fn best_addr(&self) -> Option<SocketAddr> {
        self.best.map(|best| best.addr)
    }

    fn learn(&mut self, addr: SocketAddr, now: Instant) -> Option<&mut Candidate> {
        let keep = self.best_addr();
        self.candidates.learn(addr, keep, now)
    }
}

fn smooth(old: Option<Duration>, new: Duration) -> Duration {
    old.map_or(new, |old| (old * 3 + new) / 4)
}
