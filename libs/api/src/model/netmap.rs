//! Netmaps: peers, patches, filters, and the chunks they travel in.

use ipnet::IpNet;
use mesh_types::{
    Cursor, FilterRule, NetmapUpdate, PacketFilter, Peer, PeerPatch, PortRange, Relay, SelfNode,
};

use super::addr::port;
use super::node::optional_relay;
use super::{enums, from_bytes, parsed, required};
use crate::error::ProtocolError;
use crate::pb;

/// The most peers that an update may bring; more is taken for a fault of the other side.
pub const MAX_PEERS: usize = 1_000_000;

impl From<Cursor> for pb::Cursor {
    fn from(
        Cursor {
            version,
            epoch,
            volatile,
        }: Cursor,
    ) -> Self {
        Self {
            version,
            epoch,
            volatile_sequence: volatile,
        }
    }
}

impl From<pb::Cursor> for Cursor {
    fn from(
        pb::Cursor {
            version,
            epoch,
            volatile_sequence,
        }: pb::Cursor,
    ) -> Self {
        Self {
            version,
            epoch,
            volatile: volatile_sequence,
        }
    }
}

impl From<SelfNode> for pb::SelfNode {
    fn from(node: SelfNode) -> Self {
        let SelfNode {
            id,
            network,
            network_name,
            name,
            role,
            addrs,
            console_prefix,
            ssh_ca,
        } = node;
        Self {
            id: id.as_bytes().to_vec(),
            network_id: network.as_bytes().to_vec(),
            network: network_name.into(),
            name: name.into(),
            role: pb::Role::from(role).into(),
            addrs: Some(addrs.into()),
            console_prefix,
            ssh_ca,
        }
    }
}

impl TryFrom<pb::SelfNode> for SelfNode {
    type Error = ProtocolError;

    fn try_from(node: pb::SelfNode) -> Result<Self, ProtocolError> {
        let pb::SelfNode {
            id,
            network_id,
            network,
            name,
            role,
            addrs,
            console_prefix,
            ssh_ca,
        } = node;
        Ok(Self {
            id: from_bytes("node.id", &id)?,
            network: from_bytes("node.network_id", &network_id)?,
            network_name: parsed("node.network", &network)?,
            name: parsed("node.name", &name)?,
            role: enums::role(role)?,
            addrs: required("node.addrs", addrs)?.try_into()?,
            console_prefix,
            ssh_ca,
        })
    }
}

impl From<Peer> for pb::Peer {
    fn from(peer: Peer) -> Self {
        let Peer {
            id,
            name,
            role,
            addrs,
            routes,
            wg_key,
            disco_key,
            services,
            ssh_host_keys,
            ssh_user,
            endpoints,
            home_relay,
            state,
        } = peer;
        Self {
            id: id.as_bytes().to_vec(),
            name: name.into(),
            role: pb::Role::from(role).into(),
            addrs: Some(addrs.into()),
            routes: routes.into_iter().map(Into::into).collect(),
            wg_key: wg_key.as_bytes().to_vec(),
            disco_key: disco_key.as_bytes().to_vec(),
            services: services.into_iter().map(Into::into).collect(),
            ssh_host_keys,
            ssh_user,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            home_relay: home_relay
                .map(|id| id.as_bytes().to_vec())
                .unwrap_or_default(),
            state: pb::NodeState::from(state).into(),
            unreported: false,
        }
    }
}

impl TryFrom<pb::Peer> for Peer {
    type Error = ProtocolError;

    fn try_from(peer: pb::Peer) -> Result<Self, ProtocolError> {
        let pb::Peer {
            id,
            name,
            role,
            addrs,
            routes,
            wg_key,
            disco_key,
            services,
            ssh_host_keys,
            ssh_user,
            endpoints,
            home_relay,
            state,
            // Of the update, not of the peer.
            unreported: _,
        } = peer;
        Ok(Self {
            id: from_bytes("peer.id", &id)?,
            name: parsed("peer.name", &name)?,
            role: enums::role(role)?,
            addrs: required("peer.addrs", addrs)?.try_into()?,
            routes: routes
                .into_iter()
                .map(IpNet::try_from)
                .collect::<Result<_, _>>()?,
            wg_key: from_bytes("peer.wg_key", &wg_key)?,
            disco_key: from_bytes("peer.disco_key", &disco_key)?,
            services: services
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            ssh_host_keys,
            ssh_user,
            endpoints: endpoints
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            home_relay: optional_relay("peer.home_relay", &home_relay)?,
            state: enums::node_state(state),
        })
    }
}

impl From<PeerPatch> for pb::PeerPatch {
    fn from(
        PeerPatch {
            id,
            endpoints,
            home_relay,
            state,
        }: PeerPatch,
    ) -> Self {
        Self {
            id: id.as_bytes().to_vec(),
            endpoints: endpoints.map(|list| pb::EndpointList {
                endpoints: list.into_iter().map(Into::into).collect(),
            }),
            home_relay: home_relay
                .map(|relay| relay.map(|id| id.as_bytes().to_vec()).unwrap_or_default()),
            state: state.map_or(pb::NodeState::Unspecified, Into::into).into(),
        }
    }
}

impl TryFrom<pb::PeerPatch> for PeerPatch {
    type Error = ProtocolError;

    fn try_from(patch: pb::PeerPatch) -> Result<Self, ProtocolError> {
        let pb::PeerPatch {
            id,
            endpoints,
            home_relay,
            state,
        } = patch;
        let endpoints = endpoints
            .map(|pb::EndpointList { endpoints }| {
                endpoints
                    .into_iter()
                    .map(TryInto::try_into)
                    .collect::<Result<Vec<_>, _>>()
            })
            .transpose()?;
        let home_relay = home_relay
            .map(|relay| optional_relay("patch.home_relay", &relay))
            .transpose()?;
        let unspecified = state == i32::from(pb::NodeState::Unspecified);
        Ok(Self {
            id: from_bytes("patch.id", &id)?,
            endpoints,
            home_relay,
            state: (!unspecified).then(|| enums::node_state(state)),
        })
    }
}

impl From<PacketFilter> for pb::PacketFilter {
    fn from(PacketFilter { rules }: PacketFilter) -> Self {
        let rules = rules.into_iter().map(
            |FilterRule {
                 sources,
                 protocols,
                 ports,
             }| {
                pb::FilterRule {
                    sources: sources.into_iter().map(Into::into).collect(),
                    protocols: protocols
                        .into_iter()
                        .map(|p| pb::Protocol::from(p).into())
                        .collect(),
                    ports: ports
                        .into_iter()
                        .map(|PortRange { first, last }| pb::PortRange {
                            first: first.into(),
                            last: last.into(),
                        })
                        .collect(),
                }
            },
        );
        Self {
            rules: rules.collect(),
        }
    }
}

impl TryFrom<pb::PacketFilter> for PacketFilter {
    type Error = ProtocolError;

    fn try_from(pb::PacketFilter { rules }: pb::PacketFilter) -> Result<Self, ProtocolError> {
        let rule = |pb::FilterRule {
                        sources,
                        protocols,
                        ports,
                    }| {
            Ok(FilterRule {
                sources: sources
                    .into_iter()
                    .map(IpNet::try_from)
                    .collect::<Result<_, _>>()?,
                // A protocol that this version does not know lets nothing in.
                protocols: protocols.into_iter().filter_map(enums::protocol).collect(),
                ports: ports
                    .into_iter()
                    .map(port_range)
                    .collect::<Result<_, _>>()?,
            })
        };
        Ok(Self {
            rules: rules
                .into_iter()
                .map(rule)
                .collect::<Result<_, ProtocolError>>()?,
        })
    }
}

fn port_range(pb::PortRange { first, last }: pb::PortRange) -> Result<PortRange, ProtocolError> {
    let (first, last) = (port("ports.first", first)?, port("ports.last", last)?);
    if first > last {
        return Err(ProtocolError::invalid(
            "ports",
            "the last port is below the first",
        ));
    }
    Ok(PortRange { first, last })
}

impl From<Relay> for pb::Relay {
    fn from(Relay { id, derp, stun }: Relay) -> Self {
        Self {
            id: id.as_bytes().to_vec(),
            derp,
            stun,
        }
    }
}

impl TryFrom<pb::Relay> for Relay {
    type Error = ProtocolError;

    fn try_from(pb::Relay { id, derp, stun }: pb::Relay) -> Result<Self, ProtocolError> {
        Ok(Self {
            id: from_bytes("relay.id", &id)?,
            derp,
            stun,
        })
    }
}

/// Joins the chunks of an update; gives it out whole, or not at all.
#[derive(Debug, Default)]
pub struct Assembler {
    partial: Option<NetmapUpdate>,
}

impl Assembler {
    /// Takes the next chunk. `Some` when it was the last of its update.
    ///
    /// After an error the update at hand is forgotten; the caller keeps its last good netmap and
    /// opens a new stream.
    pub fn push(&mut self, chunk: pb::NetmapChunk) -> Result<Option<NetmapUpdate>, ProtocolError> {
        let mut update = self.partial.take().unwrap_or_default();
        let last = chunk.last;
        add(&mut update, chunk)?;
        if update.peers.len() > MAX_PEERS || update.removed.len() > MAX_PEERS {
            return Err(ProtocolError::invalid(
                "netmap.peers",
                "more than a million peers",
            ));
        }
        if last {
            return Ok(Some(update));
        }
        self.partial = Some(update);
        Ok(None)
    }
}

fn add(update: &mut NetmapUpdate, chunk: pb::NetmapChunk) -> Result<(), ProtocolError> {
    let pb::NetmapChunk {
        cursor,
        full,
        last,
        node,
        peers,
        removed,
        patches,
        filter,
        relays,
    } = chunk;
    if last {
        update.cursor = required("netmap.cursor", cursor)?.into();
    }
    update.full |= full;
    if let Some(node) = node {
        update.node = Some(node.try_into()?);
    }
    for peer in peers {
        let unreported = peer.unreported;
        let peer = Peer::try_from(peer)?;
        // The last word on a peer counts, as it does for the rest of it.
        match unreported {
            true => update.unreported.insert(peer.id),
            false => update.unreported.remove(&peer.id),
        };
        update.peers.push(peer);
    }
    for id in removed {
        update.removed.insert(from_bytes("netmap.removed", &id)?);
    }
    for patch in patches {
        update.patches.push(patch.try_into()?);
    }
    if let Some(filter) = filter {
        update.filter = Some(filter.try_into()?);
    }
    if let Some(pb::RelayList { relays }) = relays {
        update.relays = Some(
            relays
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
        );
    }
    Ok(())
}
