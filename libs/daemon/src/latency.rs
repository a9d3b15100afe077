//! A histogram of durations that threads share without waiting for each other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::per_core::{PLACES, place};

/// The upper ends of the buckets, in microseconds; one more bucket takes the rest.
const BOUNDS: [u64; 12] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];

/// How long things took, in seconds: buckets from 1 ms to 10 s. Counting takes a few atomic
/// additions, so that a hot path may do it. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Latency(Arc<Counts>);

/// One for each place, so that threads do not write the same cache lines.
#[derive(Debug, Default)]
struct Counts([Place; PLACES]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Place {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Latency {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        let place = &self.0.0[place()];
        place.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        place.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound));
        let sum_of = |of: &dyn Fn(&Place) -> &AtomicU64| -> u64 {
            let places = self.0.0.iter();
            places.map(|place| of(place).load(Ordering::Relaxed)).sum()
        };
        let counts = (0..=BOUNDS.len()).map(|bucket| sum_of(&|place| &place.buckets[bucket]));
        let buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        // From what was read, so that it always equals the last bucket.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(sum_of(&|place| &place.micros));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metrics;

    #[test]
    fn each_duration_falls_into_the_bucket_that_ends_at_or_above_it() {
        let (metrics, latency) = (Metrics::default(), Latency::default());
        metrics.register(|registry| registry.register("x_seconds", "X", latency.clone()));
        for micros in [0, 1_000, 1_001, 11_000_000] {
            latency.observe(Duration::from_micros(micros));
        }
        let text = metrics.encode();
        for line in [
            "x_seconds_count 4",
            "x_seconds_sum 11.002001",
            "x_seconds_bucket{le=\"0.001\"} 2",
            "x_seconds_bucket{le=\"0.0025\"} 3",
            "x_seconds_bucket{le=\"10.0\"} 3",
            "x_seconds_bucket{le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} not in {text}");
        }
    }
}
