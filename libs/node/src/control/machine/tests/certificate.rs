//! Certificates: renewed in time, whatever the machine's clocks do.

use super::*;

#[test]
fn the_certificate_is_renewed_at_two_thirds_of_its_life() {
    let mut bench = Bench::live();
    let life = bench
        .machine
        .validity()
        .until
        .since(bench.machine.validity().from);
    let mut asked = None;
    while asked.is_none() {
        bench.step();
        bench.ack(None);
        if bench.actions().contains(&Action::Renew) {
            asked = Some(bench.now.wall.since(bench.machine.validity().from));
        }
    }
    let at = asked.expect("a renewal").as_secs_f64() / life.as_secs_f64();
    assert!((0.64..0.69).contains(&at), "{at}");
    assert_eq!(
        bench.state(),
        ControlState::Connected,
        "the stream is not touched by it"
    );
    bench
        .machine
        .handle_renew_failed("not now".into(), bench.now);
    let retry = bench.machine.renew_at.duration_since(bench.now.at);
    assert!(retry <= RENEW_RETRY && retry >= RENEW_RETRY / 2);
    let validity = Validity {
        from: bench.now.wall,
        until: bench.now.wall.plus(DAY),
    };
    bench.machine.handle_renewed(validity, bench.now);
    assert!(bench.machine.renew_at > bench.now.at + DAY / 2);
}

#[test]
fn a_new_certificate_that_is_due_already_is_not_renewed_in_a_loop() {
    let mut bench = Bench::live();
    bench.machine.renewing = true;
    let validity = Validity {
        from: bench.now.wall.minus(2 * DAY),
        until: bench.now.wall.minus(DAY),
    };
    bench.machine.handle_renewed(validity, bench.now);
    assert_eq!(bench.machine.renew_at, bench.now.at + RENEW_RETRY);
    bench.actions();
    bench.machine.handle_timeout(bench.now);
    assert!(!bench.actions().contains(&Action::Renew));
}

#[test]
fn an_expired_certificate_is_renewed_before_anything_else() {
    let mut bench = Bench::new(None);
    bench.machine.validity.until = bench.now.wall;
    bench.machine.renew_at = bench.now.at;
    bench.step();
    assert_eq!(bench.actions(), [Action::Renew]);
    let validity = Validity {
        from: bench.now.wall,
        until: bench.now.wall.plus(DAY),
    };
    bench.machine.handle_renewed(validity, bench.now);
    bench.actions();
    bench.step();
    assert_eq!(bench.actions(), [Action::Open { cursor: None }]);
}

#[test]
fn a_machine_that_sleeps_much_renews_in_time() {
    let mut bench = Bench::live();
    let life = DAY * 30;
    let mut days = 1;
    while !bench.actions().contains(&Action::Renew) {
        // Its clock for intervals stands still meanwhile.
        bench.now.wall = bench.now.wall.plus(DAY - Duration::from_secs(60));
        days += 1;
        for _ in 0..4 {
            bench.step();
            bench.ack(None);
        }
        assert!(days < 30, "its certificate ends after {life:?}");
    }
    let share = f64::from(days) / 30.0;
    assert!((0.64..0.71).contains(&share), "after {days} days");
}

#[test]
fn a_machine_that_slept_beyond_its_certificate_renews_before_anything_else() {
    let mut bench = Bench::live();
    bench.now.wall = bench.now.wall.plus(DAY * 33);
    bench
        .machine
        .handle_closed("nobody was there any more".into(), bench.now);
    assert_eq!(bench.actions(), [Action::Close]);
    bench.step();
    assert_eq!(bench.actions(), [Action::Renew]);
    // What failed is tried again after a pause, by the clock that did not jump.
    let failed = bench.now.at;
    bench
        .machine
        .handle_renew_failed("no answer".into(), bench.now);
    loop {
        bench.step();
        let actions = bench.actions();
        if actions.contains(&Action::Renew) {
            break;
        }
        assert_eq!(actions, [Action::Open { cursor: None }]);
        bench.machine.handle_closed("refused".into(), bench.now);
        bench.actions();
    }
    let pause = bench.now.at.duration_since(failed);
    assert!(
        (BACKOFF_CAP / 2..=BACKOFF_CAP).contains(&pause),
        "{pause:?}"
    );
    let validity = Validity {
        from: bench.now.wall,
        until: bench.now.wall.plus(DAY * 30),
    };
    bench.machine.handle_renewed(validity, bench.now);
    assert!(bench.machine.renew_at > bench.now.at + DAY * 15);
}
