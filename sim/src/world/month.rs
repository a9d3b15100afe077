//! 35 days with few nodes, most of which they sleep: longer than a certificate lasts.

use std::time::Duration;

use mesh_types::{NetworkId, Role};

use super::plan::{CONNECT, SETTLE};
use super::troubles::{Newcomer, services};
use super::{NETWORKS, World};
use crate::dice::Dice;
use crate::planted::Bug;
use crate::trace::Trace;
use crate::underlay::Nat;

const DAY: Duration = Duration::from_secs(86_400);
const DAYS: u32 = 35;
/// Who goes away for long does so on this day, and is back on that one: its certificate, which was
/// good for 30 days, has ended.
const GOES: u32 = 1;
const BACK: u32 = 33;

/// What a machine does when nobody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Its lid is closed at night: its process goes on the next day, and its clock for intervals
    /// has stood still.
    Lid,
    /// The same, but that clock goes on.
    Frozen,
    /// It is switched off at night.
    Daily,
    /// It is switched off for weeks.
    Away,
    /// Its lid is closed for weeks.
    AwayByLid,
}

const HABITS: [(Habit, Nat); 5] = [
    (Habit::Lid, Nat::Restricted),
    (Habit::Frozen, Nat::None),
    (Habit::Daily, Nat::Open),
    (Habit::Away, Nat::Symmetric),
    (Habit::AwayByLid, Nat::Restricted),
];

impl World {
    /// One relay, and nodes with certificates of the ordinary 30 days.
    pub fn for_month(
        seed: u64,
        bug: Option<Bug>,
        trace: Trace,
        start: std::time::Instant,
        identities: Vec<std::sync::Arc<mesh_api::identity::Identity>>,
    ) -> Self {
        Self::with_relays(1, Dice::new(seed), bug, trace, start, identities)
    }

    /// Lives through 35 days: each morning all who are there find each other, whatever the night did.
    ///
    /// # Panics
    /// Something is not as it must be; the message says what.
    pub fn month(&mut self) {
        for (n, (_, nat)) in HABITS.into_iter().enumerate() {
            let newcomer = Newcomer {
                network: NetworkId::from_bytes(NETWORKS[0].1),
                role: Role::Worker,
                owner: "anna",
                wished: "node".to_owned(),
                wg: self.dice.bytes(),
                disco: self.dice.bytes(),
                services: services(0b0011),
                nat,
            };
            self.enrol(n, newcomer, false);
        }
        for day in 0..DAYS {
            self.wake_up(day);
            self.settle(SETTLE);
            let pairs = self.connectable();
            self.connect_all(pairs.clone(), CONNECT);
            self.demand_direct(pairs);
            self.check_bounds();
            // What they know of each other is stored within 10 s.
            self.run_until(self.now + Duration::from_secs(15));
            self.go_to_bed(day);
            self.night(day);
        }
    }

    fn is_away(habit: Habit, day: u32) -> bool {
        matches!(habit, Habit::Away | Habit::AwayByLid) && (GOES..BACK).contains(&day)
    }

    fn wake_up(&mut self, day: u32) {
        self.note("morning", format_args!("{day}"));
        for (n, (habit, _)) in HABITS.into_iter().enumerate() {
            if Self::is_away(habit, day) {
                continue;
            }
            if let Some(since) = self.nodes[n].asleep.take()
                && habit != Habit::Frozen
            {
                self.nodes[n].slept += self.now - since;
                // The shell finds out by comparing both clocks.
                let at = self.at_node(n);
                if let Some(process) = &mut self.nodes[n].process {
                    process.device.network_changed(at);
                }
            }
            self.start_node(n);
        }
    }

    fn go_to_bed(&mut self, day: u32) {
        for (n, (habit, _)) in HABITS.into_iter().enumerate() {
            match habit {
                _ if Self::is_away(habit, day) => {}
                Habit::Lid | Habit::Frozen | Habit::AwayByLid => {
                    self.nodes[n].asleep.get_or_insert(self.now);
                }
                Habit::Daily | Habit::Away => {
                    let polite = self.dice.chance(500);
                    self.stop_node(n, polite);
                }
            }
        }
    }

    /// The coordinator stays up, or is replaced.
    fn night(&mut self, day: u32) {
        let morning = DAY * (day + 1) + self.dice.millis(0, 3_600_000);
        self.run_until(self.now + DAY / 4);
        if self.dice.chance(300) {
            let polite = self.dice.chance(500);
            self.stop_coordinator(polite);
            self.run_until(self.now + Duration::from_secs(60));
            self.start_coordinator();
        }
        self.run_until(morning);
    }
}
