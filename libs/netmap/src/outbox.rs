//! All sessions, and which of them have news.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_types::{NodeId, WgPublicKey};

use crate::class::ClassIx;
use crate::network::Network;
use crate::node::Change;
use crate::session::{Header, Kind, Session};
use crate::update::{EndReason, SessionId};

/// Sessions and watches. INVARIANT: a session is in `ready` at most once, and only while it is
/// not armed.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) client_watches: BTreeSet<SessionId>,
    ready: VecDeque<SessionId>,
}

impl Outbox {
    /// Adds a session that has news from the start, unless it is a relay's.
    pub(crate) fn open(&mut self, id: SessionId, kind: Kind) {
        let armed = matches!(kind, Kind::Relay(_));
        self.sessions.insert(id, Session { kind, armed });
        if !armed {
            self.ready.push_back(id);
        }
    }

    /// The next session to be announced.
    pub(crate) fn next_ready(&mut self) -> Option<SessionId> {
        while let Some(id) = self.ready.pop_front() {
            if self.sessions.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    /// A node of this class changed: all who see the class are told.
    pub(crate) fn peer(&mut self, network: &Network, class: ClassIx, id: NodeId, change: Change) {
        for viewers in &network.classes.at(class).neighbours {
            for session in &network.classes.at(*viewers).sessions {
                self.with(*session, |kind| match kind {
                    Kind::Node(session) if session.node != id => {
                        session.mark_peer(id, change);
                        true
                    }
                    _ => false,
                });
            }
        }
    }

    /// A part of the netmap besides the peers changed.
    pub(crate) fn header(&mut self, id: SessionId, header: Header) {
        self.with(id, |kind| match kind {
            Kind::Node(session) => {
                session.mark_header(header);
                true
            }
            _ => false,
        });
    }

    /// Only a full map helps this session.
    pub(crate) fn restart(&mut self, id: SessionId) {
        self.with(id, |kind| match kind {
            Kind::Node(session) => {
                session.pending.full = true;
                true
            }
            _ => false,
        });
    }

    /// A worker's route changed.
    pub(crate) fn route(&mut self, network: &Network, node: NodeId) {
        for id in &network.route_watches {
            self.with(*id, |kind| match kind {
                Kind::Routes(watch) => watch.pending.insert(node),
                _ => false,
            });
        }
    }

    /// A key came, went, or moved.
    pub(crate) fn client(&mut self, key: WgPublicKey) {
        for id in self.client_watches.clone() {
            self.with(id, |kind| match kind {
                Kind::Clients(watch) => watch.pending.insert(key),
                _ => false,
            });
        }
    }

    /// The session is over; it is told so as soon as it is polled.
    pub(crate) fn end(&mut self, id: SessionId, reason: EndReason) {
        self.client_watches.remove(&id);
        self.with(id, |kind| {
            *kind = Kind::Ended(reason);
            true
        });
    }

    /// Changes a session and announces it when there are news.
    fn with(&mut self, id: SessionId, change: impl FnOnce(&mut Kind) -> bool) {
        if let Some(session) = self.sessions.get_mut(&id)
            && change(&mut session.kind)
            && std::mem::take(&mut session.armed)
        {
            self.ready.push_back(id);
        }
    }
}
