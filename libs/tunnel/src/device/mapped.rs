//! The node's addresses as others see them: by STUN servers, and by peers that answer probes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::stun::{self, TransactionId};

/// How often servers are asked; NAT mappings live at least this long (RFC 4787, 4.3: 2 minutes).
const INTERVAL: Duration = Duration::from_secs(25);
/// Until the first answer, and after a change, they are asked more often.
const FIRST: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
const MAX_SERVERS: usize = 4;
const MAX_PENDING: usize = 16;
const MAX_SEEN: usize = 4;
const SEEN_LIFE: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(super) struct Mapped {
    servers: Vec<SocketAddr>,
    pending: Vec<TransactionId>,
    v4: Option<SocketAddr>,
    v6: Option<SocketAddr>,
    next: Option<Instant>,
    unanswered: usize,
    seen: Vec<(SocketAddr, Instant)>,
}

impl Mapped {
    pub(super) fn set_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        let servers: Vec<_> = servers.iter().copied().take(MAX_SERVERS).collect();
        if self.servers != servers {
            self.servers = servers;
            self.restart(now);
        }
    }

    pub(super) fn restart(&mut self, now: Instant) {
        self.pending.clear();
        self.seen.clear();
        self.unanswered = 0;
        self.next = (!self.servers.is_empty()).then_some(now);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// What STUN servers saw.
    pub(super) fn addrs(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        [self.v4, self.v6].into_iter().flatten()
    }

    /// What peers saw lately.
    pub(super) fn seen(&self, now: Instant) -> impl Iterator<Item = SocketAddr> + '_ {
        self.seen
            .iter()
            .filter(move |(_, at)| now.saturating_duration_since(*at) < SEEN_LIFE)
            .map(|&(addr, _)| addr)
    }

    /// A peer answered a probe and says where it saw us.
    pub(super) fn on_seen(&mut self, addr: SocketAddr, now: Instant) {
        if addr.port() == 0 || addr.ip().is_unspecified() {
            return;
        }
        self.seen.retain(|&(known, _)| known != addr);
        if self.seen.len() >= MAX_SEEN {
            self.seen.remove(0);
        }
        self.seen.push((addr, now));
    }

    /// Asks the servers when it is time; `send` gets each request.
    pub(super) fn poll(
        &mut self,
        mut random: impl FnMut() -> TransactionId,
        mut send: impl FnMut(SocketAddr, &[u8]),
        now: Instant,
    ) {
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        let pause = FIRST.get(self.unanswered).copied().unwrap_or(INTERVAL);
        self.unanswered = self.unanswered.saturating_add(1);
        self.next = Some(now + pause);
        for &server in &self.servers {
            let transaction = random();
            if self.pending.len() >= MAX_PENDING {
                self.pending.remove(0);
            }
            self.pending.push(transaction);
            send(server, &stun::encode_request(&transaction));
        }
    }

    /// Takes an answer; `Some(true)` when it changed what we know, `None` when it is no answer.
    pub(super) fn on_response(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Option<bool> {
        let (transaction, addr) = stun::parse_response(datagram).ok()?;
        let at = self.pending.iter().position(|&id| id == transaction)?;
        if !self.servers.contains(&from) {
            return None;
        }
        self.pending.swap_remove(at);
        // From now on the slow pace.
        self.unanswered = FIRST.len();
        self.next = Some(now + INTERVAL);
        let known = if addr.is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        };
        let changed = *known != Some(addr);
        *known = Some(addr);
        Some(changed)
    }
}
