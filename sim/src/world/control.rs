//! The nodes' end of the control plane.

use std::time::Duration;

use mesh_node::ControlState;
use mesh_node::control::machine::{Action, Incoming};
use mesh_types::{Cursor, Standing, Troubles};

use super::{Event, World};
use crate::grpc;
use crate::pipe::{ConnId, End, Item};
use crate::planted::Bug;
use crate::underlay::{Place, Underlay};

impl World {
    pub(super) fn node_hears(&mut self, n: usize, conn: ConnId, bytes: &[u8]) {
        let now = self.nodes[n].now(self.start, self.now);
        let replays = self.has(Bug::AcceptReplay) && self.dice.chance(200);
        let Some(process) = &mut self.nodes[n].process else {
            return;
        };
        if process.conn != Some(conn) {
            return;
        }
        let (mut incoming, is_part) = grpc::heard(bytes, &mut process.assembler);
        if let (Some(Bug::IgnoreRenames), Incoming::Netmap(update)) = (self.bug, &mut incoming) {
            for peer in &mut update.peers {
                let first = process.names.entry(peer.id);
                peer.name = first.or_insert(peer.name.clone()).clone();
            }
        }
        if let (Some(Bug::ForgetWhereabouts), Incoming::Netmap(update)) = (self.bug, &mut incoming)
        {
            update.unreported.clear();
        }
        if is_part
            && let Some(coordinator) = &mut self.coordinator.process
            && let Some(stream) = coordinator.streams.get_mut(&conn)
        {
            stream.in_flight = stream.in_flight.saturating_sub(1);
        }
        let whole = matches!(incoming, Incoming::Netmap(_));
        process.machine.handle_message(incoming, now);
        if whole {
            let last = process.last_message.replace(bytes.to_vec());
            if let Some(last) = last.filter(|_| replays) {
                let (again, _) = grpc::heard(&last, &mut process.assembler);
                process.machine.handle_message(again, now);
            }
        }
        self.control_acts(n);
    }

    pub(super) fn control_closed(&mut self, n: usize, conn: ConnId, reason: &str) {
        let now = self.nodes[n].now(self.start, self.now);
        let Some(process) = &mut self.nodes[n].process else {
            return;
        };
        if process.conn == Some(conn) {
            process.conn = None;
            process.machine.handle_closed(reason.to_owned(), now);
            self.control_acts(n);
        }
    }

    /// Does what the control session wants done.
    pub(super) fn control_acts(&mut self, n: usize) {
        loop {
            let Some(process) = &mut self.nodes[n].process else {
                return;
            };
            let Some(action) = process.machine.poll_action() else {
                break;
            };
            match action {
                Action::Open { cursor } => self.open_stream(n, cursor),
                Action::Close => {
                    if let Some(conn) = process.conn.take() {
                        self.close(conn, End::Client);
                    }
                }
                Action::Heartbeat {
                    nonce,
                    sequence,
                    time,
                    stored_for,
                } => {
                    let node = &self.nodes[n];
                    let standing = Standing {
                        troubles: Troubles::default(),
                        stored_for,
                    };
                    let bytes =
                        grpc::heartbeat(&node.identity, node.id, &nonce, sequence, time, standing);
                    self.send_up(n, bytes);
                }
                Action::Report(report) => self.send_up(n, grpc::report(report)),
                Action::Renew => {
                    let life = process.life;
                    let answer = self.now + Duration::from_millis(200);
                    self.plan(answer, Event::Renewed(n, life));
                }
                Action::NetmapChanged => self.netmap_changed(n),
                Action::StateChanged => self.state_changed(n),
            }
        }
    }

    fn send_up(&mut self, n: usize, bytes: Vec<u8>) {
        if let Some(conn) = self.nodes[n].process.as_ref().and_then(|p| p.conn) {
            self.send(conn, End::Server, Item::Bytes(bytes));
        }
    }

    fn open_stream(&mut self, n: usize, mut cursor: Option<Cursor>) {
        if self.has(Bug::ResumeTooNew)
            && let Some(cursor) = &mut cursor
        {
            let network = self.nodes[n].network;
            cursor.version = self.coordinator.store.networks[&network].version;
        }
        let place = Place::Node(n);
        let conn = self.connect(n, Place::Coordinator);
        self.note("control-open", format_args!("{n} {cursor:?}"));
        if let Some(process) = &mut self.nodes[n].process {
            process.conn = Some(conn);
            process.assembler = Default::default();
        }
        if self.coordinator.process.is_some() {
            self.send(conn, End::Server, Item::Bytes(grpc::hello(cursor)));
        } else if !self.underlay.is_cut(place, Place::Coordinator) {
            let answer = self.now + 2 * Underlay::latency(place, Place::Coordinator);
            self.plan(answer, Event::Refused(conn));
        } else {
            // Into the void: the session's own deadline ends it.
            self.vanish(conn, End::Server);
        }
    }

    pub(super) fn renewed(&mut self, n: usize, life: u64) {
        let now = self.nodes[n].now(self.start, self.now);
        let cut = self.underlay.is_cut(Place::Node(n), Place::Coordinator);
        let known = self.model.facts(self.nodes[n].id).is_some();
        let asleep = self.nodes[n].asleep.is_some() || self.has(Bug::NeverRenew);
        let up = self.coordinator.process.is_some() && !cut && !asleep;
        let validity = self.certificate();
        let node = &mut self.nodes[n];
        let Some(process) = node.process.as_mut().filter(|p| p.life == life) else {
            return;
        };
        match (up, known) {
            (false, _) => process
                .machine
                .handle_renew_failed("no answer".to_owned(), now),
            (true, false) => process.machine.handle_removed(),
            (true, true) => {
                node.validity = validity;
                process.machine.handle_renewed(validity, now);
            }
        }
        self.note("renewal", format_args!("{n} up {up} known {known}"));
        self.control_acts(n);
    }

    fn state_changed(&mut self, n: usize) {
        let Some(process) = &self.nodes[n].process else {
            return;
        };
        let (state, _) = process.machine.state();
        if state == ControlState::Removed {
            self.note("node-removed", format_args!("{n}"));
            self.stop_node(n, true);
            self.nodes[n].removed = true;
            self.nodes[n].disk = None;
        }
    }

    /// Whether the node's stream is open as far as it knows.
    pub(super) fn is_live(&self, n: usize) -> bool {
        self.nodes[n]
            .process
            .as_ref()
            .is_some_and(|process| process.machine.state().0 == ControlState::Connected)
    }
}
