//! The verdict on what must not grow.

use mesh_testkit::flat::{Allowance, FEWEST, judge};
use proptest::prelude::*;

const TENTH: Allowance = Allowance {
    percent: 10,
    besides: 5,
};

fn allowances() -> impl Strategy<Value = Allowance> {
    (0..50_u64, 0..100_u64).prop_map(|(percent, besides)| Allowance { percent, besides })
}

fn is_flat(samples: &[u64], allowance: Allowance) -> bool {
    judge(samples, allowance).expect("enough").is_flat()
}

#[test]
fn the_quarters_and_the_bound_are_as_documented() {
    let samples = [900, 900, 900, 90, 100, 110, 1, 1, 1, 115, 114, 116];
    let verdict = judge(&samples, TENTH).expect("enough");
    let figures = (verdict.early, verdict.late, verdict.most);
    assert_eq!(figures, (100, 115, 115));
    assert!(verdict.is_flat());
    let samples = [900, 900, 900, 90, 100, 110, 1, 1, 1, 116, 114, 117];
    assert!(!is_flat(&samples, TENTH));
}

#[test]
fn too_few_samples_get_no_verdict() {
    assert_eq!(judge(&[7; FEWEST - 1], TENTH), None);
    assert!(judge(&[7; FEWEST], TENTH).is_some());
}

#[test]
fn the_largest_figures_do_not_overflow() {
    assert!(is_flat(&[u64::MAX; 12], TENTH));
    let mut samples = [0; 12];
    samples[9..].fill(u64::MAX);
    assert!(!is_flat(&samples, TENTH));
}

proptest! {
    #[test]
    fn what_varies_within_the_allowance_is_flat(
        base in 0..1_000_000_u64,
        noise in prop::collection::vec(0..=1000_u64, FEWEST..200),
        allowance in allowances(),
    ) {
        let room = base * allowance.percent / 100 + allowance.besides;
        let samples: Vec<u64> = noise.iter().map(|part| base + room * part / 1000).collect();
        prop_assert!(is_flat(&samples, allowance));
    }

    #[test]
    fn what_grew_by_one_more_than_is_allowed_is_found(
        base in 0..1_000_000_u64,
        count in FEWEST..200_usize,
        more in 1..1000_u64,
        allowance in allowances(),
    ) {
        let grown = base + base * allowance.percent / 100 + allowance.besides + more;
        let mut samples = vec![base; count];
        samples[2 * (count / 4)..].fill(grown);
        prop_assert!(!is_flat(&samples, allowance));
    }

    #[test]
    fn a_steady_leak_is_found(base in 1000..1_000_000_u64, count in FEWEST..200_usize) {
        // Half as much again over the whole time.
        let last = count as u64 - 1;
        let samples: Vec<u64> = (0..=last).map(|at| base + base * at / (2 * last)).collect();
        prop_assert!(!is_flat(&samples, TENTH));
    }

    #[test]
    fn warming_up_does_not_count(
        samples in prop::collection::vec(0..1_000_000_u64, FEWEST..200),
        other in 0..1_000_000_u64,
        allowance in allowances(),
    ) {
        let mut changed = samples.clone();
        changed[..samples.len() / 4].fill(other);
        prop_assert_eq!(judge(&samples, allowance), judge(&changed, allowance));
    }

    #[test]
    fn a_few_outliers_decide_nothing(
        base in 0..1_000_000_u64,
        count in FEWEST..200_usize,
        outliers in prop::collection::vec(any::<u64>(), 50),
    ) {
        let quarter = count / 4;
        let few = quarter.saturating_sub(1) / 2;
        let mut samples = vec![base; count];
        samples[quarter..quarter + few].copy_from_slice(&outliers[..few]);
        samples[count - few..].copy_from_slice(&outliers[..few]);
        prop_assert!(is_flat(&samples, TENTH));
    }

    #[test]
    fn the_order_within_a_quarter_does_not_matter(
        samples in prop::collection::vec(0..1_000_000_u64, FEWEST..200),
        allowance in allowances(),
    ) {
        let quarter = samples.len() / 4;
        let last = samples.len() - quarter;
        let mut turned = samples.clone();
        turned[quarter..2 * quarter].reverse();
        turned[last..].reverse();
        prop_assert_eq!(judge(&samples, allowance), judge(&turned, allowance));
    }
}
