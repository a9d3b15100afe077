//! Makes boringtun's clock follow ours, where that is possible.

use std::time::Instant;

#[cfg(not(feature = "virtual-time"))]
#[inline]
pub(super) fn follow(_now: Instant) {}

#[cfg(feature = "virtual-time")]
pub(super) fn follow(now: Instant) {
    use std::sync::OnceLock;
    use std::time::Duration;

    /// boringtun's mock starts at zero; this leaves room for instants before the first one.
    const START: Duration = Duration::from_secs(1_000_000);
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    let epoch = *EPOCH.get_or_init(|| now);
    let time = match now.checked_duration_since(epoch) {
        Some(after) => START + after,
        None => START.saturating_sub(epoch.duration_since(now)),
    };
    mock_instant::MockClock::set_time(time);
}
