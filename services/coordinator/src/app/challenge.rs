//! One-use nonces, each with an X25519 key of ours to prove keys against. Sans-IO.
//!
//! Nothing is kept of a challenge until it is used: a nonce carries the time and a code that only we
//! can make, and the key follows from it. So nobody can use challenges up for others, however many
//! he asks for.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_types::Timestamp;
use ring::hmac;
use subtle::ConstantTimeEq as _;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// How long a nonce may be used.
pub(crate) const LIFE: Duration = Duration::from_secs(60);
/// How many used ones are remembered; the oldest give way, and no nonce as old is taken any more.
const CAPACITY: usize = 65_536;

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

/// The maker of nonces, and the used ones.
pub(crate) struct Challenges {
    key: hmac::Key,
    /// Sorted by when they were made, which is what a nonce begins with.
    used: BTreeSet<[u8; 32]>,
    /// Nonces made up to then (microseconds) are taken no more: which of them were used is forgotten.
    floor: i64,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Challenges")
            .field("used", &self.used.len())
            .finish_non_exhaustive()
    }
}

/// When a nonce was made, in microseconds. Times before 1970 have no place in here.
fn made_at(nonce: &[u8; 32]) -> i64 {
    let mut time = [0; 8];
    time.copy_from_slice(&nonce[..8]);
    i64::from_be_bytes(time)
}

impl Challenges {
    /// With this key, which is random and nobody else's.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            used: BTreeSet::new(),
            floor: -1,
        }
    }

    fn code(&self, purpose: &[u8], over: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(purpose);
        context.update(over);
        let mut code = Zeroizing::new([0; 32]);
        code.copy_from_slice(context.sign().as_ref());
        code
    }

    fn secret(&self, nonce: &[u8; 32]) -> StaticSecret {
        StaticSecret::from(*self.code(b"key:", nonce))
    }

    /// A new challenge from randomness given by the caller.
    pub(crate) fn issue(&self, random: [u8; 8], now: Timestamp) -> Challenge {
        let mut nonce = [0; 32];
        // After a clock that was ahead was set back, the newest time that is taken serves.
        let made = now.as_micros().max(self.floor + 1).max(0);
        nonce[..8].copy_from_slice(&made.to_be_bytes());
        nonce[8..16].copy_from_slice(&random);
        let code = self.code(b"nonce:", &nonce[..16]);
        nonce[16..].copy_from_slice(&code[..16]);
        let dh_public = PublicKey::from(&self.secret(&nonce)).to_bytes();
        Challenge { nonce, dh_public }
    }

    /// Takes a nonce of ours that is neither used nor expired; it cannot be taken again.
    pub(crate) fn take(&mut self, nonce: &[u8], now: Timestamp) -> Option<Taken> {
        let nonce: [u8; 32] = nonce.try_into().ok()?;
        let code = self.code(b"nonce:", &nonce[..16]);
        let is_ours = bool::from(code[..16].ct_eq(&nonce[16..]));
        let made = made_at(&nonce);
        let is_fresh = now < Timestamp::from_micros(made).plus(LIFE) && made > self.floor;
        if !is_ours || !is_fresh || !self.used.insert(nonce) {
            return None;
        }
        self.forget_old(now);
        Some(Taken {
            secret: self.secret(&nonce),
        })
    }

    fn forget_old(&mut self, now: Timestamp) {
        while let Some(oldest) = self.used.first() {
            let made = made_at(oldest);
            let is_over = now >= Timestamp::from_micros(made).plus(LIFE);
            if !is_over && self.used.len() <= CAPACITY {
                break;
            }
            self.used.pop_first();
            // A clock that goes back brings none of them to life again.
            self.floor = self.floor.max(made);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn challenges() -> Challenges {
        Challenges::new(&[7; 32])
    }

    fn random(n: u64) -> [u8; 8] {
        n.to_be_bytes()
    }

    #[test]
    fn a_nonce_is_good_once_and_for_60_seconds() {
        let mut challenges = challenges();
        let one = challenges.issue(random(1), NOW);
        let two = challenges.issue(random(2), NOW);
        assert_ne!(one.dh_public, two.dh_public);
        let late = NOW.plus(Duration::from_secs(59));
        assert!(challenges.take(&one.nonce, late).is_some());
        assert!(challenges.take(&one.nonce, late).is_none());
        assert!(challenges.take(&two.nonce, NOW.plus(LIFE)).is_none());
        assert!(challenges.take(&two.nonce, late).is_some());
        assert!(challenges.take(b"short", NOW).is_none());
    }

    #[test]
    fn only_our_own_nonces_are_taken() {
        let mut challenges = challenges();
        let good = challenges.issue(random(1), NOW).nonce;
        for at in 0..32 {
            let mut changed = good;
            changed[at] ^= 1;
            assert!(challenges.take(&changed, NOW).is_none(), "byte {at}");
        }
        let strange = Challenges::new(&[8; 32]).issue(random(1), NOW);
        assert!(challenges.take(&strange.nonce, NOW).is_none());
        assert!(challenges.take(&good, NOW).is_some());
    }

    #[test]
    fn a_used_nonce_stays_used_when_the_clock_goes_back() {
        let mut challenges = challenges();
        let old = challenges.issue(random(1), NOW);
        assert!(challenges.take(&old.nonce, NOW).is_some());
        let later = NOW.plus(LIFE);
        let new = challenges.issue(random(2), later);
        assert!(challenges.take(&new.nonce, later).is_some());
        assert_eq!(challenges.used.len(), 1, "the old one is forgotten");
        assert!(challenges.take(&old.nonce, NOW).is_none());
    }

    #[test]
    fn a_clock_that_was_a_day_ahead_stops_nobody_once_it_is_set_right() {
        let mut challenges = challenges();
        let ahead = NOW.plus(Duration::from_secs(86_400));
        for (n, at) in [(1, ahead), (2, ahead.plus(LIFE))] {
            let nonce = challenges.issue(random(n), at).nonce;
            assert!(challenges.take(&nonce, at).is_some());
        }
        let one = challenges.issue(random(3), NOW);
        let two = challenges.issue(random(4), NOW);
        assert!(challenges.take(&one.nonce, NOW).is_some());
        assert!(challenges.take(&two.nonce, NOW).is_some());
        assert!(challenges.take(&one.nonce, NOW).is_none());
    }

    #[test]
    fn both_sides_find_the_same_secret() {
        let mut challenges = challenges();
        let challenge = challenges.issue(random(1), NOW);
        let node = StaticSecret::from([9; 32]);
        let theirs = node
            .diffie_hellman(&PublicKey::from(challenge.dh_public))
            .to_bytes();
        let taken = challenges.take(&challenge.nonce, NOW).expect("fresh");
        assert_eq!(
            taken.shared(PublicKey::from(&node).as_bytes()),
            Some(theirs)
        );
        assert_eq!(taken.shared(&[0; 32]), None);
    }

    #[test]
    fn who_asks_for_many_takes_none_from_others() {
        let mut challenges = challenges();
        let mine = challenges.issue(random(0), NOW);
        for n in 1..100_000 {
            challenges.issue(random(n), NOW);
        }
        assert!(
            challenges.used.is_empty(),
            "nothing is kept of what is not used"
        );
        assert!(challenges.take(&mine.nonce, NOW).is_some());
    }

    #[test]
    fn the_table_of_used_ones_stays_bounded_and_nothing_is_taken_twice() {
        let mut challenges = challenges();
        let at = |n: u64| NOW.plus(Duration::from_micros(n));
        let all: Vec<_> = (0..70_000)
            .map(|n| challenges.issue(random(n), at(n)).nonce)
            .collect();
        let now = at(70_000);
        assert!(
            all.iter()
                .all(|nonce| challenges.take(nonce, now).is_some())
        );
        assert!(challenges.used.len() <= CAPACITY);
        assert!(
            all.iter()
                .all(|nonce| challenges.take(nonce, now).is_none())
        );
    }
}
