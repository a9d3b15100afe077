//! The coordinator's end of the control plane: its process, its database and its streams.

use std::time::Duration;

use mesh_api::model::heartbeat::HeartbeatFacts;
use mesh_api::model::node::NodeReport;
use mesh_netmap::{Event as Change, NodeRow, Opened, Output};
use mesh_node::control::machine::Validity;
use mesh_types::heartbeat::{HeartbeatRefusal, MAX_SKEW_SECS};
use mesh_types::{Cursor, NodeId};
use prost::Message as _;

use super::{Event, World};
use crate::coordinator::{Process, Reader, Stream, wall};
use crate::cores::grpc_message::Response;
use crate::cores::heartbeat::{HeartbeatCheck, refusal_word};
use crate::grpc::{self, Said};
use crate::model::Facts;
use crate::pipe::{ConnId, End, Item};
use crate::planted::Bug;
use crate::underlay::{Place, Underlay};

/// So many parts may be on their way to one node.
const WINDOW: u32 = 2;
/// A report that could not be committed is tried again after this long.
const REPORT_RETRY: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// What certificates say: for how long before they were issued they are good already, and for how
/// long after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Issued {
    pub(super) before: Duration,
    pub(super) after: Duration,
}

impl Default for Issued {
    fn default() -> Self {
        Self {
            before: 2 * DAY,
            after: 30 * DAY,
        }
    }
}

impl World {
    /// What a certificate issued at this moment says.
    pub(super) fn certificate(&self) -> Validity {
        Validity {
            from: wall(self.now).minus(self.issued.before),
            until: wall(self.now).plus(self.issued.after),
        }
    }

    pub(super) fn start_coordinator(&mut self) {
        if self.coordinator.process.is_some() {
            return;
        }
        if self.coordinator.epoch == 0 || !self.has(Bug::SameEpoch) {
            self.coordinator.epoch += 1;
        }
        let seed = self.dice.bytes();
        let (epoch, start, now) = (self.coordinator.epoch, self.start, self.now);
        let process = Process::start(&mut self.coordinator.store, epoch, seed, start, now);
        self.coordinator.process = Some(process);
        self.model.started = now;
        for heard in self.model.heard.values_mut() {
            heard.report = None;
        }
        self.note("coordinator-start", format_args!("epoch {epoch}"));
        for relay in 0..self.relays.len() {
            self.watch_clients(relay);
        }
    }

    /// The coordinator ends: it says so, or it is killed.
    pub(super) fn stop_coordinator(&mut self, polite: bool) {
        let Some(process) = self.coordinator.process.take() else {
            return;
        };
        self.note("coordinator-stop", format_args!("polite {polite}"));
        for conn in process.streams.into_keys() {
            if polite {
                self.send(conn, End::Client, Item::Bytes(grpc::goodbye_shutdown()));
            }
            self.close(conn, End::Server);
        }
        for relay in &mut self.relays {
            if let Some(process) = &mut relay.process {
                process.watch = None;
            }
        }
    }

    // --- what is committed

    /// Commits a row; `crash` kills the coordinator before the engine hears of it.
    pub(super) fn commit_row(&mut self, mut row: NodeRow, crash: bool) {
        let store = &mut self.coordinator.store;
        row.changed_version = store.raise(row.network);
        let known = store.nodes.insert(row.id, row.clone()).is_some();
        let facts = Facts {
            name: row.name.clone(),
            role: row.role,
            owner: row.owner.clone(),
            addrs: row.addrs,
            services: row.services.clone(),
            wg: row.wg_key,
            disco: row.disco_key,
        };
        self.model
            .put(row.network, row.changed_version, row.id, facts);
        if crash {
            self.stop_coordinator(false);
            return;
        }
        let process = self.coordinator.process.as_mut().expect("it committed");
        let applied = match known {
            true => process.engine.node_changed(row),
            false => process.engine.node_added(row),
        };
        applied.expect("what was committed can be applied");
    }

    pub(super) fn commit_removal(&mut self, id: NodeId, crash: bool) {
        let network = self.model.home(id).expect("a node");
        let store = &mut self.coordinator.store;
        let version = store.raise(network);
        store.bury(network, id, version);
        self.model.remove(network, version, id);
        if crash {
            self.stop_coordinator(false);
            return;
        }
        let process = self.coordinator.process.as_mut().expect("it committed");
        let removed = process.engine.node_removed(id, version);
        removed.expect("what was committed can be applied");
    }

    /// Whether changes can be committed now.
    pub(super) fn takes_changes(&self) -> bool {
        self.coordinator.store.up && self.coordinator.process.is_some()
    }

    // --- the coordinator's end of streams

    pub(super) fn coordinator_hears(&mut self, node: usize, conn: ConnId, bytes: &[u8]) {
        if self.coordinator.process.is_none() {
            return;
        }
        match grpc::said(bytes) {
            Said::Hello(cursor) => self.hello(node, conn, cursor),
            Said::Heartbeat {
                body,
                signature,
                facts,
            } => self.heartbeat(node, conn, &body, &signature, facts),
            Said::Report(report) => self.report(conn, report),
        }
    }

    fn hello(&mut self, n: usize, conn: ConnId, cursor: Option<Cursor>) {
        let node = &self.nodes[n];
        let (id, key) = (node.id, node.identity.public_key().clone());
        if self.model.facts(id).is_none() {
            // As the check of the caller's certificate would have it.
            self.send(conn, End::Client, Item::Bytes(grpc::goodbye_removed()));
            self.close(conn, End::Server);
            return;
        }
        if wall(self.now) > node.validity.until {
            // As the check of every call has it.
            self.note("hello-expired", format_args!("{n}"));
            self.close(conn, End::Server);
            return;
        }
        let nonce = self.dice.bytes();
        let stream = Stream {
            node: id,
            check: HeartbeatCheck::new(id.to_bytes(), key, nonce),
            session: None,
            cursor,
            turn: Some(self.now),
            in_flight: 0,
            report: None,
        };
        let welcome = Response::welcome(&nonce, wall(self.now)).encode_to_vec();
        self.send(conn, End::Client, Item::Bytes(welcome));
        if let Some(process) = &mut self.coordinator.process {
            process.streams.insert(conn, stream);
        }
        self.admit(conn);
    }

    /// Opens the stream's session, or waits for its turn.
    fn admit(&mut self, conn: ConnId) {
        let at = self.at();
        let now = self.now;
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let id = process.next_session();
        let Some(stream) = process.streams.get_mut(&conn) else {
            return;
        };
        stream.turn = None;
        let node = stream.node;
        let opened = process.engine.session_open(id, node, stream.cursor, at);
        match opened {
            Ok(Opened::Admitted) => {
                stream.session = Some(id);
                process.readers.insert(id, Reader::Stream(conn));
                self.note("session", format_args!("{node}"));
            }
            Ok(Opened::Wait(turn)) => {
                stream.turn = Some(now + turn);
                self.note("session-waits", format_args!("{node} {turn:?}"));
            }
            Err(_) => {
                process.streams.remove(&conn);
                self.send(conn, End::Client, Item::Bytes(grpc::goodbye_removed()));
                self.close(conn, End::Server);
            }
        }
    }

    fn heartbeat(
        &mut self,
        n: usize,
        conn: ConnId,
        body: &[u8],
        signature: &[u8],
        facts: Option<HeartbeatFacts>,
    ) {
        let now = wall(self.now);
        let at = self.at();
        let accept_skew = self.has(Bug::AcceptSkew);
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let Some(stream) = process.streams.get_mut(&conn) else {
            return;
        };
        let id = stream.node;
        let accepted = stream.check.accept(body, signature, facts, now);
        let sequence = facts.map_or(0, |facts| facts.sequence);
        // By the clock that the node really has, with the latency that it really saw.
        let sent = facts.expect("a node's heartbeat").time;
        let off = sent.since(now).max(now.since(sent));
        let wanted = match off > Duration::from_secs(MAX_SKEW_SECS) {
            true => Err(HeartbeatRefusal::Skew),
            false => Ok(sequence),
        };
        let accepted = match accepted {
            Err(HeartbeatRefusal::Skew) if accept_skew => Ok(sequence),
            other => other,
        };
        assert_eq!(
            accepted, wanted,
            "a heartbeat of {id} whose clock is off by {off:?}"
        );
        let word = match accepted {
            Ok(_) => {
                // The node may be gone since it was heard.
                let _unknown = process.engine.heartbeat(id, now, at);
                self.coordinator.store.note_seen(id, self.now);
                self.model.heard.entry(id).or_default().beat = Some(self.now);
                ""
            }
            Err(refusal) => refusal_word(refusal),
        };
        self.note("heartbeat", format_args!("{n} {sequence} {word}"));
        let ack = Response::ack(sequence, word, now).encode_to_vec();
        self.send(conn, End::Client, Item::Bytes(ack));
    }

    fn report(&mut self, conn: ConnId, report: NodeReport) {
        let takes_late = self.has(Bug::TakeLateReports);
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let Some(stream) = process.streams.get_mut(&conn) else {
            return;
        };
        let id = stream.node;
        let engine = &process.engine;
        let is_late = |session| engine.is_replaced(id, session);
        if stream.session.is_some_and(is_late) && !takes_late {
            self.note("report-late", format_args!("{id}"));
            return;
        }
        let Some(row) = self.coordinator.store.nodes.get(&id) else {
            return;
        };
        if row.services != report.services {
            if !self.coordinator.store.up {
                // All of it waits, as in the product: reports are taken whole.
                let due = self.now + REPORT_RETRY;
                stream.report = Some((due, report));
                return;
            }
            let row = NodeRow {
                services: report.services.clone(),
                ..row.clone()
            };
            self.commit_row(row, false);
        }
        // The newest counts: an older one that waits for the database is none of it.
        if let Some(process) = &mut self.coordinator.process
            && let Some(stream) = process.streams.get_mut(&conn)
        {
            stream.report = None;
        }
        let (endpoints, home) = (report.endpoints, report.home_relay);
        self.note("report", format_args!("{id} {endpoints:?} {home:?}"));
        let process = self.coordinator.process.as_mut().expect("it reads");
        let reported = process.engine.report(id, endpoints.clone(), home);
        reported.expect("a node that is there");
        self.model.heard.entry(id).or_default().report = Some((endpoints, home));
    }

    /// The coordinator learns that a stream broke.
    pub(super) fn stream_closed(&mut self, conn: ConnId) {
        let leak = self.has(Bug::LeakSessions);
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        if let Some(stream) = process.streams.remove(&conn)
            && let Some(session) = stream.session
            && !leak
        {
            process.engine.session_close(session);
            process.readers.remove(&session);
            process.ready.remove(&session);
        }
    }

    /// What is due for the coordinator, and what it has to tell.
    pub(super) fn tick_coordinator(&mut self) {
        let at = self.at();
        let now = self.now;
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        if process.engine.poll_timeout().is_some_and(|due| due <= at) {
            process.engine.handle_timeout(at);
        }
        let turns: Vec<ConnId> = process
            .streams
            .iter()
            .filter(|(_, stream)| stream.turn.is_some_and(|turn| turn <= now))
            .map(|(conn, _)| *conn)
            .collect();
        let mut reports = Vec::new();
        for (conn, stream) in &mut process.streams {
            if stream.report.as_ref().is_some_and(|(due, _)| *due <= now) {
                reports.extend(stream.report.take().map(|(_, report)| (*conn, report)));
            }
        }
        for conn in turns {
            self.admit(conn);
        }
        for (conn, report) in reports {
            self.report(conn, report);
        }
        self.tell();
    }

    /// Gives out what the engine has to say while there is room.
    fn tell(&mut self) {
        loop {
            let Some(process) = &mut self.coordinator.process else {
                return;
            };
            while let Some(event) = process.engine.poll_event() {
                let (Change::NodeState { from, to, .. } | Change::RelayState { from, to, .. }) =
                    event;
                assert_ne!(from, to, "a change of state changes the state");
            }
            while let Some(session) = process.engine.poll_ready() {
                process.ready.insert(session);
            }
            let room = |reader: Option<&Reader>| match reader {
                Some(Reader::Stream(conn)) => process
                    .streams
                    .get(conn)
                    .is_some_and(|stream| stream.in_flight < WINDOW),
                Some(Reader::Relay(_)) => true,
                // Nobody reads it any more; a leak that is found by counting.
                None => false,
            };
            let next = process
                .ready
                .iter()
                .find(|session| room(process.readers.get(session)))
                .copied();
            let Some(session) = next else {
                return;
            };
            let reader = process.readers[&session];
            match process.engine.poll_session(session) {
                None => {
                    process.ready.remove(&session);
                }
                Some(output) => self.deliver(session, reader, output),
            }
        }
    }

    fn deliver(&mut self, session: mesh_netmap::SessionId, reader: Reader, output: Output) {
        match (output, reader) {
            (Output::Netmap(update), Reader::Stream(conn)) => self.send_part(conn, update),
            (Output::Clients(update), Reader::Relay(relay)) => {
                let latency = Underlay::latency(Place::Coordinator, Place::Relay(relay));
                self.plan(self.now + latency, Event::Clients(relay, session, update));
            }
            (Output::End(reason), reader) => {
                if let Some(process) = &mut self.coordinator.process {
                    process.ready.remove(&session);
                    process.readers.remove(&session);
                    if let Reader::Stream(conn) = reader {
                        process.streams.remove(&conn);
                    }
                }
                if let Reader::Stream(conn) = reader {
                    self.note("session-end", format_args!("{conn} {reason:?}"));
                    let bye = Response::ended(reason).encode_to_vec();
                    self.send(conn, End::Client, Item::Bytes(bye));
                    self.close(conn, End::Server);
                }
            }
            (output, reader) => panic!("{reader:?} was told {output:?}"),
        }
    }

    fn send_part(&mut self, conn: ConnId, mut update: mesh_netmap::Update) {
        match self.bug {
            Some(Bug::DropDelta) if !update.full && update.last && self.dice.chance(250) => {
                return;
            }
            Some(Bug::ForgetRemoval) => update.removed.clear(),
            Some(Bug::LeakAcrossNetworks) if update.full => self.leak(conn, &mut update),
            _ => {}
        }
        self.note(
            "netmap-part",
            format_args!(
                "{conn} {:?} full {} last {} peers {} removed {} patches {}",
                update.cursor,
                update.full,
                update.last,
                update.peers.len(),
                update.removed.len(),
                update.patches.len()
            ),
        );
        if let Some(process) = &mut self.coordinator.process
            && let Some(stream) = process.streams.get_mut(&conn)
        {
            stream.in_flight += 1;
        }
        let bytes = Response::netmap(update).encode_to_vec();
        if self.has(Bug::LeakUpdates)
            && let Some(process) = &mut self.coordinator.process
        {
            process.sent.push(bytes.clone());
        }
        self.send(conn, End::Client, Item::Bytes(bytes));
    }

    /// Plants a peer of another network.
    fn leak(&self, conn: ConnId, update: &mut mesh_netmap::Update) {
        let Some(process) = self.running() else {
            return;
        };
        let own = process
            .streams
            .get(&conn)
            .and_then(|s| self.model.home(s.node));
        let stranger = self.model.all().find(|(network, ..)| Some(*network) != own);
        if let Some((_, id, _)) = stranger
            && let Some(node) = process.engine.node(id)
        {
            use mesh_netmap::PeerEncoder as _;
            let peer = crate::cores::grpc_message::ProtoEncoder.peer(&node.peer());
            update.peers.push(peer);
        }
    }
}
