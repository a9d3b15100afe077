//! Who we are, and who asks us for a session.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use mesh_types::WgPublicKey;
use mesh_types::key::SecretKey;

use super::{MAX_HANDSHAKE, clock, reason};
use crate::stats::DropReason;

/// Handshake messages per second from which on cookies are asked for. Every initiation is counted
/// twice: when its sender is looked up, and by the session.
const HANDSHAKES_PER_SECOND: u64 = 1000;

/// Our static keys, and the defence against floods of handshakes that all sessions share.
pub(crate) struct Identity {
    pub(super) private: StaticSecret,
    public: PublicKey,
    pub(super) limiter: Arc<RateLimiter>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Identity({:?})",
            WgPublicKey::from_bytes(self.public.to_bytes())
        )
    }
}

/// Who sent an initiation.
#[derive(Debug)]
pub(crate) enum Initiator {
    /// This peer, as far as its sealed static key says; the session verifies the rest.
    Peer(WgPublicKey),
    /// Too many handshakes: the sender must first show that it owns its address. This many bytes
    /// of the answer were written.
    AskCookie(usize),
    Invalid(DropReason),
}

impl Identity {
    pub(crate) fn new(private: &SecretKey, now: Instant) -> Self {
        clock::follow(now);
        let private = StaticSecret::from(*private.expose());
        let public = PublicKey::from(&private);
        Self {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND)),
            private,
            public,
        }
    }

    /// Forgets how many handshakes came, once a second; without it cookies are asked for forever.
    pub(crate) fn reset_load(&self, now: Instant) {
        clock::follow(now);
        self.limiter.reset_count();
    }

    /// Opens an initiation far enough to know its sender.
    pub(crate) fn initiator(
        &self,
        from: IpAddr,
        datagram: &[u8],
        answer: &mut [u8; MAX_HANDSHAKE],
        now: Instant,
    ) -> Initiator {
        clock::follow(now);
        self.limiter.reset_count();
        match self.limiter.verify_packet(Some(from), datagram, answer) {
            Ok(Packet::HandshakeInit(init)) => {
                match parse_handshake_anon(&self.private, &self.public, &init) {
                    Ok(half) => Initiator::Peer(WgPublicKey::from_bytes(half.peer_static_public)),
                    Err(error) => Initiator::Invalid(reason(&error)),
                }
            }
            Err(TunnResult::WriteToNetwork(cookie)) => Initiator::AskCookie(cookie.len()),
            Err(TunnResult::Err(error)) => Initiator::Invalid(reason(&error)),
            Ok(_) | Err(_) => Initiator::Invalid(DropReason::Unauthentic),
        }
    }
}
