//! The internet between the machines: who can send to whom, and what NATs make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A NAT forgets whom it let through after this long (RFC 4787, 4.3 asks for 2 minutes).
const MAPPING_LIFE: Duration = Duration::from_secs(120);

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Coordinator,
    Relay(usize),
    Node(usize),
}

/// What stands between a node and the internet (RFC 4787, 4 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    /// Nothing: a public address.
    None,
    /// One mapping, open to everybody.
    Open,
    /// One mapping, open to whom the node sent something.
    Restricted,
    /// A mapping for each receiver.
    Symmetric,
    /// No UDP passes.
    NoUdp,
}

impl Nat {
    pub(crate) const ALL: [Self; 5] = [
        Self::None,
        Self::Open,
        Self::Restricted,
        Self::Symmetric,
        Self::NoUdp,
    ];
}

/// A node's way to the internet.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) nat: Nat,
    node: usize,
    /// Of the node's UDP socket.
    pub(crate) port: u16,
    next_mapping: u16,
    /// The public port by receiver; by nobody where one serves all.
    mappings: BTreeMap<Option<SocketAddr>, u16>,
    /// Whom a public port lets in, and since when.
    let_in: BTreeMap<(u16, SocketAddr), Duration>,
}

fn octet(n: usize) -> u8 {
    u8::try_from(n + 1).expect("few machines")
}

/// Where a relay answers STUN.
pub(crate) fn stun_addr(relay: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, octet(relay)), 3478))
}

/// Who is meant by a public address.
pub(crate) fn place_of(addr: SocketAddr) -> Option<Place> {
    let IpAddr::V4(v4) = addr.ip() else {
        return None;
    };
    let at = |octet: u8| usize::from(octet).checked_sub(1);
    match v4.octets() {
        [192, 0, 2, n] => at(n).map(Place::Relay),
        [203, 0, 113, n] | [198, 51, 100, n] => at(n).map(Place::Node),
        _ => None,
    }
}

impl Access {
    pub(crate) fn new(node: usize, nat: Nat) -> Self {
        Self {
            nat,
            node,
            port: 51820,
            next_mapping: 20_000,
            mappings: BTreeMap::new(),
            let_in: BTreeMap::new(),
        }
    }

    /// What the node itself knows of where it is.
    pub(crate) fn local(&self) -> SocketAddr {
        let n = octet(self.node);
        match self.nat {
            Nat::None => SocketAddr::from((Ipv4Addr::new(203, 0, 113, n), self.port)),
            _ => SocketAddr::from((Ipv4Addr::new(10, 0, n, 2), self.port)),
        }
    }

    /// The NAT forgets everything: it was restarted, or the machine moved.
    pub(crate) fn rebind(&mut self) {
        self.mappings.clear();
        self.let_in.clear();
        self.next_mapping = self.next_mapping.wrapping_add(1).max(20_000);
    }

    /// The source that `to` sees; `None` when nothing gets out.
    pub(crate) fn send(&mut self, to: SocketAddr, now: Duration) -> Option<SocketAddr> {
        let receiver = match self.nat {
            Nat::None => return Some(self.local()),
            Nat::NoUdp => return None,
            Nat::Open | Nat::Restricted => None,
            Nat::Symmetric => Some(to),
        };
        let next = &mut self.next_mapping;
        let port = *self.mappings.entry(receiver).or_insert_with(|| {
            *next = next.wrapping_add(1).max(20_000);
            *next
        });
        self.let_in
            .retain(|_, at| now.saturating_sub(*at) < MAPPING_LIFE);
        self.let_in.insert((port, to), now);
        let ip = Ipv4Addr::new(198, 51, 100, octet(self.node));
        Some(SocketAddr::from((ip, port)))
    }

    /// Whether a datagram from `from` to the public address `to` gets in.
    pub(crate) fn lets_in(&self, to: SocketAddr, from: SocketAddr, now: Duration) -> bool {
        let fresh = || {
            self.let_in
                .get(&(to.port(), from))
                .is_some_and(|at| now.saturating_sub(*at) < MAPPING_LIFE)
        };
        match self.nat {
            Nat::None => to == self.local(),
            Nat::NoUdp => false,
            Nat::Open => self.mappings.get(&None) == Some(&to.port()),
            Nat::Restricted | Nat::Symmetric => fresh(),
        }
    }

    /// Forgets mappings that nothing has passed for long.
    pub(crate) fn forget_idle(&mut self, now: Duration) {
        self.let_in
            .retain(|_, at| now.saturating_sub(*at) < MAPPING_LIFE);
        let in_use: BTreeSet<u16> = self.let_in.keys().map(|(port, _)| *port).collect();
        self.mappings.retain(|_, port| in_use.contains(port));
    }

    /// How much it remembers.
    pub(crate) fn held(&self) -> usize {
        self.mappings.len() + self.let_in.len()
    }
}

/// Which machines cannot reach each other, and how datagrams fare.
#[derive(Debug, Default)]
pub(crate) struct Underlay {
    cuts: BTreeSet<(Place, Place)>,
    /// Of a thousand datagrams.
    pub(crate) loss: u32,
    /// Of a thousand datagrams.
    pub(crate) duplicates: u32,
    /// Datagrams overtake each other within this, in milliseconds.
    pub(crate) jitter: u64,
}

impl Underlay {
    pub(crate) fn cut(&mut self, a: Place, b: Place) {
        self.cuts.insert((a.min(b), a.max(b)));
    }

    pub(crate) fn heal(&mut self, a: Place, b: Place) {
        self.cuts.remove(&(a.min(b), a.max(b)));
    }

    pub(crate) fn calm(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_cut(&self, a: Place, b: Place) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// How long anything takes at least, one way.
    pub(crate) fn latency(a: Place, b: Place) -> Duration {
        let weight = |place: Place| match place {
            Place::Coordinator => 3,
            Place::Relay(n) => 5 + 7 * n as u64,
            Place::Node(n) => 2 + 5 * (n as u64 % 5),
        };
        Duration::from_millis(weight(a) + weight(b))
    }
}
