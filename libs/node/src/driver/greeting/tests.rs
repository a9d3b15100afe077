//! Against a model that remembers everything.

use proptest::prelude::*;

use super::*;

fn peer(n: u16) -> NodeId {
    NodeId::from_parts(u64::from(n), [0; 10])
}

/// All who are greeted at this moment.
fn greeted(greeting: &mut Greeting, now: Instant) -> Vec<NodeId> {
    std::iter::from_fn(|| greeting.next(now)).collect()
}

#[test]
fn a_few_are_greeted_at_once_and_all_others_soon() {
    let start = Instant::now();
    let all: Vec<NodeId> = (0..1000).map(peer).collect();
    let mut greeting = Greeting::new(all.clone(), start);
    assert_eq!(greeting.poll_timeout(), None, "there is no way yet");
    greeting.begin();
    let mut order = greeted(&mut greeting, start);
    assert_eq!(order.len(), 64);
    let mut now = start;
    while let Some(at) = greeting.poll_timeout() {
        assert!(at > now, "else it was greeted");
        now = at;
        order.extend(greeted(&mut greeting, now));
    }
    assert_eq!(order, all);
    assert_eq!(now - start, Duration::from_millis(936 * 5));
}

#[test]
fn a_new_way_is_tried_with_all_who_have_not_answered_from_the_first_one_on() {
    let start = Instant::now();
    let mut greeting = Greeting::new((0..100).map(peer).collect(), start);
    greeting.begin();
    assert_eq!(greeted(&mut greeting, start).len(), 64);
    greeting.answered(peer(3));
    greeting.begin();
    let later = start + Duration::from_secs(10);
    let next: Vec<NodeId> = (0..65).filter(|n| *n != 3).map(peer).collect();
    assert_eq!(greeted(&mut greeting, later), next);
}

#[derive(Debug, Clone)]
enum Act {
    Begin,
    Answered(u16),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => Just(Act::Begin),
        4 => (0..400_u16).prop_map(Act::Answered),
        4 => (0..400_u64).prop_map(Act::Pass),
    ]
}

proptest! {
    #[test]
    fn everybody_is_greeted_in_turn_and_never_more_than_the_rate_allows(
        count in 0..300_u16,
        acts in proptest::collection::vec(act(), 0..60),
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut greeting = Greeting::new((0..count).map(peer).collect(), start);
        let mut answered = BTreeSet::new();
        let mut waiting: Vec<NodeId> = Vec::new();
        let mut times: Vec<Instant> = Vec::new();
        for act in acts.into_iter().chain([Act::Begin, Act::Pass(3000)]) {
            let since = now;
            match act {
                Act::Begin => {
                    greeting.begin();
                    let others = (0..count).map(peer).filter(|peer| !answered.contains(peer));
                    waiting = others.collect();
                }
                Act::Answered(n) => {
                    greeting.answered(peer(n));
                    answered.insert(peer(n));
                    waiting.retain(|waits| *waits != peer(n));
                }
                Act::Pass(millis) => now += Duration::from_millis(millis),
            }
            // As the shell does: whenever it is due, and at the end.
            while let Some(at) = greeting.poll_timeout().filter(|at| *at <= now) {
                let at = at.max(since);
                let next = greeting.next(at);
                prop_assert_eq!(next, waiting.first().copied());
                waiting.remove(0);
                times.push(at);
            }
            prop_assert_eq!(greeting.next(now), None);
            prop_assert_eq!(greeting.poll_timeout().is_some(), !waiting.is_empty());
        }
        prop_assert!(waiting.is_empty(), "3 s are enough for 300 and 300");
        for (at, time) in times.iter().enumerate() {
            let before = times[..at].iter().filter(|before| **before + Duration::from_secs(1) > *time);
            prop_assert!(before.count() < 64 + 200, "in the second before {:?}", *time - start);
        }
    }
}
