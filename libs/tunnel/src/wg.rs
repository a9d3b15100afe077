//! WireGuard sessions: the only module that knows boringtun (docs/adr/0004-boringtun-and-time.md).
//!
//! A [`Session`] is one peer's tunnel with our own driver around boringtun's `Tunn`: it takes
//! `now`, says when handshakes are to be asked for again, and what a datagram turned out to be.
//! boringtun reads the clock for its own timers. With the feature `virtual-time` that clock is a
//! mock which follows our `now`; without it, it is the machine's, and our `now` decides only when
//! boringtun is asked.

mod attempt;
mod clock;
mod identity;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::PublicKey;
use mesh_types::WgPublicKey;

use crate::stats::DropReason;

use attempt::Attempt;
pub(crate) use identity::{Identity, Initiator};

/// Longest handshake message, in bytes (an initiation).
pub(crate) const MAX_HANDSHAKE: usize = 148;
/// So many packets wait for a session at most (boringtun: MAX_QUEUE_DEPTH).
pub const MOST_WAITING: usize = 256;
/// A session is not used for longer (WireGuard: REJECT_AFTER_TIME).
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// All keys are gone this long after the last authentic packet.
const SESSIONS_GONE: Duration = Duration::from_secs(200);

/// Timers that did not run for this long had stopped.
const RESTED: Duration = Duration::from_secs(5);
/// The answer to an initiation that nobody waits for comes within this, or never.
const ANSWER: Duration = Duration::from_secs(5);

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;

/// What a datagram claims to be, by its type and length alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    /// Answers to our handshakes; the index names the session that asked.
    Answer {
        receiver: u32,
    },
    Data {
        receiver: u32,
    },
}

/// `None` when it cannot be WireGuard.
#[inline]
pub(crate) fn classify(datagram: &[u8]) -> Option<Kind> {
    let (head, _) = datagram.split_first_chunk::<8>()?;
    let receiver = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    match (head[0], [head[1], head[2], head[3]], datagram.len()) {
        (DATA, [0, 0, 0], 32..) => Some(Kind::Data { receiver }),
        (INITIATION, [0, 0, 0], 148) => Some(Kind::Initiation),
        (RESPONSE, [0, 0, 0], 92) => {
            let index = datagram.get(8..12)?;
            Some(Kind::Answer {
                receiver: u32::from_le_bytes([index[0], index[1], index[2], index[3]]),
            })
        }
        (COOKIE, [0, 0, 0], 64) => Some(Kind::Answer { receiver }),
        _ => None,
    }
}

/// What sealing a packet came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// This many bytes are the datagram with the packet.
    Data(usize),
    /// There is no session: the packet waits, and this many bytes are an initiation, the first one
    /// of a handshake. It is as good as never made unless [`Session::on_sent`] is told of it.
    Initiation(usize),
    /// There is no session yet: the packet waits.
    Waits,
}

/// What a data datagram turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// An IP packet of this many bytes.
    Packet(usize),
    Keepalive,
    Invalid(DropReason),
}

/// What a handshake datagram came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handled {
    /// This many bytes must be sent back.
    Reply(usize),
    Nothing,
    Invalid(DropReason),
}

/// What the timers want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Send these many bytes: an initiation, to be sent wherever the peer may be. The same holds
    /// as for [`Sealed::Initiation`].
    Initiation(usize),
    /// Send these many bytes: a keepalive.
    Keepalive(usize),
    Nothing,
}

/// The WireGuard tunnel to one peer: 11 KiB, and what waits for it.
pub(crate) struct Session {
    tunn: Tunn,
    attempt: Option<Attempt>,
    /// Index of the newest session that was established.
    newest: Option<u32>,
    last_tick: Instant,
    established: Option<Instant>,
    /// When it was made, or an initiation was sent last.
    asked: Instant,
    /// When something authentic came last.
    heard: Option<Instant>,
    unreachable: bool,
    /// Packets that wait for it; boringtun keeps them and does not say how many.
    waiting: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("attempt", &self.attempt)
            .field("established", &self.established)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// `index` is a random number below 2^24 that no other session of the device has.
    pub(crate) fn new(identity: &Identity, peer: &WgPublicKey, index: u32, now: Instant) -> Self {
        clock::follow(now);
        Self {
            tunn: Tunn::new(
                identity.private.clone(),
                PublicKey::from(*peer.as_bytes()),
                None,
                None,
                index,
                Some(Arc::clone(&identity.limiter)),
            ),
            attempt: None,
            newest: None,
            last_tick: now,
            established: None,
            asked: now,
            heard: None,
            unreachable: false,
            waiting: 0,
        }
    }

    /// How many packets wait for it: [`MOST_WAITING`] at most.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn established(&self) -> Option<Instant> {
        self.established
    }

    /// For how long nothing authentic has come; `None` when nothing ever did.
    pub(crate) fn silence(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.heard?))
    }

    /// Encrypts a packet, which the caller padded; `into` has at least 32 bytes more and at least
    /// [`MAX_HANDSHAKE`].
    #[inline]
    pub(crate) fn seal(&mut self, padded: &[u8], into: &mut [u8], now: Instant) -> Sealed {
        clock::follow(now);
        self.wake_up(now);
        let sealed = self.tunn.encapsulate(padded, into);
        if let TunnResult::WriteToNetwork(datagram) = &sealed
            && datagram[0] == DATA
        {
            return Sealed::Data(datagram.len());
        }
        self.waiting = (self.waiting + 1).min(MOST_WAITING);
        match sealed {
            TunnResult::WriteToNetwork(datagram) => {
                let len = datagram.len();
                self.begin(now);
                Sealed::Initiation(len)
            }
            // boringtun believes that a handshake is under way, but ours was given up, or was a
            // greeting that is not asked again.
            _ if self.attempt.is_none() => {
                self.begin(now);
                self.initiation(into, now)
                    .map_or(Sealed::Waits, Sealed::Initiation)
            }
            _ => Sealed::Waits,
        }
    }

    /// Decrypts a data datagram; `into` has at least its length.
    #[inline]
    pub(crate) fn open(
        &mut self,
        receiver: u32,
        datagram: &[u8],
        into: &mut [u8],
        now: Instant,
    ) -> Opened {
        clock::follow(now);
        let opened = match self.tunn.decapsulate(None, datagram, into) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet.len())
            }
            TunnResult::Done => Opened::Keepalive,
            TunnResult::WriteToNetwork(_) => Opened::Invalid(DropReason::Unauthentic),
            TunnResult::Err(error) => return Opened::Invalid(reason(&error)),
        };
        self.heard = Some(now);
        if self.newest != Some(receiver) {
            self.on_established(receiver, now);
        }
        opened
    }

    /// Takes an initiation, a response or a cookie. `from` is what a cookie is bound to.
    pub(crate) fn handshake(
        &mut self,
        from: IpAddr,
        datagram: &[u8],
        into: &mut [u8],
        now: Instant,
    ) -> Handled {
        clock::follow(now);
        self.wake_up(now);
        match self.tunn.decapsulate(Some(from), datagram, into) {
            TunnResult::WriteToNetwork(reply) => {
                let len = reply.len();
                // A cookie reply is no proof of anything about the sender.
                if reply[0] != COOKIE {
                    self.heard = Some(now);
                    self.unreachable = false;
                    if let (Some(&RESPONSE), Some(Kind::Answer { receiver })) =
                        (datagram.first(), classify(datagram))
                    {
                        self.on_established(receiver, now);
                    }
                }
                Handled::Reply(len)
            }
            TunnResult::Err(error) => Handled::Invalid(reason(&error)),
            _ => Handled::Nothing,
        }
    }

    /// Encrypts the next packet that waited for the session; `None` when none is left.
    pub(crate) fn flush(&mut self, into: &mut [u8], now: Instant) -> Option<usize> {
        clock::follow(now);
        match self.tunn.decapsulate(None, &[], into) {
            TunnResult::WriteToNetwork(datagram) if datagram[0] == DATA => {
                self.waiting = self.waiting.saturating_sub(1);
                Some(datagram.len())
            }
            _ => {
                self.waiting = 0;
                None
            }
        }
    }

    /// Somebody waits for a handshake from now on, if nobody did: its first initiation is due.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.attempt.get_or_insert(Attempt::new(now));
    }

    /// Writes a new initiation, whatever is under way; `into` has at least [`MAX_HANDSHAKE`].
    pub(crate) fn initiation(&mut self, into: &mut [u8], now: Instant) -> Option<usize> {
        clock::follow(now);
        if let Some(len) = self.catch_up(into, now) {
            return Some(len);
        }
        match self.tunn.format_handshake_initiation(into, true) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            _ => None,
        }
    }

    /// An initiation was sent; `jitter` is any random number.
    pub(crate) fn on_sent(&mut self, jitter: u32, now: Instant) {
        self.asked = now;
        if let Some(attempt) = &mut self.attempt {
            attempt.on_sent(jitter, now);
        }
    }

    /// Runs the timers. Initiations that are due again are not theirs: see
    /// [`Self::next_initiation`].
    pub(crate) fn tick(&mut self, into: &mut [u8], now: Instant) -> Due {
        clock::follow(now);
        if self.attempt.is_some_and(|attempt| attempt.ends() <= now) {
            self.attempt = None;
            self.unreachable = true;
            self.last_tick = now;
            // It gives up at about the same time, with what waited; whatever else it wants is late.
            if let TunnResult::Err(_) = self.tunn.update_timers(into) {
                self.waiting = 0;
            }
            return Due::Nothing;
        }
        // Without keys its timers could only ask again.
        if self.is_silent(now) {
            return Due::Nothing;
        }
        self.last_tick = now;
        match self.tunn.update_timers(into) {
            TunnResult::WriteToNetwork(datagram) => {
                let len = datagram.len();
                if datagram[0] == INITIATION {
                    self.begin(now);
                    Due::Initiation(len)
                } else {
                    Due::Keepalive(len)
                }
            }
            // Expired: what waited is thrown away.
            TunnResult::Err(_) => {
                self.waiting = 0;
                Due::Nothing
            }
            _ => Due::Nothing,
        }
    }

    #[inline]
    fn wake_up(&mut self, now: Instant) {
        // Whatever it wants to send is about a session that nobody needs any more.
        let mut message = [0; MAX_HANDSHAKE];
        let _expired = self.catch_up(&mut message, now);
    }

    /// Brings boringtun's idea of the time up to date after the timers rested: otherwise it would
    /// take what begins now for something that began long ago, and throw it away as expired. Gives
    /// the initiation that it wants to send.
    #[inline]
    fn catch_up(&mut self, into: &mut [u8], now: Instant) -> Option<usize> {
        if now.saturating_duration_since(self.last_tick) <= RESTED {
            return None;
        }
        self.last_tick = now;
        match self.tunn.update_timers(into) {
            TunnResult::WriteToNetwork(datagram) if datagram[0] == INITIATION => {
                Some(datagram.len())
            }
            TunnResult::Err(_) => {
                self.waiting = 0;
                None
            }
            _ => None,
        }
    }

    /// Whether the last handshake was given up, once.
    pub(crate) fn take_unreachable(&mut self) -> bool {
        std::mem::take(&mut self.unreachable)
    }

    /// Whether all keys are gone, or there never were any.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.silence(now)
            .is_none_or(|silence| silence >= SESSIONS_GONE)
    }

    /// Whether nothing would be lost with it: the peer was never heard, and is asked no more. What
    /// a peer is heard with is kept: its time stamp keeps old initiations from being repeated.
    pub(crate) fn is_spent(&self, now: Instant) -> bool {
        self.heard.is_none() && self.attempt.is_none() && self.asked + ANSWER <= now
    }

    /// When a session without keys wants to be looked at, but for initiations that are due.
    pub(crate) fn ends(&self) -> Option<Instant> {
        match self.attempt {
            Some(attempt) => Some(attempt.ends()),
            None => self.heard.is_none().then(|| self.asked + ANSWER),
        }
    }

    /// Makes the next initiation due at once, while a handshake is under way.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.hurry(now);
        }
    }

    /// The same, before all others: the peer may be somewhere else now. Whether a handshake is
    /// under way.
    pub(crate) fn begin_anew(&mut self, now: Instant) -> bool {
        if let Some(attempt) = &mut self.attempt {
            attempt.begin_anew(now);
        }
        self.attempt.is_some()
    }

    /// When the next initiation is due, while a handshake is under way.
    pub(crate) fn next_initiation(&self) -> Option<Instant> {
        self.attempt.map(|attempt| attempt.next())
    }

    /// How many initiations were sent, while a handshake is under way.
    pub(crate) fn tries(&self) -> Option<u32> {
        self.attempt.map(|attempt| attempt.tries())
    }

    /// A session can carry data, as a response or data on it shows. Late packets of an older
    /// session mean nothing: indices count up in their low 8 bits. Once the newest known session is
    /// too old to be used, every other is newer, however far the indices have gone round.
    fn on_established(&mut self, index: u32, now: Instant) {
        let is_newer = self
            .newest
            .is_none_or(|newest| (1..128).contains(&(index.wrapping_sub(newest) & 0xff)));
        let is_over = self
            .established
            .is_none_or(|at| now.saturating_duration_since(at) >= REJECT_AFTER);
        if !is_newer && !is_over {
            return;
        }
        self.newest = Some(index);
        self.attempt = None;
        self.unreachable = false;
        self.established = Some(now);
    }
}

fn reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::DuplicateCounter
        | WireGuardError::InvalidCounter
        | WireGuardError::WrongTai64nTimestamp => DropReason::Replayed,
        WireGuardError::NoCurrentSession
        | WireGuardError::WrongIndex
        | WireGuardError::UnexpectedPacket => DropReason::UnknownSession,
        WireGuardError::UnderLoad => DropReason::UnderLoad,
        WireGuardError::InvalidPacket | WireGuardError::IncorrectPacketLength => {
            DropReason::Malformed
        }
        _ => DropReason::Unauthentic,
    }
}
