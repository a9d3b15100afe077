//! One peer: its facts from the netmap, its session, its paths and its counters.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use mesh_types::{DiscoPublicKey, NodeId, NodeState, OverlayAddrs, RelayId, WgPublicKey};

use crate::event::PathKind;
use crate::nacl::SharedBox;
use crate::path::Paths;
use crate::stats::PeerStats;
use crate::turns::Place;
use crate::wg::Session;

/// Thousands of these may lie idle, at 1 to 2 KiB each: session and box are made when they are
/// first needed, and the session of a peer that never answered goes again.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) wg_key: WgPublicKey,
    pub(crate) disco_key: DiscoPublicKey,
    pub(crate) addrs: OverlayAddrs,
    pub(crate) routes: Vec<IpNet>,
    pub(crate) endpoints: Vec<std::net::SocketAddr>,
    pub(crate) home_relay: Option<RelayId>,
    /// Whether the coordinator hears it.
    pub(crate) online: bool,
    /// The relay that something authentic last came by.
    pub(crate) seen_relay: Option<RelayId>,
    /// A relay that said the peer is not there, and until when that is believed.
    pub(crate) gone: Option<(RelayId, Instant)>,
    /// The upper 24 bits of its session indices, once it has a session.
    pub(crate) index: Option<u32>,
    pub(crate) session: Option<Box<Session>>,
    pub(crate) shared: Option<Box<SharedBox>>,
    pub(crate) paths: Paths,
    pub(crate) counters: Counters,
    /// Its entry in the timers, when it has one.
    pub(crate) due: Option<Instant>,
    /// The path that was last told to the shell.
    pub(crate) told: PathKind,
    /// When a handshake was last started because the peer forgot our session.
    pub(crate) last_revival: Option<Instant>,
    /// When its home relay was last asked for.
    pub(crate) relay_wanted: Option<Instant>,
    /// Where it stands while a handshake with it waits for its turn.
    pub(crate) place: Option<Place>,
    /// It may hold a session that we lost, and has not answered yet.
    pub(crate) greeting: Option<Greeting>,
}

/// How far we are in telling a peer that we lost its session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greeting {
    /// Who has the lowest goes first.
    pub(crate) rank: u64,
    /// How often it was told, since there was last news of it.
    pub(crate) tries: u32,
    /// When it is told again.
    pub(crate) next: Option<Instant>,
}

impl Greeting {
    pub(crate) fn new(rank: u64) -> Self {
        Self {
            rank,
            tries: 0,
            next: None,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) tx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) tx_relay_bytes: u64,
    pub(crate) rx_relay_bytes: u64,
}

impl Peer {
    pub(crate) fn new(facts: &mesh_types::Peer) -> Self {
        Self {
            node: facts.id,
            wg_key: facts.wg_key,
            disco_key: facts.disco_key,
            addrs: facts.addrs,
            routes: facts.routes.clone(),
            endpoints: Vec::new(),
            home_relay: facts.home_relay,
            online: facts.state == NodeState::Online,
            seen_relay: None,
            gone: None,
            index: None,
            session: None,
            shared: None,
            paths: Paths::default(),
            counters: Counters::default(),
            due: None,
            told: PathKind::None,
            last_revival: None,
            relay_wanted: None,
            place: None,
            greeting: None,
        }
    }

    /// The relay to reach it by: the one it listens on, else where it was last heard, else ours.
    pub(crate) fn relay(
        &self,
        connected: &[RelayId],
        ours: Option<RelayId>,
        now: Instant,
    ) -> Option<RelayId> {
        let gone = self
            .gone
            .filter(|&(_, until)| until > now)
            .map(|(relay, _)| relay);
        [self.home_relay, self.seen_relay, ours]
            .into_iter()
            .flatten()
            .find(|relay| connected.contains(relay) && Some(*relay) != gone)
    }

    /// The single addresses that lead to it.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let routed = self
            .routes
            .iter()
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(IpNet::addr);
        self.addrs.iter().chain(routed)
    }

    pub(crate) fn stats(&self, path: PathKind, now: Instant) -> PeerStats {
        let Counters {
            tx_bytes,
            tx_packets,
            rx_bytes,
            rx_packets,
            tx_relay_bytes,
            rx_relay_bytes,
        } = self.counters;
        PeerStats {
            node: self.node,
            tx_bytes,
            tx_packets,
            rx_bytes,
            rx_packets,
            tx_relay_bytes,
            rx_relay_bytes,
            last_handshake: self
                .session
                .as_ref()
                .and_then(|session| session.established()),
            path,
            rtt: self.paths.rtt(path),
            active: self.paths.is_active(now),
            waiting: self.session.as_ref().map_or(0, |session| session.waiting()),
        }
    }
}
