//! Two whole devices over a simulated network: what a user may rely on when paths come and go.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "the seed of a run is printed so that it can be repeated, and time starts somewhere"
)]

#[path = "pair/nowhere.rs"]
mod nowhere;
#[path = "pair/restart.rs"]
mod restart;
#[path = "pair/world.rs"]
mod world;

use std::net::Ipv4Addr;
use std::time::Duration;

use mesh_tunnel::{DropReason, Event, PathKind};
use mesh_types::PacketFilter;
use proptest::prelude::*;
use world::{Knobs, PORT, RELAY, World, udp_packet};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn is_direct(path: PathKind) -> bool {
    matches!(path, PathKind::Direct(_))
}

#[test]
fn traffic_starts_over_the_relay_and_moves_to_the_direct_path_without_loss() {
    let mut world = World::new(1);
    world.set_relay(true);
    let sent = world.stream(secs(5), millis(5));
    let relayed = world.relayed_bytes(0);
    assert!(relayed > 0, "the first packets should have gone by relay");
    assert!(is_direct(world.path(0)), "{:?}", world.path(0));
    let more = world.stream(secs(2), millis(5));
    assert_eq!(
        world.relayed_bytes(0),
        relayed,
        "direct means off the relay"
    );
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &sent) + world.missing(1, &more), 0);
    world.assert_no_duplicates();
    let told = &world.sides[0].events;
    let direct = Event::PathChanged {
        peer: world.sides[1].id,
        path: PathKind::Direct(world.sides[1].addr),
    };
    assert!(told.contains(&direct), "{told:?}");
}

#[test]
fn without_any_relay_the_direct_path_is_found_and_nothing_is_lost() {
    let mut world = World::new(2);
    let sent = world.stream(secs(2), millis(5));
    world.run_for(secs(1));
    assert!(is_direct(world.path(0)));
    assert_eq!(world.missing(1, &sent), 0);
    world.assert_no_duplicates();
}

#[test]
fn with_udp_blocked_all_goes_by_relay_and_when_it_opens_the_path_turns_direct_without_loss() {
    let mut world = World::new(3);
    world.set_relay(true);
    world.udp.iter_mut().for_each(|knobs| knobs.blocked = true);
    let mut sent = world.stream(secs(20), millis(10));
    assert_eq!(world.path(0), PathKind::Relay(RELAY));
    world.udp.iter_mut().for_each(|knobs| knobs.blocked = false);
    sent.extend(world.stream(secs(7), millis(10)));
    assert!(is_direct(world.path(0)), "direct is retried every 5 s");
    sent.extend(world.stream(secs(1), millis(10)));
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &sent), 0);
    world.assert_no_duplicates();
}

#[test]
fn udp_blocked_in_one_direction_only_is_no_direct_path() {
    let mut world = World::new(4);
    world.set_relay(true);
    world.udp[1].blocked = true;
    let sent = world.stream(secs(20), millis(10));
    world.run_for(secs(1));
    assert_eq!(world.path(0), PathKind::Relay(RELAY));
    assert_eq!(world.missing(1, &sent), 0);
}

#[test]
fn a_killed_relay_does_not_touch_the_direct_path() {
    let mut world = World::new(5);
    world.set_relay(true);
    world.stream(secs(3), millis(10));
    assert!(is_direct(world.path(0)));
    world.set_relay(false);
    let sent = world.stream(secs(10), millis(10));
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &sent), 0);
    assert!(is_direct(world.path(0)));
}

#[test]
fn a_direct_path_that_dies_falls_back_to_the_relay_within_seconds() {
    let mut world = World::new(6);
    world.set_relay(true);
    world.stream(secs(3), millis(10));
    assert!(is_direct(world.path(0)));
    world.udp.iter_mut().for_each(|knobs| knobs.blocked = true);
    let lost = world.stream(secs(6), millis(10));
    assert_eq!(world.path(0), PathKind::Relay(RELAY));
    assert!(world.missing(1, &lost) < 500, "{}", world.missing(1, &lost));
    let sent = world.stream(secs(5), millis(10));
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &sent), 0);
    assert_eq!(world.sides[0].handshakes(), 1, "the session survives");
}

#[test]
fn a_peer_that_moves_to_another_address_is_followed_and_keeps_its_session() {
    for relay in [true, false] {
        let mut world = World::new(8);
        world.set_relay(relay);
        world.stream(secs(3), millis(10));
        world.sides[1].addr = "198.51.100.9:40000".parse().expect("an address");
        let addr = world.sides[1].addr;
        let now = world.now;
        world.sides[1].device.set_local_endpoints(&[addr], now);
        world.sides[1].device.network_changed(now);
        world.stream(secs(2), millis(10));
        let sent = world.stream(secs(2), millis(10));
        world.run_for(secs(1));
        assert_eq!(world.missing(1, &sent), 0, "relay: {relay}");
        assert_eq!(world.path(0), PathKind::Direct(addr), "relay: {relay}");
        assert_eq!(world.sides[0].handshakes(), 1);
    }
}

#[test]
fn a_peer_that_moves_while_nobody_talks_to_it_tells_those_that_may_begin_again() {
    for relay in [true, false] {
        let mut world = World::new(12);
        world.set_relay(relay);
        world.stream(secs(3), millis(10));
        // Paths are let be, and the session is good for a while yet.
        world.run_for(secs(60));
        world.sides[1].addr = "198.51.100.9:40000".parse().expect("an address");
        let addr = world.sides[1].addr;
        let now = world.now;
        world.sides[1].device.set_local_endpoints(&[addr], now);
        world.sides[1].device.network_changed(now);
        world.run_for(secs(1));
        let sent = world.stream(secs(2), millis(10));
        world.run_for(secs(1));
        assert_eq!(world.missing(1, &sent), 0, "relay: {relay}");
        assert_eq!(world.path(0), PathKind::Direct(addr), "relay: {relay}");
        // And then is quiet again.
        world.run_for(secs(290));
        let quiet = world.sides[1].sent_datagrams;
        world.run_for(secs(3600));
        assert_eq!(world.sides[1].sent_datagrams, quiet, "relay: {relay}");
    }
}

#[test]
fn reordered_duplicated_and_lost_datagrams_never_duplicate_or_change_a_packet() {
    let mut world = World::new(9);
    world.set_relay(true);
    for knobs in &mut world.udp {
        *knobs = Knobs {
            jitter: millis(40),
            loss: 50,
            duplicates: 100,
            ..Knobs::default()
        };
    }
    let sent = world.stream(secs(30), millis(5));
    world.run_for(secs(1));
    world.assert_no_duplicates();
    let missing = world.missing(1, &sent);
    assert!(
        missing * 100 < sent.len() * 8,
        "{missing} of {}",
        sent.len()
    );
    assert!(is_direct(world.path(0)), "5 % loss is no reason to leave");
    assert!(world.sides[1].device.drops().get(DropReason::Replayed) > 0);
}

#[test]
fn packets_of_the_whole_mtu_fit_an_underlay_of_1500_bytes_and_longer_ones_are_refused() {
    let mut world = World::new(10);
    world.set_relay(true);
    world.stream(secs(2), millis(10));
    let sequence = world.send(0, 1280 - 28);
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &[sequence]), 0);
    world.send(0, 1281 - 28);
    assert_eq!(world.sides[0].device.drops().get(DropReason::TooLong), 1);
}

#[test]
fn idle_peers_send_nothing_and_want_no_time() {
    let mut world = World::new(11);
    world.set_relay(true);
    world.stream(secs(3), millis(10));
    world.run_for(secs(290));
    let sent = [0, 1].map(|side| world.sides[side].sent_datagrams);
    world.run_for(secs(3600));
    assert_eq!(sent, [0, 1].map(|side| world.sides[side].sent_datagrams));
    assert_eq!(world.sides[0].device.poll_timeout(), None);
    let again = world.stream(secs(2), millis(10));
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &again), 0, "and wake up without loss");
}

#[test]
fn a_packet_may_only_come_from_the_peer_that_its_source_belongs_to() {
    let mut world = World::new(12);
    world.stream(secs(1), millis(10));
    // A believes to be somebody else; B's netmap knows better.
    let mut netmap = world.netmap(0);
    netmap.node.addrs.v4 = Ipv4Addr::new(100, 64, 0, 77);
    let now = world.now;
    world.sides[0].device.apply_netmap(&netmap, now);
    let spoofed = udp_packet(
        Ipv4Addr::new(100, 64, 0, 77),
        world.sides[1].overlay.v4,
        (4000, PORT),
        u64::MAX,
        64,
    );
    world.send_raw(0, &spoofed);
    world.run_for(secs(1));
    assert!(!world.sides[1].arrived.contains_key(&u64::MAX));
    assert_eq!(
        world.sides[1].device.drops().get(DropReason::SpoofedSource),
        1
    );
}

#[test]
fn a_node_sends_only_from_its_own_addresses_and_only_to_peers() {
    let mut world = World::new(13);
    let [a, b] = [0, 1].map(|side| world.sides[side].overlay.v4);
    let foreign = Ipv4Addr::new(10, 0, 0, 1);
    world.send_raw(0, &udp_packet(foreign, b, (1, 2), 0, 8));
    world.send_raw(0, &udp_packet(a, foreign, (1, 2), 0, 8));
    let drops = world.sides[0].device.drops();
    assert_eq!(drops.get(DropReason::ForeignSource), 1);
    assert_eq!(drops.get(DropReason::NoRoute), 1);
    assert_eq!(world.sides[0].sent_datagrams, 0);
}

#[test]
fn taking_the_permission_away_cuts_the_flow_and_leaves_answers_to_ones_own() {
    let mut world = World::new(14);
    world.stream(secs(1), millis(10));
    // B answers, as a server does: that must not turn the flow into one of B's own.
    let [a, b] = [0, 1].map(|side| world.sides[side].overlay.v4);
    let answer = udp_packet(b, a, (PORT, 4000), 1_000_000, 8);
    world.send_raw(1, &answer);
    world.run_for(secs(1));
    assert_eq!(world.missing(0, &[1_000_000]), 0);

    world.filter = PacketFilter::default();
    world.apply_netmap(1);
    world.send_raw(1, &answer);
    let sent = world.stream(secs(1), millis(10));
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &sent), sent.len());

    // A flow that B opens itself is answered whatever the rules.
    world.send_raw(1, &udp_packet(b, a, (5555, 6666), 2_000_000, 8));
    world.run_for(secs(1));
    world.send_raw(0, &udp_packet(a, b, (6666, 5555), 3_000_000, 8));
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &[3_000_000]), 0);
}

#[test]
fn a_removed_peer_is_cut_off_at_once_in_both_directions() {
    let mut world = World::new(15);
    world.set_relay(true);
    world.stream(secs(1), millis(10));
    let mut netmap = world.netmap(1);
    netmap.peers.clear();
    let now = world.now;
    world.sides[1].device.apply_netmap(&netmap, now);
    let sent = world.stream(secs(2), millis(10));
    world.run_for(secs(1));
    // What was under way when it happened does not count.
    assert!(world.missing(1, &sent) + 3 >= sent.len());
    world.send(1, 64);
    assert_eq!(world.sides[1].device.drops().get(DropReason::NoRoute), 1);
}

#[test]
fn an_unreachable_peer_is_reported_once_and_tried_again_with_the_next_packet() {
    let mut world = World::new(16);
    world.udp[0].blocked = true;
    world.send(0, 64);
    world.run_for(secs(100));
    let unreachable = Event::PeerUnreachable {
        peer: world.sides[1].id,
    };
    let times = |world: &World| {
        let events = &world.sides[0].events;
        events.iter().filter(|&event| *event == unreachable).count()
    };
    assert_eq!(times(&world), 1);
    world.run_for(secs(300));
    assert_eq!(times(&world), 1);
    world.udp[0].blocked = false;
    let sequence = world.send(0, 64);
    world.run_for(secs(5));
    assert_eq!(world.missing(1, &[sequence]), 0);
}

#[test]
fn handshakes_are_retried_with_jitter_and_not_hammered() {
    let mut world = World::new(17);
    world.udp[0].blocked = true;
    world.send(0, 64);
    world.run_for(secs(60));
    let initiations = world.sides[0].sent_datagrams;
    // The pings of 30 s of activity are in it too: one candidate, a round every 5 s at most.
    assert!((12..40).contains(&initiations), "{initiations}");
}

#[test]
fn a_home_relay_without_a_session_is_asked_for() {
    let mut world = World::new(18);
    world.udp.iter_mut().for_each(|knobs| knobs.blocked = true);
    world.send(0, 64);
    world.run_for(secs(1));
    let wanted = Event::RelayWanted { relay: RELAY };
    assert!(world.sides[0].events.contains(&wanted));
    world.set_relay(true);
    world.run_for(secs(1));
    assert_eq!(world.missing(1, &[0]), 0, "what waited goes out at once");
}

#[test]
fn the_address_that_a_stun_server_saw_becomes_an_endpoint() {
    use mesh_tunnel::{Out, Source, stun};

    let mut world = World::new(19);
    let server = "203.0.113.1:3478".parse().expect("an address");
    let mapped = "203.0.113.200:1234".parse().expect("an address");
    let now = world.now;
    let device = &mut world.sides[0].device;
    device.set_stun_servers(&[server], now);
    let mut out = Out::new();
    device.handle_timeout(&mut out, now);
    let request = out
        .transmits()
        .find(|transmit| transmit.to == server)
        .and_then(|transmit| stun::parse_request(transmit.bytes).ok())
        .expect("a request to the server");
    let mut response = [0; stun::MAX_RESPONSE];
    let len = stun::encode_response(&request, mapped, &mut response);
    out.clear();
    let stranger = Source::Direct("198.51.100.1:3478".parse().expect("an address"));
    device.open(stranger, &response[..len], len, &mut out, now);
    assert!(!device.endpoints().contains(&mapped), "not from a stranger");
    device.open(Source::Direct(server), &response[..len], len, &mut out, now);
    assert!(device.endpoints().contains(&mapped));
    assert_eq!(device.drops().get(DropReason::InvalidStun), 1);
    let event = std::iter::from_fn(|| device.poll_event()).last();
    assert_eq!(event, Some(Event::EndpointsChanged));
}

#[test]
fn garbage_is_dropped_and_counted() {
    use mesh_tunnel::{Out, Source};

    let mut world = World::new(20);
    let now = world.now;
    let device = &mut world.sides[0].device;
    let mut out = Out::new();
    let source = Source::Direct("198.51.100.1:1".parse().expect("an address"));
    device.open(source, b"hello", 5, &mut out, now);
    device.open(
        source,
        &[
            4, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0,
        ],
        32,
        &mut out,
        now,
    );
    device.open(
        source,
        &[[1, 0, 0, 0].as_slice(), &[7; 144]].concat(),
        148,
        &mut out,
        now,
    );
    assert!(out.is_empty());
    assert_eq!(device.drops().get(DropReason::UnknownDatagram), 1);
    assert_eq!(device.drops().get(DropReason::UnknownSession), 1);
    assert_eq!(device.drops().get(DropReason::Unauthentic), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever happens to the network, nothing is delivered twice or changed, and once a way is
    /// open again packets arrive within seconds.
    #[test]
    fn it_heals_from_whatever_happened(
        seed in any::<u64>(),
        steps in proptest::collection::vec((0u8..7, 0usize..2, 100u64..4000), 1..10),
    ) {
        let mut world = World::new(seed % 1_000_000);
        world.set_relay(true);
        for (what, side, time) in steps {
            match what {
                0 => world.udp[side].blocked ^= true,
                1 => world.udp[side].loss = 300,
                2 => world.udp[side].jitter = millis(100),
                3 => { let up = world.relay_up; world.set_relay(!up); }
                4 => world.restart(side, false),
                5 => { let now = world.now; world.sides[side].device.network_changed(now); }
                _ => world.sides[side].addr.set_port(40_000 + u16::try_from(time).expect("small")),
            }
            world.stream(millis(time), millis(50));
        }
        for knobs in &mut world.udp {
            *knobs = Knobs::default();
        }
        world.set_relay(true);
        world.stream(secs(15), millis(50));
        let sent = world.stream(secs(3), millis(50));
        world.run_for(secs(1));
        prop_assert_eq!(world.missing(1, &sent), 0);
        world.assert_no_duplicates();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Datagrams that were changed on the way are dropped: handshakes, data, disco.
    #[test]
    fn changed_datagrams_are_dropped_and_harm_nothing(
        seed in any::<u64>(),
        changes in proptest::collection::vec((any::<u16>(), 1u8..), 1..4),
    ) {
        let mut world = World::new(seed % 1_000_000);
        world.set_relay(true);
        world.change_datagrams = changes;
        world.stream(secs(3), millis(20));
        world.assert_no_duplicates();
        world.change_datagrams.clear();
        let sent = world.stream(secs(8), millis(20));
        let sent = &sent[sent.len() / 2..];
        world.run_for(secs(1));
        prop_assert_eq!(world.missing(1, sent), 0);
        world.assert_no_duplicates();
    }
}

/// Timers of WireGuard itself, which only run when boringtun's clock follows ours.
#[cfg(feature = "virtual-time")]
mod virtual_time {
    use super::*;

    #[test]
    fn sessions_are_renewed_every_two_minutes_without_loss() {
        let mut world = World::new(100);
        world.set_relay(true);
        let sent = world.stream(secs(400), millis(100));
        world.run_for(secs(1));
        assert_eq!(world.missing(1, &sent), 0);
        let handshakes = world.sides[0].handshakes();
        assert!((4..=5).contains(&handshakes), "{handshakes} in 400 s");
    }

    #[test]
    fn a_session_is_forgotten_when_its_keys_are_too_old() {
        let mut world = World::new(101);
        world.stream(secs(1), millis(100));
        world.run_for(secs(400));
        let before = world.sides[0].handshakes();
        let sent = world.stream(secs(1), millis(100));
        world.run_for(secs(1));
        assert_eq!(world.missing(1, &sent), 0);
        assert_eq!(world.sides[0].handshakes(), before + 1);
    }
}
