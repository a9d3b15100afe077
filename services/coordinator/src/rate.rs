//! Rate limits: token buckets with a generous burst, so that a NAT full of nodes joins at once and
//! a loop of guesses still meets a wall. Sans-IO.
//!
//! Who names a genuine token or a member draws on that share, so strangers behind the same address
//! lock nobody out; and each such share is one address's only, so that nobody elsewhere uses it up.
//! Challenges cost nobody a share: nothing is kept of them ([`crate::app::challenge`]), and only a
//! connection's own number of them is limited ([`ConnectionShare`]).

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_types::TokenId;
use serde::{Deserialize, Serialize};

use crate::config::LimitsConfig;

/// How many shares are remembered; full buckets are forgotten first.
const CAPACITY: usize = 8_192;

mesh_daemon::settings! {
    /// How much one may do.
    #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct RateConfig {
        /// How many calls at once.
        pub burst: u32,
        /// How many calls a second in the long run.
        pub per_second: u32,
    }
}

impl Default for RateConfig {
    fn default() -> Self {
        Self {
            burst: 4_000,
            per_second: 200,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// From which share a call is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RateKey {
    /// Tries of an address that name nobody we know.
    Stranger(Source),
    /// Joins by a genuine token.
    Token(TokenId, Source),
    /// Renewals of a member, by its id.
    Member([u8; 16], Source),
}

/// An address, or for IPv6 the /64 that one customer of a provider has.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(addr: IpAddr) -> Self {
        Self(match addr.to_canonical() {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        })
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for RateKey {
    /// As part of a name in a shared store.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger(source) => write!(f, "stranger:{source:?}"),
            Self::Token(id, source) => write!(f, "token:{id}:{source:?}"),
            Self::Member(id, source) => {
                write!(f, "member:{:032x}:{source:?}", u128::from_be_bytes(*id))
            }
        }
    }
}

/// How much each may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    anonymous: RateConfig,
    known: RateConfig,
}

impl From<&LimitsConfig> for Rates {
    fn from(limits: &LimitsConfig) -> Self {
        Self {
            anonymous: limits.anonymous,
            known: limits.known,
        }
    }
}

impl Rates {
    /// The limit of this share.
    pub(crate) fn of(&self, key: RateKey) -> RateConfig {
        match key {
            RateKey::Stranger(_) => self.anonymous,
            RateKey::Token(..) | RateKey::Member(..) => self.known,
        }
    }
}

/// How many challenges one connection may ask for within [`MINUTE`].
const CHALLENGES: u32 = 32;
const MINUTE: Duration = Duration::from_secs(60);

/// What one connection may still ask for: since when it is counted, and how often it asked.
#[derive(Debug, Default)]
pub(crate) struct ConnectionShare(Mutex<Option<(Instant, u32)>>);

impl ConnectionShare {
    /// Takes one challenge, or says how long until there is one.
    pub(crate) fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = counted
            .filter(|&(since, _)| now.saturating_duration_since(since) < MINUTE)
            .unwrap_or((now, 0));
        if count == CHALLENGES {
            return Err(MINUTE.saturating_sub(now.saturating_duration_since(since)));
        }
        *counted = Some((since, count + 1));
        Ok(())
    }
}

/// The buckets of all shares.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    rates: Rates,
    buckets: HashMap<RateKey, Bucket>,
}

impl RateLimiter {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            rates,
            buckets: HashMap::new(),
        }
    }

    pub(crate) fn limits(&self) -> Rates {
        self.rates
    }

    /// Takes one call from a share, or says how long until there is one.
    pub(crate) fn take(&mut self, key: RateKey, now: Instant) -> Result<(), Duration> {
        if self.buckets.len() >= CAPACITY && !self.buckets.contains_key(&key) {
            self.make_room(now);
        }
        let RateConfig { burst, per_second } = self.rates.of(key);
        let (burst, rate) = (f64::from(burst), f64::from(per_second));
        let bucket = self.buckets.entry(key).or_insert(Bucket {
            tokens: burst,
            at: now,
        });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * rate).min(burst);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let wait = (1.0 - bucket.tokens) / rate.max(0.001);
        Err(Duration::from_secs_f64(wait))
    }

    /// Forgets those that are full again, else the one that was quiet longest.
    fn make_room(&mut self, now: Instant) {
        let rates = self.rates;
        self.buckets.retain(|key, bucket| {
            let RateConfig { burst, per_second } = rates.of(*key);
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            bucket.tokens + passed * f64::from(per_second) < f64::from(burst)
        });
        if self.buckets.len() < CAPACITY {
            return;
        }
        let quietest = self
            .buckets
            .iter()
            .min_by_key(|(_, bucket)| bucket.at)
            .map(|(key, _)| *key);
        if let Some(key) = quietest {
            self.buckets.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> (RateLimiter, Instant) {
        let rate = RateConfig {
            burst: 10,
            per_second: 2,
        };
        let rates = Rates {
            anonymous: rate,
            known: rate,
        };
        (RateLimiter::new(rates), Instant::now())
    }

    fn of(addr: IpAddr) -> RateKey {
        RateKey::Stranger(addr.into())
    }

    fn v4(n: u32) -> RateKey {
        of(std::net::Ipv4Addr::from_bits(n).into())
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let (mut limiter, now) = limiter();
        assert!((0..10).all(|_| limiter.take(v4(1), now).is_ok()));
        let wait = limiter.take(v4(1), now).expect_err("empty");
        assert!(
            wait > Duration::ZERO && wait <= Duration::from_millis(501),
            "{wait:?}"
        );
        assert!(limiter.take(v4(1), now + wait).is_ok());
        assert!(
            limiter.take(v4(2), now).is_ok(),
            "another source has its own bucket"
        );
    }

    #[test]
    fn addresses_of_one_v6_network_share_a_bucket() {
        let (mut limiter, now) = limiter();
        for n in 0..10u16 {
            let ip = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, n, 0, 0, 1);
            assert!(limiter.take(of(ip.into()), now).is_ok());
        }
        assert!(
            limiter
                .take(of("2001:db8:0:1::ffff".parse().expect("an address")), now)
                .is_err()
        );
        assert!(
            limiter
                .take(of("2001:db8:0:2::1".parse().expect("an address")), now)
                .is_ok()
        );
    }

    #[test]
    fn strangers_behind_one_address_take_nothing_from_those_we_know() {
        let (mut limiter, now) = limiter();
        while limiter.take(v4(1), now).is_ok() {}
        let source = |n: u32| Source::from(IpAddr::from(std::net::Ipv4Addr::from_bits(n)));
        let token = TokenId::from_bytes([1; 16]);
        assert!(limiter.take(RateKey::Token(token, source(1)), now).is_ok());
        assert!(
            limiter
                .take(RateKey::Member([1; 16], source(1)), now)
                .is_ok()
        );
        // Nor can somebody elsewhere who names a member use up that member's share.
        while limiter
            .take(RateKey::Member([2; 16], source(9)), now)
            .is_ok()
        {}
        assert!(
            limiter
                .take(RateKey::Member([2; 16], source(1)), now)
                .is_ok()
        );
    }

    #[test]
    fn each_share_has_a_name_of_its_own() {
        let source = Source::from("2001:db8::1".parse::<IpAddr>().expect("an address"));
        let token = TokenId::from_bytes([1; 16]);
        let names: std::collections::BTreeSet<String> = [
            RateKey::Stranger(source),
            RateKey::Token(token, source),
            RateKey::Member([1; 16], source),
        ]
        .iter()
        .map(ToString::to_string)
        .collect();
        assert_eq!(names.len(), 3);
        assert!(names.contains("stranger:2001:db8::"), "{names:?}");
    }

    #[test]
    fn the_table_stays_bounded() {
        let (mut limiter, now) = limiter();
        for n in 0..20_000 {
            let _outcome = limiter.take(v4(n), now);
        }
        assert!(limiter.buckets.len() <= CAPACITY);
    }

    #[test]
    fn a_connection_has_32_challenges_a_minute() {
        let share = ConnectionShare::default();
        let start = Instant::now();
        for n in 0..CHALLENGES {
            let at = start + Duration::from_secs(n.into());
            assert_eq!(share.take(at), Ok(()));
        }
        let at = start + Duration::from_secs(40);
        assert_eq!(share.take(at), Err(Duration::from_secs(20)));
        assert_eq!(share.take(start + MINUTE), Ok(()));
    }
}
