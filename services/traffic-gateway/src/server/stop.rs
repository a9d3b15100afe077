//! How the connections of one core are told to end.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

/// Tells the connections of one core to end.
///
/// A connection looks at a plain flag whenever it has something to do, and asks the token once,
/// which then wakes it: asking takes locks, and asking one token from all cores would make them
/// wait for each other with every request.
#[derive(Debug, Default)]
pub(super) struct Stop {
    said: AtomicBool,
    token: CancellationToken,
}

impl Stop {
    pub(super) fn now(&self) {
        self.said.store(true, Ordering::Relaxed);
        self.token.cancel();
    }

    /// Runs `connection`, after `end` was called with it once this stops.
    pub(super) async fn end<F: Future>(
        &self,
        connection: F,
        end: impl FnOnce(Pin<&mut F>),
    ) -> F::Output {
        let mut connection = pin!(connection);
        let mut stopped = pin!(self.token.cancelled());
        let mut end = Some(end);
        // INVARIANT: a task keeps its waker, so the one that was left with the token stays good.
        let mut asked = false;
        poll_fn(|cx| {
            if end.is_some() && (!asked || self.said.load(Ordering::Relaxed)) {
                asked = true;
                if stopped.as_mut().poll(cx).is_ready()
                    && let Some(end) = end.take()
                {
                    end(connection.as_mut());
                }
            }
            connection.as_mut().poll(cx)
        })
        .await
    }
}
