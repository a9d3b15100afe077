//! Shutdown: not ready, stop accepting, drain, end.
//!
//! A [`ShutdownTrigger`] starts it, a [`Shutdown`] tells everybody. Whoever serves something that
//! may finish (a connection, a stream) holds a [`DrainGuard`]; [`Shutdown::drained`] waits for the
//! guards, no longer than the grace period.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::config::duration;
use crate::task::Task;

/// How long a drain may take unless configured: below the 30 s that Kubernetes grants.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(25);

crate::settings! {
    /// The `[shutdown]` section.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct ShutdownConfig {
        /// How long running requests may take to finish, such as `25s`.
        #[serde(with = "duration")]
        pub grace: Duration,
    }
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self {
            grace: DEFAULT_GRACE,
        }
    }
}

/// Starts a shutdown. Clones start the same one.
#[derive(Debug, Clone)]
pub struct ShutdownTrigger(CancellationToken);

/// Tells when a shutdown has begun and counts what still runs. Clones share both.
#[derive(Debug, Clone)]
pub struct Shutdown {
    begun: CancellationToken,
    guards: TaskTracker,
    grace: Duration,
}

/// Keeps [`Shutdown::drained`] waiting while it lives.
#[derive(Debug, Clone)]
#[must_use = "it counts only while it is held"]
pub struct DrainGuard(#[expect(dead_code, reason = "held for its Drop")] TaskTrackerToken);

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything finished.
    Clean,
    /// The grace period was over first.
    TimedOut {
        /// How many guards were still held.
        left: usize,
    },
}

impl ShutdownTrigger {
    /// A trigger and what it shuts down, for one service; `grace` limits the drain.
    pub fn new(grace: Duration) -> (Self, Shutdown) {
        let begun = CancellationToken::new();
        let shutdown = Shutdown {
            begun: begun.clone(),
            guards: TaskTracker::new(),
            grace,
        };
        (Self(begun), shutdown)
    }

    /// Begins the shutdown; the first call counts and logs `reason`.
    pub fn trigger(&self, reason: &str) {
        if !self.0.is_cancelled() {
            tracing::info!(reason, "shutting down");
            self.0.cancel();
        }
    }
}

impl Shutdown {
    /// Resolves when the shutdown has begun. Cancel-safe.
    pub async fn draining(&self) {
        self.begun.cancelled().await;
    }

    /// Whether the shutdown has begun.
    pub fn is_draining(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// How long a drain may take.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// To be held by what may finish during the drain, such as one connection.
    pub fn guard(&self) -> DrainGuard {
        DrainGuard(self.guards.token())
    }

    /// Waits for the shutdown to begin, then for every guard to go, at most [`Self::grace`].
    pub async fn drained(&self) -> Drained {
        self.begun.cancelled().await;
        self.guards.close();
        match tokio::time::timeout(self.grace, self.guards.wait()).await {
            Ok(()) => Drained::Clean,
            Err(_) => Drained::TimedOut {
                left: self.guards.len(),
            },
        }
    }

    /// A token that is cancelled when the shutdown begins, for libraries that take one.
    /// Cancelling the token itself shuts nothing down.
    pub fn token(&self) -> CancellationToken {
        self.begun.child_token()
    }
}

/// Follows SIGINT and SIGTERM as long as the returned task lives: the first triggers the shutdown,
/// a second ends the process at once with exit code 1.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn signals(trigger: ShutdownTrigger) -> std::io::Result<Task> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(Task::spawn("signals", async move {
        let mut received = 0_u32;
        loop {
            let name = tokio::select! {
                Some(()) = interrupt.recv() => "SIGINT",
                Some(()) = terminate.recv() => "SIGTERM",
                else => return,
            };
            received += 1;
            if received > 1 {
                tracing::info!(signal = name, "second signal: ending at once");
                std::process::exit(1);
            }
            trigger.trigger(name);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_what_is_running() {
        let (trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(25));
        let guard = shutdown.guard();
        assert!(!shutdown.is_draining());
        trigger.trigger("test");
        trigger.trigger("twice does nothing");
        assert!(shutdown.is_draining());
        let mut drained = Box::pin(shutdown.drained());
        let early = tokio::time::timeout(Duration::from_millis(20), drained.as_mut()).await;
        assert!(early.is_err(), "the guard is still held");
        drop(guard);
        let end = tokio::time::timeout(Duration::from_secs(10), drained).await;
        assert_eq!(end, Ok(Drained::Clean));
    }

    #[tokio::test]
    async fn a_drain_ends_with_the_grace_period() {
        let (trigger, shutdown) = ShutdownTrigger::new(Duration::from_millis(20));
        let _held = (shutdown.guard(), shutdown.clone().guard());
        trigger.trigger("test");
        assert_eq!(shutdown.drained().await, Drained::TimedOut { left: 2 });
    }

    #[tokio::test]
    async fn cancelling_a_lent_token_shuts_nothing_down() {
        let (trigger, shutdown) = ShutdownTrigger::new(DEFAULT_GRACE);
        shutdown.token().cancel();
        assert!(!shutdown.is_draining());
        let token = shutdown.token();
        trigger.trigger("test");
        token.cancelled().await;
        shutdown.draining().await;
    }
}
