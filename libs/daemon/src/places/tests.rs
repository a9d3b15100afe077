use std::future::pending;

use tokio::task::JoinSet;

use super::*;

const GRACE: Duration = Duration::from_secs(1);

/// Connections that hold places.
struct Lab {
    places: Places,
    shed: Counter,
    tasks: JoinSet<()>,
}

impl Lab {
    fn new(limit: usize) -> Self {
        let shed = Counter::default();
        Self {
            places: Places::new(limit, GRACE, shed.clone()),
            shed,
            tasks: JoinSet::new(),
        }
    }

    /// One more connection, unless there is no place.
    fn connect(&mut self) -> Option<Turn> {
        let place = self.places.take()?;
        let turn = place.turn().clone();
        turn.served_by(self.tasks.spawn(async move {
            let _place = place;
            pending::<()>().await;
        }));
        Some(turn)
    }

    fn open(&self) -> usize {
        self.places.0.lock().held.len()
    }

    /// How many tasks were ended.
    async fn ended(&mut self) -> usize {
        let mut ended = 0;
        tokio::task::yield_now().await;
        while let Some(end) = self.tasks.try_join_next() {
            assert!(end.expect_err("aborted").is_cancelled());
            ended += 1;
        }
        ended
    }
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_longest_makes_room_and_nobody_else() {
    let mut lab = Lab::new(3);
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(lab.connect().expect("a place"));
        pass(GRACE).await;
    }
    // The first one's request came and went, so it is the second one that waits longest.
    drop(turns[0].request().expect("still there"));
    pass(GRACE).await;
    let fourth = lab.connect().expect("one makes room");
    assert_eq!((lab.ended().await, lab.open(), lab.shed.get()), (1, 3, 1));
    assert!(turns[1].request().is_none(), "it was the second");
    assert!(turns[0].request().is_some() && turns[2].request().is_some());
    assert!(fourth.request().is_some());
}

#[tokio::test(start_paused = true)]
async fn requests_under_way_and_newcomers_keep_their_places() {
    let mut lab = Lab::new(2);
    let busy = lab.connect().expect("a place");
    let request = busy.request().expect("there");
    let second = busy.request().expect("there");
    pass(GRACE * 10).await;
    drop(second);
    let _young = lab.connect().expect("a place");
    assert!(lab.connect().is_none(), "one is at work, one has just come");
    pass(GRACE).await;
    assert!(lab.connect().is_some(), "the young one is old now");
    drop(request);
    assert!(lab.connect().is_none(), "its time begins with the end");
    pass(GRACE).await;
    assert!(lab.connect().is_some());
    assert_eq!((lab.ended().await, lab.open()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn who_has_settled_stays_and_places_come_back() {
    let mut lab = Lab::new(2);
    for _ in 0..2 {
        let turn = lab.connect().expect("a place");
        // As often as a connection may have requests.
        for _ in 0..100_000 {
            turn.settle();
        }
        drop(turn.request().expect("still there"));
    }
    pass(GRACE * 100).await;
    assert!(lab.connect().is_none());
    lab.tasks.abort_all();
    assert_eq!((lab.ended().await, lab.open(), lab.shed.get()), (2, 0, 0));
    assert!(lab.connect().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_time_before_anybody_came_is_not_theirs() {
    let mut lab = Lab::new(2);
    lab.connect().expect("a place").settle();
    // Nobody comes for long.
    let place = lab.places.take().expect("a place");
    pass(GRACE * 10).await;
    let turn = place.turn().clone();
    turn.served_by(lab.tasks.spawn(async move {
        let _place = place;
        pending::<()>().await;
    }));
    assert!(lab.places.take().is_none(), "who came has only just come");
    assert_eq!(lab.ended().await, 0);
    pass(GRACE).await;
    assert!(lab.places.take().is_some(), "and is old now");
    assert_eq!(lab.ended().await, 1);
}

#[tokio::test(start_paused = true)]
async fn of_many_a_part_goes_at_once_and_each_makes_room_for_one() {
    let mut lab = Lab::new(640);
    for _ in 0..640 {
        lab.connect().expect("a place");
    }
    pass(GRACE).await;
    for _ in 0..10 {
        lab.connect().expect("a place");
    }
    assert_eq!(lab.shed.get(), 10, "one look, for ten newcomers");
    lab.connect().expect("a place");
    assert_eq!((lab.shed.get(), lab.open()), (20, 631));
    assert_eq!(lab.ended().await, 20);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_gets_it_when_one_is_free_or_old_enough() {
    let mut lab = Lab::new(1);
    lab.connect().expect("a place");
    let begun = tokio::time::Instant::now();
    let place = lab.places.next().await;
    assert!(begun.elapsed() >= GRACE && begun.elapsed() < GRACE + 2 * LOOK);
    let places = lab.places.clone();
    let ((), next) = tokio::join!(async move { drop(place) }, places.next());
    drop(next);
    assert_eq!(lab.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_makes_room_before_somebody_comes() {
    let mut lab = Lab::new(1);
    lab.connect().expect("a place");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let at = listener.local_addr().expect("bound");
    let nobody = tokio::time::timeout(GRACE * 10, lab.places.accept(&listener)).await;
    assert!(nobody.is_err(), "nobody has come");
    assert_eq!((lab.shed.get(), lab.ended().await), (0, 0));
    let client = std::net::TcpStream::connect(at).expect("connected");
    let (_stream, from, _place) = lab.places.accept(&listener).await;
    assert_eq!(Some(from), client.local_addr().ok());
    assert_eq!((lab.shed.get(), lab.ended().await), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_has_looked_in_vain_does_not_look_again_at_once() {
    let places = Places::new(1, Duration::ZERO, Counter::default());
    let place = places.take().expect("a place");
    let turn = place.turn().clone();
    turn.served_by(tokio::spawn(pending::<()>()).abort_handle());
    let request = turn.request().expect("there");
    assert!(places.take().is_none(), "it is at work");
    drop(request);
    assert!(places.take().is_none(), "nobody was looked at");
    pass(IN_VAIN).await;
    assert!(places.take().is_some(), "it waits");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_idle_once_no_request_was_under_way_for_so_long() {
    let turn = Turn::default();
    let begun = tokio::time::Instant::now();
    let request = turn.request().expect("nobody's place");
    let end = async {
        pass(GRACE * 5).await;
        drop(request);
    };
    let ((), ()) = tokio::join!(end, turn.idle_for(GRACE * 2));
    let idle = begun.elapsed();
    assert!(idle >= GRACE * 7 && idle <= GRACE * 9, "{idle:?}");
    turn.settle();
    let idle = tokio::time::timeout(GRACE * 100, turn.idle_for(GRACE)).await;
    assert!(idle.is_err(), "who has settled is never idle");
}
