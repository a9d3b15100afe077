//! The order and the rate, against a model that remembers everything.

#![allow(
    clippy::disallowed_methods,
    reason = "a test needs some instant to start from"
)]

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Behind all who wait.
fn wait(turns: &mut Turns, lane: Lane, tries: u32, slot: Slot) -> Place {
    let rank = turns.rank();
    turns.wait(lane, tries, rank, slot)
}

#[test]
fn the_bound_is_what_the_lanes_are_made_of() {
    let per_second = |apart: Duration| u32::try_from(SECOND.as_nanos() / apart.as_nanos());
    let sum = per_second(TRAFFIC.1).and_then(|one| Ok(one + per_second(GREETINGS.1)?));
    assert_eq!(sum, Ok(MOST_PER_SECOND));
}

#[test]
fn greetings_go_in_the_order_in_which_they_were_named_and_again_only_after_all() {
    let start = Instant::now();
    let mut turns = Turns::new(start);
    for slot in 0..100 {
        wait(&mut turns, Lane::Greeting, 0, slot);
    }
    wait(&mut turns, Lane::Greeting, 1, 7);
    wait(&mut turns, Lane::Greeting, 0, 100);
    let order: Vec<Slot> = std::iter::from_fn(|| {
        let at = turns.poll_timeout()?;
        Some(turns.next(at.max(start)).expect("it is due").1)
    })
    .collect();
    let expected: Vec<Slot> = (0..=100).chain([7]).collect();
    assert_eq!(order, expected);
}

#[test]
fn whoever_was_never_asked_goes_before_all_who_were_and_the_others_in_turn() {
    let start = Instant::now();
    let mut turns = Turns::new(start);
    while turns.take(Lane::Traffic, start) {}
    for (tries, slot) in [(3, 1), (1, 2), (0, 3), (20, 4)] {
        wait(&mut turns, Lane::Traffic, tries, slot);
    }
    let later = start + SECOND;
    let order: Vec<Slot> = std::iter::from_fn(|| Some(turns.next(later)?.1)).collect();
    assert_eq!(order, [3, 1, 2, 4]);
}

#[test]
fn neither_lane_takes_turns_of_the_other() {
    let start = Instant::now();
    for (full, other, at_once) in [
        (Lane::Traffic, Lane::Greeting, GREETINGS.0),
        (Lane::Greeting, Lane::Traffic, TRAFFIC.0),
    ] {
        let mut turns = Turns::new(start);
        for slot in 0..10_000 {
            wait(&mut turns, full, 0, slot);
        }
        while turns.next(start).is_some() {}
        for _ in 0..at_once {
            assert!(turns.take(other, start), "{other:?} beside {full:?}");
        }
        assert!(!turns.take(other, start));
    }
}

#[derive(Debug, Clone)]
enum Act {
    Take(bool),
    Wait(bool, u32),
    Leave(usize),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => any::<bool>().prop_map(Act::Take),
        8 => (any::<bool>(), 0..3_u32).prop_map(|(lane, tries)| Act::Wait(lane, tries)),
        1 => any::<usize>().prop_map(Act::Leave),
        1 => (0..200_u64).prop_map(Act::Pass),
    ]
}

proptest! {
    #[test]
    fn everybody_has_a_turn_unless_he_leaves_and_never_more_than_the_rate_allows(
        acts in proptest::collection::vec(act(), 0..1500),
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut turns = Turns::new(start);
        let mut waiting: Vec<(Slot, Place)> = Vec::new();
        let mut times: [Vec<Instant>; 2] = Default::default();
        let lane = |traffic| if traffic { Lane::Traffic } else { Lane::Greeting };
        for (slot, act) in (0..).zip(acts.into_iter().chain([Act::Pass(10_000)])) {
            match act {
                Act::Take(traffic) => {
                    if turns.take(lane(traffic), now) {
                        times[usize::from(traffic)].push(now);
                    }
                }
                Act::Wait(traffic, tries) => {
                    waiting.push((slot, wait(&mut turns, lane(traffic), tries, slot)));
                }
                Act::Leave(n) if !waiting.is_empty() => {
                    let (_, place) = waiting.swap_remove(n % waiting.len());
                    turns.leave(place);
                }
                Act::Leave(_) => {}
                Act::Pass(millis) => now += Duration::from_millis(millis),
            }
            while let Some((lane, slot)) = turns.next(now) {
                let at = waiting.iter().position(|(waits, place)| *waits == slot && place.lane == lane);
                waiting.swap_remove(at.expect("only who waits has a turn"));
                times[usize::from(lane == Lane::Traffic)].push(now);
            }
            prop_assert!(turns.poll_timeout().is_none_or(|at| at > now));
            prop_assert_eq!(turns.poll_timeout().is_some(), !waiting.is_empty());
        }
        prop_assert!(waiting.is_empty(), "10 s are enough for 1500");
        for (times, (at_once, apart)) in times.iter().zip([GREETINGS, TRAFFIC]) {
            for (first, since) in times.iter().enumerate() {
                for (last, until) in times.iter().enumerate().skip(first) {
                    let room = (*until - *since).as_nanos() / apart.as_nanos() + u128::from(at_once);
                    prop_assert!((last - first) as u128 <= room, "between {since:?} and {until:?}");
                }
            }
        }
    }
}
