//! Paths: where a direct one must be found, and what the loss of a relay must not end.

use std::time::Duration;

use mesh_tunnel::{PathKind, derp};
use mesh_types::{NodeId, RelayId};

use super::World;
use super::plan::{CONNECT, SETTLE};
use crate::underlay::Nat;

/// Every pair that can must have found a direct path within this: a NAT's new mapping is seen at the
/// next look by STUN (25 s), and the next round of probes is at most 5 s later.
const DIRECT: Duration = Duration::from_secs(30);
/// Nodes look for paths while they have something to say: they say it this often meanwhile.
const TALK: Duration = Duration::from_secs(2);
/// Who has nothing to say asks its relays this often whether they are there.
const MOVED: Duration = derp::KEEPALIVE.saturating_add(Duration::from_secs(1));
const LOOK: Duration = Duration::from_millis(250);

impl World {
    /// Whether datagrams of these two can find each other's way: not where no UDP passes; always to
    /// a public address; through NATs if both sides can learn where they are seen, which takes a
    /// relay, and if what one of them is told is true for the other, which it is not behind a NAT
    /// with another mapping for each receiver, unless the other one is open to everybody.
    fn can_meet(&self, a: usize, b: usize) -> bool {
        let is_seen = self.relays.iter().any(|relay| relay.process.is_some());
        match (self.nodes[a].access.nat, self.nodes[b].access.nat) {
            (Nat::NoUdp, _) | (_, Nat::NoUdp) => false,
            (Nat::None, _) | (_, Nat::None) => true,
            (Nat::Open, _) | (_, Nat::Open) | (Nat::Restricted, Nat::Restricted) => is_seen,
            (Nat::Symmetric, _) | (_, Nat::Symmetric) => false,
        }
    }

    fn path(&self, n: usize, peer: NodeId) -> PathKind {
        let process = self.nodes[n].process.as_ref();
        let stats = process.and_then(|process| process.device.peer_stats(peer));
        stats.map_or(PathKind::None, |stats| stats.path)
    }

    /// What is still relayed of those pairs that can do without, seen from either end.
    fn relayed_in_vain(&self, pairs: &[(usize, NodeId, u16)]) -> Option<String> {
        pairs.iter().find_map(|&(n, to, _)| {
            let m = self.by_id[&to];
            let ends = [(n, to), (m, self.nodes[n].id)];
            ends.into_iter().find_map(|(from, to)| {
                let path = self.path(from, to);
                let is_direct = matches!(path, PathKind::Direct(_));
                (!is_direct).then(|| format!("node {from} reaches {to} by {path:?}"))
            })
        })
    }

    /// All of these pairs that can go on to talk directly.
    pub(super) fn demand_direct(&mut self, mut pairs: Vec<(usize, NodeId, u16)>) {
        pairs.retain(|(n, to, _)| self.can_meet(*n, self.by_id[to]));
        let begun = self.now;
        let mut flows = Vec::new();
        for &(n, to, port) in &pairs {
            let v6 = self.dice.chance(500);
            flows.push((n, to, self.open_flow(n, to, port, v6), port, v6));
        }
        let mut talk_at = self.now + TALK;
        while let Some(found) = self.relayed_in_vain(&pairs) {
            assert!(
                self.now - begun < DIRECT,
                "no direct path within {DIRECT:?}, and nothing is in its way: {found}"
            );
            self.run_until(self.now + LOOK);
            if self.now >= talk_at {
                talk_at += TALK;
                for &(n, to, local, port, v6) in &flows {
                    self.send_syn(n, to, local, port, v6);
                }
            }
        }
        let took = self.now - begun;
        self.note("direct", format_args!("{} {took:?}", pairs.len()));
    }

    /// One of two relays is gone for a while, and everybody goes on talking by the other one.
    pub(super) fn lose_relay(&mut self) {
        let lost = self.dice.below(self.relays.len());
        let polite = self.dice.chance(500);
        self.stop_relay(lost, polite);
        let (id, begun) = (self.relays[lost].id, self.now);
        let pairs = self.connectable();
        self.connect_all(pairs.clone(), CONNECT);
        for &(n, to, _) in &pairs {
            let path = self.path(n, to);
            assert_ne!(
                path,
                PathKind::Relay(id),
                "node {n} sends to {to} by relay {lost}, which is gone"
            );
        }
        while let Some(n) = self.who_stays_at(id) {
            assert!(
                self.now - begun < MOVED,
                "node {n} stays at relay {lost}, which is gone"
            );
            self.run_until(self.now + LOOK);
        }
        if self.coordinator.process.is_some() {
            // Where everybody listens now is told to all.
            self.settle(SETTLE);
        }
        self.demand_direct(pairs);
        let away = self.dice.millis(0, 30_000);
        self.run_until(self.now + away);
        self.start_relay(lost);
    }

    /// Somebody whose home is this relay.
    fn who_stays_at(&self, relay: RelayId) -> Option<usize> {
        self.nodes.iter().position(|node| {
            let home = node.process.as_ref().and_then(|process| process.home);
            home == Some(relay)
        })
    }
}
