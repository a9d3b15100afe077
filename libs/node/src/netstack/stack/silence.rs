//! Peers that vanish without a word: connections to them end soon, those that merely wait live on.
//!
//! A peer counts as alive while anything at all comes from it, so a connection that waits for a
//! slow answer or for a reader who takes a break is safe: its keepalives are answered. TCP's own
//! timer cannot tell these apart, since its probes of a closed window come ever more rarely.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use super::Inner;

/// How often peers are looked at while there are connections.
const CHECK: Duration = Duration::from_secs(2);

/// When each peer with connections was heard last.
#[derive(Debug)]
pub(super) struct Silence {
    heard: HashMap<IpAddr, Instant>,
    /// The last one noted, since packets come in batches of one peer.
    last: Option<(IpAddr, Instant)>,
    checked: Instant,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heard: HashMap::new(),
            last: None,
            checked: now,
        }
    }

    /// There is a connection to this peer from now on.
    pub(super) fn expect(&mut self, peer: IpAddr, now: Instant) {
        if self.heard.is_empty() {
            self.checked = now;
        }
        self.heard.entry(peer).or_insert(now);
    }

    /// A packet came in.
    pub(super) fn hear(&mut self, packet: &[u8], now: Instant) {
        let Some(peer) = source(packet) else {
            return;
        };
        if self.last == Some((peer, now)) {
            return;
        }
        self.last = Some((peer, now));
        if let Some(heard) = self.heard.get_mut(&peer) {
            *heard = now;
        }
    }

    /// When to look at the peers next.
    pub(super) fn next_check(&self) -> Option<Instant> {
        (!self.heard.is_empty()).then(|| self.checked + CHECK)
    }

    fn for_how_long(&self, peer: IpAddr, now: Instant) -> Duration {
        self.heard.get(&peer).map_or(Duration::ZERO, |&heard| {
            now.saturating_duration_since(heard)
        })
    }
}

impl Inner {
    /// Resets the connections to peers that were silent for too long.
    pub(super) fn end_silent(&mut self) {
        let now = self.now;
        if self.silence.next_check().is_none_or(|due| now < due) {
            return;
        }
        let since_check = now.saturating_duration_since(self.silence.checked);
        self.silence.checked = now;
        if since_check > 2 * CHECK {
            // It was this node that stood still: nobody could be heard.
            self.silence.heard.values_mut().for_each(|at| *at = now);
        }
        let mut peers = HashSet::new();
        for (&(_, remote), &handle) in &self.flows {
            let peer = remote.ip();
            peers.insert(peer);
            let silent = self.silence.for_how_long(peer, now);
            if silent < self.config.silence {
                continue;
            }
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            let is_over = match socket.state() {
                // Whoever asked for it has a limit, and so have half-open ones.
                tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived => false,
                tcp::State::Closed | tcp::State::TimeWait => false,
                _ => socket.send_queue() == 0 || silent >= self.config.silence_unacknowledged,
            };
            if is_over {
                tracing::debug!(%remote, ?silent, "the peer is silent: connection reset");
                socket.abort();
            }
        }
        self.silence.heard.retain(|peer, _| peers.contains(peer));
    }
}

/// Who an IP packet comes from.
fn source(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Packet::new_checked(packet).ok()?.src_addr().into()),
        6 => Some(Ipv6Packet::new_checked(packet).ok()?.src_addr().into()),
        _ => None,
    }
}
