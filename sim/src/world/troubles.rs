//! What may happen to machines and to those who use them.

use std::time::Duration;

use mesh_netmap::NodeRow;
use mesh_tunnel::{disco_public_key, wg_public_key};
use mesh_types::key::SecretKey;
use mesh_types::{NetworkId, NodeId, Role, Service, ServiceKind, UptimeClass};

use super::{NETWORKS, World};
use crate::node::Node;
use crate::pipe::{ConnId, End};
use crate::underlay::{Access, Nat, Place};

/// Nodes that are enrolled at the same time.
const MOST_NODES: usize = 8;
/// Nodes that ever are.
const MOST_EVER: usize = 16;

const OWNERS: [&str; 3] = ["anna", "ben", ""];

const SERVICES: [(&str, ServiceKind, u16); 4] = [
    ("console", ServiceKind::Console, 9090),
    ("ssh", ServiceKind::Ssh, 22),
    ("web", ServiceKind::Http, 8000),
    ("db", ServiceKind::Tcp, 5432),
];

/// A machine that is about to join.
pub(super) struct Newcomer {
    pub(super) network: NetworkId,
    pub(super) role: Role,
    pub(super) owner: &'static str,
    /// The name it asks for.
    pub(super) wished: String,
    pub(super) wg: [u8; 32],
    pub(super) disco: [u8; 32],
    pub(super) services: Vec<Service>,
    pub(super) nat: Nat,
}

pub(super) fn services(set: usize) -> Vec<Service> {
    SERVICES
        .iter()
        .enumerate()
        .filter(|(bit, _)| set & (1 << bit) != 0)
        .map(|(_, (name, kind, port))| Service {
            name: name.parse().expect("a name"),
            kind: *kind,
            port: *port,
        })
        .collect()
}

impl World {
    /// A machine joins; `crash` kills the coordinator between commit and engine.
    pub(super) fn join(&mut self, crash: bool) {
        let enrolled = self.model.all().count();
        if !self.takes_changes() || enrolled >= MOST_NODES || self.nodes.len() >= MOST_EVER {
            return;
        }
        let network = NetworkId::from_bytes(NETWORKS[usize::from(self.dice.chance(300))].1);
        let role = match self.dice.below(10) {
            0 => Role::Gateway,
            1 => Role::Deployer,
            2 => Role::Client,
            _ => Role::Worker,
        };
        let owner = OWNERS[[0, 0, 0, 0, 1, 1, 2][self.dice.below(7)]];
        let newcomer = Newcomer {
            network,
            role,
            owner,
            wished: format!("node-{}", self.dice.below(3)),
            wg: self.dice.bytes(),
            disco: self.dice.bytes(),
            services: services(1 + self.dice.below(15)),
            nat: Nat::ALL[self.dice.below(Nat::ALL.len())],
        };
        self.enrol(self.nodes.len(), newcomer, crash);
    }

    /// The newcomer takes the `n`th place: the next one, or one that nobody has any more.
    pub(super) fn enrol(&mut self, n: usize, newcomer: Newcomer, crash: bool) {
        let Newcomer {
            network,
            role,
            owner,
            nat,
            ..
        } = newcomer;
        let wished = newcomer.wished.parse().expect("a name");
        let process = self.coordinator.process.as_mut().expect("it takes changes");
        let reservation = process.engine.reserve(network, &wished).expect("room");
        let wg = SecretKey::from_bytes(newcomer.wg);
        let disco = SecretKey::from_bytes(newcomer.disco);
        self.next_node += 1;
        let id = NodeId::from_parts(self.next_node, [0; 10]);
        let row = NodeRow {
            id,
            network,
            name: reservation.name,
            role,
            owner: owner.to_owned(),
            addrs: reservation.addrs,
            wg_key: wg_public_key(&wg),
            disco_key: disco_public_key(&disco),
            services: Vec::new(),
            routes: Vec::new(),
            ssh_host_keys: Vec::new(),
            ssh_user: String::new(),
            uptime: UptimeClass::AlwaysOn,
            changed_version: 0,
            last_seen: None,
            seen_ago: None,
        };
        self.note(
            "join",
            format_args!("{n} {} {role} {owner} {nat:?} crash {crash}", row.name),
        );
        self.by_id.insert(id, n);
        self.by_wg.insert(row.wg_key, id);
        let node = Node {
            id,
            network,
            addrs: row.addrs,
            wg,
            disco,
            identity: self.identities[n % self.identities.len()].clone(),
            access: Access::new(n, nat),
            services: newcomer.services,
            disk: None,
            validity: self.certificate(),
            clock_off: 0,
            asleep: None,
            slept: Duration::ZERO,
            process: None,
            removed: false,
        };
        match self.nodes.get_mut(n) {
            Some(place) => *place = node,
            None => self.nodes.push(node),
        }
        self.commit_row(row, crash);
        self.start_node(n);
    }

    /// The enrolled nodes that pass.
    pub(super) fn those(&self, pass: impl Fn(&Node) -> bool) -> Vec<usize> {
        let enrolled = |node: &Node| self.model.facts(node.id).is_some();
        (0..self.nodes.len())
            .filter(|n| enrolled(&self.nodes[*n]) && pass(&self.nodes[*n]))
            .collect()
    }

    pub(super) fn start_node(&mut self, n: usize) {
        if self.nodes[n].process.is_some() || self.nodes[n].removed {
            return;
        }
        self.next_life += 1;
        let (life, start, now) = (self.next_life, self.start, self.now);
        if self.has(crate::planted::Bug::LoseStoredNetmap) {
            self.nodes[n].disk = None;
        }
        self.nodes[n].start(life, &mut self.dice, start, now);
        let known = self.nodes[n].disk.is_some();
        self.note("node-start", format_args!("{n} netmap {known}"));
        let has_map = self.nodes[n]
            .process
            .as_ref()
            .is_some_and(|process| process.machine.netmap().is_some());
        if has_map {
            self.netmap_changed(n);
        }
        self.report_node(n);
    }

    /// The process ends: it stores its netmap and closes its connections, or it loses power.
    pub(super) fn stop_node(&mut self, n: usize, polite: bool) {
        if self.nodes[n].process.is_none() {
            return;
        }
        if polite {
            self.nodes[n].store(self.now);
        }
        self.nodes[n].process = None;
        self.nodes[n].asleep = None;
        self.note("node-stop", format_args!("{n} polite {polite}"));
        let conns: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.node == n)
            .map(|(id, _)| *id)
            .collect();
        for conn in conns {
            match polite {
                true => self.close(conn, End::Client),
                false => self.vanish(conn, End::Client),
            }
        }
    }

    /// It starts again, perhaps on another port, behind another mapping.
    pub(super) fn restart_node(&mut self, n: usize, polite: bool, moves: bool) {
        self.stop_node(n, polite);
        if moves {
            self.nodes[n].access.port = self.nodes[n].access.port.wrapping_add(1).max(1024);
            self.nodes[n].access.rebind();
        }
        self.start_node(n);
    }

    /// One more trouble.
    pub(super) fn trouble(&mut self) {
        let crash = self.dice.chance(100);
        match self.dice.below(100) {
            0..10 => self.join(crash),
            10..16 => self.leave(crash),
            16..22 => self.rename(crash),
            22..27 => self.change_owner(crash),
            27..33 => self.publish(),
            33..44 => self.restart_some(),
            44..52 => self.partition(),
            52..58 => self.mend(),
            58..62 => {
                let polite = self.dice.chance(500);
                self.stop_coordinator(polite);
            }
            62..68 => self.start_coordinator(),
            68..71 => self.coordinator.store.up = false,
            71..76 => self.coordinator.store.up = true,
            76..80 => self.trouble_relay(),
            80..84 => self.change_clock(),
            84..88 => self.weather(),
            88..92 => self.rebind(),
            92..94 => self.damage(),
            94..97 => self.come_back_elsewhere(),
            _ => self.hostile(),
        }
    }

    fn leave(&mut self, crash: bool) {
        let those = self.those(|_| true);
        if let Some(n) = self.dice.pick(&those).filter(|_| self.takes_changes()) {
            let id = self.nodes[n].id;
            self.note("leave", format_args!("{n} crash {crash}"));
            self.commit_removal(id, crash);
        }
    }

    fn row_of_some(&mut self) -> Option<NodeRow> {
        let those = self.those(|_| true);
        let n = self.dice.pick(&those).filter(|_| self.takes_changes())?;
        self.coordinator.store.nodes.get(&self.nodes[n].id).cloned()
    }

    pub(super) fn rename(&mut self, crash: bool) {
        let Some(mut row) = self.row_of_some() else {
            return;
        };
        let name = format!("named-{}", self.dice.below(5));
        let name = name.parse().expect("a name");
        let free = self
            .running()
            .is_some_and(|process| process.engine.name_free(row.network, &name));
        if free {
            self.note("rename", format_args!("{} {name} crash {crash}", row.id));
            row.name = name;
            self.commit_row(row, crash);
        }
    }

    pub(super) fn change_owner(&mut self, crash: bool) {
        let Some(mut row) = self.row_of_some() else {
            return;
        };
        let owner = OWNERS[self.dice.below(3)];
        if row.owner != owner {
            self.note("owner", format_args!("{} {owner} crash {crash}", row.id));
            row.owner = owner.to_owned();
            self.commit_row(row, crash);
        }
    }

    pub(super) fn publish(&mut self) {
        let those = self.those(|node| node.process.is_some());
        if let Some(n) = self.dice.pick(&those) {
            let set = self.dice.below(16);
            self.note("publish", format_args!("{n} {set:04b}"));
            self.nodes[n].services = services(set);
            self.report_node(n);
        }
    }

    fn restart_some(&mut self) {
        let those = self.those(|node| !node.removed);
        let (polite, moves) = (self.dice.chance(500), self.dice.chance(500));
        let Some(n) = self.dice.pick(&those) else {
            return;
        };
        match self.dice.below(4) {
            0 => self.stop_node(n, polite),
            1 => self.start_node(n),
            _ => self.restart_node(n, polite, moves),
        }
    }

    /// A node that nobody hears any more loses power and comes back at another place, while what it
    /// said last is still on its way.
    fn come_back_elsewhere(&mut self) {
        let those = self.those(|node| node.process.is_some());
        let Some(n) = self.dice.pick(&those) else {
            return;
        };
        self.note("elsewhere", format_args!("{n}"));
        let (place, server) = (Place::Node(n), Place::Coordinator);
        self.underlay.cut(place, server);
        self.nodes[n].services = services(self.dice.below(16));
        self.report_node(n);
        for _ in 0..4 {
            self.rename(false);
            let pause = self.dice.millis(0, 500);
            self.run_until(self.now + pause);
        }
        self.nodes[n].services = services(self.dice.below(16));
        self.restart_node(n, false, true);
        self.underlay.heal(place, server);
    }

    fn some_places(&mut self) -> Option<(Place, Place)> {
        let those = self.those(|_| true);
        let a = Place::Node(self.dice.pick(&those)?);
        let b = match self.dice.below(3) {
            0 => Place::Coordinator,
            1 if !self.relays.is_empty() => Place::Relay(self.dice.below(self.relays.len())),
            _ => Place::Node(self.dice.pick(&those)?),
        };
        Some((a, b))
    }

    pub(super) fn partition(&mut self) {
        if let Some((a, b)) = self.some_places() {
            self.note("partition", format_args!("{a:?} {b:?}"));
            self.underlay.cut(a, b);
        }
    }

    fn mend(&mut self) {
        if let Some((a, b)) = self.some_places() {
            self.note("mend", format_args!("{a:?} {b:?}"));
            self.underlay.heal(a, b);
        }
    }

    fn trouble_relay(&mut self) {
        if self.relays.is_empty() {
            return;
        }
        let relay = self.dice.below(self.relays.len());
        let polite = self.dice.chance(500);
        match self.relays[relay].process.is_some() {
            true => self.stop_relay(relay, polite),
            false => self.start_relay(relay),
        }
    }

    fn change_clock(&mut self) {
        let those = self.those(|_| true);
        if let Some(n) = self.dice.pick(&those) {
            let offs = [
                0, 10, -10, 29, -29, 40, -40, 86_400, -86_400, 3_456_000, -3_456_000,
            ];
            let off = offs[self.dice.below(offs.len())];
            self.note("clock", format_args!("{n} {off}"));
            self.nodes[n].clock_off = off;
        }
    }

    fn weather(&mut self) {
        self.underlay.loss = [0, 20, 100, 300, 1000][self.dice.below(5)];
        self.underlay.duplicates = [0, 50, 200][self.dice.below(3)];
        self.underlay.jitter = [0, 20, 400][self.dice.below(3)];
        let (loss, jitter) = (self.underlay.loss, self.underlay.jitter);
        self.note("weather", format_args!("loss {loss} jitter {jitter}"));
    }

    pub(super) fn rebind(&mut self) {
        let those = self.those(|_| true);
        if let Some(n) = self.dice.pick(&those) {
            self.note("rebind", format_args!("{n}"));
            self.nodes[n].access.rebind();
        }
    }

    /// A bit of a stored netmap turns over while nobody looks.
    fn damage(&mut self) {
        let those = self.those(|node| node.process.is_none() && node.disk.is_some());
        let Some(n) = self.dice.pick(&those) else {
            return;
        };
        let bits = self.dice.below(1 << 20);
        if let Some(disk) = &mut self.nodes[n].disk {
            let at = bits % disk.len();
            disk[at] ^= 1 << (bits % 8);
        }
        self.note("damage", format_args!("{n} {bits}"));
    }

    /// Somebody tries what they may not: a port, a network.
    fn hostile(&mut self) {
        let from = self.those(|node| node.process.is_some());
        let to = self.dice.below(self.nodes.len().max(1));
        let Some(from) = self.dice.pick(&from).filter(|n| *n != to) else {
            return;
        };
        if self.dice.chance(300) {
            let key = wg_public_key(&self.nodes[to].wg);
            self.hostile_frame(from, key);
        } else {
            let port = SERVICES[self.dice.below(4)].2;
            let id = self.nodes[to].id;
            self.open_flow(from, id, port, false);
        }
    }
}
