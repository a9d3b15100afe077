//! A device that starts again, with its keys and its netmap and nothing else.

use super::world::World;
use super::{is_direct, millis, secs};

#[test]
fn a_peer_that_restarts_is_talked_to_again_whoever_speaks_first() {
    for (side, starts, relay) in [
        (1, true, true),
        (1, false, true),
        (0, true, true),
        (0, false, true),
        (1, true, false),
        (1, false, false),
    ] {
        let mut world = World::new(7);
        world.set_relay(relay);
        world.stream(secs(3), millis(10));
        world.restart(side, starts);
        world.stream(secs(2), millis(10));
        let sent = world.stream(secs(2), millis(10));
        world.run_for(secs(1));
        assert_eq!(
            world.missing(1, &sent),
            0,
            "side {side} restarted, starts by itself: {starts}, relay: {relay}"
        );
        world.assert_no_duplicates();
    }
}

/// Under virtual time stamps begin anew with every session object, so whoever restarts after a
/// while is one whose clock went back.
#[cfg(feature = "virtual-time")]
#[test]
fn a_peer_whose_clock_went_back_is_heard_again_within_seconds() {
    for relay in [false, true] {
        let mut world = World::new(30);
        world.set_relay(relay);
        // Long enough for a session that was renewed, with a later stamp than the first.
        world.stream(secs(130), millis(100));
        world.run_for(secs(10));
        world.restart(0, false);
        let sent = world.stream(secs(3), millis(100));
        world.run_for(secs(1));
        let missing = world.missing(1, &sent);
        assert_eq!(missing, 0, "what waited for the session, by relay: {relay}");
    }
}

#[test]
fn a_peer_that_comes_back_elsewhere_by_relay_is_followed_at_once() {
    let mut world = World::new(31);
    world.set_relay(true);
    world.stream(secs(5), millis(10));
    assert!(is_direct(world.path(0)));
    // B is somewhere else, and so far only the relay knows.
    world.sides[1].addr = "192.0.2.2:40000".parse().expect("an address");
    world.udp[1].blocked = true;
    world.restart(1, true);
    world.run_for(millis(200));
    world.stream(secs(2), millis(10));
    let sent = world.stream(secs(1), millis(10));
    world.run_for(secs(1));
    assert_eq!(
        world.missing(1, &sent),
        0,
        "the dead path is left within 2 s"
    );
}
