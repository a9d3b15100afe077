//! The control session as a state machine: no socket, no clock, no randomness but the seed's.
//!
//! ```text
//!             ┌────────── failed, closed, silent ──────────┐
//!             ▼                                            │
//!   Waiting ──► Connecting ── opened ──► Opening ── welcome ──► Live
//!      ▲  │         ▲                                       │
//!      │  └─ expired ─► (renew first)                       │ goodbye: removed
//!      └──────────────────────────────────────────────      ▼
//!                                                        Removed
//! ```
//!
//! The shell ([`super::ControlSession`], or a simulation) does what [`Machine::poll_action`] says and
//! tells what came of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mesh_api::client::OWN_CLOCK;
use mesh_api::model::node::NodeReport;
use mesh_types::heartbeat::{
    HEARTBEAT_INTERVAL_SECS, HEARTBEAT_TTL_SECS, HeartbeatRefusal, MAX_SKEW_SECS,
};
use mesh_types::{Cursor, Netmap, NetmapUpdate, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{ControlState, TOOK_OVER};
use crate::advice::STARTING;

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(HEARTBEAT_INTERVAL_SECS);
/// A stream on which nothing arrives for this long is dead: three answered heartbeats are missing.
const SILENCE: Duration = Duration::from_secs(HEARTBEAT_TTL_SECS);
/// How long opening a stream may take, up to the welcome.
const OPENING: Duration = Duration::from_secs(20);
/// Cap of the back-off between streams.
pub(super) const BACKOFF_CAP: Duration = Duration::from_secs(5);
const BACKOFF_START: Duration = Duration::from_millis(250);
/// Between attempts to renew a certificate that is still valid.
const RENEW_RETRY: Duration = Duration::from_secs(60);

/// A point in time by both clocks: the monotonic one for intervals, the wall for what is sent.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For intervals.
    pub at: Instant,
    /// As this machine's clock shows it.
    pub wall: Timestamp,
}

/// When a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub from: Timestamp,
    /// Until then.
    pub until: Timestamp,
}

/// What the coordinator says on the stream.
#[derive(Debug)]
pub enum Incoming {
    /// It takes this node in.
    Welcome {
        /// What this stream's heartbeats sign.
        nonce: Vec<u8>,
        /// The coordinator's clock.
        server_time: Timestamp,
    },
    /// A whole update.
    Netmap(NetmapUpdate),
    /// A part of an update that is not whole yet.
    Partial,
    /// It took a heartbeat, or did not.
    HeartbeatAck {
        /// Why it does not count; `None` when it does.
        refusal: Option<HeartbeatRefusal>,
        /// The coordinator's clock.
        server_time: Timestamp,
    },
    /// It ends the stream.
    Goodbye(Goodbye),
}

/// Why the coordinator ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goodbye {
    /// This node is none of its network any more.
    Removed,
    /// A newer stream of the same node took over.
    Replaced,
    /// The coordinator stops.
    Shutdown,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a stream and send a hello with this cursor.
    Open {
        /// How far the netmap at hand goes.
        cursor: Option<Cursor>,
    },
    /// Drop the stream, or the attempt to open one.
    Close,
    /// Sign and send a heartbeat.
    Heartbeat {
        /// The stream's.
        nonce: Vec<u8>,
        /// From 1 in each stream.
        sequence: u64,
        /// By this machine's clock.
        time: Timestamp,
        /// It was on its stored netmap for so long before there was a coordinator.
        stored_for: Option<Duration>,
    },
    /// Send the report.
    Report(NodeReport),
    /// Ask for a new certificate.
    Renew,
    /// The netmap is another one; see [`Machine::netmap`].
    NetmapChanged,
    /// The state for people changed; see [`Machine::state`].
    StateChanged,
}

#[derive(Debug)]
enum State {
    Waiting {
        until: Instant,
    },
    Opening {
        deadline: Instant,
    },
    Live {
        nonce: Vec<u8>,
        sequence: u64,
        next_heartbeat: Instant,
        last_heard: Instant,
    },
    Removed,
}

/// One node's side of the control session.
#[derive(Debug)]
pub struct Machine {
    state: State,
    failures: u32,
    netmap: Option<Netmap>,
    /// Since when it acts on a stored netmap that no coordinator has confirmed since the start.
    on_stored: Option<Instant>,
    /// For how long it did; told until a heartbeat counts.
    stored_for: Option<Duration>,
    report: Option<NodeReport>,
    validity: Validity,
    renewing: bool,
    renew_at: Instant,
    /// The same by the wall, which goes on while the machine sleeps.
    renew_due: Timestamp,
    /// Not before this, whatever the wall says.
    renew_pause: Instant,
    last_error: Option<String>,
    random: StdRng,
    actions: VecDeque<Action>,
}

impl Machine {
    /// A session that connects at once. `netmap` is the stored one.
    pub fn new(netmap: Option<Netmap>, validity: Validity, seed: [u8; 32], now: Now) -> Self {
        let mut machine = Self {
            state: State::Waiting { until: now.at },
            failures: 0,
            on_stored: netmap.is_some().then_some(now.at),
            stored_for: None,
            netmap,
            report: None,
            validity,
            renewing: false,
            renew_at: now.at,
            renew_due: now.wall,
            renew_pause: now.at,
            last_error: None,
            random: StdRng::from_seed(seed),
            actions: VecDeque::new(),
        };
        machine.plan_renewal(now.at, now);
        machine
    }

    /// The last good netmap.
    pub fn netmap(&self) -> Option<&Netmap> {
        self.netmap.as_ref()
    }

    /// When the certificate at hand counts.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The state and what went wrong last, for people.
    pub fn state(&self) -> (ControlState, Option<&str>) {
        let state = match &self.state {
            State::Waiting { .. } => ControlState::Waiting,
            State::Opening { .. } => ControlState::Connecting,
            State::Live { .. } => ControlState::Connected,
            State::Removed => ControlState::Removed,
        };
        (state, self.last_error.as_deref())
    }

    /// What to do next. Ask until `None` after every call that takes `&mut self`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Machine::handle_timeout`] is due. Ask again after every call that takes `&mut self`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = match &self.state {
            // An expired certificate opens nothing; the renewal comes first.
            State::Waiting { until } => (!self.renewing).then_some(*until),
            State::Opening { deadline } => Some(*deadline),
            State::Live {
                next_heartbeat,
                last_heard,
                ..
            } => Some((*next_heartbeat).min(*last_heard + SILENCE)),
            State::Removed => return None,
        };
        let renew = (!self.renewing).then_some(self.renew_at);
        match (next, renew) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if matches!(self.state, State::Removed) {
            return;
        }
        let overslept = now.wall >= self.renew_due && now.at >= self.renew_pause;
        if !self.renewing && (now.at >= self.renew_at || overslept) {
            self.renewing = true;
            self.actions.push_back(Action::Renew);
        }
        let expired = now.wall >= self.validity.until;
        match &mut self.state {
            State::Waiting { until } if now.at >= *until => {
                if expired && self.renewing {
                    return;
                }
                self.state = State::Opening {
                    deadline: now.at + OPENING,
                };
                let cursor = self.netmap.as_ref().map(|netmap| netmap.cursor);
                self.actions.push_back(Action::StateChanged);
                self.actions.push_back(Action::Open { cursor });
            }
            State::Opening { deadline } if now.at >= *deadline => {
                let limit = OPENING.as_secs();
                let text = format!("the coordinator did not answer within {limit} s");
                self.fail(text, now);
            }
            State::Live { last_heard, .. } if now.at >= *last_heard + SILENCE => {
                let limit = SILENCE.as_secs();
                let text = format!("the coordinator was silent for {limit} s");
                self.fail(text, now);
            }
            State::Live {
                nonce,
                sequence,
                next_heartbeat,
                ..
            } if now.at >= *next_heartbeat => {
                *sequence += 1;
                *next_heartbeat = now.at + HEARTBEAT_INTERVAL;
                let (nonce, sequence) = (nonce.clone(), *sequence);
                self.actions.push_back(Action::Heartbeat {
                    nonce,
                    sequence,
                    time: now.wall,
                    stored_for: self.stored_for,
                });
            }
            _ => {}
        }
    }

    /// The stream could not be opened, or ended, or said what cannot be.
    pub fn handle_closed(&mut self, reason: String, now: Now) {
        match self.state {
            State::Opening { .. } | State::Live { .. } => self.fail(reason, now),
            State::Waiting { .. } | State::Removed => {}
        }
    }

    /// What the node says of itself changed; the newest is sent now and on each new stream.
    pub fn handle_report(&mut self, report: NodeReport) {
        if self.report.as_ref() == Some(&report) {
            return;
        }
        self.report = Some(report.clone());
        if matches!(self.state, State::Live { .. }) {
            self.actions.push_back(Action::Report(report));
        }
    }

    /// A new certificate is in place.
    pub fn handle_renewed(&mut self, validity: Validity, now: Now) {
        self.validity = validity;
        self.renewing = false;
        // By a clock that is ahead, the new certificate is due again at once.
        self.plan_renewal(now.at + RENEW_RETRY, now);
        self.actions.push_back(Action::StateChanged);
    }

    /// The certificate could not be renewed; the old one stays.
    pub fn handle_renew_failed(&mut self, reason: String, now: Now) {
        self.renewing = false;
        let expired = now.wall >= self.validity.until;
        let wait = if expired { BACKOFF_CAP } else { RENEW_RETRY };
        self.renew_at = now.at + self.jittered(wait);
        self.renew_pause = self.renew_at;
        self.last_error = Some(reason);
        self.actions.push_back(Action::StateChanged);
    }

    /// The coordinator says that this node is none of its network any more.
    pub fn handle_removed(&mut self) {
        self.last_error = Some("this node was removed from its network".to_owned());
        self.state = State::Removed;
        self.actions.push_back(Action::Close);
        self.actions.push_back(Action::StateChanged);
    }

    /// The coordinator said something on the stream.
    pub fn handle_message(&mut self, message: Incoming, now: Now) {
        match &mut self.state {
            State::Opening { .. } => match message {
                Incoming::Welcome { nonce, server_time } => self.welcome(nonce, server_time, now),
                Incoming::Goodbye(reason) => self.goodbye(reason, now),
                _ => self.fail("the coordinator spoke before its welcome".to_owned(), now),
            },
            State::Live { last_heard, .. } => {
                *last_heard = now.at;
                self.live_message(message, now);
            }
            State::Waiting { .. } | State::Removed => {}
        }
    }

    fn welcome(&mut self, nonce: Vec<u8>, server_time: Timestamp, now: Now) {
        self.failures = 0;
        self.last_error = skew_text(now.wall, server_time);
        if let Some(since) = self.on_stored.take() {
            let span = now.at.saturating_duration_since(since);
            // An ordinary start is nothing to tell of.
            self.stored_for = (span >= STARTING).then_some(span);
        }
        self.state = State::Live {
            nonce: nonce.clone(),
            sequence: 1,
            next_heartbeat: now.at + HEARTBEAT_INTERVAL,
            last_heard: now.at,
        };
        self.actions.push_back(Action::StateChanged);
        if let Some(report) = &self.report {
            self.actions.push_back(Action::Report(report.clone()));
        }
        self.actions.push_back(Action::Heartbeat {
            nonce,
            sequence: 1,
            time: now.wall,
            stored_for: self.stored_for,
        });
    }

    fn live_message(&mut self, message: Incoming, now: Now) {
        match message {
            Incoming::Welcome { .. } => {
                self.fail(
                    "the coordinator greeted twice on one stream".to_owned(),
                    now,
                );
            }
            Incoming::Partial => {}
            Incoming::Netmap(update) => {
                // INVARIANT: a node acts only on its last good netmap. A full update may fail, so it
                // gets a copy; a delta fails only when there is nothing to apply it to.
                let before = if update.full {
                    self.netmap.clone()
                } else {
                    self.netmap.take()
                };
                match Netmap::apply(before, update) {
                    Ok(netmap) => {
                        self.netmap = Some(netmap);
                        self.actions.push_back(Action::NetmapChanged);
                    }
                    Err(error) => self.fail(error.to_string(), now),
                }
            }
            Incoming::HeartbeatAck { refusal: None, .. } => {
                self.stored_for = None;
                if self.last_error.take().is_some() {
                    self.actions.push_back(Action::StateChanged);
                }
            }
            Incoming::HeartbeatAck {
                refusal: Some(refusal),
                server_time,
            } => {
                // How far and which way is of more use than that it is too far. A clock may go off
                // at any time, so what the welcome said of it does not count.
                let off = match refusal {
                    HeartbeatRefusal::Skew => skew_text(now.wall, server_time),
                    _ => None,
                };
                let text = off
                    .unwrap_or_else(|| format!("the coordinator refused a heartbeat: {refusal}"));
                if self.last_error.as_ref() != Some(&text) {
                    self.last_error = Some(text);
                    self.actions.push_back(Action::StateChanged);
                }
            }
            Incoming::Goodbye(reason) => self.goodbye(reason, now),
        }
    }

    fn goodbye(&mut self, reason: Goodbye, now: Now) {
        match reason {
            Goodbye::Removed => self.handle_removed(),
            Goodbye::Replaced => {
                // Two processes with one identity would otherwise take turns as fast as they can.
                self.failures = 16;
                self.fail(TOOK_OVER.to_owned(), now);
            }
            Goodbye::Shutdown => self.fail("the coordinator is stopping".to_owned(), now),
        }
    }

    fn fail(&mut self, reason: String, now: Now) {
        let cap = BACKOFF_START
            .saturating_mul(1 << self.failures.min(10))
            .min(BACKOFF_CAP);
        self.failures = self.failures.saturating_add(1);
        let wait = self.jittered(cap);
        self.last_error = Some(reason);
        self.state = State::Waiting {
            until: now.at + wait,
        };
        self.actions.push_back(Action::Close);
        self.actions.push_back(Action::StateChanged);
    }

    /// Between half of `cap` and all of it.
    fn jittered(&mut self, cap: Duration) -> Duration {
        cap.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// Two thirds into the certificate's life, give or take a little, or now; not before `pause`.
    fn plan_renewal(&mut self, pause: Instant, now: Now) {
        let life = self.validity.until.since(self.validity.from);
        let share = self.random.random_range(0.65..0.68);
        self.renew_due = self.validity.from.plus(life.mul_f64(share));
        self.renew_pause = pause;
        self.renew_at = (now.at + self.renew_due.since(now.wall)).max(pause);
    }
}

/// What to tell a person when this machine's clock differs too much for heartbeats to count.
fn skew_text(own: Timestamp, server: Timestamp) -> Option<String> {
    let (off, way) = if own > server {
        (own.since(server), "ahead of")
    } else {
        (server.since(own), "behind")
    };
    (off.as_secs() > MAX_SKEW_SECS).then(|| {
        format!(
            "{OWN_CLOCK} is {} s {way} the coordinator's: set it, heartbeats are refused \
             until then",
            off.as_secs()
        )
    })
}

#[cfg(test)]
mod tests;
