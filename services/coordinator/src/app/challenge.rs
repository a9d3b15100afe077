//! One-use nonces, each with an X25519 key of ours to prove keys against. Sans-IO.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use mesh_types::Timestamp;
use x25519_dalek::{PublicKey, StaticSecret};

/// How long a nonce may be used.
pub(crate) const LIFE: Duration = Duration::from_secs(60);
/// How many are open at once; the oldest give way.
const CAPACITY: usize = 16_384;

/// What the caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) nonce: [u8; 32],
    pub(crate) dh_public: [u8; 32],
}

/// A nonce that was taken: good for exactly one call.
pub(crate) struct Taken {
    secret: StaticSecret,
}

impl Taken {
    /// The shared secret with this X25519 public key; `None` for the points of low order, with
    /// which anybody's secret would be the same (RFC 7748, 6.1).
    pub(crate) fn shared(&self, public: &[u8; 32]) -> Option<[u8; 32]> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*public));
        shared.was_contributory().then(|| shared.to_bytes())
    }
}

/// The open nonces.
#[derive(Default)]
pub(crate) struct Challenges {
    open: HashMap<[u8; 32], (StaticSecret, Timestamp)>,
    order: VecDeque<[u8; 32]>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Challenges")
            .field("open", &self.open.len())
            .finish_non_exhaustive()
    }
}

impl Challenges {
    /// A new challenge from randomness given by the caller.
    pub(crate) fn issue(&mut self, random: [u8; 64], now: Timestamp) -> Challenge {
        self.forget_old(now);
        let (mut nonce, mut secret) = ([0; 32], [0; 32]);
        nonce.copy_from_slice(&random[..32]);
        secret.copy_from_slice(&random[32..]);
        let secret = StaticSecret::from(secret);
        let dh_public = PublicKey::from(&secret).to_bytes();
        self.open.insert(nonce, (secret, now.plus(LIFE)));
        self.order.push_back(nonce);
        Challenge { nonce, dh_public }
    }

    /// Takes a nonce that is open and not expired; it cannot be taken again.
    pub(crate) fn take(&mut self, nonce: &[u8], now: Timestamp) -> Option<Taken> {
        let nonce: [u8; 32] = nonce.try_into().ok()?;
        let (secret, expires) = self.open.remove(&nonce)?;
        (now < expires).then_some(Taken { secret })
    }

    fn forget_old(&mut self, now: Timestamp) {
        while let Some(oldest) = self.order.front() {
            let keep = self
                .open
                .get(oldest)
                .is_some_and(|(_, expires)| now < *expires && self.order.len() < CAPACITY);
            if keep {
                break;
            }
            self.open.remove(oldest);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn random(n: u32) -> [u8; 64] {
        let mut random = [1; 64];
        random[..4].copy_from_slice(&n.to_be_bytes());
        random
    }

    #[test]
    fn a_nonce_is_good_once_and_for_60_seconds() {
        let mut challenges = Challenges::default();
        let one = challenges.issue(random(1), NOW);
        let two = challenges.issue(random(2), NOW);
        assert!(
            challenges
                .take(&one.nonce, NOW.plus(Duration::from_secs(59)))
                .is_some()
        );
        assert!(challenges.take(&one.nonce, NOW).is_none());
        assert!(challenges.take(&two.nonce, NOW.plus(LIFE)).is_none());
        assert!(challenges.take(b"short", NOW).is_none());
    }

    #[test]
    fn both_sides_find_the_same_secret() {
        let mut challenges = Challenges::default();
        let challenge = challenges.issue(random(1), NOW);
        let node = StaticSecret::from([9; 32]);
        let theirs = node
            .diffie_hellman(&PublicKey::from(challenge.dh_public))
            .to_bytes();
        let taken = challenges.take(&challenge.nonce, NOW).expect("open");
        assert_eq!(
            taken.shared(PublicKey::from(&node).as_bytes()),
            Some(theirs)
        );
        assert_eq!(taken.shared(&[0; 32]), None);
    }

    #[test]
    fn the_table_stays_bounded_and_the_newest_stay() {
        let mut challenges = Challenges::default();
        let last = (0..40_000)
            .map(|n| challenges.issue(random(n), NOW))
            .last()
            .expect("some");
        assert!(challenges.open.len() <= CAPACITY);
        assert!(challenges.order.len() <= CAPACITY);
        assert!(challenges.take(&last.nonce, NOW).is_some());
    }
}
