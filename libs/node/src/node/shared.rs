//! What the driver shares with the handles of a node.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use mesh_api::model::node::NodeReport;
use mesh_tunnel::{DropReason, PathKind, PeerStats};
use mesh_types::{Netmap, NodeId, OverlayAddrs, RelayId, Service, Timestamp, Trouble, Troubles};
use tokio::sync::{Notify, watch};

use super::RelayMode;
use super::files::Files;
use crate::advice::Udp;
use crate::control::ControlSession;
use crate::counters::Counters;
use crate::credential::Credential;
use crate::directory::Directory;
use crate::status::{NodeStatus, PeerPath, PeerStatus, RelayStatus, ShellStatus};

/// What the driver shares with the handles.
pub(crate) struct Shared {
    pub(crate) wake: Arc<Notify>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) drop_overlay: AtomicBool,
    pub(crate) relay_mode: RelayMode,
    pub(crate) extra_endpoints: Vec<SocketAddr>,
    pub(crate) directory: watch::Sender<Option<Arc<Directory>>>,
    pub(super) control: ControlSession,
    pub(super) report: Mutex<NodeReport>,
    pub(super) snapshot: RwLock<Snapshot>,
    pub(super) started: SystemTime,
    /// Why the newest netmap is not on disk.
    pub(super) unsaved: Mutex<Option<String>>,
    pub(crate) files: Files,
    /// Where a stored netmap lies that was not ours.
    pub(super) aside: Mutex<Option<String>>,
}

/// Figures of the tunnel at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) at: Instant,
    pub(crate) wall: SystemTime,
    pub(crate) peers: HashMap<NodeId, PeerStats>,
    pub(crate) relays: BTreeMap<RelayId, RelayFigures>,
    pub(crate) home: Option<RelayId>,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) shell: ShellStatus,
    pub(crate) drops: Vec<(DropReason, u64)>,
    pub(crate) udp_heard: Option<SystemTime>,
}

/// Figures of one relay connection.
#[derive(Debug, Clone)]
pub(crate) struct RelayFigures {
    pub(crate) connected: bool,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) latency: Option<Duration>,
    pub(crate) error: Option<String>,
}

impl Shared {
    /// Changes the report and sends it when it differs.
    pub(crate) fn report(&self, change: impl FnOnce(&mut NodeReport)) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut report);
        self.control.report(report.clone());
    }

    /// Takes note whether the newest netmap is on disk; gives what was known before.
    pub(crate) fn set_unsaved(&self, reason: Option<String>) -> Option<String> {
        let mut unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut unsaved, reason)
    }

    /// Takes note of a netmap that lies aside, or of none.
    pub(crate) fn set_aside(&self, file: Option<String>) {
        *self.aside.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    pub(crate) fn credential(&self) -> Credential {
        self.control.credential().clone()
    }

    pub(crate) fn show(&self, snapshot: Snapshot) {
        *self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn peer(&self, node: NodeId) -> Option<PeerStats> {
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        snapshot.peers.get(&node).copied()
    }

    /// The peers there was traffic with in the last moments.
    pub(crate) fn active_peers(&self) -> Vec<NodeId> {
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        let active = snapshot.peers.values().filter(|stats| stats.active);
        active.map(|stats| stats.node).collect()
    }

    /// What is wrong now that only this node sees.
    pub(crate) fn troubles(&self, now: Timestamp) -> Troubles {
        let unsaved = {
            let reason = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
            reason.is_some()
        };
        let has_stun = self
            .control
            .netmap()
            .borrow()
            .as_deref()
            .is_some_and(has_stun);
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        let device = matches!(
            snapshot.shell,
            ShellStatus::Tun {
                problem: Some(_),
                ..
            }
        );
        let mut peers = snapshot.peers.values();
        let udp = Udp {
            has_stun,
            by_relay: snapshot.relays.values().any(|relay| relay.connected)
                && peers.any(|stats| matches!(stats.path, PathKind::Relay(_))),
            heard: snapshot.udp_heard.unwrap_or(self.started).into(),
        };
        let troubles = [
            (Trouble::DeviceFault, device),
            (Trouble::DescriptorsLow, self.files.is_low()),
            (Trouble::NetmapUnsaved, unsaved),
            (Trouble::UdpBlocked, udp.is_blocked(now)),
        ];
        let is = troubles.into_iter().filter(|(_, is)| *is);
        is.map(|(trouble, _)| trouble).collect()
    }

    pub(crate) fn control(&self) -> &ControlSession {
        &self.control
    }

    /// How the node is doing; the rest of it is the caller's to know.
    pub(super) fn status(
        &self,
        addrs: Option<OverlayAddrs>,
        wg_port: u16,
        services: Vec<Service>,
    ) -> NodeStatus {
        let snapshot = self.snapshot();
        let netmap = self.control.netmap().borrow().clone();
        let control = self.control.status().borrow().clone();
        let enrolled = self.control.enrolled().clone();
        let stored = self.control.stored().map(|stored| stored.saved);
        let unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        let netmap_unsaved = unsaved.clone();
        drop(unsaved);
        let aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        let netmap_aside = aside.clone();
        drop(aside);
        let mut peers: Vec<PeerStatus> = netmap
            .iter()
            .flat_map(|netmap| netmap.peers.values())
            .map(|peer| {
                let stats = snapshot.peers.get(&peer.id);
                PeerStatus {
                    id: peer.id,
                    name: peer.name.clone(),
                    role: peer.role,
                    addrs: peer.addrs,
                    state: peer.state,
                    path: match stats.map(|stats| stats.path) {
                        Some(PathKind::Direct(addr)) => PeerPath::Direct { addr },
                        Some(PathKind::Relay(id)) => PeerPath::Relay { id },
                        Some(PathKind::None) | None => PeerPath::None,
                    },
                    last_handshake: stats
                        .and_then(|stats| stats.last_handshake)
                        .map(|at| wall_of(&snapshot, at)),
                    rx_bytes: stats.map_or(0, |stats| stats.rx_bytes),
                    tx_bytes: stats.map_or(0, |stats| stats.tx_bytes),
                    rx_relay_bytes: stats.map_or(0, |stats| stats.rx_relay_bytes),
                    tx_relay_bytes: stats.map_or(0, |stats| stats.tx_relay_bytes),
                    rtt_ms: stats.and_then(|stats| stats.rtt).map(millis),
                    active: stats.is_some_and(|stats| stats.active),
                    services: peer.services.clone(),
                }
            })
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        NodeStatus {
            name: netmap
                .as_ref()
                .map_or(&enrolled.name, |netmap| &netmap.node.name)
                .clone(),
            addrs: addrs.or(enrolled.addrs),
            wg_port,
            endpoints: snapshot.endpoints,
            shell: snapshot.shell,
            stale_since: control.stale_since,
            started: Timestamp::from(self.started),
            has_netmap: netmap.is_some(),
            netmap_stored: stored.is_some() && control.stale_since == stored,
            netmap_unsaved,
            netmap_aside,
            udp_heard: snapshot.udp_heard.map(Timestamp::from),
            has_stun: netmap.as_deref().is_some_and(has_stun),
            control,
            home_relay: snapshot.home,
            relays: snapshot
                .relays
                .into_iter()
                .map(|(id, figures)| RelayStatus {
                    id,
                    connected: figures.connected,
                    local_addr: figures.local,
                    latency_ms: figures.latency.map(millis),
                    error: figures.error,
                })
                .collect(),
            services,
            peers,
            counters: self
                .counters
                .values()
                .map(|(name, n)| (name.to_owned(), n))
                .collect(),
            drops: snapshot
                .drops
                .into_iter()
                .map(|(reason, count)| (reason.as_str().to_owned(), count))
                .collect(),
            enrolled,
        }
    }
}

/// Whether silence on UDP means something.
fn has_stun(netmap: &Netmap) -> bool {
    netmap.relays.iter().any(|relay| !relay.stun.is_empty())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn wall_of(snapshot: &Snapshot, at: Instant) -> Timestamp {
    Timestamp::from(snapshot.wall).minus(snapshot.at.saturating_duration_since(at))
}
