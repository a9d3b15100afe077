//! Nothing holds more than it has reason to. The reasons are how many nodes, relays and connections
//! there are, how many flows were opened and how many segments were sent; docs/simulation.md lists
//! them.

use mesh_tunnel::MOST_WAITING;
use mesh_types::NodeId;

use super::{Event, World};
use crate::node::{Node, Process};
use crate::underlay::Place;

/// A connection may have predecessors of which one end does not know yet that they are over.
const HALF_OPEN: usize = 4;
/// Datagrams on their way between two machines: as many candidates are probed at once, and copies.
const UNDER_WAY: usize = 4;
/// What a stream of the coordinator's carries of each node while it is cut, at most 20 s: updates
/// that are parts of two, acknowledgements, reports.
const TOLD: usize = 8;
/// What a node and a peer send each other by relay in as long.
const RELAYED: usize = 40;
/// Timers of a peer, with those that were put off and are not taken away.
const TIMERS: usize = 16;
/// Addresses of a machine, before it moved and since, that a NAT knows.
const ADDRESSES: usize = 16;
/// A node in a stored netmap, with the rules for it: bytes.
const STORED: usize = 2 * 1024;

fn few(what: &str, count: usize, most: usize) {
    assert!(
        count <= most,
        "{what}: {count}, at most {most} have a reason"
    );
}

impl World {
    /// Nothing holds more than it has reason to.
    pub(super) fn check_bounds(&self) {
        let (nodes, relays) = (self.nodes.len(), self.relays.len());
        let conns = self.conns.len();
        few("connections", conns, HALF_OPEN * nodes * (relays + 1));
        let is_datagram = |event: &&Event| matches!(event, Event::Datagram { .. });
        let datagrams = self.events.values().filter(is_datagram).count();
        let most = UNDER_WAY * nodes * (nodes + relays);
        few("datagrams under way", datagrams, most);
        // An arrival at each end or a refusal, a renewal, and news for a relay of each node.
        let most = 3 * conns + nodes * (relays + 1);
        few("planned events", self.events.len() - datagrams, most);
        for conn in self.conns.values() {
            let each = match conn.server {
                Place::Coordinator => TOLD,
                _ => RELAYED,
            };
            few("what waits on a connection", conn.waiting(), each * nodes);
        }
        if let Some(process) = self.running() {
            let streams = process.streams.len();
            let sessions = process.engine.open_sessions();
            few("streams", streams, HALF_OPEN * nodes);
            few("sessions", sessions, streams + relays);
            few("sessions with news", process.ready.len(), sessions);
            let pending = process.engine.pending();
            few("news that was not told", pending, sessions * nodes);
        }
        for relay in &self.relays {
            let Some(process) = &relay.process else {
                continue;
            };
            few("a relay's clients", process.held(), HALF_OPEN * nodes);
            few("a relay's list", process.registry.allowed().len(), nodes);
            few("clients of whom something waits", process.unwritten(), 0);
        }
        for node in &self.nodes {
            self.check_bounds_of(node);
        }
    }

    fn check_bounds_of(&self, node: &Node) {
        let machines = self.nodes.len() + self.relays.len();
        few("a NAT's entries", node.access.held(), ADDRESSES * machines);
        let stored = node.disk.as_ref().map_or(0, Vec::len);
        few("a stored netmap's bytes", stored, STORED * machines);
        let Some(process) = &node.process else {
            return;
        };
        let peers = process.device.stats().count();
        few("tunnels", peers, self.nodes.len());
        few("sessions of tunnels", process.device.sessions(), peers);
        let timers = process.device.pending_timers();
        few("timers", timers, TIMERS * (peers + 1));
        let opened = node.addrs.iter().map(|ip| self.opened_by(ip)).sum();
        few("flows", process.device.flows(), opened);
        for stats in process.device.stats() {
            few("packets in a tunnel", stats.waiting, MOST_WAITING);
        }
        few("packets in tunnels", waiting(process), process.sealed);
    }

    /// Who just talked keeps nothing back from the other.
    pub(super) fn check_nothing_waits(&self, n: usize, peer: NodeId) {
        let process = self.nodes[n].process.as_ref();
        let stats = process.and_then(|process| process.device.peer_stats(peer));
        few(
            "packets for who was reached",
            stats.map_or(0, |s| s.waiting),
            0,
        );
    }
}

fn waiting(process: &Process) -> usize {
    process.device.stats().map(|stats| stats.waiting).sum()
}
