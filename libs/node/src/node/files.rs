//! How many file descriptors the process has left, of which the coordinator is told.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_types::OpenFiles;

/// What the program counts, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Files {
    count: OnceLock<fn() -> (u64, u64)>,
    is_low: AtomicBool,
}

impl Files {
    /// They are counted so from now on: those in use, and the most there may be. Who says it first
    /// decides.
    pub(super) fn watch(&self, count: fn() -> (u64, u64)) {
        self.count.get_or_init(|| count);
    }

    /// Counts them, which takes a moment when there are many.
    pub(crate) async fn look(&self) {
        let Some(&count) = self.count.get() else {
            return;
        };
        // The runtime is stopping when there is no answer.
        if let Ok((used, limit)) = tokio::task::spawn_blocking(count).await {
            let is_low = OpenFiles { used, limit }.is_low(self.is_low());
            self.is_low.store(is_low, Ordering::Relaxed);
        }
    }

    /// Whether hardly any were left when they were counted last.
    pub(crate) fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    static USED: AtomicU64 = AtomicU64::new(0);

    #[tokio::test]
    async fn what_comes_and_goes_around_the_mark_is_told_once() {
        let files = Files::default();
        files.look().await;
        assert!(!files.is_low(), "nobody counts");
        files.watch(|| (USED.load(Ordering::Relaxed), 100));
        for (used, is_low) in [
            (89, false),
            (90, true),
            (85, true),
            (91, true),
            (81, true),
            (80, false),
            (89, false),
        ] {
            USED.store(used, Ordering::Relaxed);
            files.look().await;
            assert_eq!(files.is_low(), is_low, "{used}");
        }
    }
}
