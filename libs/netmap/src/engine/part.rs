//! Cuts updates into parts of bounded size.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use mesh_types::{NetworkId, NodeId, PacketFilter, Relay, WgPublicKey};

use crate::network::{Network, Told};
use crate::node::Change;
use crate::session::{
    ClientWatch, Content, FullWalk, Header, NodeSession, Outgoing, Position, RouteWatch,
};
use crate::update::{ClientUpdate, PeerEncoder, RouteUpdate, Update};

/// Routes in one part.
const ROUTES: usize = 2_000;
/// Keys in one part.
const CLIENTS: usize = 4_000;
/// What surrounds each item on the wire: tag and length.
const FRAMING: usize = 6;
/// What a part takes without any item: cursor, flags, framing.
const BASE: usize = 96;

/// What is needed to cut netmap updates.
pub(super) struct Cutter<'a> {
    pub(super) encoder: &'a dyn PeerEncoder,
    pub(super) relays: &'a Arc<[Relay]>,
    pub(super) epoch: u64,
    /// The most bytes in one part.
    pub(super) budget: usize,
}

impl Cutter<'_> {
    /// The next part for this session; `None` when it knows everything.
    pub(super) fn netmap(
        &self,
        session: &mut NodeSession,
        network: &mut Network,
    ) -> Option<Update> {
        if session.outgoing.is_none() {
            session.outgoing = Some(self.begin(session, network)?);
        }
        let viewer = session.node;
        let outgoing = session.outgoing.as_mut()?;
        let mut update = Update {
            cursor: outgoing.cursor,
            full: matches!(outgoing.content, Content::Full(_)),
            ..Update::default()
        };
        let mut part = Part {
            update: &mut update,
            used: BASE,
            budget: self.budget,
        };
        let whole = match &mut outgoing.content {
            Content::Full(position) => self.cut_full(&mut part, position, viewer, network),
            Content::Delta(peers) => self.cut_delta(&mut part, peers, viewer, network),
        };
        let used = part.used;
        if !whole || !self.add_header(&mut update, used, outgoing.header, viewer, network) {
            return Some(update);
        }
        update.last = true;
        session.outgoing = None;
        if session.pending.is_nothing() {
            update.cursor = network.cursor(self.epoch);
        }
        Some(update)
    }

    fn begin(&self, session: &mut NodeSession, network: &Network) -> Option<Outgoing> {
        if session.pending.is_nothing() {
            return None;
        }
        let pending = std::mem::take(&mut session.pending);
        let cursor = network.cursor(self.epoch);
        if pending.full {
            let class = network.nodes.get(&session.node)?.class;
            let position = Position {
                class,
                neighbour: 0,
                after: None,
            };
            return Some(Outgoing {
                cursor,
                header: Header::ALL,
                content: Content::Full(position),
            });
        }
        let content = Content::Delta(pending.peers);
        Some(Outgoing {
            cursor,
            header: pending.header,
            content,
        })
    }

    /// Whether the map ends in this part.
    fn cut_full(
        &self,
        part: &mut Part<'_>,
        position: &mut Position,
        viewer: NodeId,
        network: &mut Network,
    ) -> bool {
        while let Some((neighbour, id)) = position.next(viewer, network) {
            if let Some(node) = network.nodes.get_mut(&id) {
                let bytes = node.encoded(self.encoder);
                if !part.fits(bytes.len()) {
                    return false;
                }
                part.update.peers.push(bytes);
            }
            position.neighbour = neighbour;
            position.after = Some(id);
        }
        true
    }

    /// Whether the delta ends in this part.
    fn cut_delta(
        &self,
        part: &mut Part<'_>,
        peers: &mut BTreeMap<NodeId, Change>,
        viewer: NodeId,
        network: &mut Network,
    ) -> bool {
        while let Some(entry) = peers.first_entry() {
            let id = *entry.key();
            let told = network.tell(viewer, id, *entry.get(), self.encoder);
            let len = match &told {
                Told::Peer(bytes) | Told::Patch(bytes) => bytes.len(),
                Told::Removed => id.as_bytes().len(),
            };
            if !part.fits(len) {
                return false;
            }
            match told {
                Told::Peer(bytes) => part.update.peers.push(bytes),
                Told::Patch(bytes) => part.update.patches.push(bytes),
                Told::Removed => part.update.removed.push(id),
            }
            entry.remove();
        }
        true
    }

    /// Adds what the update tells besides peers; false when it needs a part of its own.
    fn add_header(
        &self,
        update: &mut Update,
        used: usize,
        header: Header,
        viewer: NodeId,
        network: &Network,
    ) -> bool {
        let Some(node) = network.nodes.get(&viewer) else {
            return true;
        };
        let filter = header
            .has(Header::FILTER)
            .then(|| network.class_of(node).filter(&node.row.services));
        let relays = header.has(Header::RELAYS).then(|| Arc::clone(self.relays));
        let this = header.has(Header::NODE).then(|| network.self_node(node));
        let len = filter.as_ref().map_or(0, filter_len)
            + relays.as_deref().map_or(0, relays_len)
            + this.as_ref().map_or(0, |node| 512 + node.ssh_ca.len());
        if used > BASE && used + len > self.budget {
            return false;
        }
        update.filter = filter;
        update.relays = relays;
        update.node = this;
        true
    }
}

/// A part and how full it is.
struct Part<'a> {
    update: &'a mut Update,
    used: usize,
    budget: usize,
}

impl Part<'_> {
    /// Makes room for an item; the first one is always let in.
    fn fits(&mut self, len: usize) -> bool {
        let after = self.used + len + FRAMING;
        let fits = after <= self.budget || self.used == BASE;
        if fits {
            self.used = after;
        }
        fits
    }
}

impl Position {
    /// The next peer of a full map, and the neighbour that it is in.
    fn next(&self, viewer: NodeId, network: &Network) -> Option<(usize, NodeId)> {
        let neighbours = network
            .classes
            .at(self.class)
            .neighbours
            .get(self.neighbour..)?;
        let mut after = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        for (neighbour, class) in (self.neighbour..).zip(neighbours) {
            let mut members = network
                .classes
                .at(*class)
                .members
                .range((after, Bound::Unbounded));
            if let Some((id, _)) = members.find(|(id, _)| **id != viewer) {
                return Some((neighbour, *id));
            }
            after = Bound::Unbounded;
        }
        None
    }
}

fn filter_len(filter: &PacketFilter) -> usize {
    // A source takes at most 16 + 2 + 2 bytes with its framing, a range of ports at most 8.
    let rules = filter.rules.iter();
    rules
        .map(|rule| 24 * rule.sources.len() + 12 * rule.ports.len() + 32)
        .sum()
}

fn relays_len(relays: &[Relay]) -> usize {
    let addrs = |relay: &Relay| -> usize {
        relay
            .derp
            .iter()
            .chain(&relay.stun)
            .map(|addr| addr.len() + FRAMING)
            .sum()
    };
    relays.iter().map(|relay| 32 + addrs(relay)).sum()
}

/// The next part for a watch of routes.
pub(super) fn routes(watch: &mut RouteWatch, network: &Network) -> Option<RouteUpdate> {
    let after = match watch.full {
        FullWalk::Start => Bound::Unbounded,
        FullWalk::After(id) => Bound::Excluded(id),
        FullWalk::Done => return route_changes(watch, network),
    };
    let mut update = RouteUpdate {
        full: watch.full == FullWalk::Start,
        ..RouteUpdate::default()
    };
    watch.full = FullWalk::Done;
    for id in network
        .nodes
        .range((after, Bound::Unbounded))
        .map(|(id, _)| *id)
    {
        update.changed.extend(network.route(id));
        if update.changed.len() == ROUTES {
            watch.full = FullWalk::After(id);
            break;
        }
    }
    if update.full || !update.changed.is_empty() {
        return Some(update);
    }
    route_changes(watch, network)
}

fn route_changes(watch: &mut RouteWatch, network: &Network) -> Option<RouteUpdate> {
    let mut update = RouteUpdate::default();
    while update.changed.len() + update.removed.len() < ROUTES
        && let Some(id) = watch.pending.pop_first()
    {
        match network.route(id) {
            Some(route) => update.changed.push(route),
            None => update.removed.push(id),
        }
    }
    (update != RouteUpdate::default()).then_some(update)
}

/// The next part for a watch of the relays' clients.
pub(super) fn clients(
    watch: &mut ClientWatch,
    keys: &BTreeMap<WgPublicKey, NodeId>,
    homes: &BTreeMap<NodeId, NetworkId>,
) -> Option<ClientUpdate> {
    let network_of = |key: &WgPublicKey| keys.get(key).and_then(|node| homes.get(node)).copied();
    let mut update = ClientUpdate::default();
    let after = match watch.full {
        FullWalk::Start => Bound::Unbounded,
        FullWalk::After(key) => Bound::Excluded(key),
        FullWalk::Done => {
            while update.clients.len() + update.removed.len() < CLIENTS
                && let Some(key) = watch.pending.pop_first()
            {
                match network_of(&key) {
                    Some(network) => update.clients.push((key, network)),
                    None => update.removed.push(key),
                }
            }
            update.last = true;
            let told = !update.clients.is_empty() || !update.removed.is_empty();
            return told.then_some(update);
        }
    };
    update.full = true;
    let mut rest = keys.range((after, Bound::Unbounded)).map(|(key, _)| *key);
    for key in rest.by_ref().take(CLIENTS) {
        update
            .clients
            .extend(network_of(&key).map(|network| (key, network)));
    }
    update.last = rest.next().is_none();
    watch.full = match update.clients.last() {
        Some((key, _)) if !update.last => FullWalk::After(*key),
        _ => FullWalk::Done,
    };
    Some(update)
}
