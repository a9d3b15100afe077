//! Rate limits per source address: token buckets with a generous burst, so that a NAT full of
//! nodes joins at once and a loop of guesses still meets a wall. Sans-IO.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How many sources are remembered; full buckets are forgotten first.
const CAPACITY: usize = 8_192;

/// How much a source may do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateConfig {
    /// How many calls at once.
    pub burst: u32,
    /// How many calls a second in the long run.
    pub per_second: u32,
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

/// The buckets of all sources.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    config: RateConfig,
    buckets: HashMap<IpAddr, Bucket>,
}

impl RateLimiter {
    pub(crate) fn new(config: RateConfig) -> Self {
        Self {
            config,
            buckets: HashMap::new(),
        }
    }

    /// Takes one call from the source's bucket, or says how long until there is one.
    pub(crate) fn take(&mut self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let key = aggregate(source);
        if self.buckets.len() >= CAPACITY && !self.buckets.contains_key(&key) {
            self.make_room(now);
        }
        let (burst, rate) = (
            f64::from(self.config.burst),
            f64::from(self.config.per_second),
        );
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
        let (burst, rate) = (
            f64::from(self.config.burst),
            f64::from(self.config.per_second),
        );
        self.buckets.retain(|_, bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            bucket.tokens + passed * rate < burst
        });
        if self.buckets.len() < CAPACITY {
            return;
        }
        let quietest = self
            .buckets
            .iter()
            .min_by_key(|(_, bucket)| bucket.at)
            .map(|(ip, _)| *ip);
        if let Some(ip) = quietest {
            self.buckets.remove(&ip);
        }
    }
}

/// One customer of an IPv6 provider has a /64 of addresses: they share a bucket.
fn aggregate(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> (RateLimiter, Instant) {
        let config = RateConfig {
            burst: 10,
            per_second: 2,
        };
        (RateLimiter::new(config), Instant::now())
    }

    fn v4(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
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
            assert!(limiter.take(ip.into(), now).is_ok());
        }
        assert!(
            limiter
                .take("2001:db8:0:1::ffff".parse().expect("an address"), now)
                .is_err()
        );
        assert!(
            limiter
                .take("2001:db8:0:2::1".parse().expect("an address"), now)
                .is_ok()
        );
    }

    #[test]
    fn the_table_stays_bounded() {
        let (mut limiter, now) = limiter();
        for n in 0..20_000 {
            let _outcome = limiter.take(v4(n), now);
        }
        assert!(limiter.buckets.len() <= CAPACITY);
    }
}
