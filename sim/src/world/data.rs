//! The data plane: datagrams, packets, and what the nodes' shells do around the tunnel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_tunnel::{Batch, DropReason, Event as TunnelEvent, Out, Source, derp, disco, stun};
use mesh_types::{NodeId, RelayId, WgPublicKey};

use super::{Event, World};
use crate::node::Link;
use crate::packet::{SYN, Segment};
use crate::pipe::{End, Item};
use crate::planted::Bug;
use crate::underlay::{Place, Underlay, place_of};

/// A relay that says nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How long opening a relay connection may take.
const OPENING: Duration = Duration::from_secs(10);
/// A netmap with another version is stored this long after it came, any other later.
const STORE_SOON: Duration = Duration::from_millis(500);
const STORE_LATER: Duration = Duration::from_secs(10);
/// A node that does nothing about an old initiation asks for a session after this long, when what
/// it sent was not answered (WireGuard's keepalive and rekey timeouts).
const DEAF: Duration = Duration::from_secs(15);
/// Whether a datagram asks for a WireGuard session.
fn is_initiation(datagram: &[u8]) -> bool {
    datagram.len() == 148 && datagram.starts_with(&[1, 0, 0, 0])
}

fn node_at(addr: SocketAddr) -> Option<usize> {
    match place_of(addr) {
        Some(Place::Node(n)) => Some(n),
        _ => None,
    }
}

impl World {
    // --- the node's shell

    pub(super) fn tick_node(&mut self, n: usize) {
        let (at, now) = (self.at_node(n), self.now);
        let clocks = self.nodes[n].now(self.start, now);
        let Some(process) = &mut self.nodes[n].process else {
            return;
        };
        if process.machine.poll_timeout().is_some_and(|due| due <= at) {
            process.machine.handle_timeout(clocks);
            self.control_acts(n);
        }
        let Some(process) = &mut self.nodes[n].process else {
            return;
        };
        if process.device.poll_timeout().is_some_and(|due| due <= at) {
            let mut out = Out::new();
            process.device.handle_timeout(&mut out, at);
            self.dispatch(n, &out);
        }
        let Some(process) = &mut self.nodes[n].process else {
            return;
        };
        let store = process.store_at.is_some_and(|due| due <= now);
        let house = process.house_at <= now;
        if store {
            self.nodes[n].store(now);
        }
        if house {
            self.keep_house(n);
        }
    }

    /// The control session has another netmap.
    pub(super) fn netmap_changed(&mut self, n: usize) {
        let (at, now) = (self.at_node(n), self.now);
        let bug = self.bug;
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        let Some(netmap) = process.machine.netmap() else {
            return;
        };
        let version = netmap.cursor.version;
        let first = process.version.is_none();
        // Every node here has an address: who was somewhere is never nowhere.
        let peers = netmap.peers.values();
        let whereabouts = peers.map(|peer| (peer.id, peer.endpoints.clone()));
        let before = std::mem::replace(&mut process.whereabouts, whereabouts.collect());
        for (peer, now) in &process.whereabouts {
            let known = before.get(peer).is_some_and(|known| !known.is_empty());
            assert!(!known || !now.is_empty(), "node {n} forgot where {peer} is");
        }
        let mut shown = netmap.clone();
        match bug {
            Some(Bug::SkipFilter) => {
                let filter = process.first_filter.get_or_insert(shown.filter.clone());
                shown.filter = filter.clone();
            }
            Some(Bug::KeepRemovedPeer) => {
                let known: BTreeSet<NodeId> =
                    process.device.stats().map(|stats| stats.node).collect();
                if known.iter().any(|id| !shown.peers.contains_key(id)) {
                    process.version = Some(version);
                    return;
                }
            }
            _ => {}
        }
        process.device.apply_netmap(&shown, at);
        if first {
            process.device.greet(&process.greet, at);
        }
        process.version = Some(version);
        let wait = match process.stored_version == Some(version) {
            true => STORE_LATER,
            false => STORE_SOON,
        };
        let due = now + wait;
        process.store_at = Some(process.store_at.map_or(due, |at| at.min(due)));
        let relays = shown.relays;
        self.note("netmap", format_args!("{n} version {version}"));
        self.follow_relays(n, relays);
        self.report_node(n);
    }

    fn follow_relays(&mut self, n: usize, relays: Vec<mesh_types::Relay>) {
        let (at, now) = (self.at_node(n), self.now);
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        if process.relays == relays {
            return;
        }
        let servers: Vec<SocketAddr> = relays
            .iter()
            .flat_map(|relay| &relay.stun)
            .filter_map(|addr| addr.parse().ok())
            .collect();
        process.device.set_stun_servers(&servers, at);
        for relay in &relays {
            process.links.entry(relay.id).or_insert_with(|| Link {
                retry_at: now,
                ..Link::default()
            });
        }
        process.relays = relays;
        process.house_at = now;
    }

    /// Tells the control session what the node says of itself.
    pub(super) fn report_node(&mut self, n: usize) {
        let Some(mut report) = self.nodes[n].report() else {
            return;
        };
        if self.has(Bug::KeepEndpoints) {
            report.endpoints = vec![self.nodes[n].access.local()];
        }
        if let Some(process) = &mut self.nodes[n].process {
            process.machine.handle_report(report);
        }
        self.control_acts(n);
    }

    fn keep_house(&mut self, n: usize) {
        let now = self.now;
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        process.house_at = now + Duration::from_secs(1);
        let mut open = Vec::new();
        let mut drop = Vec::new();
        let mut ask = Vec::new();
        for (id, link) in &mut process.links {
            let limit = if link.up { SILENCE } else { OPENING };
            if let (true, Some(client), Some(conn)) = (link.up, &mut link.client, link.conn)
                && link.ask_at <= now
            {
                link.ask_at = now + derp::KEEPALIVE;
                client.ping(*b"latency.");
                let mut bytes = Vec::new();
                client.take_output(&mut bytes);
                ask.push((conn, bytes));
            }
            match link.conn {
                None if link.retry_at <= now => open.push(*id),
                Some(conn) if now.saturating_sub(link.heard) >= limit => drop.push((*id, conn)),
                _ => {}
            }
        }
        for (id, conn) in drop {
            let relay = self.relay_index(id);
            self.close(conn, End::Client);
            self.link_closed(n, relay, conn);
        }
        for id in open {
            self.open_link(n, id);
        }
        for (conn, bytes) in ask {
            self.send(conn, End::Server, Item::Bytes(bytes));
        }
        self.choose_home(n);
    }

    pub(super) fn relay_index(&self, id: RelayId) -> usize {
        let at = self.relays.iter().position(|relay| relay.id == id);
        at.expect("netmaps name relays that there are")
    }

    /// The first relay that is connected, unless the present one is.
    pub(super) fn choose_home(&mut self, n: usize) {
        let at = self.at_node(n);
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        let is_up = |id: &RelayId| process.links.get(id).is_some_and(|link| link.up);
        let held = process.home.filter(is_up);
        let home = held.or_else(|| process.links.keys().copied().find(|id| is_up(id)));
        if home != process.home {
            process.home = home;
            process.device.set_home_relay(home, at);
            self.report_node(n);
        }
    }

    // --- datagrams

    /// Sends and delivers what the device gave out, and does what it asks for.
    pub(super) fn dispatch(&mut self, n: usize, out: &Out) {
        for transmit in out.transmits() {
            for datagram in transmit.datagrams() {
                if self.withholds(n, node_at(transmit.to), datagram) {
                    continue;
                }
                self.send_datagram(n, transmit.to, datagram);
            }
        }
        for relayed in out.relayed() {
            let to = self.node_of(&relayed.to);
            if self.withholds(n, to, relayed.payload()) {
                continue;
            }
            let conn = self.nodes[n].process.as_ref().and_then(|process| {
                let link = process.links.get(&relayed.relay)?;
                link.conn.filter(|_| link.up)
            });
            if let Some(conn) = conn {
                let frame = relayed.frame.to_vec();
                self.note("derp-frame", format_args!("{n} {}", frame.len()));
                self.send(conn, End::Server, Item::Bytes(frame));
            }
        }
        let packets: Vec<(NodeId, Vec<u8>)> = out
            .packets()
            .map(|received| (received.peer, received.packet.to_vec()))
            .collect();
        for (peer, packet) in packets {
            self.delivered(n, peer, &packet);
        }
        self.tunnel_events(n);
    }

    fn tunnel_events(&mut self, n: usize) {
        let mut changed = false;
        while let Some(event) = self.nodes[n]
            .process
            .as_deref_mut()
            .and_then(|process| process.device.poll_event())
        {
            match event {
                TunnelEvent::HandshakeDone { peer } => {
                    self.note("handshake", format_args!("{n} {peer}"));
                }
                TunnelEvent::PathChanged { peer, path } => {
                    self.note("path", format_args!("{n} {peer} {path:?}"));
                }
                TunnelEvent::EndpointsChanged => changed = true,
                // All relays are connected to as long as there are so few.
                TunnelEvent::PeerUnreachable { .. } | TunnelEvent::RelayWanted { .. } => {}
            }
        }
        if changed {
            self.report_node(n);
        }
    }

    fn send_datagram(&mut self, n: usize, to: SocketAddr, bytes: &[u8]) {
        let now = self.now;
        let Some(from) = self.nodes[n].access.send(to, now) else {
            return;
        };
        // The underlay is IPv4; addresses that nobody has lead nowhere.
        let Some(place) = place_of(to) else {
            return;
        };
        let lost = self.dice.chance(self.underlay.loss);
        self.note("datagram", format_args!("{n} {to} {} {lost}", bytes.len()));
        if lost || self.underlay.is_cut(Place::Node(n), place) {
            return;
        }
        let copies = 1 + usize::from(self.dice.chance(self.underlay.duplicates));
        for _ in 0..copies {
            let late = self.dice.millis(0, self.underlay.jitter);
            let at = now + Underlay::latency(Place::Node(n), place) + late;
            let bytes = bytes.to_vec();
            self.plan(at, Event::Datagram { from, to, bytes });
        }
    }

    /// A datagram arrives where its address leads.
    pub(super) fn datagram(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let now = self.now;
        match place_of(to) {
            Some(Place::Relay(relay)) => self.stun(relay, from, to, bytes),
            Some(Place::Node(n)) if n < self.nodes.len() => {
                let node = &mut self.nodes[n];
                if node.asleep.is_some() || !node.access.lets_in(to, from, now) {
                    return;
                }
                if self.bug == Some(Bug::StayOnRelay) && disco::is_disco(bytes) {
                    return;
                }
                self.open(n, Source::Direct(from), bytes);
            }
            _ => {}
        }
    }

    /// A datagram reaches a node's tunnels.
    pub(super) fn open(&mut self, n: usize, source: Source, datagram: &[u8]) {
        let (at, now) = (self.at_node(n), self.now);
        let sender = match source {
            Source::Direct(addr) => node_at(addr),
            Source::Relay { from, .. } => self.node_of(&from),
        };
        let ignores = self.has(Bug::IgnoreOldStamps) && is_initiation(datagram);
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        let before = process.device.drops().get(DropReason::Replayed);
        let mut out = Out::new();
        process
            .device
            .open(source, datagram, datagram.len(), &mut out, at);
        if ignores
            && process.device.drops().get(DropReason::Replayed) > before
            && let Some(sender) = sender
        {
            process.deaf.entry(sender).or_insert(now + DEAF);
        }
        self.dispatch(n, &out);
    }

    pub(super) fn node_of(&self, key: &WgPublicKey) -> Option<usize> {
        let id = self.by_wg.get(key)?;
        self.by_id.get(id).copied()
    }

    /// Whether a planted fault keeps this back from that node.
    fn withholds(&mut self, n: usize, to: Option<usize>, datagram: &[u8]) -> bool {
        let now = self.now;
        let (Some(to), Some(process)) = (to, self.nodes[n].process.as_deref_mut()) else {
            return false;
        };
        if !is_initiation(datagram) {
            return false;
        }
        process.deaf.retain(|_, until| *until > now);
        process.deaf.contains_key(&to)
    }

    fn stun(&mut self, relay: usize, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let running = self.relays.get(relay).is_some_and(|r| r.process.is_some());
        let Ok(transaction) = stun::parse_request(bytes) else {
            return;
        };
        if !running || to != crate::underlay::stun_addr(relay) {
            return;
        }
        let mut answer = [0; stun::MAX_RESPONSE];
        let len = stun::encode_response(&transaction, from, &mut answer);
        let Some(place) = place_of(from) else {
            return;
        };
        let at = self.now + Underlay::latency(Place::Relay(relay), place);
        if !self.dice.chance(self.underlay.loss) {
            let bytes = answer[..len].to_vec();
            self.plan(
                at,
                Event::Datagram {
                    from: to,
                    to: from,
                    bytes,
                },
            );
        }
    }

    // --- what nodes send each other

    /// A node opens a flow; answers the port it did so from.
    pub(super) fn open_flow(&mut self, from: usize, to: NodeId, port: u16, v6: bool) -> u16 {
        self.next_port = self.next_port % 20_000 + 1;
        let local = 30_000 + self.next_port;
        let (src, dst) = self.ends(from, to, v6);
        for ip in [src, dst] {
            *self.opened.entry(ip).or_default() += 1;
        }
        self.send_syn(from, to, local, port, v6);
        local
    }

    /// The addresses of a flow.
    fn ends(&self, from: usize, to: NodeId, v6: bool) -> (IpAddr, IpAddr) {
        let own = self.nodes[from].addrs;
        let peer = self.nodes[self.by_id[&to]].addrs;
        match v6 {
            true => (own.v6.into(), peer.v6.into()),
            false => (own.v4.into(), peer.v4.into()),
        }
    }

    /// How many flows were opened from or to an address.
    pub(super) fn opened_by(&self, ip: IpAddr) -> usize {
        self.opened.get(&ip).copied().unwrap_or(0)
    }

    pub(super) fn send_syn(&mut self, from: usize, to: NodeId, local: u16, port: u16, v6: bool) {
        let (src, dst) = self.ends(from, to, v6);
        if let Some(process) = &mut self.nodes[from].process {
            process.opened.insert((dst, local, port), self.now);
        }
        let segment = Segment {
            src,
            dst,
            src_port: local,
            dst_port: port,
            flags: SYN,
        };
        self.note("syn", format_args!("{from} {to} {local} {port}"));
        self.seal(from, segment);
    }

    pub(super) fn seal(&mut self, n: usize, segment: Segment) {
        let at = self.at_node(n);
        let Some(process) = &mut self.nodes[n].process else {
            return;
        };
        process.sealed += 1;
        let mut batch = Batch::new();
        let mut out = Out::new();
        batch.push(&segment.encode());
        process.device.seal(&mut batch, &mut out, at);
        self.dispatch(n, &out);
    }
}
