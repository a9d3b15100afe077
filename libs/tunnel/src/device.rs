//! The root of the data plane: all peers of one node in one network.
//!
//! The device has one owner that gives it everything that happens, one thing at a time. What the
//! shell must know about calling it:
//!
//! - Methods that take `&mut Out` append what is to be sent and delivered; the shell sends it and
//!   clears the `Out`.
//! - All others send nothing themselves; they make [`Device::poll_timeout`] due when something is
//!   to be sent.
//! - After every call ask [`Device::poll_timeout`] again, and [`Device::poll_event`] until `None`.
//!
//! ```text
//!  netmap, endpoints, relays ─▶ control ─┐
//!  IP packets ─▶ seal: route ─▶ note flow ─▶ encrypt ─▶ path ─▶ Out (UDP runs, DERP frames)
//!  datagrams ─▶ open: demux ─▶ decrypt ─▶ source check ─▶ filter ─▶ Out (IP packets)
//!                      └─▶ handshake, disco, STUN ─▶ path choice, answers
//! ```

mod asking;
mod control;
mod discovery;
mod handshake;
mod incoming;
mod mapped;
mod outgoing;
mod tick;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_types::key::SecretKey;
use mesh_types::{DiscoPublicKey, NodeId, RelayId, WgPublicKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::disco::TxId;
use crate::event::{Event, PathKind};
use crate::filter::{Filter, MAX_FLOWS};
use crate::hash::Seeded;
use crate::nacl::{disco_public_key, wg_public_key};
use crate::path::Action;
use crate::peer::Peer;
use crate::router::{Router, Slot};
use crate::stats::{DropCounters, PeerStats};
use crate::timers::Timers;
use crate::turns::Turns;
use crate::wg::Identity;

use mapped::Mapped;
use outgoing::Groups;

/// Events kept for the shell at most; older ones are lost when it never asks.
const MAX_EVENTS: usize = 4096;
/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// What a device is made of.
#[derive(Debug)]
pub struct DeviceConfig {
    /// The node's WireGuard private key.
    pub wg_key: SecretKey,
    /// The node's disco private key.
    pub disco_key: SecretKey,
    /// Longest inner packet in bytes.
    pub mtu: u16,
    /// Fresh randomness of the operating system; fixed in tests.
    pub seed: [u8; 32],
}

/// Where datagrams came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The UDP socket, from this underlay address.
    Direct(SocketAddr),
    /// A relay.
    Relay {
        /// Which one.
        relay: RelayId,
        /// The key that the sender proved to the relay.
        from: WgPublicKey,
    },
}

impl Source {
    /// With an IPv4-mapped address as plain IPv4.
    fn canonical(self) -> Self {
        match self {
            Self::Direct(addr) => {
                Self::Direct(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
            }
            relayed @ Self::Relay { .. } => relayed,
        }
    }

    /// What a WireGuard cookie is bound to: the underlay address, or for relayed datagrams, whose
    /// underlay address nobody knows, half of the key that the relay vouches for.
    fn cookie_ip(&self) -> IpAddr {
        match self {
            Self::Direct(addr) => addr.ip(),
            Self::Relay { from, .. } => {
                let mut half = [0; 16];
                half.copy_from_slice(&from.as_bytes()[..16]);
                IpAddr::V6(Ipv6Addr::from(half))
            }
        }
    }
}

/// The data plane of one node in one network. See the module's documentation for how to drive it.
#[derive(Debug)]
pub struct Device {
    identity: Identity,
    wg_public: WgPublicKey,
    disco_private: SecretKey,
    disco_public: DiscoPublicKey,
    mtu: usize,
    rng: StdRng,
    /// The last `now` that was given.
    now: Instant,
    peers: Peers,
    router: Router,
    filter: Filter,
    timers: Timers,
    turns: Turns,
    relays: Relays,
    mapped: Mapped,
    local: Vec<SocketAddr>,
    events: VecDeque<Event>,
    drops: DropCounters,
    next_sweep: Instant,
    last_scan: Option<Instant>,
    groups: Groups,
    scratch: Vec<u8>,
    message: Vec<u8>,
    actions: Vec<Action>,
}

/// The relays as far as the device must know them.
#[derive(Debug, Default)]
struct Relays {
    connected: Vec<RelayId>,
    home: Option<RelayId>,
}

/// All peers by what they are asked for by.
#[derive(Debug)]
struct Peers {
    slots: Vec<Option<Box<Peer>>>,
    free: Vec<Slot>,
    by_node: HashMap<NodeId, Slot, Seeded>,
    by_wg: HashMap<WgPublicKey, Slot, Seeded>,
    by_disco: HashMap<DiscoPublicKey, Slot, Seeded>,
    /// By the upper 24 bits of their session indices.
    by_index: HashMap<u32, Slot, Seeded>,
}

impl Peers {
    fn new(seed: Seeded) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_node: HashMap::with_hasher(seed),
            by_wg: HashMap::with_hasher(seed),
            by_disco: HashMap::with_hasher(seed),
            by_index: HashMap::with_hasher(seed),
        }
    }

    #[inline]
    fn slot(&self, slot: Slot) -> Option<&Peer> {
        self.slots.get(slot as usize)?.as_deref()
    }

    #[inline]
    fn slot_mut(&mut self, slot: Slot) -> Option<&mut Peer> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    fn node(&self, node: NodeId) -> Option<&Peer> {
        self.slot(*self.by_node.get(&node)?)
    }

    /// Every taken slot.
    fn taken(&self) -> impl Iterator<Item = Slot> + use<> {
        let taken: Vec<Slot> = (0..)
            .zip(&self.slots)
            .filter(|(_, peer)| peer.is_some())
            .map(|(slot, _)| slot)
            .collect();
        taken.into_iter()
    }
}

impl Device {
    /// A device without peers, addresses or rules: it does nothing until a netmap is applied.
    pub fn new(config: DeviceConfig, now: Instant) -> Self {
        let DeviceConfig {
            wg_key,
            disco_key,
            mtu,
            seed,
        } = config;
        let mut rng = StdRng::from_seed(seed);
        let seed = Seeded::new(rng.next_u64());
        Self {
            identity: Identity::new(&wg_key, now),
            wg_public: wg_public_key(&wg_key),
            disco_public: disco_public_key(&disco_key),
            disco_private: disco_key,
            mtu: usize::from(mtu),
            now,
            peers: Peers::new(seed),
            router: Router::new(rng.next_u64()),
            filter: Filter::new(rng.next_u64(), MAX_FLOWS, now),
            timers: Timers::default(),
            turns: Turns::new(now),
            relays: Relays::default(),
            mapped: Mapped::default(),
            local: Vec::new(),
            events: VecDeque::new(),
            drops: DropCounters::new(),
            next_sweep: now + SWEEP,
            last_scan: None,
            groups: Groups::default(),
            scratch: Vec::new(),
            message: Vec::new(),
            actions: Vec::new(),
            rng,
        }
    }

    /// The node's WireGuard public key.
    pub fn wg_public_key(&self) -> WgPublicKey {
        self.wg_public
    }

    /// The node's disco public key.
    pub fn disco_public_key(&self) -> DiscoPublicKey {
        self.disco_public
    }

    /// When [`Device::handle_timeout`] wants to be called; may be in the past. Ask again after
    /// every other call.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sweep = (self.filter.flows() > 0).then_some(self.next_sweep);
        [
            self.timers.next(),
            self.turns.poll_timeout(),
            self.mapped.next(),
            sweep,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next event; call until `None` after every other call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How one peer is doing; `None` when it is not in the netmap.
    pub fn peer_stats(&self, peer: NodeId) -> Option<PeerStats> {
        self.peers.node(peer).map(|peer| self.stats_of(peer))
    }

    /// How all peers are doing.
    pub fn stats(&self) -> impl Iterator<Item = PeerStats> {
        self.peers
            .slots
            .iter()
            .flatten()
            .map(|peer| self.stats_of(peer))
    }

    /// An idle peer shows the path it was last talked to by: nothing is probed without traffic.
    fn stats_of(&self, peer: &Peer) -> PeerStats {
        let path = if peer.paths.is_active(self.now) {
            self.path_of(peer, self.now)
        } else {
            peer.told
        };
        peer.stats(path, self.now)
    }

    /// What was dropped, by reason.
    pub fn drops(&self) -> &DropCounters {
        &self.drops
    }

    /// How many flows the packet filter remembers.
    pub fn flows(&self) -> usize {
        self.filter.flows()
    }

    /// How many deadlines are remembered, stale ones that are ignored when they come up included.
    pub fn pending_timers(&self) -> usize {
        self.timers.len()
    }

    /// How many peers have the state of a session, established or asked for: 11 KiB each.
    pub fn sessions(&self) -> usize {
        self.peers.by_index.len()
    }

    fn path_of(&self, peer: &Peer, now: Instant) -> PathKind {
        let relay = peer.relay(&self.relays.connected, self.relays.home, now);
        peer.paths.choose(relay, now)
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Makes the peer's timers due at once.
    fn wake(&mut self, slot: Slot, now: Instant) {
        if let Some(peer) = self.peers.slot_mut(slot)
            && peer.due.is_none_or(|due| due > now)
        {
            peer.due = Some(now);
            self.timers.schedule(slot, now);
        }
    }

    fn wake_active(&mut self, now: Instant) {
        for slot in self.peers.taken() {
            if let Some(peer) = self.peers.slot_mut(slot) {
                if let Some(session) = &mut peer.session {
                    session.hurry(now);
                }
                if peer.paths.is_active(now) || peer.session.is_some() {
                    self.wake(slot, now);
                }
            }
        }
    }
}

/// A transaction id that nobody can guess.
fn random_tx(rng: &mut StdRng) -> TxId {
    let mut tx = TxId::default();
    rng.fill_bytes(&mut tx);
    tx
}
