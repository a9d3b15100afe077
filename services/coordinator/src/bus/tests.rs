//! Both buses through the same suite, and the one over Redis through what happens to a Redis.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use mesh_daemon::Secret;
use mesh_testkit::{REDIS_PASSWORD, Redis, RedisOptions};
use tokio::time::timeout;

use super::*;
use crate::config::BusConfig;
use crate::rate::RateConfig;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const SOON: Duration = Duration::from_secs(15);
const INSTALLATION: [u8; 32] = [9; 32];
const BURST: u32 = 5;
/// More than the limit by what a busy machine adds.
const PATIENCE: Duration = Duration::from_millis(600);

fn rates() -> Rates {
    let rate = RateConfig {
        burst: BURST,
        per_second: 1,
    };
    Rates::from(&crate::config::LimitsConfig {
        anonymous: rate,
        known: rate,
    })
}

fn key(n: u8) -> RateKey {
    RateKey::Stranger(IpAddr::from(Ipv4Addr::new(192, 0, 2, n)).into())
}

fn change(n: u8, version: u64) -> Change {
    Change {
        network: NetworkId::from_bytes([n; 16]),
        version,
    }
}

fn remote(config: &BusConfig, epoch: u64) -> RemoteBus {
    let target = Target::new(config).expect("good").expect("a Redis");
    let names = Names::new(INSTALLATION);
    let figures = BusFigures::register(&Metrics::default());
    let link = Link::new(target, names, Replica(epoch), figures);
    RemoteBus::start(link, LocalBus::new(rates()))
}

fn at(server: &Redis) -> BusConfig {
    BusConfig {
        redis_url: server.url(),
        ..BusConfig::default()
    }
}

async fn state_is(bus: &dyn Bus, wanted: impl FnMut(&BusState) -> bool) -> BusState {
    let mut state = bus.state();
    let found = timeout(SOON, state.wait_for(wanted)).await;
    found.expect("in time").expect("the bus lives").clone()
}

async fn is_up(bus: &dyn Bus) {
    state_is(bus, |state| *state == BusState::Up).await;
}

async fn is_down(bus: &dyn Bus) -> String {
    match state_is(bus, |state| matches!(state, BusState::Down(_))).await {
        BusState::Down(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// The next notice of a change; gaps are passed over.
async fn heard(news: &mut broadcast::Receiver<News>) -> Change {
    let next = async {
        loop {
            if let News::Changed(change) = news.recv().await.expect("the bus lives") {
                return change;
            }
        }
    };
    timeout(SOON, next).await.expect("a notice in time")
}

async fn seen_is(bus: &dyn Bus, id: [u8; 16], wanted: Option<Timestamp>) {
    let check = async {
        while bus.seen(&[id], NOW).await.get(&id).copied() != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, check).await.expect("seen in time");
}

/// What any bus does between two coordinators.
async fn suite(one: &dyn Bus, two: &dyn Bus) {
    let (mut at_one, mut at_two) = (one.listen(), two.listen());
    two.announce(change(1, 7));
    assert_eq!(heard(&mut at_one).await, change(1, 7));
    one.announce(change(2, 1));
    // Of its own notices nobody hears: the first that comes is the other's.
    assert_eq!(heard(&mut at_two).await, change(2, 1));

    let (known, unknown, old, ahead) = ([1; 16], [2; 16], [3; 16], [4; 16]);
    one.note_seen(known, NOW);
    one.note_seen(old, Timestamp::from_secs(NOW.as_secs() - 200));
    one.note_seen(ahead, NOW.plus(Duration::from_secs(60)));
    seen_is(two, known, Some(NOW)).await;
    let seen = two.seen(&[known, unknown, old, ahead], NOW).await;
    assert_eq!(seen, HashMap::from([(known, NOW)]));

    let mut taken = 0;
    let wait = loop {
        let bus = if taken % 2 == 0 { one } else { two };
        match bus.take(key(1)).await {
            Ok(()) => taken += 1,
            Err(wait) => break wait,
        }
        assert!(taken < 50, "nobody counts");
    };
    // A slow machine earns some while this runs.
    assert!((BURST..BURST + 4).contains(&taken), "{taken}");
    assert!(wait <= Duration::from_millis(1001), "{wait:?}");
    assert!(one.take(key(2)).await.is_ok(), "another share is another's");
}

#[tokio::test]
async fn the_bus_of_one_process_passes() {
    let one = LocalBus::new(rates());
    assert_eq!(*one.state().borrow(), BusState::InProcess);
    suite(&one, &one.another()).await;
}

#[tokio::test]
async fn the_bus_over_redis_passes() {
    let server = Redis::start().expect("a Redis");
    let (one, two) = (remote(&at(&server), 1), remote(&at(&server), 2));
    is_up(&one).await;
    is_up(&two).await;
    suite(&one, &two).await;
    // Nothing of it stays for good.
    let keys = server.ask(&["KEYS", "*"]).expect("answers");
    assert!(!keys.is_empty());
    for key in keys.lines() {
        let life: i64 = server
            .ask(&["PTTL", key])
            .expect("answers")
            .parse()
            .expect("a number");
        assert!(life <= 106_000 && life != -1, "{key} lives {life} ms");
    }
}

#[tokio::test]
async fn installations_that_share_a_redis_hear_nothing_of_each_other() {
    let server = Redis::start().expect("a Redis");
    let one = remote(&at(&server), 1);
    let target = Target::new(&at(&server)).expect("good").expect("a Redis");
    let names = Names::new([8; 32]);
    let figures = BusFigures::register(&Metrics::default());
    let link = Link::new(target, names, Replica(2), figures);
    let other = RemoteBus::start(link, LocalBus::new(rates()));
    let third = remote(&at(&server), 3);
    for bus in [&one, &other, &third] {
        is_up(bus).await;
    }
    let mut news = one.listen();
    other.announce(change(1, 1));
    while other.take(key(1)).await.is_ok() {}
    assert!(one.take(key(1)).await.is_ok());
    third.announce(change(3, 3));
    assert_eq!(heard(&mut news).await, change(3, 3));
}

#[tokio::test]
async fn with_tls_and_a_user_who_may_do_just_this() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let pem = made.cert.pem();
    let options = RedisOptions::default()
        .tls(pem.clone(), made.signing_key.serialize_pem())
        .password()
        .user(
            "mesh on >a-long-enough-password resetchannels &mesh:* ~mesh:* +ping +publish \
             +subscribe +set +mget +eval +evalsha +script|load +hmget +hset +pexpire +time +select",
        );
    let server = Redis::start_with(options).expect("a Redis");
    let good = BusConfig {
        user: "mesh".to_owned(),
        password: Secret::new("a-long-enough-password"),
        ca: pem,
        ..at(&server)
    };
    let (one, two) = (remote(&good, 1), remote(&good, 2));
    is_up(&one).await;
    is_up(&two).await;
    suite(&one, &two).await;

    let by_password = BusConfig {
        user: String::new(),
        password: Secret::new(REDIS_PASSWORD),
        ..good.clone()
    };
    is_up(&remote(&by_password, 3)).await;

    let wrong = BusConfig {
        password: Secret::new("another-long-password"),
        ..good.clone()
    };
    let reason = is_down(&remote(&wrong, 4)).await;
    assert!(!reason.contains("another-long-password"), "{reason}");

    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("another");
    let strange = BusConfig {
        ca: stranger.cert.pem(),
        ..good.clone()
    };
    let reason = is_down(&remote(&strange, 5)).await;
    assert!(reason.contains("cannot be trusted"), "{reason}");
    assert!(reason.contains("bus.ca_file"), "{reason}");

    let renamed = BusConfig {
        redis_url: good.redis_url.replace("127.0.0.1", "localhost"),
        ..good
    };
    let reason = is_down(&remote(&renamed, 6)).await;
    assert!(reason.contains("not valid for name"), "{reason}");
}

/// Takes a call and answers how long that took.
async fn timed_take(bus: &dyn Bus, n: u8) -> Duration {
    let started = Instant::now();
    bus.take(key(n)).await.expect("the first of its share");
    started.elapsed()
}

#[tokio::test]
async fn a_frozen_redis_costs_one_short_wait_and_heals() {
    let server = Redis::start().expect("a Redis");
    let bus = remote(&at(&server), 1);
    is_up(&bus).await;
    bus.take(key(1)).await.expect("counted by Redis");
    let before = bus.fallbacks();

    server.freeze().expect("freezes");
    let first = timed_take(&bus, 2).await;
    assert!(first < TAKE_LIMIT + PATIENCE, "{first:?}");
    for n in 3..50 {
        let next = timed_take(&bus, n).await;
        assert!(next < Duration::from_millis(50), "take {n} took {next:?}");
    }
    bus.announce(change(1, 1));
    bus.note_seen([1; 16], NOW);
    assert!(bus.fallbacks() >= before + 48);
    let reason = is_down(&bus).await;
    assert!(reason.contains("answer"), "{reason}");
    let started = Instant::now();
    assert_eq!(bus.seen(&[[1; 16]], NOW).await, HashMap::new());
    assert!(started.elapsed() < Duration::from_secs(2) + PATIENCE);

    server.thaw().expect("thaws");
    is_up(&bus).await;
    // The notice of meanwhile was not lost, and Redis counts again.
    seen_is(&bus, [1; 16], Some(NOW)).await;
    let before = bus.fallbacks();
    bus.take(key(60)).await.expect("counted by Redis");
    assert_eq!(bus.fallbacks(), before);
}

#[tokio::test]
async fn a_restarted_redis_is_found_again_and_a_gap_is_told() {
    let mut server = Redis::start().expect("a Redis");
    let (one, two) = (remote(&at(&server), 1), remote(&at(&server), 2));
    is_up(&one).await;
    is_up(&two).await;
    let mut news = two.listen();
    server.kill().expect("ends");
    is_down(&one).await;
    is_down(&two).await;
    let alone = timed_take(&one, 1).await;
    assert!(alone < Duration::from_millis(50), "{alone:?}");
    one.announce(change(1, 1));
    one.announce(change(1, 5));
    one.announce(change(1, 3));

    server.start_again().expect("starts");
    is_up(&one).await;
    is_up(&two).await;
    let gap = timeout(SOON, news.recv()).await.expect("in time");
    assert_eq!(gap.expect("the bus lives"), News::Gap);
    one.announce(change(2, 2));
    // What was said meanwhile may have gone out before the other was back: the gap stands for it.
    let told = heard(&mut news).await;
    if told != change(2, 2) {
        assert_eq!(told, change(1, 5), "the newest of a network counts");
        assert_eq!(heard(&mut news).await, change(2, 2));
    }
}

#[tokio::test]
async fn a_flushed_redis_is_slower_and_never_wrong() {
    let server = Redis::start().expect("a Redis");
    let bus = remote(&at(&server), 1);
    is_up(&bus).await;
    bus.note_seen([1; 16], NOW);
    seen_is(&bus, [1; 16], Some(NOW)).await;
    while bus.take(key(1)).await.is_ok() {}
    server.ask(&["FLUSHALL"]).expect("flushes");
    server.ask(&["SCRIPT", "FLUSH"]).expect("forgets scripts");
    assert_eq!(bus.seen(&[[1; 16]], NOW).await, HashMap::new());
    let before = bus.fallbacks();
    bus.take(key(1)).await.expect("a new count");
    assert_eq!(bus.fallbacks(), before);
    assert_eq!(*bus.state().borrow(), BusState::Up);

    // Values of a wrong kind under our names make nobody wait or fail either.
    let name = Names::new(INSTALLATION);
    server
        .ask(&["SET", &name.rate(&key(2)), "junk"])
        .expect("sets");
    server
        .ask(&["SET", &name.seen(&[2; 16]), "junk"])
        .expect("sets");
    bus.take(key(2)).await.expect("counted here");
    assert_eq!(bus.seen(&[[2; 16]], NOW).await, HashMap::new());
    is_up(&bus).await;
}

#[tokio::test]
async fn a_lost_channel_is_made_anew_and_junk_on_it_is_nothing() {
    let server = Redis::start().expect("a Redis");
    let (one, two) = (remote(&at(&server), 1), remote(&at(&server), 2));
    is_up(&one).await;
    is_up(&two).await;
    let mut news = two.listen();
    let killed = server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed.expect("answers"), "2");
    let gap = timeout(SOON, news.recv()).await.expect("in time");
    assert_eq!(gap.expect("the bus lives"), News::Gap);
    is_up(&one).await;
    let channel = server.ask(&["PUBSUB", "CHANNELS"]).expect("answers");
    for junk in ["", "hello", "1 0 changed x y", "2 0 echo 1"] {
        server.ask(&["PUBLISH", &channel, junk]).expect("publishes");
    }
    one.announce(change(1, 1));
    assert_eq!(heard(&mut news).await, change(1, 1));
}

#[tokio::test]
async fn a_redis_that_comes_later_is_taken_in() {
    let mut server = Redis::start().expect("a Redis");
    server.kill().expect("ends");
    let bus = remote(&at(&server), 1);
    assert!(timed_take(&bus, 1).await < Duration::from_millis(50));
    let reason = is_down(&bus).await;
    assert!(reason.contains("cannot be reached"), "{reason}");
    assert_eq!(bus.seen(&[], NOW).await, HashMap::new());
    server.start_again().expect("starts");
    is_up(&bus).await;
}
