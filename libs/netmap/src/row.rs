//! Identity facts, as the caller's database holds them.

use std::time::Duration;

use ipnet::IpNet;
use mesh_types::{
    DiscoPublicKey, NetworkId, NetworkName, NodeId, NodeName, OverlayAddrs, RelayId, Role, Service,
    Timestamp, UptimeClass, WgPublicKey,
};

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRow {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique in the installation.
    pub name: NetworkName,
    /// How often its identity facts have changed.
    pub version: u64,
    /// Tombstones up to and including this version are gone from the database: older cursors
    /// cannot be resumed.
    pub trimmed: u64,
    /// Its SSH certificate authority: an OpenSSH public key line, or empty.
    pub ssh_ca: String,
}

/// A node's identity facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Its id.
    pub id: NodeId,
    /// The network it belongs to, for good.
    pub network: NetworkId,
    /// Its name, unique in the network.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// Who owns it; what that opens is up to the rules. The empty owner is nobody.
    pub owner: String,
    /// Its overlay addresses, unique over all networks.
    pub addrs: OverlayAddrs,
    /// Its WireGuard key, unique over all networks.
    pub wg_key: WgPublicKey,
    /// Its disco key, unique over all networks.
    pub disco_key: DiscoPublicKey,
    /// What it publishes.
    pub services: Vec<Service>,
    /// Prefixes behind it that its peers may use.
    pub routes: Vec<IpNet>,
    /// Its pinned SSH host keys: OpenSSH public key lines.
    pub ssh_host_keys: Vec<String>,
    /// The local user its SSH logs in as by default; may be empty.
    pub ssh_user: String,
    /// When it is expected to be there.
    pub uptime: UptimeClass,
    /// The network's version at which this row last changed.
    pub changed_version: u64,
    /// When it was last seen, by the coordinator's clock. Taken over when the node is added or
    /// loaded; heartbeats count from then on.
    pub last_seen: Option<Timestamp>,
    /// How long ago that was; read by [`Engine::load`](crate::Engine::load) only, so that a
    /// restarted coordinator does not take everybody for gone.
    pub seen_ago: Option<Duration>,
}

/// What is left of a removed node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// The network it belonged to.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// The network's version at which it was removed.
    pub version: u64,
}

/// A relay of the installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayRow {
    /// Its id.
    pub id: RelayId,
    /// Where DERP over TLS is reached: `host:port` each. While there is none, netmaps leave the
    /// relay out.
    pub derp: Vec<String>,
    /// Where STUN is answered: `host:port` each.
    pub stun: Vec<String>,
    /// When it was last seen; see [`NodeRow::last_seen`].
    pub last_seen: Option<Timestamp>,
    /// How long ago that was; see [`NodeRow::seen_ago`].
    pub seen_ago: Option<Duration>,
}

/// Everything that the database holds, at the start.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All networks.
    pub networks: Vec<NetworkRow>,
    /// All nodes.
    pub nodes: Vec<NodeRow>,
    /// All tombstones.
    pub tombstones: Vec<Tombstone>,
    /// All relays.
    pub relays: Vec<RelayRow>,
}

/// A name and addresses set aside for a node whose row is being committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The network that the name is set aside in.
    pub network: NetworkId,
    /// The wished name, or that name with `-1`, `-2`, … when it was taken.
    pub name: NodeName,
    /// Overlay addresses that no other node has.
    pub addrs: OverlayAddrs,
}
