//! Relays and the connections to them.

use std::time::Duration;

use mesh_netmap::{ClientUpdate, SessionId};
use mesh_tunnel::Source;
use mesh_tunnel::derp::{self, Client, ClientEvent};
use mesh_types::{RelayId, WgPublicKey};

use super::{Event, World};
use crate::coordinator::Reader;
use crate::pipe::{ConnId, End, Item};
use crate::planted::Bug;
use crate::relay::Work;
use crate::underlay::{Place, Underlay};

const BACKOFF: Duration = Duration::from_millis(250);
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// What happened on a relay connection, without the stream's buffer.
enum Heard {
    Ready,
    Packet(WgPublicKey, Vec<u8>),
    Gone(WgPublicKey),
}

impl World {
    pub(super) fn open_link(&mut self, n: usize, id: RelayId) {
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
        let (at, now) = (self.at_node(n), self.now);
        let id = self.relays[relay].id;
        let share = u32::try_from(500 + self.dice.below(500)).unwrap_or(500);
        let clings = self.has(Bug::ClingToRelay);
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
            if !clings {
                process.device.handle_relay_down(id, at);
            }
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
        let at = self.at_node(n);
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
                self.open(n, Source::Relay { relay: id, from }, &payload);
            }
            Heard::Gone(peer) => process.device.handle_relay_peer_gone(id, peer, at),
        }
    }

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
