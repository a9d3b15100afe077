//! The netmap: what one node knows about its network, and how that knowledge changes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::addr::{Endpoint, OverlayAddrs};
use crate::filter::PacketFilter;
use crate::id::{NetworkId, NodeId, RelayId};
use crate::key::{DiscoPublicKey, WgPublicKey};
use crate::name::{NetworkName, NodeName};
use crate::node::{NodeState, Role};
use crate::service::Service;

/// How far a session has followed its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Cursor {
    /// Version of the network's identity facts.
    pub version: u64,
    /// Which coordinator process counted `volatile`; a foreign epoch makes `volatile` worthless.
    pub epoch: u64,
    /// Sequence of the network's volatile facts within the epoch.
    pub volatile: u64,
}

/// The node's own entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfNode {
    /// Its id.
    pub id: NodeId,
    /// Its network.
    pub network: NetworkId,
    /// Its network's name.
    pub network_name: NetworkName,
    /// Its name, as the coordinator settled it.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// Its overlay addresses.
    pub addrs: OverlayAddrs,
    /// Path prefix of its console at the gateway; starts and ends with `/`.
    pub console_prefix: String,
    /// The network's SSH certificate authority: an OpenSSH public key line, or empty.
    pub ssh_ca: String,
}

/// Another node that this one may talk to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub id: NodeId,
    /// Its name in the network.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// Its overlay addresses; exactly these are accepted from it, together with `routes`.
    pub addrs: OverlayAddrs,
    /// Further prefixes behind it.
    pub routes: Vec<IpNet>,
    /// Its WireGuard key.
    pub wg_key: WgPublicKey,
    /// Its disco key.
    pub disco_key: DiscoPublicKey,
    /// What it publishes.
    pub services: Vec<Service>,
    /// Its pinned SSH host keys: OpenSSH public key lines.
    pub ssh_host_keys: Vec<String>,
    /// The local user its SSH logs in as by default; empty when it did not say.
    pub ssh_user: String,
    /// Volatile: where it can be reached on the underlay.
    pub endpoints: Vec<Endpoint>,
    /// Volatile: the relay it listens on.
    pub home_relay: Option<RelayId>,
    /// Volatile: by its heartbeats.
    pub state: NodeState,
}

/// New volatile facts of a peer that is already known. `None` leaves a fact as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerPatch {
    /// Which peer.
    pub id: NodeId,
    /// Where it can be reached now.
    pub endpoints: Option<Vec<Endpoint>>,
    /// The relay it listens on now; the inner `None` is "on none".
    pub home_relay: Option<Option<RelayId>>,
    /// How it is doing now.
    pub state: Option<NodeState>,
}

/// A relay of the installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Its id; its TLS name is `relay-<id>.mesh.internal`.
    pub id: RelayId,
    /// Where DERP over TLS is reached: `host:port` each, tried in order.
    pub derp: Vec<String>,
    /// Where STUN is answered: `host:port` each; may be empty.
    pub stun: Vec<String>,
}

/// All that a node knows of its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netmap {
    /// How far this follows the network.
    pub cursor: Cursor,
    /// The node itself.
    pub node: SelfNode,
    /// Its peers.
    pub peers: BTreeMap<NodeId, Peer>,
    /// What it lets in.
    pub filter: PacketFilter,
    /// The relays it may use.
    pub relays: Vec<Relay>,
}

/// One step from one netmap to the next, whole: chunks of the wire are joined before this is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetmapUpdate {
    /// Where the network stands after this step.
    pub cursor: Cursor,
    /// Start from nothing: every peer not in `peers` is gone. Only `unreported` looks back.
    pub full: bool,
    /// The node's own entry, when it changed; always there in a full update.
    pub node: Option<SelfNode>,
    /// Peers that are new or changed.
    pub peers: Vec<Peer>,
    /// Those of `peers` that have not told endpoints and home relay since the coordinator started:
    /// what is remembered of both is better than what it knows.
    pub unreported: BTreeSet<NodeId>,
    /// Peers that are gone.
    pub removed: BTreeSet<NodeId>,
    /// New volatile facts of known peers; those of unknown peers are ignored.
    pub patches: Vec<PeerPatch>,
    /// The filter, when it changed; always there in a full update.
    pub filter: Option<PacketFilter>,
    /// The relays, when they changed; always there in a full update.
    pub relays: Option<Vec<Relay>>,
}

/// An update cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUpdate {
    /// The first update of all was not a full one.
    #[error("a delta arrived before any full netmap")]
    DeltaFirst,
    /// A full update lacks a part that it must have.
    #[error("a full netmap arrived without its {0}")]
    Incomplete(&'static str),
}

impl Netmap {
    /// The netmap after `update`, starting from `before` (`None` for a node that has none yet).
    ///
    /// A full update takes from `before` only where its unreported peers were: a coordinator that
    /// has just started has not heard of it, and the paths may work all the same.
    ///
    /// Cost: proportional to the update, or to the whole map when it is a full one.
    pub fn apply(before: Option<Self>, update: NetmapUpdate) -> Result<Self, InvalidUpdate> {
        let mut update = update;
        if let Some(before) = &before {
            let unreported = |peer: &&mut Peer| update.unreported.contains(&peer.id);
            for peer in update.peers.iter_mut().filter(unreported) {
                if let Some(known) = before.peers.get(&peer.id) {
                    peer.endpoints.clone_from(&known.endpoints);
                    peer.home_relay = known.home_relay;
                }
            }
        }
        let peers = update.peers.into_iter().map(|peer| (peer.id, peer));
        if update.full {
            return Ok(Self {
                cursor: update.cursor,
                node: update.node.ok_or(InvalidUpdate::Incomplete("own node"))?,
                peers: peers.collect(),
                filter: update
                    .filter
                    .ok_or(InvalidUpdate::Incomplete("packet filter"))?,
                relays: update.relays.ok_or(InvalidUpdate::Incomplete("relays"))?,
            });
        }
        let mut map = before.ok_or(InvalidUpdate::DeltaFirst)?;
        map.cursor = update.cursor;
        if let Some(node) = update.node {
            map.node = node;
        }
        for id in &update.removed {
            map.peers.remove(id);
        }
        map.peers.extend(peers);
        for patch in update.patches {
            if let Some(peer) = map.peers.get_mut(&patch.id) {
                peer.apply(patch);
            }
        }
        if let Some(filter) = update.filter {
            map.filter = filter;
        }
        if let Some(relays) = update.relays {
            map.relays = relays;
        }
        Ok(map)
    }
}

impl Peer {
    /// Takes over the facts that the patch holds.
    pub fn apply(&mut self, patch: PeerPatch) {
        let PeerPatch {
            id: _,
            endpoints,
            home_relay,
            state,
        } = patch;
        if let Some(endpoints) = endpoints {
            self.endpoints = endpoints;
        }
        if let Some(home_relay) = home_relay {
            self.home_relay = home_relay;
        }
        if let Some(state) = state {
            self.state = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8, endpoints: &[&str], home_relay: Option<RelayId>) -> Peer {
        let addr = |text: &&str| text.parse().expect("an address");
        Peer {
            id: NodeId::from_bytes([n; 16]),
            name: format!("worker-{n}").parse().expect("a name"),
            role: Role::Worker,
            addrs: OverlayAddrs {
                v4: [100, 64, 0, n].into(),
                v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, n.into()].into(),
            },
            routes: Vec::new(),
            wg_key: WgPublicKey::from_bytes([n; 32]),
            disco_key: DiscoPublicKey::from_bytes([n; 32]),
            services: Vec::new(),
            ssh_host_keys: Vec::new(),
            ssh_user: String::new(),
            endpoints: endpoints.iter().map(addr).collect(),
            home_relay,
            state: NodeState::Online,
        }
    }

    fn full(peers: Vec<Peer>) -> NetmapUpdate {
        NetmapUpdate {
            full: true,
            node: Some(SelfNode {
                id: NodeId::from_bytes([9; 16]),
                network: NetworkId::from_bytes([1; 16]),
                network_name: NetworkName::default_network(),
                name: "own".parse().expect("a name"),
                role: Role::Worker,
                addrs: OverlayAddrs {
                    v4: [100, 64, 0, 9].into(),
                    v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 9].into(),
                },
                console_prefix: String::new(),
                ssh_ca: String::new(),
            }),
            peers,
            filter: Some(PacketFilter::default()),
            relays: Some(Vec::new()),
            ..NetmapUpdate::default()
        }
    }

    fn whereabouts(map: &Netmap) -> Vec<(Vec<Endpoint>, Option<RelayId>)> {
        let peers = map.peers.values();
        peers
            .map(|peer| (peer.endpoints.clone(), peer.home_relay))
            .collect()
    }

    /// Also in a full netmap, and in a peer whose name has changed.
    #[test]
    fn what_a_fresh_coordinator_has_not_heard_yet_is_not_forgotten() {
        let relay = RelayId::from_bytes([7; 16]);
        let known = vec![
            peer(1, &["192.0.2.1:51820"], Some(relay)),
            peer(2, &["192.0.2.2:51820"], None),
        ];
        let map = Netmap::apply(None, full(known)).expect("whole");
        let before = whereabouts(&map);

        // The second has told that it is nowhere, and there is a third, of which nothing is known.
        let fresh = vec![peer(1, &[], None), peer(2, &[], None), peer(3, &[], None)];
        let unreported: BTreeSet<NodeId> = [fresh[0].id, fresh[2].id].into();
        let again = NetmapUpdate {
            unreported: unreported.clone(),
            ..full(fresh)
        };
        let map = Netmap::apply(Some(map), again).expect("whole");
        let nowhere = (Vec::new(), None);
        let now = [before[0].clone(), nowhere.clone(), nowhere.clone()];
        assert_eq!(whereabouts(&map), now);

        let renamed = Peer {
            name: "renamed".parse().expect("a name"),
            ..peer(1, &[], None)
        };
        let delta = |unreported| NetmapUpdate {
            peers: vec![renamed.clone()],
            unreported,
            ..NetmapUpdate::default()
        };
        let map = Netmap::apply(Some(map), delta(unreported)).expect("a change");
        assert_eq!(whereabouts(&map), now);
        assert_eq!(map.peers[&renamed.id].name, renamed.name);
        let map = Netmap::apply(Some(map), delta(BTreeSet::new())).expect("a change");
        assert_eq!(whereabouts(&map)[0], nowhere, "it has told so");
    }

    #[test]
    fn who_is_not_in_a_full_netmap_is_gone_and_what_it_lacks_is_an_error() {
        let both = vec![peer(1, &[], None), peer(2, &[], None)];
        let map = Netmap::apply(None, full(both)).expect("whole");
        let again = NetmapUpdate {
            unreported: map.peers.keys().copied().collect(),
            ..full(vec![peer(2, &[], None)])
        };
        let map = Netmap::apply(Some(map), again).expect("whole");
        assert_eq!(map.peers.len(), 1);
        let lacking = NetmapUpdate {
            filter: None,
            ..full(Vec::new())
        };
        assert_eq!(
            Netmap::apply(Some(map), lacking),
            Err(InvalidUpdate::Incomplete("packet filter"))
        );
        assert_eq!(
            Netmap::apply(None, NetmapUpdate::default()),
            Err(InvalidUpdate::DeltaFirst)
        );
    }
}
