//! How a node is doing, for people and as JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_types::{NodeId, NodeName, NodeState, OverlayAddrs, RelayId, Role, Service, Timestamp};
use serde::{Deserialize, Serialize};

use crate::control::ControlStatus;
use crate::state_dir::Enrolled;

/// A node as it sees itself and its peers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who it is since its enrolment.
    pub enrolled: Enrolled,
    /// Its current name.
    pub name: NodeName,
    /// Its overlay addresses; `None` before the first netmap of all.
    pub addrs: Option<OverlayAddrs>,
    /// UDP port of WireGuard and disco (of the first socket).
    pub wg_port: u16,
    /// Underlay addresses at which peers may try it.
    pub endpoints: Vec<SocketAddr>,
    /// Who handles the overlay's packets on this machine.
    #[serde(default)]
    pub shell: ShellStatus,
    /// The connection to the coordinator.
    pub control: ControlStatus,
    /// Since when the netmap may be out of date; `None` while the coordinator is connected.
    pub stale_since: Option<Timestamp>,
    /// When this node started.
    #[serde(default)]
    pub started: Timestamp,
    /// Whether there is a netmap to act on.
    #[serde(default)]
    pub has_netmap: bool,
    /// Whether the netmap it acts on was read from disk and never confirmed since the start.
    #[serde(default)]
    pub netmap_stored: bool,
    /// Why the newest netmap is not on disk, if it is not: a restart would need the coordinator.
    #[serde(default)]
    pub netmap_unsaved: Option<String>,
    /// A stored netmap that was not what this node had written, and lies aside: its path.
    #[serde(default)]
    pub netmap_aside: Option<String>,
    /// When a datagram last arrived; `None` when none has since the start.
    #[serde(default)]
    pub udp_heard: Option<Timestamp>,
    /// The relay it listens on.
    pub home_relay: Option<RelayId>,
    /// Whether the netmap has relays that answer STUN, so that silence on UDP means something.
    #[serde(default)]
    pub has_stun: bool,
    /// Its connections to relays.
    pub relays: Vec<RelayStatus>,
    /// What it publishes.
    pub services: Vec<Service>,
    /// The nodes it may talk to, by name.
    pub peers: Vec<PeerStatus>,
    /// Everything counted, by name.
    pub counters: BTreeMap<String, u64>,
    /// Packets the tunnel dropped, by reason; reasons that never happened are absent.
    pub drops: BTreeMap<String, u64>,
}

/// Who handles the overlay's packets on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum ShellStatus {
    /// The process alone, with a TCP/IP stack of its own.
    #[default]
    Userspace,
    /// The machine itself, through a network device; published services excepted.
    Tun {
        /// The device's name.
        device: String,
        /// Whether it is there: one that somebody removed is made again, one of a node that has
        /// stopped is not.
        #[serde(default = "is_present")]
        present: bool,
        /// Whether it has the IPv6 address too: not where the machine has no IPv6.
        ipv6: bool,
        /// Routes to peers through it.
        routes: usize,
        /// What is wrong with it.
        problem: Option<String>,
    },
}

/// What a status says that does not say it: a program of an earlier version wrote it.
const fn is_present() -> bool {
    true
}

/// A connection to a relay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Which relay.
    pub id: RelayId,
    /// Whether packets can travel through it.
    pub connected: bool,
    /// This machine's end of the TCP connection.
    pub local_addr: Option<SocketAddr>,
    /// Round-trip time to it in milliseconds.
    pub latency_ms: Option<f64>,
    /// Why it is not connected.
    pub error: Option<String>,
}

/// How packets to a peer travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum PeerPath {
    /// Straight to this underlay address.
    Direct {
        /// Where.
        addr: SocketAddr,
    },
    /// Through this relay.
    Relay {
        /// Which.
        id: RelayId,
    },
    /// Not at all, or not yet.
    None,
}

/// One peer as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// Its overlay addresses.
    pub addrs: OverlayAddrs,
    /// By its heartbeats, as the coordinator says.
    pub state: NodeState,
    /// How packets to it travel.
    pub path: PeerPath,
    /// When the current WireGuard session was established.
    pub last_handshake: Option<Timestamp>,
    /// Bytes of IP packets received from it since this node started.
    pub rx_bytes: u64,
    /// Bytes of IP packets sent to it since this node started.
    pub tx_bytes: u64,
    /// Of the received bytes, those that came by relay.
    pub rx_relay_bytes: u64,
    /// Of the sent bytes, those that went by relay.
    pub tx_relay_bytes: u64,
    /// Round-trip time of the path in milliseconds, as probes measure it.
    pub rtt_ms: Option<f64>,
    /// Whether there was traffic lately.
    pub active: bool,
    /// What it publishes.
    pub services: Vec<Service>,
}
