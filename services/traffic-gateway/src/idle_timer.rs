//! The timer of one client connection, for hyper.
//!
//! hyper makes a timer for each request that it waits for and drops it when the request is there;
//! taking it in and out of the runtime's wheel takes a lock each time. Here a connection has one
//! timer in the wheel, which stays there: it runs out a little early, looks how long the request
//! that is waited for now may still take, and goes on.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use tokio::task::coop::unconstrained;

/// Hands out sleeps of which one at a time is waited for, always by the same task.
#[derive(Debug, Clone)]
pub(crate) struct IdleTimer(Arc<Mutex<Wheel>>);

/// The one timer of the runtime.
#[derive(Debug)]
struct Wheel {
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// The task will be woken by it.
    armed: bool,
}

#[derive(Debug)]
struct Until {
    deadline: Instant,
    wheel: Arc<Mutex<Wheel>>,
}

impl IdleTimer {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Wheel {
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            armed: false,
        })))
    }
}

impl Timer for IdleTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Until {
            deadline,
            wheel: Arc::clone(&self.0),
        })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

impl Sleep for Until {}

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut wheel = self.wheel.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = tokio::time::Instant::from_std(self.deadline);
        // INVARIANT: a connection stays in its task, so whoever was to be woken still is.
        if wheel.armed && !wheel.sleep.is_elapsed() && wheel.sleep.deadline() <= deadline {
            return Poll::Pending;
        }
        if deadline <= tokio::time::Instant::now() {
            return Poll::Ready(());
        }
        wheel.sleep.as_mut().reset(deadline);
        wheel.armed = true;
        // A task that has used up its turn would be told to come again, and not be noted down.
        pin!(unconstrained(wheel.sleep.as_mut())).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_sleep_ends_at_its_own_time_although_there_is_one_timer() {
        let timer = IdleTimer::new();
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let mut polled_once = timer.sleep_until(after(20));
        std::future::poll_fn(|cx| {
            assert!(polled_once.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        drop(polled_once);
        // The timer still runs out at its first time, which is too early for this one.
        timer.sleep_until(after(60)).await;
        assert!(Instant::now() >= after(60));
        timer.sleep_until(after(70)).await;
        assert!(Instant::now() >= after(70));
        let mut long = timer.sleep(Duration::from_secs(1000));
        std::future::poll_fn(|cx| {
            assert!(long.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        // A shorter one is not kept waiting by a longer one before it.
        timer.sleep_until(after(100)).await;
        assert!(begun.elapsed() < Duration::from_secs(900));
    }

    #[tokio::test]
    async fn a_task_that_has_used_up_its_turn_is_woken_nevertheless() {
        let timer = IdleTimer::new();
        let task = tokio::spawn(async move {
            let mut sleep = timer.sleep(Duration::from_millis(60));
            let mut polls = 0;
            std::future::poll_fn(|cx| {
                polls += 1;
                if polls == 1 {
                    // INVARIANT: a turn is finite, so this ends.
                    while let Poll::Ready(step) = tokio::task::coop::poll_proceed(cx) {
                        step.made_progress();
                    }
                }
                sleep.as_mut().poll(cx)
            })
            .await;
        });
        tokio::time::timeout(Duration::from_secs(10), task)
            .await
            .expect("woken at its time")
            .expect("no panic");
    }
}
