//! What nodes say of themselves with their heartbeats, and which changes of it become events.
//! Sans-IO but for the core's part.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use mesh_types::time::span;
use mesh_types::{NodeId, Standing, Timestamp, Troubles};

use super::{Core, Party};
use crate::record::EventKind;

/// A node makes so many events in this time, whatever it says.
const EVENTS: u8 = 4;
const WINDOW: Duration = Duration::from_secs(60 * 60);
/// How many nodes are remembered at most that say anything.
const CAPACITY: usize = 10_000;
/// When there is no room, it is looked for no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The nodes that say that something is wrong, or did lately. Of others nothing is kept.
#[derive(Debug, Default)]
pub(crate) struct Standings {
    known: HashMap<NodeId, Known>,
    /// When room was last looked for.
    looked: Option<Timestamp>,
}

#[derive(Debug)]
struct Known {
    troubles: Troubles,
    /// What the newest event says of them. While a node has made too many events it is an old one,
    /// and the next event tells how it stands by then.
    told: Troubles,
    window: Timestamp,
    /// In this window.
    events: u8,
    /// When it said something last.
    heard: Timestamp,
}

impl Known {
    fn admit(&mut self) -> bool {
        let may = self.events < EVENTS;
        self.events += u8::from(may);
        may
    }

    /// Nothing of it matters any more: it is well, or nobody knows how it is.
    fn is_over(&self, now: Timestamp) -> bool {
        let is_well = self.troubles.is_empty() && self.told.is_empty();
        (is_well && (self.events == 0 || now.since(self.window) >= WINDOW))
            || now.since(self.heard) >= WINDOW
    }
}

/// What becomes an event.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// It was on its stored netmap for so long.
    Stored(Duration),
    /// This is wrong now.
    Troubles(Troubles),
    /// Nothing is wrong any more; this was.
    Over(Troubles),
}

impl Standings {
    /// Takes over what a node said; answers what of it is to be told.
    fn take(&mut self, id: NodeId, said: Standing, now: Timestamp) -> Vec<News> {
        let is_new = !self.known.contains_key(&id);
        if is_new && (said == Standing::default() || !self.has_room(now)) {
            return Vec::new();
        }
        let known = self.known.entry(id).or_insert(Known {
            troubles: Troubles::default(),
            told: Troubles::default(),
            window: now,
            events: 0,
            heard: now,
        });
        known.heard = now;
        if now.since(known.window) >= WINDOW {
            (known.window, known.events) = (now, 0);
        }
        known.troubles = said.troubles;
        let mut news = Vec::new();
        if let Some(span) = said.stored_for
            && known.admit()
        {
            news.push(News::Stored(span));
        }
        if known.troubles != known.told && known.admit() {
            let before = std::mem::replace(&mut known.told, known.troubles);
            news.push(if known.troubles.is_empty() {
                News::Over(before)
            } else {
                News::Troubles(known.troubles)
            });
        }
        if known.is_over(now) {
            self.known.remove(&id);
        }
        news
    }

    /// Whether one more may be remembered; forgets whoever does not matter any more, now and then.
    fn has_room(&mut self, now: Timestamp) -> bool {
        let rests = |at| now.since(at) < LOOK_EVERY;
        if self.known.len() >= CAPACITY && !self.looked.is_some_and(rests) {
            self.looked = Some(now);
            self.known.retain(|_, known| !known.is_over(now));
        }
        self.known.len() < CAPACITY
    }

    /// What a node said last that is wrong.
    pub(super) fn of(&self, id: NodeId) -> Troubles {
        let known = self.known.get(&id);
        known.map(|known| known.troubles).unwrap_or_default()
    }

    /// The node is none of ours any more.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.known.remove(&id);
    }
}

/// What is wrong, each with its word: `udp-blocked: it gets no …`.
fn described(troubles: Troubles) -> String {
    let described = troubles
        .iter()
        .map(|trouble| format!("{}: it {}", trouble.as_str(), trouble.what()));
    described.collect::<Vec<_>>().join("; ")
}

impl Core {
    /// Forgets nodes that the engine knows no more, so that no heartbeat brings them back.
    pub(super) fn forget_standings(&self, gone: impl IntoIterator<Item = NodeId>) {
        let standings = self.standings.lock();
        let mut standings = standings.unwrap_or_else(PoisonError::into_inner);
        for id in gone {
            standings.forget(id);
        }
    }

    /// Takes over what a member said with a heartbeat that counts. Relays say nothing so.
    pub(super) fn take_standing(&self, party: Party, said: Standing) {
        let Party::Node(id) = party else { return };
        let now = self.now();
        let news = {
            let standings = self.standings.lock();
            let mut standings = standings.unwrap_or_else(PoisonError::into_inner);
            standings.take(id, said, now)
        };
        for news in news {
            let Some((network, name)) = self.named(party) else {
                return;
            };
            let (kind, detail) = match news {
                News::Stored(time) => (
                    EventKind::NodeNetmapStored,
                    format!(
                        "it started without the coordinator and was on its stored netmap for {}",
                        span(time)
                    ),
                ),
                News::Troubles(troubles) => (EventKind::NodeTrouble, described(troubles)),
                News::Over(before) => (EventKind::NodeTroubleOver, format!("it was {before}")),
            };
            self.happened(network, kind, name, detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_types::Trouble;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    fn at(secs: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(secs))
    }

    fn wrong(troubles: &[Trouble]) -> Standing {
        Standing {
            troubles: troubles.iter().copied().collect(),
            stored_for: None,
        }
    }

    #[test]
    fn a_trouble_is_told_when_it_comes_and_when_it_goes_and_then_forgotten() {
        let mut standings = Standings::default();
        let unsaved = wrong(&[Trouble::NetmapUnsaved]);
        let both = wrong(&[Trouble::UdpBlocked, Trouble::NetmapUnsaved]);
        let well = Standing::default();
        assert_eq!(standings.take(NODE, well, at(0)), []);
        assert!(standings.known.is_empty(), "nothing is kept of who is well");
        let news = |said: Standing| [News::Troubles(said.troubles)];
        assert_eq!(standings.take(NODE, unsaved, at(15)), news(unsaved));
        assert_eq!(standings.take(NODE, unsaved, at(30)), []);
        assert_eq!(standings.take(NODE, both, at(45)), news(both));
        assert_eq!(standings.of(NODE), both.troubles);
        let over = [News::Over(both.troubles)];
        assert_eq!(standings.take(NODE, well, at(60)), over);
        assert!(standings.of(NODE).is_empty());
        assert_eq!(standings.take(NODE, well, at(3_600)), []);
        assert_eq!(standings.take(NODE, well, at(3_615)), []);
        assert!(standings.known.is_empty());
    }

    #[test]
    fn a_node_that_flaps_makes_four_events_an_hour_and_the_last_one_is_true() {
        let mut standings = Standings::default();
        let mut told = Vec::new();
        for beat in 0..240 {
            let said = match beat % 2 {
                0 => wrong(&[Trouble::UdpBlocked]),
                _ => Standing::default(),
            };
            let said = Standing {
                stored_for: Some(Duration::from_secs(20)),
                ..said
            };
            told.extend(standings.take(NODE, said, at(beat * 15)));
        }
        assert_eq!(told.len(), 4);
        let last = wrong(&[Trouble::DeviceFault]);
        let news = standings.take(NODE, last, at(3_600));
        assert_eq!(news, [News::Troubles(last.troubles)]);
    }

    #[test]
    fn how_long_it_was_on_its_stored_netmap_is_told() {
        let mut standings = Standings::default();
        let time = Duration::from_secs(185);
        let said = Standing {
            stored_for: Some(time),
            ..Standing::default()
        };
        assert_eq!(standings.take(NODE, said, at(0)), [News::Stored(time)]);
        assert_eq!(standings.take(NODE, Standing::default(), at(15)), []);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut standings = Standings::default();
        let said = wrong(&[Trouble::UdpBlocked]);
        let id = |n: u64| NodeId::from_parts(n, [0; 10]);
        let many = CAPACITY as u64;
        for n in 0..many + 5 {
            let told = standings.take(id(n), said, at(0)).len();
            assert_eq!(told, usize::from(n < many), "{n}");
        }
        assert_eq!(standings.known.len(), CAPACITY);
        standings.take(id(0), Standing::default(), at(15));
        for n in 1..many {
            assert_eq!(standings.take(id(n), said, at(3_500)), []);
        }
        assert_eq!(standings.take(id(many), said, at(3_550)), [], "lately");
        // Its place is free from now on, and room is looked for once a minute.
        assert_eq!(standings.take(id(many), said, at(3_600)), [], "rests");
        let told = standings.take(id(many), said, at(3_610)).len();
        assert_eq!((told, standings.known.len()), (1, CAPACITY));
        // Who has said nothing for an hour makes room too.
        let told = standings.take(id(many + 1), said, at(7_110)).len();
        assert_eq!((told, standings.known.len()), (1, 2));
        standings.forget(id(many));
        assert_eq!(standings.known.len(), 1);
    }

    #[test]
    fn troubles_are_described_by_word_and_sentence() {
        let both = wrong(&[Trouble::UdpBlocked, Trouble::NetmapUnsaved]);
        assert_eq!(
            described(both.troubles),
            "netmap-unsaved: it cannot store its netmap, so a restart of it would need the \
             coordinator; udp-blocked: it gets no UDP datagrams: everything goes through relays"
        );
    }
}
