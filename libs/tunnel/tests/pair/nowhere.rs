//! A peer that nobody knows a way to: no address, and no relay that is connected.

use mesh_tunnel::{DropReason, Event};

use super::world::{RELAY, World};
use super::{is_direct, millis, secs};

/// A knows no address of B, and no relay is up.
fn apart(seed: u64) -> World {
    let mut world = World::new(seed);
    world.sides[1].hidden = true;
    world.restart(0, false);
    world
}

#[test]
fn traffic_without_any_way_costs_no_session_and_goes_once_there_is_one() {
    let mut world = apart(40);
    for _ in 0..300 {
        world.send(0, 200);
        world.run_for(millis(100));
        assert_eq!(world.sides[0].device.sessions(), 0);
    }
    assert_eq!(world.sides[0].sent_datagrams, 0, "there is nowhere to send");
    assert_eq!(world.sides[0].device.drops().get(DropReason::NoPath), 300);
    let wanted = Event::RelayWanted { relay: RELAY };
    let wanted = world.sides[0].events.iter().filter(|e| **e == wanted);
    assert_eq!(wanted.count(), 6, "the search goes on: each 5 s");

    world.set_relay(true);
    let sent = world.stream(secs(1), millis(100));
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &sent), 0, "the first one waited");
    assert!(is_direct(world.path(0)), "addresses were told by relay");
}

#[test]
fn what_waits_for_a_session_goes_when_the_way_that_was_lost_is_back() {
    let mut world = apart(41);
    world.set_relay(true);
    // The relay takes what it is given and passes nothing on.
    world.relay_up = false;
    let waits = world.send(0, 200);
    world.run_for(secs(1));
    world.set_relay(false);
    let lost = world.send(0, 200);
    world.run_for(secs(20));
    assert_eq!(world.sides[0].device.drops().get(DropReason::NoPath), 1);
    world.set_relay(true);
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &[waits]), 0);
    assert_eq!(world.missing(1, &[lost]), 1);
}
