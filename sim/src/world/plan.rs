//! The life of a world: it grows, everything goes wrong, it heals; then its coordinator is lost.

use std::time::Duration;

use super::World;

/// After the last fault everything must be known everywhere within this. A node may have to find
/// out that its stream is dead (45 s), then it backs off (5 s) and waits for its turn.
pub(super) const SETTLE: Duration = Duration::from_secs(60);
/// Every pair that can talk must talk within this.
pub(super) const CONNECT: Duration = Duration::from_secs(15);
/// A node that restarted while the coordinator is away must talk to whom it knew within this.
const ISLAND: Duration = Duration::from_secs(5);

impl World {
    /// Lives through all of it.
    ///
    /// # Panics
    /// Something is not as it must be; the message says what.
    pub fn live(&mut self) {
        for _ in 0..3 + self.dice.below(4) {
            self.join(false);
            let pause = self.dice.millis(0, 2_000);
            self.run_until(self.now + pause);
        }
        let end = self.now + self.dice.millis(20_000, 60_000);
        while self.now < end {
            self.trouble();
            self.chatter();
            let pause = self.dice.millis(0, 2_500);
            self.run_until(self.now + pause);
            self.check_bounds();
        }
        self.recover();
        self.settle(SETTLE);
        let pairs = self.connectable();
        self.connect_all(pairs.clone(), CONNECT);
        self.demand_direct(pairs);
        if self.relays.len() > 1 && self.dice.chance(500) {
            self.lose_relay();
            self.settle(SETTLE);
        }
        if self.dice.chance(500) {
            self.lose_coordinator();
        }
        if self.dice.chance(200) {
            // Half-open connections are found out by then, wherever they were.
            self.run_until(self.now + Duration::from_secs(70));
            self.settle(SETTLE);
        }
        self.check_bounds();
    }

    /// Ordinary traffic between nodes that may talk.
    fn chatter(&mut self) {
        let pairs = self.connectable();
        for _ in 0..2 {
            if let Some((n, to, port)) = self.dice.pick(&pairs) {
                let v6 = self.dice.chance(300);
                self.open_flow(n, to, port, v6);
            }
        }
    }

    /// All faults end. Some nodes stay off: that is no fault.
    fn recover(&mut self) {
        self.note("recover", format_args!(""));
        self.underlay.calm();
        self.coordinator.store.up = true;
        self.start_coordinator();
        for relay in 0..self.relays.len() {
            self.start_relay(relay);
        }
        for n in 0..self.nodes.len() {
            self.nodes[n].clock_off = 0;
            if self.dice.chance(850) {
                self.start_node(n);
            }
        }
    }

    /// The coordinator is gone; a node restarts meanwhile, and all go on talking.
    fn lose_coordinator(&mut self) {
        // Where others are is stored within 10 s, and a peer that forgot its session is asked for a
        // new one at most every 5 s.
        self.run_until(self.now + Duration::from_secs(11));
        let polite = self.dice.chance(500);
        self.stop_coordinator(polite);
        let pairs = self.connectable();
        let met: Vec<usize> = pairs.iter().map(|(n, ..)| *n).collect();
        if let Some(n) = self.dice.pick(&met) {
            let (polite, moves) = (self.dice.chance(500), self.dice.chance(700));
            self.restart_node(n, polite, moves);
            // Who sits behind nothing but UDP cannot be found where nobody knows it to be.
            let relayed = !self.relays.is_empty();
            let pairs = self
                .connectable()
                .into_iter()
                .filter(|(from, ..)| relayed || *from == n)
                .collect();
            self.connect_all(pairs, ISLAND);
        }
        let away = self.dice.millis(0, 60_000);
        self.run_until(self.now + away);
        if !self.relays.is_empty() {
            let pairs = self.connectable();
            self.connect_all(pairs.clone(), CONNECT);
            self.demand_direct(pairs);
        }
        if self.relays.len() > 1 && self.dice.chance(500) {
            self.lose_relay();
        }
        self.start_coordinator();
        self.settle(SETTLE);
        let pairs = self.connectable();
        self.connect_all(pairs.clone(), CONNECT);
        self.demand_direct(pairs);
    }
}
