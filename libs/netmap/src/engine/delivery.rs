//! Sessions and watches: opened and closed, announced and polled.

use std::time::Instant;

use mesh_types::{Cursor, NetworkId, NodeId, RelayId};

use super::{Engine, part};
use crate::error::Rejected;
use crate::session::{ClientWatch, FullWalk, Header, Kind, NodeSession, Pending, RouteWatch};
use crate::update::{EndReason, Opened, Output, SessionId};

impl Engine {
    /// A node connected. With a cursor it is told what changed since, when that is still known;
    /// otherwise everything. An older session of the node ends.
    pub fn session_open(
        &mut self,
        id: SessionId,
        node: NodeId,
        cursor: Option<Cursor>,
        now: Instant,
    ) -> Result<Opened, Rejected> {
        self.check_unused(id)?;
        let home = *self.homes.get(&node).ok_or(Rejected::UnknownNode)?;
        let network = self
            .networks
            .get_mut(&home)
            .ok_or(Rejected::UnknownNetwork)?;
        if let Some(wait) = self.gate.ask(node, now) {
            return Ok(Opened::Wait(wait));
        }
        let epoch = self.settings.epoch;
        let viewer = network.nodes.get_mut(&node).ok_or(Rejected::UnknownNode)?;
        let class = viewer.class;
        let replaced = viewer.session.replace(id);
        let peers = network
            .nodes
            .get(&node)
            .and_then(|viewer| network.since(viewer, cursor?, epoch));
        let pending = Pending {
            full: peers.is_none(),
            answer: true,
            header: Header::ALL,
            peers: peers.unwrap_or_default(),
        };
        if let Some(replaced) = replaced {
            network.classes.at_mut(class).sessions.remove(&replaced);
            self.outbox.end(replaced, EndReason::Replaced);
        }
        network.classes.at_mut(class).sessions.insert(id);
        let session = NodeSession {
            node,
            network: home,
            outgoing: None,
            pending,
        };
        self.outbox.open(id, Kind::Node(session));
        Ok(Opened::Admitted)
    }

    /// A gateway watches the routes of a network; the watch ends with the node `by`.
    pub fn watch_routes(
        &mut self,
        id: SessionId,
        network: NetworkId,
        by: Option<NodeId>,
    ) -> Result<(), Rejected> {
        self.check_unused(id)?;
        let home = self
            .networks
            .get_mut(&network)
            .ok_or(Rejected::UnknownNetwork)?;
        if by.is_some_and(|node| !home.nodes.contains_key(&node)) {
            return Err(Rejected::UnknownNode);
        }
        home.route_watches.insert(id);
        let pending = std::collections::BTreeSet::new();
        let watch = RouteWatch {
            network,
            by,
            full: FullWalk::Start,
            pending,
        };
        self.outbox.open(id, Kind::Routes(watch));
        Ok(())
    }

    /// A relay watches who may use it.
    pub fn watch_clients(&mut self, id: SessionId, relay: RelayId) -> Result<(), Rejected> {
        self.check_unused(id)?;
        if !self.relays.contains_key(&relay) {
            return Err(Rejected::UnknownRelay);
        }
        self.outbox.client_watches.insert(id);
        let pending = std::collections::BTreeSet::new();
        let watch = ClientWatch {
            relay,
            full: FullWalk::Start,
            pending,
        };
        self.outbox.open(id, Kind::Clients(watch));
        Ok(())
    }

    /// A relay connected. It has no netmap; the session only ends with the relay.
    pub fn relay_session_open(&mut self, id: SessionId, relay: RelayId) -> Result<(), Rejected> {
        self.check_unused(id)?;
        if !self.relays.contains_key(&relay) {
            return Err(Rejected::UnknownRelay);
        }
        self.outbox.open(id, Kind::Relay(relay));
        Ok(())
    }

    /// A session or watch was closed by its other side. Closing twice is fine.
    pub fn session_close(&mut self, id: SessionId) {
        let Some(session) = self.outbox.sessions.remove(&id) else {
            return;
        };
        match session.kind {
            Kind::Node(session) => {
                if let Some(network) = self.networks.get_mut(&session.network)
                    && let Some(node) = network.nodes.get_mut(&session.node)
                {
                    node.session.take_if(|current| *current == id);
                    let class = node.class;
                    network.classes.at_mut(class).sessions.remove(&id);
                }
            }
            Kind::Routes(watch) => {
                if let Some(network) = self.networks.get_mut(&watch.network) {
                    network.route_watches.remove(&id);
                }
            }
            Kind::Clients(_) => {
                self.outbox.client_watches.remove(&id);
            }
            Kind::Relay(_) | Kind::Ended(_) => {}
        }
    }

    /// A session that has something to tell. Each is named once, and again only after
    /// [`Engine::poll_session`] has answered `None` for it. Call until `None` after every input.
    pub fn poll_ready(&mut self) -> Option<SessionId> {
        self.settle();
        self.outbox.next_ready()
    }

    /// The next thing to tell this session. Once it was named by [`Engine::poll_ready`], call as
    /// there is room to send, until `None`; what happens meanwhile is merged.
    pub fn poll_session(&mut self, id: SessionId) -> Option<Output> {
        self.settle();
        let session = self.outbox.sessions.get_mut(&id)?;
        let output = match &mut session.kind {
            Kind::Ended(reason) => {
                let reason = *reason;
                self.outbox.sessions.remove(&id);
                return Some(Output::End(reason));
            }
            Kind::Relay(_) => None,
            Kind::Node(session) => self.networks.get_mut(&session.network).and_then(|network| {
                let cut = part::Cutter {
                    encoder: self.encoder.as_ref(),
                    relays: &self.relay_list,
                    epoch: self.settings.epoch,
                    budget: self.settings.chunk_bytes,
                };
                cut.netmap(session, network).map(Output::Netmap)
            }),
            Kind::Routes(watch) => self
                .networks
                .get(&watch.network)
                .and_then(|network| part::routes(watch, network))
                .map(Output::Routes),
            Kind::Clients(watch) => {
                part::clients(watch, &self.wg_keys, &self.homes).map(Output::Clients)
            }
        };
        session.armed = output.is_none();
        output
    }

    fn check_unused(&self, id: SessionId) -> Result<(), Rejected> {
        match self.outbox.sessions.contains_key(&id) {
            true => Err(Rejected::Exists),
            false => Ok(()),
        }
    }
}
