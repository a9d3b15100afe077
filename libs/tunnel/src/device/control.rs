//! What the coordinator, the relays and the machine tell the device.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_types::{Netmap, NodeState, RelayId, WgPublicKey};

use super::{Device, Peers};
use crate::event::Event;
use crate::peer::Peer;
use crate::router::Slot;

/// For how long a relay is believed that a peer is not connected to it.
const GONE: Duration = Duration::from_secs(3);
/// Quiet peers that are told of this node's new place by probes.
const MOST_SOUGHT: usize = 256;

impl Device {
    /// Takes over a new netmap: own addresses, filter, peers. Sessions and paths of peers that
    /// stay are kept; those of removed peers, and of peers with a new key, end at once.
    ///
    /// Cost: one comparison per peer, and work only for those that changed.
    pub fn apply_netmap(&mut self, netmap: &Netmap, now: Instant) {
        self.now = now;
        self.filter.set_own(netmap.node.addrs);
        for slot in self.peers.taken() {
            let stays = self.peers.slot(slot).is_some_and(|peer| {
                netmap
                    .peers
                    .get(&peer.node)
                    .is_some_and(|facts| facts.wg_key == peer.wg_key)
            });
            if !stays {
                self.remove_peer(slot);
            }
        }
        for facts in netmap.peers.values() {
            match self.peers.by_node.get(&facts.id) {
                Some(&slot) => self.update_peer(slot, facts, now),
                None => self.add_peer(facts),
            }
        }
        // Endpoints come last: they must not be overlay addresses, and only now are all known.
        for facts in netmap.peers.values() {
            self.update_endpoints(facts, now);
        }
        self.filter.set_rules(&netmap.filter, now);
    }

    fn add_peer(&mut self, facts: &mesh_types::Peer) {
        let taken = facts.wg_key == self.wg_public || self.peers.by_wg.contains_key(&facts.wg_key);
        if taken {
            // The coordinator keeps keys unique; a netmap that breaks this gets one peer, not two.
            tracing::debug!(peer = %facts.id, "peer with a key that is already taken is ignored");
            return;
        }
        let peer = Box::new(Peer::new(facts));
        let slot = match self.peers.free.pop() {
            Some(slot) => slot,
            None => {
                let Ok(slot) = Slot::try_from(self.peers.slots.len()) else {
                    return;
                };
                self.peers.slots.push(None);
                slot
            }
        };
        self.peers.by_node.insert(peer.node, slot);
        self.peers.by_wg.insert(peer.wg_key, slot);
        self.peers.by_disco.insert(peer.disco_key, slot);
        self.route_to(&peer, slot);
        self.peers.slots[slot as usize] = Some(peer);
    }

    fn route_to(&mut self, peer: &Peer, slot: Slot) {
        for ip in peer.addrs.iter() {
            self.router.insert_host(ip, slot);
        }
        for &net in &peer.routes {
            self.router.insert_prefix(net, slot);
        }
    }

    fn remove_peer(&mut self, slot: Slot) {
        let Some(peer) = self
            .peers
            .slots
            .get_mut(slot as usize)
            .and_then(Option::take)
        else {
            return;
        };
        self.peers.by_node.remove(&peer.node);
        self.peers.by_wg.remove(&peer.wg_key);
        if self.peers.by_disco.get(&peer.disco_key) == Some(&slot) {
            self.peers.by_disco.remove(&peer.disco_key);
        }
        if let Some(index) = peer.index {
            self.peers.by_index.remove(&index);
        }
        if let Some(place) = peer.place {
            self.turns.leave(place);
        }
        self.router.remove(peer.hosts(), slot);
        self.peers.free.push(slot);
    }

    fn update_peer(&mut self, slot: Slot, facts: &mesh_types::Peer, now: Instant) {
        let Peers {
            slots, by_disco, ..
        } = &mut self.peers;
        let Some(peer) = slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        if peer.disco_key != facts.disco_key {
            if by_disco.get(&peer.disco_key) == Some(&slot) {
                by_disco.remove(&peer.disco_key);
            }
            by_disco.insert(facts.disco_key, slot);
            peer.disco_key = facts.disco_key;
            peer.shared = None;
        }
        let online = facts.state == NodeState::Online;
        let is_news = peer.home_relay != facts.home_relay || (online && !peer.online);
        peer.online = online;
        if peer.home_relay != facts.home_relay {
            peer.home_relay = facts.home_relay;
            peer.gone = None;
        }
        if peer.addrs != facts.addrs || peer.routes != facts.routes {
            self.router.remove(peer.hosts(), slot);
            peer.addrs = facts.addrs;
            peer.routes.clone_from(&facts.routes);
            for ip in peer.addrs.iter() {
                self.router.insert_host(ip, slot);
            }
            for &net in &peer.routes {
                self.router.insert_prefix(net, slot);
            }
        }
        if is_news {
            self.on_news(slot, now);
        }
    }

    fn update_endpoints(&mut self, facts: &mesh_types::Peer, now: Instant) {
        let Some(&slot) = self.peers.by_node.get(&facts.id) else {
            return;
        };
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        if peer.endpoints == facts.endpoints {
            return;
        }
        peer.endpoints.clone_from(&facts.endpoints);
        let router = &self.router;
        let filter = &self.filter;
        let underlay: Vec<SocketAddr> = facts
            .endpoints
            .iter()
            .copied()
            .filter(|endpoint| {
                let addr = endpoint.ip().to_canonical().into();
                router.lookup(addr).is_none() && !filter.is_own(addr)
            })
            .collect();
        peer.paths.set_netmap_endpoints(&underlay, now);
        if peer.paths.is_active(now) {
            self.wake(slot, now);
        }
        self.on_news(slot, now);
    }

    /// The addresses and port at which the UDP socket can be reached on this machine's networks.
    pub fn set_local_endpoints(&mut self, endpoints: &[SocketAddr], now: Instant) {
        self.now = now;
        if self.local != endpoints {
            self.local = endpoints.to_vec();
            self.push_event(Event::EndpointsChanged);
        }
    }

    /// Where to ask for the public address (RFC 8489); asked at once and then now and again.
    pub fn set_stun_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        self.now = now;
        self.mapped.set_servers(servers, now);
    }

    /// Where this node may be reached: what it was told, and what STUN servers saw.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        let mut endpoints = self.local.clone();
        for mapped in self.mapped.addrs() {
            if !endpoints.contains(&mapped) {
                endpoints.push(mapped);
            }
        }
        endpoints
    }

    /// The relay that this node listens on.
    pub fn set_home_relay(&mut self, relay: Option<RelayId>, now: Instant) {
        self.now = now;
        self.relays.home = relay;
        if let Some(relay) = relay {
            self.greet_by(relay, now);
        }
    }

    /// A relay took us in: packets can go through it.
    pub fn handle_relay_up(&mut self, relay: RelayId, now: Instant) {
        self.now = now;
        if !self.relays.connected.contains(&relay) {
            self.relays.connected.push(relay);
        }
        for slot in self.peers.taken() {
            if let Some(peer) = self.peers.slot_mut(slot) {
                if peer.gone.is_some_and(|(gone, _)| gone == relay) {
                    peer.gone = None;
                }
                if !peer.paths.is_trusted(now) {
                    peer.paths.probe_soon(now);
                }
            }
        }
        self.greet_by(relay, now);
        self.wake_active(now);
    }

    /// The connection to a relay ended.
    pub fn handle_relay_down(&mut self, relay: RelayId, now: Instant) {
        self.now = now;
        self.relays
            .connected
            .retain(|&connected| connected != relay);
        self.wake_active(now);
    }

    /// A relay says that a peer is not connected to it.
    pub fn handle_relay_peer_gone(&mut self, relay: RelayId, peer: WgPublicKey, now: Instant) {
        self.now = now;
        let Some(&slot) = self.peers.by_wg.get(&peer) else {
            return;
        };
        if let Some(peer) = self.peers.slot_mut(slot) {
            peer.gone = Some((relay, now + GONE));
            if peer.seen_relay == Some(relay) {
                peer.seen_relay = None;
            }
        }
    }

    /// Addresses or routes of this machine changed, or it slept: nothing that was proven about
    /// paths holds any more. Packets go by relay until probes are answered again. For some seconds
    /// those go to quiet peers with a session too, [`MOST_SOUGHT`] of them: whoever of them begins
    /// to talk would look for this node where it was, and the rest find it by the relay.
    pub fn network_changed(&mut self, now: Instant) {
        self.now = now;
        let mut sought = 0;
        for slot in self.peers.taken() {
            if let Some(peer) = self.peers.slot_mut(slot) {
                peer.paths.reset(now);
                let session = peer.session.as_deref();
                let keys = session.is_some_and(|session| !session.is_silent(now));
                if keys && !peer.paths.is_active(now) && sought < MOST_SOUGHT {
                    sought += 1;
                    peer.paths.seek(now);
                }
            }
            self.greet_anew(slot);
        }
        self.mapped.restart(now);
        self.wake_active(now);
    }
}
