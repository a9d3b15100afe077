//! Peers that vanish without a word: watched connections to them end soon, and those that merely
//! wait live on.
//!
//! A peer counts as alive while anything at all comes from it, so a connection that waits for a
//! slow answer or for a reader who takes a break is safe: its keepalives are answered. TCP's own
//! timer cannot tell these apart, since its probes of a closed window come ever more rarely.
//!
//! Only connections whose user asked for it are watched: what somebody works on is to outlast a
//! machine that sleeps or roams for a while. A connection whose other end has no room for more is
//! left to that timer too.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::{Flow, Inner, span};

/// How often peers are looked at while there are watched connections.
const CHECK: Duration = Duration::from_secs(2);

/// The watched connections, and when each of their peers was heard last.
#[derive(Debug)]
pub(super) struct Silence {
    watched: HashMap<Key, Watched>,
    /// How many of them are full.
    full: usize,
    heard: HashMap<IpAddr, Instant>,
    /// The last one noted, since packets come in batches of one peer.
    last: Option<(IpAddr, Instant)>,
    checked: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Watched {
    handle: SocketHandle,
    limit: Duration,
    /// The other end has no room for more: it is probed so rarely that silence says nothing.
    is_full: bool,
}

/// The peer, its port, and our port.
type Key = (IpAddr, u16, u16);

fn key((local, remote): Flow) -> Key {
    (remote.ip(), remote.port(), local.port())
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            watched: HashMap::new(),
            full: 0,
            heard: HashMap::new(),
            last: None,
            checked: now,
        }
    }

    /// A packet came in.
    pub(super) fn hear(&mut self, packet: &[u8], now: Instant) {
        if self.watched.is_empty() {
            return;
        }
        let Some((peer, segment)) = source(packet) else {
            return;
        };
        if let Some(segment) = segment {
            let is_full = segment.window_len() == 0 && !segment.rst();
            let key = (peer, segment.src_port(), segment.dst_port());
            if (is_full || self.full > 0)
                && let Some(watched) = self.watched.get_mut(&key)
            {
                self.full -= usize::from(watched.is_full);
                self.full += usize::from(is_full);
                watched.is_full = is_full;
            }
        }
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
    /// The connection is reset when nothing comes from its peer for `limit`.
    pub(super) fn watch(&mut self, handle: SocketHandle, flow: Flow, limit: Duration) {
        let watched = Watched {
            handle,
            limit,
            is_full: false,
        };
        let silence = &mut self.silence;
        if silence.watched.is_empty() {
            silence.checked = self.now;
        }
        silence.watched.insert(key(flow), watched);
        silence.heard.entry(flow.1.ip()).or_insert(self.now);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.set_keep_alive(Some(span(limit / 3)));
    }

    /// The connection outlasts silence, or is gone.
    pub(in crate::netstack) fn unwatch(&mut self, handle: SocketHandle, flow: Flow) {
        let silence = &mut self.silence;
        if let Entry::Occupied(entry) = silence.watched.entry(key(flow))
            && entry.get().handle == handle
        {
            silence.full -= usize::from(entry.remove().is_full);
        }
    }

    /// Resets the watched connections to peers that were silent for too long.
    pub(super) fn end_silent(&mut self) {
        let now = self.now;
        if self.silence.next_check().is_none_or(|due| now < due) {
            return;
        }
        let silence = &mut self.silence;
        let since_check = now.saturating_duration_since(silence.checked);
        silence.checked = now;
        if since_check > 2 * CHECK {
            // It was this node that stood still: nobody could be heard.
            silence.heard.values_mut().for_each(|at| *at = now);
        }
        // INVARIANT: a socket is removed together with its being watched.
        for (&(peer, ..), watched) in &silence.watched {
            let &Watched { handle, limit, .. } = watched;
            let silent = silence.for_how_long(peer, now);
            if silent < limit || watched.is_full {
                continue;
            }
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            let is_over = match socket.state() {
                // Whoever asked for it has a limit.
                tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived => false,
                tcp::State::Closed | tcp::State::TimeWait => false,
                _ => socket.send_queue() == 0 || silent >= limit + limit / 3,
            };
            if is_over {
                tracing::debug!(%peer, ?silent, "the peer is silent: connection reset");
                socket.abort();
            }
        }
        let peers: HashSet<IpAddr> = silence.watched.keys().map(|key| key.0).collect();
        silence.heard.retain(|peer, _| peers.contains(peer));
    }
}

/// Who an IP packet comes from, and the TCP segment in it.
fn source(packet: &[u8]) -> Option<(IpAddr, Option<TcpPacket<&[u8]>>)> {
    let (source, protocol, payload) = match packet.first()? >> 4 {
        4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            (
                packet.src_addr().into(),
                packet.next_header(),
                packet.payload(),
            )
        }
        6 => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            (
                packet.src_addr().into(),
                packet.next_header(),
                packet.payload(),
            )
        }
        _ => return None,
    };
    let segment = match protocol {
        IpProtocol::Tcp => TcpPacket::new_checked(payload).ok(),
        _ => None,
    };
    Some((source, segment))
}
