//! The underlay addresses at which a peer may be: those that the netmap names, and those that were
//! learned from the peer itself or seen as the source of something authentic.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A candidate that was learned and not confirmed since is forgotten after this long.
const LEARNED_LIFE: Duration = Duration::from_secs(120);
/// Candidates taken from the netmap at most.
pub(super) const MAX_NETMAP: usize = 16;
/// Candidates at most, learned ones included.
const MAX_CANDIDATES: usize = 32;

/// One address and what is known of it.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) addr: SocketAddr,
    from_netmap: bool,
    learned: Instant,
    pub(super) rtt: Option<Duration>,
    pub(super) last_ping: Option<Instant>,
    pub(super) last_pong: Option<Instant>,
    pub(super) last_receive: Option<Instant>,
}

/// A bounded list; few enough that a walk is the fastest search.
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<Candidate>);

impl Candidates {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Candidate> {
        self.0.iter_mut()
    }

    pub(super) fn addrs(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|c| c.addr).collect()
    }

    pub(super) fn find(&self, addr: SocketAddr) -> Option<&Candidate> {
        self.0.iter().find(|c| c.addr == addr)
    }

    pub(super) fn find_mut(&mut self, addr: SocketAddr) -> Option<&mut Candidate> {
        self.0.iter_mut().find(|c| c.addr == addr)
    }

    /// Takes the endpoints that the netmap names; others stay until they are too old.
    pub(super) fn set_netmap(
        &mut self,
        endpoints: &[SocketAddr],
        keep: Option<SocketAddr>,
        now: Instant,
    ) {
        for candidate in &mut self.0 {
            if candidate.from_netmap {
                candidate.from_netmap = false;
                candidate.learned = now;
            }
        }
        for &addr in endpoints.iter().take(MAX_NETMAP) {
            if let Some(candidate) = self.learn(addr, keep, now) {
                candidate.from_netmap = true;
            }
        }
    }

    /// The candidate with this address. It is made if there is room, or a learned one to drop:
    /// the least proven goes, but never `keep`.
    pub(super) fn learn(
        &mut self,
        addr: SocketAddr,
        keep: Option<SocketAddr>,
        now: Instant,
    ) -> Option<&mut Candidate> {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        if let Some(at) = self.0.iter().position(|c| c.addr == addr) {
            self.0[at].learned = now;
            return self.0.get_mut(at);
        }
        if !is_usable(addr) {
            return None;
        }
        if self.0.len() >= MAX_CANDIDATES {
            let least_proven = self
                .0
                .iter()
                .enumerate()
                .filter(|(_, c)| !c.from_netmap && Some(c.addr) != keep)
                .min_by_key(|(_, c)| (c.last_pong, c.last_receive, c.learned))
                .map(|(at, _)| at)?;
            self.0.swap_remove(least_proven);
        }
        self.0.push(Candidate {
            addr,
            from_netmap: false,
            learned: now,
            rtt: None,
            last_ping: None,
            last_pong: None,
            last_receive: None,
        });
        self.0.last_mut()
    }

    /// Drops what was learned and gave no sign for too long, but never `keep`.
    pub(super) fn forget_old(&mut self, keep: Option<SocketAddr>, now: Instant) {
        self.0.retain(|c| {
            let signs = [Some(c.learned), c.last_pong, c.last_receive];
            let last_sign = signs.into_iter().flatten().max().unwrap_or(c.learned);
            c.from_netmap
                || Some(c.addr) == keep
                || now.saturating_duration_since(last_sign) < LEARNED_LIFE
        });
    }
}

/// Addresses that no peer can be at.
fn is_usable(addr: SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "a test needs some instant to start from"
    )]
    fn the_list_is_bounded_and_keeps_what_is_proven_or_named() {
        let start = Instant::now();
        let mut candidates = Candidates::default();
        let named: Vec<_> = (1..=20).map(addr).collect();
        candidates.set_netmap(&named, None, start);
        assert_eq!(candidates.iter().count(), MAX_NETMAP);
        for port in 1000..1100 {
            let now = start + Duration::from_millis(u64::from(port));
            let learned = candidates.learn(addr(port), Some(addr(1000)), now);
            if port == 1001 {
                learned.expect("there is room").last_pong = Some(now);
            }
        }
        assert_eq!(candidates.iter().count(), MAX_CANDIDATES);
        for port in [1, 16, 1000, 1001, 1099] {
            assert!(candidates.find(addr(port)).is_some(), "{port}");
        }
        candidates.forget_old(Some(addr(1000)), start + Duration::from_secs(600));
        assert_eq!(candidates.iter().count(), MAX_NETMAP + 1);
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "a test needs some instant to start from"
    )]
    fn addresses_that_nobody_has_are_not_learned() {
        let now = Instant::now();
        let mut candidates = Candidates::default();
        for text in [
            "0.0.0.0:1",
            "192.0.2.1:0",
            "224.0.0.1:5",
            "[::]:1",
            "[ff02::1]:1",
        ] {
            let addr = text.parse().expect("an address");
            assert!(candidates.learn(addr, None, now).is_none(), "{text}");
        }
    }
}
