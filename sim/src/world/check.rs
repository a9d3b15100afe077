//! What must be so: at every delivery, at the end of faults, and always.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_tunnel::wg_public_key;
use mesh_types::route::console_prefix;
use mesh_types::{Netmap, NetworkId, NodeId, Peer, Relay, WgPublicKey};

use super::{NETWORKS, World};
use crate::coordinator::wall;
use crate::model::{self, Facts};
use crate::packet::{FIN_ACK, SYN, SYN_ACK, Segment};

/// What was not answered is sent again after this long, as a TCP would.
const AGAIN: Duration = Duration::from_millis(500);
/// A port that nobody publishes.
const CLOSED: u16 = 7;

impl World {
    // --- at every delivery

    /// A packet came out of a node's tunnel.
    pub(super) fn delivered(&mut self, n: usize, peer: NodeId, packet: &[u8]) {
        let segment = Segment::decode(packet).expect("a segment that some node sent");
        let node = &self.nodes[n];
        let (id, network) = (node.id, node.network);
        let Some(process) = &node.process else {
            return;
        };
        assert_eq!(
            self.model.home(peer),
            Some(network),
            "{id} of one network was given a packet of {peer} of another: {segment:?}"
        );
        assert!(
            self.nodes[self.by_id[&peer]].addrs.contains(segment.src),
            "{id} was given a packet of {peer} under a foreign source: {segment:?}"
        );
        assert!(
            node.addrs.contains(segment.dst),
            "{id} was given a packet for somebody else: {segment:?}"
        );
        let flow = (segment.src, segment.dst_port, segment.src_port);
        let is_answer = process.opened.contains_key(&flow);
        let version = process.version.expect("packets come after a netmap");
        let allowed = self.model.ever_since(network, version, |roll| {
            let (Some(from), Some(to)) = (roll.get(&peer), roll.get(&id)) else {
                return false;
            };
            model::may_open(from, to, segment.dst_port)
        });
        assert!(
            is_answer || allowed,
            "{id}, which follows version {version}, was given what no rule lets in of {peer}: \
             {segment:?}"
        );
        self.note("delivered", format_args!("{n} {peer} {}", segment.dst_port));
        if segment.flags == SYN {
            self.seal(n, segment.answer(SYN_ACK));
        } else if segment.flags == SYN_ACK
            && let Some(process) = &mut self.nodes[n].process
        {
            process.answered.insert(segment.dst_port);
            if self.transfers {
                self.transfer(n, segment);
            }
        } else if segment.flags == FIN_ACK && !is_answer {
            self.seal(n, segment.answer(FIN_ACK));
        }
    }

    /// A relay carried something from one key to another.
    pub(super) fn check_forwarded(&mut self, relay: usize, from: WgPublicKey, to: WgPublicKey) {
        let network = |key: &WgPublicKey| self.by_wg.get(key).and_then(|id| self.model.home(*id));
        assert_eq!(
            network(&from),
            network(&to),
            "relay {relay} carried a packet from one network to another"
        );
    }

    // --- at the end of faults

    /// What is not yet as the model has it; `None` when all is.
    pub(super) fn mismatch(&self) -> Option<String> {
        if self.coordinator.process.is_none() {
            return Some("the coordinator is down".to_owned());
        }
        for n in 0..self.nodes.len() {
            if let Some(found) = self.mismatch_of(n) {
                return Some(format!("node {n} ({}): {found}", self.nodes[n].id));
            }
        }
        let clients: BTreeMap<WgPublicKey, NetworkId> = self
            .model
            .all()
            .map(|(network, _, facts)| (facts.wg, network))
            .collect();
        for (n, relay) in self.relays.iter().enumerate() {
            let Some(process) = &relay.process else {
                continue;
            };
            let allowed: BTreeMap<_, _> = process
                .registry
                .allowed()
                .iter()
                .map(|(key, network)| (*key, *network))
                .collect();
            if allowed != clients {
                return Some(format!(
                    "relay {n} serves {allowed:?} instead of {clients:?}"
                ));
            }
            let stranger = process.connected().find(|key| !clients.contains_key(key));
            if let Some(key) = stranger {
                return Some(format!("relay {n} still serves {key:?}"));
            }
        }
        self.mismatch_of_links()
    }

    /// Relays come last: half-open connections to them are found out when one is used.
    fn mismatch_of_links(&self) -> Option<String> {
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(process) = node.awake() else {
                continue;
            };
            for (r, relay) in self.relays.iter().enumerate() {
                let Some(serving) = &relay.process else {
                    continue;
                };
                let key = wg_public_key(&node.wg);
                let is_up = process.links.get(&relay.id).is_some_and(|link| link.up);
                if !is_up || !serving.connected().any(|connected| connected == key) {
                    return Some(format!("node {n} is not connected to relay {r}"));
                }
            }
        }
        None
    }

    fn mismatch_of(&self, n: usize) -> Option<String> {
        let node = &self.nodes[n];
        let process = node.awake()?;
        let Some(facts) = self.model.facts(node.id) else {
            return Some("it was removed and runs on".to_owned());
        };
        if !self.is_live(n) {
            return Some(format!("no control stream: {:?}", process.machine.state()));
        }
        if node.validity.until < wall(self.now) {
            return Some("its certificate has ended".to_owned());
        }
        let Some(map) = process.machine.netmap() else {
            return Some("no netmap".to_owned());
        };
        let own = &map.node;
        let (name, _) = NETWORKS
            .iter()
            .find(|(_, id)| NetworkId::from_bytes(*id) == node.network)?;
        let network = name.parse().ok()?;
        let prefix = console_prefix(&network, &facts.name);
        if (&own.name, own.role, own.addrs) != (&facts.name, facts.role, facts.addrs)
            || own.console_prefix != prefix
            || own.network != node.network
        {
            return Some(format!("it takes itself for {own:?}, it is {facts:?}"));
        }
        if facts.services != node.services {
            return Some("what it publishes is not known".to_owned());
        }
        self.mismatch_of_peers(node.network, node.id, facts, map)
            .or_else(|| self.mismatch_of_filter(node.network, node.id, facts, map))
            .or_else(|| {
                let known: BTreeSet<NodeId> =
                    process.device.stats().map(|stats| stats.node).collect();
                let wanted: BTreeSet<NodeId> = map.peers.keys().copied().collect();
                (known != wanted).then(|| format!("tunnels to {known:?}, peers are {wanted:?}"))
            })
            .or_else(|| {
                let wanted: Vec<Relay> = self
                    .coordinator
                    .store
                    .relays
                    .iter()
                    .map(|row| Relay {
                        id: row.id,
                        derp: row.derp.clone(),
                        stun: row.stun.clone(),
                    })
                    .collect();
                (map.relays != wanted).then(|| format!("relays {:?}", map.relays))
            })
    }

    fn mismatch_of_peers(
        &self,
        network: NetworkId,
        id: NodeId,
        facts: &Facts,
        map: &Netmap,
    ) -> Option<String> {
        let mut wanted: BTreeMap<NodeId, &Facts> = self
            .model
            .roll(network)
            .iter()
            .filter(|(other, of)| **other != id && model::are_peers(facts, of))
            .map(|(other, of)| (*other, of))
            .collect();
        for peer in map.peers.values() {
            let Some(facts) = wanted.remove(&peer.id) else {
                return Some(format!("{} ({}) is no peer", peer.name, peer.id));
            };
            let seen = Facts {
                name: peer.name.clone(),
                role: peer.role,
                owner: facts.owner.clone(),
                addrs: peer.addrs,
                services: peer.services.clone(),
                wg: peer.wg_key,
                disco: peer.disco_key,
            };
            if seen != *facts {
                return Some(format!("peer {} is {facts:?}, not {seen:?}", peer.id));
            }
            if let Some(found) = self.mismatch_of_volatile(peer) {
                return Some(found);
            }
        }
        let (missing, facts) = wanted.first_key_value()?;
        Some(format!("peer {missing} is missing: {facts:?}"))
    }

    fn mismatch_of_volatile(&self, peer: &Peer) -> Option<String> {
        let id = peer.id;
        let n = self.by_id[&id];
        let certain = self.model.state_is_certain(id, self.now);
        let state = self.model.state(id, self.now);
        if certain && peer.state != state {
            return Some(format!("peer {id} is {state}, not {}", peer.state));
        }
        let there = self.nodes[n].awake().and_then(|_| self.nodes[n].report());
        let wanted = match there {
            // A running node tells again whom it is told of; the others' last word counts, unless
            // a restart of the coordinator lost it.
            Some(report) => (report.endpoints, report.home_relay),
            None => self.model.heard.get(&id)?.report.clone()?,
        };
        let seen = (peer.endpoints.clone(), peer.home_relay);
        (seen != wanted).then(|| format!("peer {id} is at {wanted:?}, not {seen:?}"))
    }

    fn mismatch_of_filter(
        &self,
        network: NetworkId,
        id: NodeId,
        facts: &Facts,
        map: &Netmap,
    ) -> Option<String> {
        let ports = facts.services.iter().map(|service| service.port);
        for port in ports.chain([CLOSED]) {
            for (home, other, from) in self.model.all().filter(|(_, other, _)| *other != id) {
                let wanted = home == network && model::may_open(from, facts, port);
                for ip in from.addrs.iter() {
                    if model::lets_in(&map.filter, ip, port) != wanted {
                        return Some(format!("{other} may open {port}: {wanted}, not so"));
                    }
                }
            }
        }
        None
    }

    /// Waits until everything is as the model has it.
    pub(super) fn settle(&mut self, bound: Duration) {
        let begun = self.now;
        while let Some(found) = self.mismatch() {
            assert!(
                self.now - begun < bound,
                "not settled {bound:?} after the last fault: {found}"
            );
            self.run_until(self.now + Duration::from_secs(1));
            self.check_bounds();
        }
        let took = self.now - begun;
        self.note("settled", format_args!("{took:?}"));
    }

    /// Pairs that must be able to talk, with a port for each.
    pub(super) fn connectable(&self) -> Vec<(usize, NodeId, u16)> {
        let mut pairs = Vec::new();
        let relayed = self.relays.iter().any(|relay| relay.process.is_some());
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(facts) = self.model.facts(node.id).filter(|_| node.awake().is_some()) else {
                continue;
            };
            for (m, other) in self.nodes.iter().enumerate() {
                if n == m || other.awake().is_none() || other.network != node.network {
                    continue;
                }
                let Some(peer) = self.model.facts(other.id) else {
                    continue;
                };
                let port = peer.services.iter().map(|service| service.port);
                let port = port.into_iter().find(|p| model::may_open(facts, peer, *p));
                let direct = other.access.nat == crate::underlay::Nat::None
                    && node.access.nat != crate::underlay::Nat::NoUdp;
                if let Some(port) = port
                    && (relayed || direct)
                {
                    pairs.push((n, other.id, port));
                }
            }
        }
        pairs
    }

    /// Each of these pairs must talk within `bound`.
    pub(super) fn connect_all(&mut self, pairs: Vec<(usize, NodeId, u16)>, bound: Duration) {
        let begun = self.now;
        let reached: Vec<(usize, NodeId)> = pairs.iter().map(|(n, to, _)| (*n, *to)).collect();
        let mut open: Vec<(usize, NodeId, u16, u16, bool)> = Vec::new();
        for (n, to, port) in pairs {
            let v6 = self.dice.chance(500);
            let local = self.open_flow(n, to, port, v6);
            open.push((n, to, port, local, v6));
        }
        loop {
            self.run_until(self.now + AGAIN);
            open.retain(|(n, _, _, local, _)| {
                let process = self.nodes[*n].process.as_ref();
                !process.is_some_and(|process| process.answered.contains(local))
            });
            let Some((n, to, port, ..)) = open.first() else {
                break;
            };
            assert!(
                self.now - begun <= bound + AGAIN,
                "node {n} ({}) did not reach {to} port {port} within {bound:?}",
                self.nodes[*n].id
            );
            for (n, to, port, local, v6) in open.clone() {
                self.send_syn(n, to, local, port, v6);
            }
        }
        for (n, to) in reached {
            self.check_nothing_waits(n, to);
            self.check_nothing_waits(self.by_id[&to], self.nodes[n].id);
        }
        let took = self.now - begun;
        self.note("connected", format_args!("{took:?}"));
    }
}
