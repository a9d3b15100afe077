//! The data plane: datagrams, relay connections, and what the nodes' shells do around the tunnel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_netmap::{ClientUpdate, SessionId};
use mesh_tunnel::derp::{Client, ClientEvent};
use mesh_tunnel::{Batch, Event as TunnelEvent, Out, Source, derp, stun};
use mesh_types::{NodeId, RelayId, WgPublicKey};

use super::{Event, World};
use crate::coordinator::Reader;
use crate::node::Link;
use crate::packet::{SYN, Segment};
use crate::pipe::{ConnId, End, Item};
use crate::planted::Bug;
use crate::relay::Work;
use crate::underlay::{Place, Underlay, place_of};

/// A relay that says nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How long opening a relay connection may take.
const OPENING: Duration = Duration::from_secs(10);
const BACKOFF: Duration = Duration::from_millis(250);
const BACKOFF_CAP: Duration = Duration::from_secs(5);
/// A netmap with another version is stored this long after it came, any other later.
const STORE_SOON: Duration = Duration::from_millis(500);
const STORE_LATER: Duration = Duration::from_secs(10);

/// What happened on a relay connection, without the stream's buffer.
enum Heard {
    Ready,
    Packet(WgPublicKey, Vec<u8>),
    Gone(WgPublicKey),
}

impl World {
    // --- the node's shell

    pub(super) fn tick_node(&mut self, n: usize) {
        let (at, now) = (self.at(), self.now);
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
        let (at, now) = (self.at(), self.now);
        let bug = self.bug;
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        let Some(netmap) = process.machine.netmap() else {
            return;
        };
        let version = netmap.cursor.version;
        let first = process.version.is_none();
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
        if first {
            self.greet(n);
        }
        self.report_node(n);
    }

    fn follow_relays(&mut self, n: usize, relays: Vec<mesh_types::Relay>) {
        let (at, now) = (self.at(), self.now);
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

    /// Shakes hands at once with those there was traffic with before the restart.
    fn greet(&mut self, n: usize) {
        let at = self.at();
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        let mut out = Out::new();
        for peer in process.greet.clone() {
            process.device.handshake_now(peer, &mut out, at);
        }
        self.dispatch(n, &out);
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

    fn relay_index(&self, id: RelayId) -> usize {
        let at = self.relays.iter().position(|relay| relay.id == id);
        at.expect("netmaps name relays that there are")
    }

    /// The first relay that is connected, unless the present one is.
    fn choose_home(&mut self, n: usize) {
        let at = self.at();
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
            self.greet(n);
        }
    }

    // --- relay connections

    fn open_link(&mut self, n: usize, id: RelayId) {
        let relay = self.relay_index(id);
        let (now, seed) = (self.now, self.dice.bytes());
        let place = Place::Node(n);
        let conn = self.connect(n, Place::Relay(relay));
        let node = &mut self.nodes[n];
        let Some(process) = node.process.as_deref_mut() else {
            return;
        };
        let link = process.links.entry(id).or_default();
        link.conn = Some(conn);
        link.client = Some(Client::new(&node.wg, seed));
        link.heard = now;
        self.note("derp-open", format_args!("{n} {relay}"));
        let cut = self.underlay.is_cut(place, Place::Relay(relay));
        let seed = self.dice.bytes();
        match &mut self.relays[relay].process {
            Some(process) if !cut => {
                let work = process.accept(conn, seed, now);
                self.relay_work(relay, work);
            }
            None if !cut => {
                let answer = now + 2 * Underlay::latency(place, Place::Relay(relay));
                self.plan(answer, Event::Refused(conn));
            }
            _ => self.vanish(conn, End::Server),
        }
    }

    pub(super) fn link_closed(&mut self, n: usize, relay: usize, conn: ConnId) {
        let (at, now) = (self.at(), self.now);
        let id = self.relays[relay].id;
        let share = u32::try_from(500 + self.dice.below(500)).unwrap_or(500);
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        let Some(link) = process.links.get_mut(&id) else {
            return;
        };
        if link.conn != Some(conn) {
            return;
        }
        let cap = BACKOFF
            .saturating_mul(1 << link.failures.min(10))
            .min(BACKOFF_CAP);
        link.conn = None;
        link.client = None;
        link.failures += 1;
        link.retry_at = now + cap * share / 1000;
        if std::mem::take(&mut link.up) {
            link.failures = 0;
            process.device.handle_relay_down(id, at);
        }
        process.house_at = process.house_at.min(now + cap);
        self.note("derp-down", format_args!("{n} {relay}"));
        self.choose_home(n);
    }

    pub(super) fn link_reads(&mut self, n: usize, relay: usize, conn: ConnId, bytes: &[u8]) {
        let now = self.now;
        let id = self.relays[relay].id;
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        let Some(link) = process.links.get_mut(&id).filter(|l| l.conn == Some(conn)) else {
            return;
        };
        let Some(client) = &mut link.client else {
            return;
        };
        link.heard = now;
        client.handle_bytes(bytes);
        let mut heard = Vec::new();
        while let Some(event) = client.poll().expect("a relay that speaks DERP") {
            match event {
                ClientEvent::Ready => heard.push(Heard::Ready),
                ClientEvent::Packet { from, payload } => {
                    heard.push(Heard::Packet(from, payload.to_vec()));
                }
                ClientEvent::PeerGone { peer } => heard.push(Heard::Gone(peer)),
                _ => {}
            }
        }
        let mut answer = Vec::new();
        client.take_output(&mut answer);
        if !answer.is_empty() {
            self.send(conn, End::Server, Item::Bytes(answer));
        }
        for heard in heard {
            self.link_heard(n, id, heard);
        }
    }

    fn link_heard(&mut self, n: usize, id: RelayId, heard: Heard) {
        let at = self.at();
        let Some(process) = self.nodes[n].process.as_deref_mut() else {
            return;
        };
        match heard {
            Heard::Ready => {
                if let Some(link) = process.links.get_mut(&id) {
                    link.up = true;
                    link.failures = 0;
                }
                process.device.handle_relay_up(id, at);
                self.note("derp-up", format_args!("{n}"));
                self.choose_home(n);
            }
            Heard::Packet(from, payload) => {
                let mut out = Out::new();
                let source = Source::Relay { relay: id, from };
                process
                    .device
                    .open(source, &payload, payload.len(), &mut out, at);
                self.dispatch(n, &out);
            }
            Heard::Gone(peer) => process.device.handle_relay_peer_gone(id, peer, at),
        }
    }

    // --- relays

    pub(super) fn start_relay(&mut self, relay: usize) {
        if self.relays[relay].process.is_none() {
            let key = self.dice.bytes();
            self.relays[relay].start(key);
            self.note("relay-start", format_args!("{relay}"));
            self.watch_clients(relay);
        }
    }

    /// The relay ends: it closes its connections, or its machine loses power.
    pub(super) fn stop_relay(&mut self, relay: usize, polite: bool) {
        if self.relays[relay].process.take().is_none() {
            return;
        }
        self.note("relay-stop", format_args!("{relay} polite {polite}"));
        let conns: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.server == Place::Relay(relay))
            .map(|(id, _)| *id)
            .collect();
        for conn in conns {
            match polite {
                true => self.close(conn, End::Server),
                false => self.vanish(conn, End::Server),
            }
        }
        if let Some(process) = &mut self.coordinator.process {
            let of = |reader: &Reader| *reader == Reader::Relay(relay);
            let sessions: Vec<SessionId> = process
                .readers
                .iter()
                .filter(|(_, reader)| of(reader))
                .map(|(session, _)| *session)
                .collect();
            for session in sessions {
                process.engine.session_close(session);
                process.readers.remove(&session);
                process.ready.remove(&session);
            }
        }
    }

    /// The relay follows its clients, when both are there and it does not already.
    pub(super) fn watch_clients(&mut self, relay: usize) {
        let id = self.relays[relay].id;
        let (Some(coordinator), Some(process)) = (
            &mut self.coordinator.process,
            &mut self.relays[relay].process,
        ) else {
            return;
        };
        if process.watch.is_none() {
            let session = coordinator.next_session();
            let watched = coordinator.engine.watch_clients(session, id);
            watched.expect("a relay that there is");
            coordinator.readers.insert(session, Reader::Relay(relay));
            process.watch = Some(session);
        }
    }

    pub(super) fn relay_news(&mut self, relay: usize, watch: SessionId, update: ClientUpdate) {
        let forgetful = self.has(Bug::RelayNeverEvicts);
        let now = self.now;
        let of = |process: &crate::relay::Process| process.watch == Some(watch);
        if !self.relays[relay].process.as_ref().is_some_and(of) {
            return;
        }
        let news = (update.clients.len(), update.removed.len());
        self.note("relay-clients", format_args!("{relay} {news:?}"));
        let work = self.relays[relay].news(update, forgetful, now);
        self.relay_work(relay, work);
    }

    pub(super) fn relay_reads(&mut self, relay: usize, conn: ConnId, bytes: &[u8]) {
        let blind = self.has(Bug::RelayAcrossNetworks);
        let now = self.now;
        match &mut self.relays[relay].process {
            Some(process) => {
                let work = process.read(conn, bytes, blind, now);
                self.relay_work(relay, work);
            }
            None => self.close(conn, End::Server),
        }
    }

    pub(super) fn relay_work(&mut self, relay: usize, work: Work) {
        for (from, to) in work.forwarded {
            self.check_forwarded(relay, from, to);
        }
        for (conn, bytes) in work.write {
            self.send(conn, End::Client, Item::Bytes(bytes));
        }
        for conn in work.close {
            self.note("derp-cut", format_args!("{relay} {conn}"));
            self.close(conn, End::Server);
        }
    }

    // --- datagrams

    /// Sends and delivers what the device gave out, and does what it asks for.
    pub(super) fn dispatch(&mut self, n: usize, out: &Out) {
        for transmit in out.transmits() {
            for datagram in transmit.datagrams() {
                self.send_datagram(n, transmit.to, datagram);
            }
        }
        for relayed in out.relayed() {
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
                    if let Some(process) = self.nodes[n].process.as_deref_mut() {
                        process.greet.retain(|waiting| *waiting != peer);
                    }
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
        let (at, now) = (self.at(), self.now);
        match place_of(to) {
            Some(Place::Relay(relay)) => self.stun(relay, from, to, bytes),
            Some(Place::Node(n)) if n < self.nodes.len() => {
                let node = &mut self.nodes[n];
                if !node.access.lets_in(to, from, now) {
                    return;
                }
                let Some(process) = &mut node.process else {
                    return;
                };
                let mut out = Out::new();
                let source = Source::Direct(from);
                process
                    .device
                    .open(source, bytes, bytes.len(), &mut out, at);
                self.dispatch(n, &out);
            }
            _ => {}
        }
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
        self.send_syn(from, to, local, port, v6);
        local
    }

    pub(super) fn send_syn(&mut self, from: usize, to: NodeId, local: u16, port: u16, v6: bool) {
        let own = self.nodes[from].addrs;
        let peer = self.nodes[self.by_id[&to]].addrs;
        let (src, dst): (IpAddr, IpAddr) = match v6 {
            true => (own.v6.into(), peer.v6.into()),
            false => (own.v4.into(), peer.v4.into()),
        };
        if let Some(process) = &mut self.nodes[from].process {
            process.opened.insert((dst, local, port));
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
        let at = self.at();
        let Some(process) = &mut self.nodes[n].process else {
            return;
        };
        let mut batch = Batch::new();
        let mut out = Out::new();
        batch.push(&segment.encode());
        process.device.seal(&mut batch, &mut out, at);
        self.dispatch(n, &out);
    }

    /// A hostile node sends a frame through a relay to somebody of any network.
    pub(super) fn hostile_frame(&mut self, n: usize, to: WgPublicKey) {
        let conn = self.nodes[n].process.as_ref().and_then(|process| {
            let link = process.links.values().find(|link| link.up)?;
            link.conn
        });
        if let Some(conn) = conn {
            let mut frame = Vec::new();
            derp::encode_send(&to, &[0; 40], &mut frame);
            self.note("hostile-frame", format_args!("{n} {}", to.short()));
            self.send(conn, End::Server, Item::Bytes(frame));
        }
    }
}
