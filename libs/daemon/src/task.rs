//! Named tasks with an owner: they end when their owner goes, and no failure is silent.

use std::any::Any;
use std::error::Error;
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tracing::Instrument as _;

use crate::places::Turn;
use crate::report;

/// What a task's future may give: nothing, or a `Result` whose error ends up in the log.
pub trait TaskOutput: Send + 'static {
    /// The failure as one line; `None` when all is well.
    fn into_failure(self) -> Option<String>;
}

impl TaskOutput for () {
    fn into_failure(self) -> Option<String> {
        None
    }
}

impl<E> TaskOutput for Result<(), E>
where
    E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
{
    fn into_failure(self) -> Option<String> {
        let error: Box<dyn Error + Send + Sync> = self.err()?.into();
        Some(report::chain(error.as_ref()))
    }
}

/// How a task ended. Failures and panics have been logged by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// The future finished without an error.
    Completed,
    /// It gave an error: the whole chain as one line.
    Failed(String),
    /// It panicked, with this message.
    Panicked(String),
    /// It was aborted, or the runtime stopped.
    Aborted,
}

/// One spawned task. Dropping it aborts the task.
#[derive(Debug)]
pub struct Task {
    name: &'static str,
    handle: JoinHandle<TaskEnd>,
    end: Option<TaskEnd>,
}

impl Task {
    /// Spawns `future` on the current runtime. An error or a panic is logged at ERROR.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use = "dropping the task aborts it"]
    pub fn spawn<F>(name: &'static str, future: F) -> Self
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        Self {
            name,
            handle: tokio::spawn(watched(name, future)),
            end: None,
        }
    }

    /// The name it was given.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Aborts it at its next await point.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the end; may be asked again. Cancel-safe.
    pub async fn finished(&mut self) -> TaskEnd {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let end = (&mut self.handle).await.unwrap_or(TaskEnd::Aborted);
        self.end = Some(end.clone());
        end
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// A bag of tasks with one owner, such as the connections of a listener or all the parts of a
/// service. Dropping it aborts them all.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<(&'static str, TaskEnd)>,
}

impl Tasks {
    /// An empty bag.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns `future` into the bag; like [`Task::spawn`] otherwise.
    ///
    /// Does not forget ends that [`Self::next_end`] has yet to give; a bag whose ends nobody asks
    /// for (connections) is swept by [`Self::reap`].
    pub fn spawn<F>(&mut self, name: &'static str, future: F)
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let watched = watched(name, future);
        self.running.spawn(async move { (name, watched.await) });
    }

    /// [`Self::spawn`] for a connection that may have to give its place up, which aborts the task.
    pub fn spawn_in_turn<F>(&mut self, name: &'static str, turn: &Turn, future: F)
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let watched = watched(name, future);
        let task = self.running.spawn(async move { (name, watched.await) });
        turn.served_by(task);
    }

    /// Forgets the tasks that have ended; returns how many still run.
    pub fn reap(&mut self) -> usize {
        while self.running.try_join_next().is_some() {}
        self.running.len()
    }

    /// How many are in the bag, ended ones that nobody asked for included.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether the bag is empty.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// The next task that ends; pending for ever while the bag is empty. Cancel-safe.
    pub async fn next_end(&mut self) -> (&'static str, TaskEnd) {
        loop {
            match self.running.join_next().await {
                Some(Ok(end)) => return end,
                // An aborted task has lost its name.
                Some(Err(_)) => {}
                None => pending().await,
            }
        }
    }

    /// Waits until all have ended, at most `limit`; returns how many still run.
    pub async fn join_all(&mut self, limit: Duration) -> usize {
        let all = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_ok() {
            0
        } else {
            self.reap()
        }
    }

    /// Aborts them all.
    pub fn abort_all(&mut self) {
        self.running.abort_all();
    }
}

/// Runs the future in a span of its name, and turns errors and panics into a logged [`TaskEnd`].
fn watched<F>(name: &'static str, future: F) -> impl Future<Output = TaskEnd> + Send
where
    F: Future<Output: TaskOutput> + Send + 'static,
{
    let body = async move {
        let mut future = pin!(future);
        let caught = poll_fn(|context| {
            // The future is never polled again after a panic, so a broken state stays unseen.
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
                Err(panic) => Poll::Ready(Err(message(panic.as_ref()))),
            }
        })
        .await;
        match caught.map(TaskOutput::into_failure) {
            Ok(None) => TaskEnd::Completed,
            Ok(Some(error)) => {
                tracing::error!(error, "task failed");
                TaskEnd::Failed(error)
            }
            Err(panic) => {
                tracing::error!(panic, "task panicked");
                TaskEnd::Panicked(panic)
            }
        }
    };
    body.instrument(tracing::info_span!("task", name))
}

fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn the_end_tells_errors_and_panics_apart() {
        let mut fine = Task::spawn("fine", async {});
        assert_eq!(fine.finished().await, TaskEnd::Completed);
        assert_eq!(fine.finished().await, TaskEnd::Completed);
        let mut failing = Task::spawn("failing", async { Err(std::io::Error::other("no disk")) });
        assert_eq!(
            failing.finished().await,
            TaskEnd::Failed("no disk".to_owned())
        );
        let mut panicking = Task::spawn("panicking", async {
            let hour: Option<u8> = None;
            hour.map(drop).expect("noon");
        });
        assert_eq!(
            panicking.finished().await,
            TaskEnd::Panicked("noon".to_owned())
        );
    }

    #[tokio::test]
    async fn dropping_a_task_aborts_it() {
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        let task = Task::spawn("endless", async move {
            let _inside = inside;
            pending::<()>().await;
        });
        drop(task);
        tokio::time::timeout(Duration::from_secs(5), async {
            while Arc::strong_count(&held) > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the task's future is dropped");
    }

    #[tokio::test]
    async fn a_bag_gives_each_end_once_and_is_pending_when_empty() {
        let mut tasks = Tasks::new();
        tasks.spawn("first", async {});
        tasks.spawn("endless", pending::<()>());
        assert_eq!(tasks.next_end().await, ("first", TaskEnd::Completed));
        assert_eq!(tasks.join_all(Duration::from_millis(1)).await, 1);
        tasks.abort_all();
        assert_eq!(tasks.join_all(Duration::from_secs(5)).await, 0);
        let nothing = tokio::time::timeout(Duration::from_millis(1), tasks.next_end()).await;
        assert!(nothing.is_err());
    }
}
