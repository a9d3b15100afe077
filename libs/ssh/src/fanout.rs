//! The same work on many targets: a machine that decides, and a shell that does.
//!
//! ```text
//! Queued ──start──> Connecting ──connected──> Running ──ended──> Exited
//!                       │                        │  └──failed──> Failed
//!                       ├──failed──> Failed      └──time is up─> TimedOut
//!                       └──time is up──> TimedOut
//! ```
//!
//! [`Fanout`] takes events and `now`, and says what to start and what to stop; it reads no clock.
//! [`drive`] runs it on tokio. Results keep the order in which the targets were given.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::report::{Outcome, TargetReport, TargetState};

/// What the shell is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the work on the target of this index.
    Start(usize),
    /// Stop the work on the target of this index; its time is up.
    Stop(usize),
}

#[derive(Debug)]
struct Slot {
    report: TargetReport,
    started: Option<Instant>,
}

impl Slot {
    const fn is_active(&self) -> bool {
        matches!(
            self.report.state,
            TargetState::Connecting | TargetState::Running
        )
    }
}

/// The machine. Target indices are positions in the list it was made with.
#[derive(Debug)]
pub struct Fanout {
    slots: Vec<Slot>,
    limit: NonZeroUsize,
    time_limit: Option<Duration>,
    /// The first target that has not been started.
    next: usize,
    active: usize,
    actions: VecDeque<Action>,
}

impl Fanout {
    /// A run on `targets`, at most `limit` at the same time, each for at most `time_limit`.
    pub fn new(targets: &[String], limit: NonZeroUsize, time_limit: Option<Duration>) -> Self {
        Self {
            slots: targets
                .iter()
                .map(|target| Slot {
                    report: TargetReport::new(target, TargetState::Queued),
                    started: None,
                })
                .collect(),
            limit,
            time_limit,
            next: 0,
            active: 0,
            actions: VecDeque::new(),
        }
    }

    /// Starts as many as there is room for. Call once at the beginning.
    pub fn begin(&mut self, now: Instant) {
        while self.active < self.limit.get() && self.next < self.slots.len() {
            let slot = &mut self.slots[self.next];
            slot.report.state = TargetState::Connecting;
            slot.started = Some(now);
            self.actions.push_back(Action::Start(self.next));
            self.next += 1;
            self.active += 1;
        }
    }

    /// The target is reached and its command runs.
    pub fn connected(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.report.state == TargetState::Connecting
        {
            slot.report.state = TargetState::Running;
        }
    }

    /// The work on the target has ended; a late end after its time was up changes nothing.
    pub fn ended(&mut self, index: usize, outcome: Outcome, now: Instant) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.is_active()
        {
            slot.report.set_outcome(outcome);
            self.close(index, now);
        }
    }

    /// Ends what has run out of time. Call when [`Self::poll_timeout`] is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(limit) = self.time_limit else { return };
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let due = slot.started.is_some_and(|started| now >= started + limit);
            if slot.is_active() && due {
                let doing = match slot.report.state {
                    TargetState::Running => "still running",
                    _ => "no answer",
                };
                slot.report.state = TargetState::TimedOut;
                slot.report.reason = Some(format!("{doing} after {} s", limit.as_secs_f32()));
                self.actions.push_back(Action::Stop(index));
                self.close(index, now);
            }
        }
    }

    fn close(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        let took = slot.started.map_or(Duration::ZERO, |started| now - started);
        slot.report.duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.active -= 1;
        self.begin(now);
    }

    /// The next thing to do; call until `None` after every input.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] is due next; ask again after every input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let limit = self.time_limit?;
        self.slots
            .iter()
            .filter(|slot| slot.is_active())
            .filter_map(|slot| slot.started)
            .map(|started| started + limit)
            .min()
    }

    /// Whether every target has its result.
    pub fn is_done(&self) -> bool {
        self.active == 0 && self.next == self.slots.len()
    }

    /// How far the target got.
    pub fn state(&self, index: usize) -> Option<TargetState> {
        self.slots.get(index).map(|slot| slot.report.state)
    }

    /// The results in the order of the targets.
    pub fn into_results(self) -> Vec<TargetReport> {
        self.slots.into_iter().map(|slot| slot.report).collect()
    }
}

/// Tells the machine that a target's command runs.
#[derive(Debug, Clone)]
pub struct Connected {
    index: usize,
    events: mpsc::Sender<usize>,
}

impl Connected {
    /// The target is reached and its command runs.
    pub async fn now(&self) {
        // The receiver is gone only when the whole run was dropped.
        let _ = self.events.send(self.index).await;
    }
}

/// Runs the machine: `start` gives the work for a target, which says when it is connected.
/// Dropping the future stops all work.
pub async fn drive<F, W>(mut fanout: Fanout, mut start: F) -> Vec<TargetReport>
where
    F: FnMut(usize, Connected) -> W,
    W: Future<Output = Outcome> + Send + 'static,
{
    let (events, mut connected) = mpsc::channel(64);
    let mut work: JoinSet<(usize, Outcome)> = JoinSet::new();
    let mut handles: Vec<Option<AbortHandle>> = Vec::new();
    handles.resize_with(fanout.slots.len(), || None);
    fanout.begin(Instant::now());
    while !fanout.is_done() {
        while let Some(action) = fanout.poll_action() {
            match action {
                Action::Start(index) => {
                    let events = events.clone();
                    let task = start(index, Connected { index, events });
                    handles[index] = Some(work.spawn(async move { (index, task.await) }));
                }
                Action::Stop(index) => {
                    if let Some(handle) = handles[index].take() {
                        handle.abort();
                    }
                }
            }
        }
        let deadline = fanout.poll_timeout();
        let timeout = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(index) = connected.recv() => fanout.connected(index),
            Some(ended) = work.join_next_with_id() => match ended {
                Ok((_, (index, outcome))) => fanout.ended(index, outcome, Instant::now()),
                Err(error) if error.is_cancelled() => {}
                Err(error) => {
                    let id = error.id();
                    let at = handles.iter().position(|h| h.as_ref().is_some_and(|h| h.id() == id));
                    if let Some(index) = at {
                        let outcome = Outcome::Failed("internal error: the work panicked".into());
                        fanout.ended(index, outcome, Instant::now());
                    }
                }
            },
            () = timeout => fanout.handle_timeout(Instant::now()),
        }
    }
    fanout.into_results()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Exit;

    fn machine(n: usize, limit: usize, time_limit: Option<u64>) -> (Fanout, Instant) {
        let targets: Vec<String> = (0..n).map(|i| format!("node-{i}")).collect();
        let limit = NonZeroUsize::new(limit).unwrap();
        let mut fanout = Fanout::new(&targets, limit, time_limit.map(Duration::from_secs));
        let now = Instant::now();
        fanout.begin(now);
        (fanout, now)
    }

    fn actions(fanout: &mut Fanout) -> Vec<Action> {
        std::iter::from_fn(|| fanout.poll_action()).collect()
    }

    fn exited(code: u32) -> Outcome {
        Outcome::Exited(Exit::Status(code))
    }

    #[test]
    fn no_more_than_the_limit_run_and_each_end_starts_the_next() {
        let (mut fanout, now) = machine(3, 2, None);
        assert_eq!(actions(&mut fanout), [Action::Start(0), Action::Start(1)]);
        assert_eq!(fanout.state(2), Some(TargetState::Queued));
        fanout.ended(1, exited(0), now);
        assert_eq!(actions(&mut fanout), [Action::Start(2)]);
        fanout.ended(2, exited(0), now);
        assert!(!fanout.is_done());
        fanout.ended(0, exited(3), now + Duration::from_secs(2));
        assert!(fanout.is_done());
        let results = fanout.into_results();
        let names: Vec<&str> = results.iter().map(|r| r.target.as_str()).collect();
        assert_eq!(names, ["node-0", "node-1", "node-2"]);
        assert_eq!(results[0].exit_code, Some(3));
        assert_eq!(results[0].duration_ms, 2000);
        assert!(!results[0].ok && results[1].ok);
    }

    #[test]
    fn time_counts_from_each_targets_own_start() {
        let (mut fanout, now) = machine(2, 1, Some(10));
        actions(&mut fanout);
        fanout.connected(0);
        assert_eq!(fanout.poll_timeout(), Some(now + Duration::from_secs(10)));
        fanout.handle_timeout(now + Duration::from_secs(9));
        assert_eq!(actions(&mut fanout), []);
        let at = now + Duration::from_secs(10);
        fanout.handle_timeout(at);
        assert_eq!(actions(&mut fanout), [Action::Stop(0), Action::Start(1)]);
        assert_eq!(fanout.poll_timeout(), Some(at + Duration::from_secs(10)));
        fanout.ended(0, exited(0), at);
        fanout.ended(1, Outcome::Failed("refused".into()), at);
        let results = fanout.into_results();
        assert_eq!(results[0].state, TargetState::TimedOut);
        assert_eq!(
            results[0].reason.as_deref(),
            Some("still running after 10 s")
        );
        assert_eq!(results[1].state, TargetState::Failed);
    }

    #[test]
    fn a_target_that_is_never_reached_is_told_apart_from_one_that_runs_too_long() {
        let (mut fanout, now) = machine(1, 1, Some(1));
        fanout.handle_timeout(now + Duration::from_secs(1));
        let results = fanout.into_results();
        assert_eq!(results[0].reason.as_deref(), Some("no answer after 1 s"));
    }

    #[test]
    fn an_empty_run_is_done_at_once() {
        let (fanout, _) = machine(0, 4, None);
        assert!(fanout.is_done());
        assert_eq!(fanout.poll_timeout(), None);
    }

    #[tokio::test]
    async fn a_panicking_worker_fails_its_target_and_no_other() {
        let targets = ["a".to_owned(), "b".to_owned()];
        let fanout = Fanout::new(&targets, NonZeroUsize::MIN, None);
        let results = drive(fanout, |index, connected| async move {
            connected.now().await;
            assert_ne!(index, 0, "as a worker might");
            exited(0)
        })
        .await;
        assert_eq!(results[0].state, TargetState::Failed);
        assert!(results[1].ok);
    }
}
