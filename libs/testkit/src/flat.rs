//! Whether a figure stays flat while time passes: samples in, verdict out. Who measures what, and
//! for how long, is the callers' business.
//!
//! The first quarter of the samples is warm-up and does not count. The median of the last quarter
//! may be above the median of the second by what is allowed, and by no more. Medians, because a
//! sample may fall on a moment at which much is going on.

/// Fewer samples tell nothing.
pub const FEWEST: usize = 8;

/// How much higher the end may be than the beginning: a part of it, and so much besides, for what
/// comes and goes in steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Of the beginning.
    pub percent: u64,
    /// In the figure's own unit.
    pub besides: u64,
}

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The median of the second quarter.
    pub early: u64,
    /// The median of the last quarter.
    pub late: u64,
    /// The most that `late` may be.
    pub most: u64,
}

impl Verdict {
    /// Whether it did not grow.
    pub fn is_flat(&self) -> bool {
        self.late <= self.most
    }
}

/// Judges samples that were taken at equal distances, oldest first; `None` when there are fewer
/// than [`FEWEST`].
pub fn judge(samples: &[u64], allowance: Allowance) -> Option<Verdict> {
    if samples.len() < FEWEST {
        return None;
    }
    let quarter = samples.len() / 4;
    let early = median(&samples[quarter..2 * quarter]);
    let late = median(&samples[samples.len() - quarter..]);
    let part = early / 100 * allowance.percent + early % 100 * allowance.percent / 100;
    Some(Verdict {
        early,
        late,
        most: early.saturating_add(part).saturating_add(allowance.besides),
    })
}

/// The upper one of two in the middle.
fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}
