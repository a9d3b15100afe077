//! Identity facts: what the caller has committed to its database.

use std::time::Instant;

use mesh_types::{NetworkId, NodeId, NodeName, Relay, RelayId};

use super::{Engine, RelayEntry};
use crate::error::{Rejected, ReserveError};
use crate::network::Network;
use crate::node::{Change, Node, peers_see};
use crate::presence::Subject;
use crate::row::{NetworkRow, NodeRow, RelayRow, Reservation};
use crate::session::{Header, Kind};
use crate::update::{EndReason, SessionId};

impl Engine {
    /// A network was created.
    pub fn network_added(&mut self, row: NetworkRow) -> Result<(), Rejected> {
        if self.networks.contains_key(&row.id) {
            return Err(Rejected::Exists);
        }
        if self.network_names.contains_key(&row.name) {
            return Err(Rejected::NameTaken);
        }
        self.network_names.insert(row.name.clone(), row.id);
        self.networks.insert(row.id, Network::new(row));
        Ok(())
    }

    /// A network's name, certificate authority or version changed.
    pub fn network_changed(&mut self, row: NetworkRow) -> Result<(), Rejected> {
        if self
            .network_names
            .get(&row.name)
            .is_some_and(|id| *id != row.id)
        {
            return Err(Rejected::NameTaken);
        }
        let network = self
            .networks
            .get_mut(&row.id)
            .ok_or(Rejected::UnknownNetwork)?;
        self.network_names.remove(&network.row.name);
        self.network_names.insert(row.name.clone(), row.id);
        let renamed = network.row.name != row.name;
        let shows = renamed || network.row.ssh_ca != row.ssh_ca;
        network.raise(row.version);
        network.row.name = row.name;
        network.row.ssh_ca = row.ssh_ca;
        for (id, node) in network.nodes.iter().filter(|_| shows) {
            if let Some(session) = node.session {
                self.outbox.header(session, Header::NODE);
            }
            if renamed {
                self.outbox.route(network, *id);
            }
        }
        Ok(())
    }

    /// A network was deleted, with all its nodes.
    pub fn network_removed(&mut self, id: NetworkId) -> Result<(), Rejected> {
        let network = self.networks.get_mut(&id).ok_or(Rejected::UnknownNetwork)?;
        let mut sessions = std::mem::take(&mut network.route_watches);
        for node in network.nodes.values_mut() {
            sessions.extend(node.session.take());
        }
        let nodes: Vec<NodeId> = network.nodes.keys().copied().collect();
        for session in &sessions {
            self.outbox.end(*session, EndReason::Removed);
        }
        for node in nodes {
            self.node_drop(node, None);
        }
        if let Some(network) = self.networks.remove(&id) {
            self.network_names.remove(&network.row.name);
        }
        Ok(())
    }

    /// A node was enrolled.
    pub fn node_added(&mut self, row: NodeRow) -> Result<(), Rejected> {
        self.node_insert(row, None)
    }

    /// Adds a node; `restore` is the time at a start, when it may have been there just before.
    pub(super) fn node_insert(
        &mut self,
        row: NodeRow,
        restore: Option<Instant>,
    ) -> Result<(), Rejected> {
        if self.homes.contains_key(&row.id) {
            return Err(Rejected::Exists);
        }
        self.node_check(&row)?;
        let network = self
            .networks
            .get_mut(&row.network)
            .ok_or(Rejected::UnknownNetwork)?;
        let seen = row.seen_ago.zip(restore);
        let presence = self
            .deadlines
            .restore(Subject::Node(row.id), row.last_seen, seen);
        let class = network
            .classes
            .of(row.role, &row.owner, self.rules.as_ref());
        let (id, key) = (row.id, row.wg_key);

        self.homes.insert(id, network.row.id);
        self.wg_keys.insert(key, id);
        self.disco_keys.insert(row.disco_key, id);
        self.overlay.extend(row.addrs.iter().map(|ip| (ip, id)));
        self.addresses.take(row.addrs);
        network.reserved.remove(&row.name);
        network.names.insert(row.name.clone(), id);
        network.counts.add(presence.state);
        network.classes.at_mut(class).members.insert(id, row.addrs);
        if restore.is_none() {
            network.raise(row.changed_version);
        } else {
            // Rows of a snapshot come in no order of version; none of them is late.
            network.row.version = network.row.version.max(row.changed_version);
        }
        network.note_change(id, None, row.changed_version);
        network.nodes.insert(id, Node::new(row, class, presence));
        self.outbox.peer(network, class, id, Change::WHOLE);
        self.outbox.route(network, id);
        self.outbox.client(key);
        let home = network.row.id;
        self.mark_dirty(home, class);
        Ok(())
    }

    /// A node's identity facts changed.
    pub fn node_changed(&mut self, row: NodeRow) -> Result<(), Rejected> {
        let home = *self.homes.get(&row.id).ok_or(Rejected::UnknownNode)?;
        if home != row.network {
            return Err(Rejected::OtherNetwork);
        }
        self.node_check(&row)?;
        let network = self
            .networks
            .get_mut(&home)
            .ok_or(Rejected::UnknownNetwork)?;
        let class = network
            .classes
            .of(row.role, &row.owner, self.rules.as_ref());
        let node = network
            .nodes
            .get_mut(&row.id)
            .ok_or(Rejected::UnknownNode)?;
        let (id, session, old_class) = (row.id, node.session, node.class);
        let version = row.changed_version;
        let before = std::mem::replace(&mut node.row, row);
        let after = node.row.clone();
        node.invalidate();
        network.raise(version);
        network.note_change(id, Some(before.changed_version), version);
        if before.name != after.name {
            network.names.remove(&before.name);
            network.reserved.remove(&after.name);
            network.names.insert(after.name.clone(), id);
        }
        if class != old_class {
            network.classes.at_mut(old_class).members.remove(&id);
            if let Some(session) = session {
                network.classes.at_mut(old_class).sessions.remove(&session);
                network.classes.at_mut(class).sessions.insert(session);
                self.outbox.restart(session);
            }
            let since = network.row.version;
            if let Some(node) = network.nodes.get_mut(&id) {
                node.class = class;
                node.class_since = since;
            }
            self.outbox.peer(network, old_class, id, Change::WHOLE);
        }
        network
            .classes
            .at_mut(class)
            .members
            .insert(id, after.addrs);
        if class != old_class || peers_see(&before, &after) {
            self.outbox.peer(network, class, id, Change::WHOLE);
            self.outbox.route(network, id);
        }
        if let Some(session) = session {
            if (&before.name, before.role, before.addrs) != (&after.name, after.role, after.addrs) {
                self.outbox.header(session, Header::NODE);
            }
            if before.services != after.services {
                self.outbox.header(session, Header::FILTER);
            }
        }
        self.node_reindex(&before, &after);
        if class != old_class {
            self.mark_dirty(home, old_class);
        }
        if class != old_class || before.addrs != after.addrs {
            self.mark_dirty(home, class);
        }
        Ok(())
    }

    /// A node was removed, or left. `version` is its tombstone's.
    pub fn node_removed(&mut self, id: NodeId, version: u64) -> Result<(), Rejected> {
        if !self.homes.contains_key(&id) {
            return Err(Rejected::UnknownNode);
        }
        self.node_drop(id, Some(version));
        Ok(())
    }

    /// A relay was enrolled.
    pub fn relay_added(&mut self, row: RelayRow) -> Result<(), Rejected> {
        self.relay_insert(row, None)
    }

    pub(super) fn relay_insert(
        &mut self,
        row: RelayRow,
        restore: Option<Instant>,
    ) -> Result<(), Rejected> {
        if self.relays.contains_key(&row.id) {
            return Err(Rejected::Exists);
        }
        let id = row.id;
        let seen = row.seen_ago.zip(restore);
        let presence = self
            .deadlines
            .restore(Subject::Relay(id), row.last_seen, seen);
        self.relays.insert(id, RelayEntry { row, presence });
        self.relays_changed();
        Ok(())
    }

    /// A relay's addresses changed.
    pub fn relay_changed(&mut self, row: RelayRow) -> Result<(), Rejected> {
        let relay = self.relays.get_mut(&row.id).ok_or(Rejected::UnknownRelay)?;
        relay.row = row;
        self.relays_changed();
        Ok(())
    }

    /// A relay was removed.
    pub fn relay_removed(&mut self, id: RelayId) -> Result<(), Rejected> {
        let mut relay = self.relays.remove(&id).ok_or(Rejected::UnknownRelay)?;
        self.deadlines
            .cancel(Subject::Relay(id), &mut relay.presence);
        let belongs = |kind: &Kind| match kind {
            Kind::Clients(watch) => watch.relay == id,
            Kind::Relay(relay) => *relay == id,
            Kind::Node(_) | Kind::Routes(_) | Kind::Ended(_) => false,
        };
        let sessions: Vec<SessionId> = self
            .outbox
            .sessions
            .iter()
            .filter(|(_, session)| belongs(&session.kind))
            .map(|(id, _)| *id)
            .collect();
        for session in sessions {
            self.outbox.end(session, EndReason::Removed);
        }
        self.relays_changed();
        Ok(())
    }

    /// Sets a name and addresses aside for a node that is about to be committed. They stay set
    /// aside until the node is added with them, or [`Engine::release`].
    pub fn reserve(
        &mut self,
        network: NetworkId,
        wished: &NodeName,
    ) -> Result<Reservation, ReserveError> {
        let home = self
            .networks
            .get_mut(&network)
            .ok_or(ReserveError::UnknownNetwork)?;
        let free =
            |name: &NodeName| !home.names.contains_key(name) && !home.reserved.contains(name);
        let name = std::iter::once(wished.clone())
            .chain((1..=u32::MAX).map(|n| wished.with_suffix(n)))
            .find(free)
            .ok_or(ReserveError::AddressesExhausted)?;
        let addrs = self
            .addresses
            .allocate()
            .ok_or(ReserveError::AddressesExhausted)?;
        home.reserved.insert(name.clone());
        Ok(Reservation {
            network,
            name,
            addrs,
        })
    }

    /// Gives back what was set aside: the node was not committed.
    pub fn release(&mut self, reservation: &Reservation) {
        if let Some(network) = self.networks.get_mut(&reservation.network) {
            network.reserved.remove(&reservation.name);
        }
        if !reservation
            .addrs
            .iter()
            .any(|ip| self.overlay.contains_key(&ip))
        {
            self.addresses.give_back(reservation.addrs);
        }
    }

    /// Whether another node has something that must be this one's alone.
    fn node_check(&self, row: &NodeRow) -> Result<(), Rejected> {
        let network = self
            .networks
            .get(&row.network)
            .ok_or(Rejected::UnknownNetwork)?;
        let other = |id: Option<&NodeId>| id.is_some_and(|id| *id != row.id);
        if other(network.names.get(&row.name)) {
            return Err(Rejected::NameTaken);
        }
        if row.addrs.iter().any(|ip| other(self.overlay.get(&ip))) {
            return Err(Rejected::AddressTaken);
        }
        if other(self.wg_keys.get(&row.wg_key)) || other(self.disco_keys.get(&row.disco_key)) {
            return Err(Rejected::KeyTaken);
        }
        Ok(())
    }

    /// Follows a node's change in the indices over all networks.
    fn node_reindex(&mut self, before: &NodeRow, after: &NodeRow) {
        if before.addrs != after.addrs {
            for ip in before.addrs.iter() {
                self.overlay.remove(&ip);
            }
            self.addresses.give_back(before.addrs);
            self.overlay
                .extend(after.addrs.iter().map(|ip| (ip, after.id)));
            self.addresses.take(after.addrs);
        }
        if before.disco_key != after.disco_key {
            self.disco_keys.remove(&before.disco_key);
            self.disco_keys.insert(after.disco_key, after.id);
        }
        if before.wg_key != after.wg_key {
            self.wg_keys.remove(&before.wg_key);
            self.wg_keys.insert(after.wg_key, after.id);
            self.outbox.client(before.wg_key);
            self.outbox.client(after.wg_key);
        }
    }

    /// Forgets a node; without a version nobody needs to be told, since the network goes too.
    fn node_drop(&mut self, id: NodeId, version: Option<u64>) {
        let Some(network) = self
            .homes
            .remove(&id)
            .and_then(|home| self.networks.get_mut(&home))
        else {
            return;
        };
        let Some(mut node) = network.nodes.remove(&id) else {
            return;
        };
        self.deadlines.cancel(Subject::Node(id), &mut node.presence);
        self.gate.forget(id);
        self.wg_keys.remove(&node.row.wg_key);
        self.disco_keys.remove(&node.row.disco_key);
        for ip in node.row.addrs.iter() {
            self.overlay.remove(&ip);
        }
        self.addresses.give_back(node.row.addrs);
        network.forget(&node);
        self.outbox.client(node.row.wg_key);
        let Some(version) = version else {
            return;
        };
        network.raise(version);
        network.bury(id, version, self.settings.keep_tombstones);
        if let Some(session) = node.session {
            network.classes.at_mut(node.class).sessions.remove(&session);
            self.outbox.end(session, EndReason::Removed);
        }
        for watch in network.route_watches.clone() {
            let by = self
                .outbox
                .sessions
                .get(&watch)
                .map(|session| &session.kind);
            if matches!(by, Some(Kind::Routes(routes)) if routes.by == Some(id)) {
                network.route_watches.remove(&watch);
                self.outbox.end(watch, EndReason::Removed);
            }
        }
        self.outbox.peer(network, node.class, id, Change::WHOLE);
        self.outbox.route(network, id);
        let home = network.row.id;
        self.mark_dirty(home, node.class);
    }

    /// The members of this class, or their addresses, changed: so may the filters of all who see
    /// them.
    fn mark_dirty(&mut self, home: NetworkId, class: u32) {
        if let Some(network) = self.networks.get(&home) {
            let neighbours = &network.classes.at(class).neighbours;
            self.dirty
                .extend(neighbours.iter().map(|neighbour| (home, *neighbour)));
            self.dirty.insert((home, class));
        }
    }

    /// Tells all nodes of the relays, when there is something new to tell.
    fn relays_changed(&mut self) {
        let usable = self
            .relays
            .values()
            .filter(|relay| !relay.row.derp.is_empty());
        let list: Vec<Relay> = usable
            .map(|relay| Relay {
                id: relay.row.id,
                derp: relay.row.derp.clone(),
                stun: relay.row.stun.clone(),
            })
            .collect();
        if *list == *self.relay_list {
            return;
        }
        self.relay_list = list.into();
        let sessions: Vec<SessionId> = self.outbox.sessions.keys().copied().collect();
        for session in sessions {
            self.outbox.header(session, Header::RELAYS);
        }
    }
}
