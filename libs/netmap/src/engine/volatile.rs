//! Volatile facts: what nodes and relays report of themselves, and their heartbeats.

use std::time::Instant;

use mesh_types::{Endpoint, NodeId, RelayId, Timestamp};

use super::Engine;
use crate::error::Rejected;
use crate::node::Change;
use crate::presence::Subject;

impl Engine {
    /// A node told where it can be reached. Costs nothing when it is what was known.
    pub fn report(
        &mut self,
        id: NodeId,
        endpoints: Vec<Endpoint>,
        home_relay: Option<RelayId>,
    ) -> Result<(), Rejected> {
        let home = self.homes.get(&id).ok_or(Rejected::UnknownNode)?;
        let network = self
            .networks
            .get_mut(home)
            .ok_or(Rejected::UnknownNetwork)?;
        let node = network.nodes.get_mut(&id).ok_or(Rejected::UnknownNode)?;
        let mut change = Change::default();
        if !node.reported || node.endpoints != endpoints {
            node.endpoints = endpoints;
            change = change.with(Change::ENDPOINTS);
        }
        if !node.reported || node.home_relay != home_relay {
            node.home_relay = home_relay;
            change = change.with(Change::HOME_RELAY);
        }
        node.reported = true;
        let class = node.class;
        if !change.is_nothing() {
            network.note_move(id);
            self.outbox.peer(network, class, id, change);
        }
        Ok(())
    }

    /// A heartbeat of a node was accepted; `at` is the time to show people.
    pub fn heartbeat(&mut self, id: NodeId, at: Timestamp, now: Instant) -> Result<(), Rejected> {
        let home = self.homes.get(&id).ok_or(Rejected::UnknownNode)?;
        let network = self
            .networks
            .get_mut(home)
            .ok_or(Rejected::UnknownNetwork)?;
        let node = network.nodes.get_mut(&id).ok_or(Rejected::UnknownNode)?;
        let from = self
            .deadlines
            .beat(Subject::Node(id), &mut node.presence, at, now);
        self.node_state_changed(id, from);
        Ok(())
    }

    /// A heartbeat of a relay was accepted; `at` is the time to show people.
    pub fn relay_heartbeat(
        &mut self,
        id: RelayId,
        at: Timestamp,
        now: Instant,
    ) -> Result<(), Rejected> {
        let relay = self.relays.get_mut(&id).ok_or(Rejected::UnknownRelay)?;
        let from = self
            .deadlines
            .beat(Subject::Relay(id), &mut relay.presence, at, now);
        self.relay_state_changed(id, from);
        Ok(())
    }
}
