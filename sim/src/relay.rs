//! A relay: the product's registry, queues and DERP, and a disk with the list of its clients.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use mesh_netmap::ClientUpdate;
use mesh_tunnel::derp::{self, Frame, GoneReason, Server, ServerEvent, encode_recv};
use mesh_types::key::SecretKey;
use mesh_types::{NetworkId, RelayId, WgPublicKey};

use crate::cores::mailbox::Queue;
use crate::cores::registry::{ClientsUpdate, ConnectionId, Registry};
use crate::pipe::ConnId;

/// How long a client waits that the coordinator has not named yet.
const ADMISSION: Duration = Duration::from_secs(5);
/// More is not written at once.
const CHUNK: usize = 64 * 1024;

/// A client's connection.
#[derive(Debug)]
struct Client {
    server: Server,
    /// Once it has proven its key.
    key: Option<WgPublicKey>,
    /// Once it was let in.
    id: Option<ConnectionId>,
    waits_until: Option<Duration>,
    queue: Queue,
    heard: Duration,
    wrote: Duration,
}

/// A running relay.
#[derive(Debug)]
pub(crate) struct Process {
    key: SecretKey,
    pub(crate) registry: Registry<ConnId>,
    clients: BTreeMap<ConnId, Client>,
    /// The parts so far of an update that comes in several.
    partial: Option<ClientsUpdate>,
    /// Which watch of which coordinator's life it follows.
    pub(crate) watch: Option<mesh_netmap::SessionId>,
}

/// A relay.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) id: RelayId,
    /// The list of clients as it was last stored.
    disk: HashMap<WgPublicKey, NetworkId>,
    pub(crate) process: Option<Process>,
}

/// What the shell must do.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Bytes to write, in order.
    pub(crate) write: Vec<(ConnId, Vec<u8>)>,
    /// Connections to end.
    pub(crate) close: Vec<ConnId>,
    /// Who sent something to whom through it.
    pub(crate) forwarded: Vec<(WgPublicKey, WgPublicKey)>,
}

impl Relay {
    pub(crate) fn new(id: RelayId) -> Self {
        Self {
            id,
            disk: HashMap::new(),
            process: None,
        }
    }

    pub(crate) fn start(&mut self, key: [u8; 32]) {
        let mut registry = Registry::new();
        registry.update(ClientsUpdate {
            full: true,
            clients: self.disk.clone(),
            removed: Vec::new(),
        });
        self.process = Some(Process {
            key: SecretKey::from_bytes(key),
            registry,
            clients: BTreeMap::new(),
            partial: None,
            watch: None,
        });
    }

    /// Takes news of its clients; `forgetful` plants a fault.
    pub(crate) fn news(&mut self, news: ClientUpdate, forgetful: bool, now: Duration) -> Work {
        let Some(process) = &mut self.process else {
            return Work::default();
        };
        let mut update = process.partial.take().unwrap_or_default();
        update.full |= news.full && !forgetful;
        update.clients.extend(news.clients);
        if !forgetful {
            update.removed.extend(news.removed);
        }
        if !news.last {
            process.partial = Some(update);
            return Work::default();
        }
        let mut cut = process.registry.update(update);
        // The registry is hashed; what happens must not depend on that.
        cut.sort_unstable();
        self.disk.clone_from(process.registry.allowed());
        let mut work = Work::default();
        for conn in cut {
            process.drop_client(conn);
            work.close.push(conn);
        }
        process.admit(&mut work, now);
        work
    }
}

impl Process {
    /// A node connects; what the relay says first.
    pub(crate) fn accept(&mut self, conn: ConnId, seed: [u8; 32], now: Duration) -> Work {
        let mut server = Server::new(&self.key, seed);
        let mut hello = Vec::new();
        server.take_output(&mut hello);
        self.clients.insert(
            conn,
            Client {
                server,
                key: None,
                id: None,
                waits_until: None,
                queue: Queue::default(),
                heard: now,
                wrote: now,
            },
        );
        Work {
            write: vec![(conn, hello)],
            ..Work::default()
        }
    }

    pub(crate) fn drop_client(&mut self, conn: ConnId) {
        if let Some(Client {
            key: Some(key),
            id: Some(id),
            ..
        }) = self.clients.remove(&conn)
        {
            self.registry.disconnect(&key, id);
        }
    }

    /// Takes what a client sent; `blind` plants a fault.
    pub(crate) fn read(&mut self, conn: ConnId, bytes: &[u8], blind: bool, now: Duration) -> Work {
        let mut work = Work::default();
        let Some(client) = self.clients.get_mut(&conn) else {
            work.close.push(conn);
            return work;
        };
        client.heard = now;
        client.server.handle_bytes(bytes);
        if client.id.is_none() {
            if client.key.is_none() {
                let first = client.server.poll().expect("a client that speaks DERP");
                if let Some(ServerEvent::Hello { client: key }) = first {
                    client.key = Some(key);
                    client.waits_until = Some(now + ADMISSION);
                }
            }
            self.admit(&mut work, now);
        } else {
            self.forward(conn, blind, &mut work);
        }
        self.flush(&mut work, now);
        work
    }

    /// Lets those in who have proven a key that the coordinator has named.
    fn admit(&mut self, work: &mut Work, now: Duration) {
        for (conn, client) in &mut self.clients {
            let (Some(key), None) = (client.key, client.id) else {
                continue;
            };
            if !self.registry.is_allowed(&key) {
                continue;
            }
            client.waits_until = None;
            client.server.accept();
            let mut welcome = Vec::new();
            client.server.take_output(&mut welcome);
            client.queue.push_control(welcome);
            let (id, older) = self.registry.connect(key, *conn).expect("it is allowed");
            client.id = Some(id);
            work.close.extend(older);
        }
        for conn in &work.close {
            self.clients.remove(conn);
        }
        self.flush(work, now);
    }

    fn forward(&mut self, conn: ConnId, blind: bool, work: &mut Work) {
        let mut frames = Vec::new();
        let mut own = Vec::new();
        let by_key: Vec<(WgPublicKey, ConnId)> = match blind {
            true => self
                .clients
                .iter()
                .filter_map(|(conn, client)| Some((client.key?, *conn)))
                .collect(),
            false => Vec::new(),
        };
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        let (Some(from), Some(id)) = (client.key, client.id) else {
            return;
        };
        while let Some(event) = client.server.poll().expect("a client that speaks DERP") {
            let ServerEvent::Packet { to, payload } = event else {
                continue;
            };
            let blindly = by_key.iter().find(|(key, _)| *key == to);
            let route = self.registry.route(&from, id, &to).copied();
            if let Some(receiver) = route.or(blindly.map(|(_, conn)| *conn)) {
                let mut frame = Vec::new();
                encode_recv(&from, payload, &mut frame);
                frames.push((receiver, frame));
                work.forwarded.push((from, to));
            } else {
                let mut frame = Vec::new();
                let reason = GoneReason::NotHere;
                Frame::PeerGone { peer: to, reason }.encode(&mut frame);
                own.push(frame);
            }
        }
        for frame in own {
            client.queue.push_control(frame);
        }
        for (receiver, frame) in frames {
            if let Some(receiver) = self.clients.get_mut(&receiver) {
                receiver.queue.push(frame);
            }
        }
    }

    fn flush(&mut self, work: &mut Work, now: Duration) {
        for (conn, client) in &mut self.clients {
            let mut pong = Vec::new();
            client.server.take_output(&mut pong);
            if !pong.is_empty() {
                client.queue.push_control(pong);
            }
            let mut chunk = Vec::new();
            client.queue.take(&mut chunk, CHUNK);
            if !chunk.is_empty() {
                client.wrote = now;
                work.write.push((*conn, chunk));
            }
        }
    }

    /// What is due once a second: keepalives, and an end for those who say nothing.
    pub(crate) fn tick(&mut self, now: Duration) -> Work {
        let mut work = Work::default();
        for (conn, client) in &mut self.clients {
            let late = client.waits_until.is_some_and(|until| until <= now);
            if late || now.saturating_sub(client.heard) >= derp::DEAD_AFTER {
                work.close.push(*conn);
            } else if client.id.is_some() && now.saturating_sub(client.wrote) >= derp::KEEPALIVE {
                let mut chunk = Vec::new();
                Frame::KeepAlive.encode(&mut chunk);
                Frame::Ping([0; 8]).encode(&mut chunk);
                client.wrote = now;
                work.write.push((*conn, chunk));
            }
        }
        for conn in work.close.clone() {
            self.drop_client(conn);
        }
        work
    }

    /// Whose connections there are.
    pub(crate) fn connected(&self) -> impl Iterator<Item = WgPublicKey> {
        self.clients
            .values()
            .filter(|client| client.id.is_some())
            .filter_map(|client| client.key)
    }

    pub(crate) fn serves(&self, conn: ConnId) -> bool {
        self.clients.contains_key(&conn)
    }

    /// Clients to whom not all is written that there is for them.
    pub(crate) fn unwritten(&self) -> usize {
        let waits = |client: &&Client| !client.queue.is_empty();
        self.clients.values().filter(waits).count()
    }

    pub(crate) fn held(&self) -> usize {
        self.clients.len()
    }
}
