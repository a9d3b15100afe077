//! The simulation itself: it repeats, and what it found once stays found.

use mesh_sim::{Bug, Options, run};

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..6 {
        let (first, second) = (
            run::seed(seed, Options::default()),
            run::seed(seed, Options::default()),
        );
        assert_eq!(first.trace.counts(), second.trace.counts(), "seed {seed}");
        assert_eq!(first.trace.hash(), second.trace.hash(), "seed {seed}");
        assert_eq!(first.failure, second.failure, "seed {seed}");
    }
}

#[test]
fn different_seeds_give_different_traces() {
    let hash = |seed| run::seed(seed, Options::default()).trace.hash();
    assert_ne!(hash(1), hash(2));
}

#[test]
fn what_was_found_once_stays_mended() {
    let seeds = include_str!("../regressions.txt");
    let mut ran = 0;
    for line in seeds.lines().filter(|line| !line.starts_with('#')) {
        let Some((number, why)) = line.split_once(' ') else {
            continue;
        };
        let number = number.parse().expect("a seed, then why");
        let outcome = run::seed(number, Options::default());
        assert_eq!(outcome.failure, None, "seed {number}: {why}");
        ran += 1;
    }
    assert!(ran > 0, "the list has seeds");
}

#[test]
fn a_planted_fault_is_found_and_found_again_by_its_seed() {
    let options = Options {
        bug: Some(Bug::ForgetRemoval),
        ..Options::default()
    };
    let report = run::many(0..1000, options, 1, true);
    let (seed, failure) = report.failures.first_key_value().expect("it is found");
    assert_eq!(run::seed(*seed, options).failure.as_ref(), Some(failure));
}
