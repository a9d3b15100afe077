//! A request by HTTP/2 is a task of its own, which ends when its client takes nothing of the answer,
//! whatever it takes of others on the same connection.
//!
//! What has room in the stream's buffer when the body is done is not the task's any more, but the
//! connection's: [`SEND_BUFFER`](super::SEND_BUFFER) and a piece at most for each stream.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::task::JoinSet;

use super::{LOOKS, Looks, NO_ROOM, Stream};

tokio::task_local! {
    /// What waits of the answer that this task is about.
    static WAITING: Arc<Waiting>;
}

/// What the client has yet to take of one answer.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) offers: AtomicUsize,
    pub(super) taken: AtomicUsize,
}

impl Waiting {
    /// Resolves when the client has taken nothing for [`NO_ROOM`] of what waits for it.
    async fn stalled(&self) {
        let mut looks = Looks::default();
        while !looks.is_stalled() {
            tokio::time::sleep(NO_ROOM / LOOKS).await;
            let waits = self.offers.load(Ordering::Relaxed) > 0;
            looks.look(waits, self.taken.load(Ordering::Relaxed));
        }
    }
}

impl Stream {
    /// Called in the task that a [`Runner`] made: what waits of the answer is this task's to look at.
    pub(in super::super) fn in_its_task(mut self) -> Self {
        if let Ok(waiting) = WAITING.try_with(Arc::clone) {
            self.waiting = waiting;
        }
        self
    }
}

/// The tasks of a connection's requests, which end with it.
#[derive(Debug, Default)]
pub(in super::super) struct Requests(Arc<Mutex<JoinSet<()>>>);

impl Requests {
    /// Runs each request in a task.
    pub(in super::super) fn runner(&self) -> Runner {
        Runner(Arc::downgrade(&self.0))
    }
}

/// See [`Requests::runner`]. The tasks hold it too, so it does not hold them.
#[derive(Debug, Clone)]
pub(in super::super) struct Runner(Weak<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Runner
where
    F: Future + Send + 'static,
{
    fn execute(&self, request: F) {
        // Without its connection a request is over.
        let Some(tasks) = self.0.upgrade() else {
            return;
        };
        let waiting = Arc::<Waiting>::default();
        let looked_at = Arc::clone(&waiting);
        let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(WAITING.scope(waiting, async move {
            tokio::select! {
                biased;
                _ = request => {}
                // The stream is reset (CANCEL), and what it holds is given back: here, in its
                // buffer, and at the worker.
                () = looked_at.stalled() => tracing::debug!("a client takes nothing of an answer"),
            }
        }));
    }
}
