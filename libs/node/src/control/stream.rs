//! The shell around the control machine: connections, timers, the disk.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_api::client::{ALPN_H2, connect};
use mesh_api::model::node::NodeReport;
use mesh_api::tls::COORDINATOR_NAME;
use mesh_types::{Cursor, Netmap, Standing, Timestamp, Troubles};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use super::machine::{Action, Incoming, Machine, Now};
use super::{ControlState, ControlStatus};
use crate::credential::Credential;
use crate::grpc::{self, OpenError, StreamEnd, SyncStream};
use crate::node::stopped;
use crate::state_dir::{Enrolled, StateDir};

/// Changes of the netmap that arrive closer together than this are handed on as one.
const SETTLE: Duration = Duration::from_millis(20);
/// Handing on a large netmap costs time; it may take this part of it and no more.
const SHARE: u32 = 50;
/// The longest that a change may wait for others.
const MAX_SETTLE: Duration = Duration::from_secs(1);
/// How long a renewal may take.
const RENEW_LIMIT: Duration = Duration::from_secs(30);

type Opening = Pin<Box<dyn Future<Output = Result<SyncStream, OpenError>> + Send>>;
type Renewal = Pin<Box<dyn Future<Output = Result<(), RenewError>> + Send>>;

/// What the shell works with.
pub(super) struct Parts {
    pub(super) enrolled: Enrolled,
    pub(super) coordinators: Vec<String>,
    pub(super) version: String,
    pub(super) state: StateDir,
    pub(super) credential: Credential,
    pub(super) netmap: watch::Sender<Option<Arc<Netmap>>>,
    pub(super) status: watch::Sender<ControlStatus>,
    pub(super) report: watch::Receiver<NodeReport>,
    pub(super) troubles: watch::Receiver<Troubles>,
    pub(super) stop: watch::Receiver<bool>,
}

/// One task: it owns the machine, `select!` only chooses what happens next.
pub(super) struct Shell {
    parts: Parts,
    machine: Machine,
    opening: Option<Opening>,
    stream: Option<SyncStream>,
    renewal: Option<Renewal>,
    publish_at: Option<Instant>,
    settle: Duration,
    attempts: usize,
}

/// Why a certificate was not renewed.
enum RenewError {
    Removed,
    Failed(String),
}

enum Event {
    Stop,
    Timeout,
    Publish,
    Report,
    Opened(Result<SyncStream, OpenError>),
    Heard(Result<Incoming, StreamEnd>),
    Renewed(Result<(), RenewError>),
}

fn now() -> Now {
    Now {
        at: Instant::now(),
        wall: Timestamp::from(SystemTime::now()),
    }
}

impl Shell {
    pub(super) fn new(parts: Parts, seed: [u8; 32]) -> Self {
        let netmap = parts.netmap.borrow().as_deref().cloned();
        let machine = Machine::new(netmap, parts.credential.validity(), seed, now());
        Self {
            parts,
            machine,
            opening: None,
            stream: None,
            renewal: None,
            publish_at: None,
            settle: SETTLE,
            attempts: 0,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            while let Some(action) = self.machine.poll_action() {
                self.act(action);
            }
            if self.machine.state().0 == ControlState::Removed {
                break;
            }
            match self.next_event().await {
                Event::Stop => break,
                event => self.apply(event),
            }
        }
        if self.publish_at.is_some() {
            self.publish();
        }
        self.status(Some(ControlState::Stopped));
    }

    /// INVARIANT: cancel-safe throughout; what is chosen here is applied in [`Shell::apply`].
    async fn next_event(&mut self) -> Event {
        let timeout = self.machine.poll_timeout();
        tokio::select! {
            () = stopped(&mut self.parts.stop) => Event::Stop,
            () = until(timeout) => Event::Timeout,
            () = until(self.publish_at) => Event::Publish,
            changed = self.parts.report.changed() => match changed {
                Ok(()) => Event::Report,
                Err(_) => Event::Stop,
            },
            opened = some(&mut self.opening) => Event::Opened(opened),
            heard = next(&mut self.stream) => Event::Heard(heard),
            renewed = some(&mut self.renewal) => Event::Renewed(renewed),
        }
    }

    fn apply(&mut self, event: Event) {
        let now = now();
        match event {
            Event::Stop => {}
            Event::Timeout => self.machine.handle_timeout(now),
            Event::Publish => self.publish(),
            Event::Report => {
                let report = self.parts.report.borrow_and_update().clone();
                self.machine.handle_report(report);
            }
            Event::Opened(Ok(stream)) => {
                self.opening = None;
                self.stream = Some(stream);
            }
            Event::Opened(Err(error)) if error.is_removal() => self.machine.handle_removed(),
            Event::Opened(Err(error)) => {
                self.opening = None;
                self.machine.handle_closed(error.to_string(), now);
            }
            Event::Heard(Ok(message)) => self.machine.handle_message(message, now),
            Event::Heard(Err(end)) if end.is_removal() => self.machine.handle_removed(),
            Event::Heard(Err(end)) => {
                self.stream = None;
                self.machine.handle_closed(describe(&end), now);
            }
            Event::Renewed(Ok(())) => {
                self.renewal = None;
                tracing::info!("certificate renewed");
                self.machine
                    .handle_renewed(self.parts.credential.validity(), now);
            }
            Event::Renewed(Err(RenewError::Removed)) => self.machine.handle_removed(),
            Event::Renewed(Err(RenewError::Failed(reason))) => {
                self.renewal = None;
                tracing::info!(reason, "certificate not renewed, trying again");
                self.machine.handle_renew_failed(reason, now);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Open { cursor } => self.open(cursor),
            Action::Close => {
                self.opening = None;
                self.stream = None;
            }
            Action::Heartbeat {
                nonce,
                sequence,
                time,
                stored_for,
            } => {
                let standing = Standing {
                    troubles: *self.parts.troubles.borrow(),
                    stored_for,
                };
                let node = self.parts.enrolled.node;
                let state = &self.parts.state;
                let taken = self.stream.as_ref().is_some_and(|stream| {
                    stream.heartbeat(node, &nonce, sequence, time, standing, state)
                });
                if !taken {
                    self.machine
                        .handle_closed("the stream takes nothing more".into(), now());
                }
            }
            Action::Report(report) => {
                let taken = self
                    .stream
                    .as_ref()
                    .is_some_and(|stream| stream.report(report));
                if !taken {
                    self.machine
                        .handle_closed("the stream takes nothing more".into(), now());
                }
            }
            Action::Renew => self.renewal = Some(self.renew()),
            Action::NetmapChanged => {
                let first = self.parts.netmap.borrow().is_none();
                if first {
                    self.publish();
                } else if self.publish_at.is_none() {
                    self.publish_at = Some(Instant::now() + self.settle);
                }
            }
            Action::StateChanged => self.status(None),
        }
    }

    fn open(&mut self, cursor: Option<Cursor>) {
        let mut addrs = self.parts.coordinators.clone();
        if !addrs.is_empty() {
            // Each attempt starts with another address.
            let first = self.attempts % addrs.len();
            addrs.rotate_left(first);
        }
        self.attempts = self.attempts.wrapping_add(1);
        match self.parts.credential.client_config(true, &[ALPN_H2]) {
            Ok(tls) => {
                self.opening = Some(grpc::open(addrs, tls, cursor, self.parts.version.clone()));
            }
            Err(error) => self.machine.handle_closed(error.to_string(), now()),
        }
    }

    fn renew(&self) -> Renewal {
        let credential = self.parts.credential.clone();
        let addrs = self.parts.coordinators.clone();
        let node = self.parts.enrolled.node;
        let state = self.parts.state.clone();
        Box::pin(async move {
            let failed = |error: &dyn std::fmt::Display| RenewError::Failed(error.to_string());
            let attempt = async {
                // Without the old certificate: it may have ended, and the signature proves more.
                let tls = credential
                    .client_config(false, &[ALPN_H2])
                    .map_err(|error| failed(&error))?;
                let channel = connect(&addrs, COORDINATOR_NAME, tls)
                    .await
                    .map_err(|error| failed(&error))?;
                let (certificate, ca) =
                    grpc::renew(channel, node, &state).await.map_err(|error| {
                        if error.is_removal() {
                            RenewError::Removed
                        } else {
                            failed(&format_args!("the certificate was not renewed: {error}"))
                        }
                    })?;
                credential
                    .replace(&certificate, &ca)
                    .map_err(|error| failed(&error))
            };
            match tokio::time::timeout(RENEW_LIMIT, attempt).await {
                Ok(result) => result,
                Err(_) => Err(failed(
                    &"the coordinator did not renew the certificate in time",
                )),
            }
        })
    }

    fn publish(&mut self) {
        self.publish_at = None;
        if let Some(netmap) = self.machine.netmap() {
            let start = Instant::now();
            let netmap = Arc::new(netmap.clone());
            self.parts.netmap.send_replace(Some(netmap));
            self.settle = start
                .elapsed()
                .saturating_mul(SHARE)
                .clamp(SETTLE, MAX_SETTLE);
        }
    }

    fn status(&self, over: Option<ControlState>) {
        let (state, last_error) = self.machine.state();
        // Removed is final too, and says more than stopped.
        let state = match (state, over) {
            (ControlState::Removed, _) => ControlState::Removed,
            (_, Some(over)) => over,
            (state, None) => state,
        };
        let last_error = last_error.map(str::to_owned);
        let at = Timestamp::from(SystemTime::now());
        self.parts.status.send_if_modified(|status| {
            let since = if status.state == state {
                status.since
            } else {
                at
            };
            let stale_since = match state {
                ControlState::Connected => None,
                _ => status.stale_since.or(Some(at)),
            };
            let certificate_until = self.machine.validity().until;
            let next = ControlStatus {
                state,
                since,
                last_error,
                stale_since,
                certificate_until,
            };
            if *status == next {
                return false;
            }
            log_change(status, &next);
            *status = next;
            true
        });
    }
}

fn log_change(before: &ControlStatus, after: &ControlStatus) {
    let reason = after.last_error.as_deref().unwrap_or("");
    match after.state {
        ControlState::Removed => tracing::info!("this node was removed from its network"),
        ControlState::Connected if before.state != ControlState::Connected => {
            tracing::info!(reason, "connected to the coordinator");
        }
        ControlState::Waiting if before.last_error != after.last_error => {
            tracing::info!(reason, "no connection to the coordinator, trying again");
        }
        _ => tracing::debug!(state = ?after.state, reason, "control session"),
    }
}

fn describe(end: &StreamEnd) -> String {
    match end {
        StreamEnd::Protocol(error) => format!("{end}: {error}"),
        StreamEnd::Closed | StreamEnd::Status(_) => end.to_string(),
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) if at <= Instant::now() => sleep(Duration::ZERO).await,
        Some(at) => sleep_until(at.into()).await,
        None => pending().await,
    }
}

async fn some<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn next(stream: &mut Option<SyncStream>) -> Result<Incoming, StreamEnd> {
    match stream {
        Some(stream) => stream.next().await,
        None => pending().await,
    }
}
