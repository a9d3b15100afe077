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

/// A seed by which a fault was found would still find it: it does when the fault is planted again.
#[test]
fn what_was_found_once_stays_mended_and_would_be_found_again() {
    let seeds = include_str!("../regressions.txt");
    let mut ran = 0;
    let lines = seeds.lines().filter(|line| !line.starts_with('#'));
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let number = words.next().and_then(|word| word.parse().ok());
        let number = number.expect("a seed, the fault, then why");
        let bug: Bug = words.next().and_then(|word| word.parse().ok()).expect(line);
        let outcome = run::seed(number, Options::default());
        assert_eq!(outcome.failure, None, "{line}");
        let planted = Options {
            bug: Some(bug),
            ..Options::default()
        };
        let outcome = run::seed(number, planted);
        assert!(
            outcome.failure.is_some(),
            "seed {number} finds {bug} no more, since lives are other ones now: put one in its \
             place that 'cargo xtask sim --bug {bug} --first 1000' names"
        );
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

#[test]
fn a_certificate_that_is_never_renewed_is_found_within_35_days() {
    let month = Options {
        month: true,
        ..Options::default()
    };
    assert_eq!(run::seed(0, month).failure, None);
    let planted = Options {
        bug: Some(Bug::NeverRenew),
        ..month
    };
    let failure = run::seed(0, planted).failure.expect("it is found");
    assert!(failure.contains("no control stream"), "{failure}");
}
