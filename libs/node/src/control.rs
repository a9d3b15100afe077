//! The control session: follow the netmap, prove to be alive, report, renew. Usable without a data
//! plane, which is how a relay uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use mesh_api::model::node::NodeReport;
use mesh_types::{Netmap, Timestamp, Troubles};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::{Instrument as _, Span};

pub mod machine;
mod stream;

pub(crate) use machine::{Goodbye, Incoming, Validity};

use crate::credential::{Credential, CredentialError};
use crate::enrol::utc;
use crate::grpc;
pub use crate::grpc::message as wire;
use crate::state_dir::{Enrolled, StateDir, StateDirError, StoredNetmap};

/// What a session says that another one ended, which has the same identity.
pub(crate) const TOOK_OVER: &str = "another stream with this node's identity took over";

/// How the control session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlState {
    /// A stream is being opened.
    Connecting,
    /// The stream is open.
    Connected,
    /// The next attempt is a moment away; `last_error` says why.
    Waiting,
    /// The coordinator removed this node from its network. Final.
    Removed,
    /// The session was stopped. Final.
    Stopped,
}

/// The control session as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlStatus {
    /// How it is doing.
    pub state: ControlState,
    /// Since when.
    pub since: Timestamp,
    /// What went wrong last; `None` when all is well.
    pub last_error: Option<String>,
    /// Since when there is no stream to the coordinator, so that the netmap may be out of date.
    pub stale_since: Option<Timestamp>,
    /// When the certificate ends; it is renewed long before.
    pub certificate_until: Timestamp,
}

impl ControlStatus {
    /// Whether the coordinator removed this node.
    pub fn is_removed(&self) -> bool {
        self.state == ControlState::Removed
    }

    /// Whether the stream is open.
    pub fn is_connected(&self) -> bool {
        self.state == ControlState::Connected
    }

    /// What is wrong between this node and the coordinator, in a sentence; `None` when all is well
    /// or nothing is wanted of it any more. `held` is what the node acts on meanwhile, such as
    /// "the netmap".
    pub fn trouble(&self, held: Option<&str>) -> Option<String> {
        let error = self.last_error.as_deref();
        match self.state {
            ControlState::Removed | ControlState::Stopped => None,
            ControlState::Connected => error.map(str::to_owned),
            ControlState::Connecting | ControlState::Waiting => {
                let error = error.unwrap_or("not connected yet");
                Some(match (held, self.stale_since) {
                    (Some(held), Some(since)) => {
                        format!("{error}; acting on {held} of {}", utc(since))
                    }
                    _ => error.to_owned(),
                })
            }
        }
    }
}

/// Settings of a control session.
#[derive(Debug, Clone, Default)]
pub struct ControlConfig {
    /// Where the coordinator is, `host:port` each; empty: as stored at enrolment.
    pub coordinators: Vec<String>,
    /// Of the program, for people.
    pub version: String,
}

/// A control session cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// This node has no usable certificate.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Its state directory is not usable.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Random,
}

/// A running control session; dropping it ends it.
#[derive(Debug)]
pub struct ControlSession {
    enrolled: Enrolled,
    coordinators: Vec<String>,
    credential: Credential,
    channel: Channel,
    report: watch::Sender<NodeReport>,
    troubles: watch::Sender<Troubles>,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    status: watch::Receiver<ControlStatus>,
    stored: Option<StoredNetmap>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl ControlSession {
    /// Starts it. Reads the state directory now; does not wait for the coordinator.
    ///
    /// Needs a tokio runtime.
    pub fn start(config: ControlConfig, state: &StateDir) -> Result<Self, SessionError> {
        let enrolled = state.enrolment()?.ok_or(CredentialError::NotEnrolled)?;
        let credential = Credential::load(state)?;
        let coordinators = if config.coordinators.is_empty() {
            enrolled.coordinators.clone()
        } else {
            config.coordinators
        };
        let stored = state.load_netmap(&enrolled)?;
        let channel = credential.channel(&coordinators)?;
        let now = Timestamp::from(SystemTime::now());
        let (netmap_out, netmap) = watch::channel(
            stored
                .as_ref()
                .map(|stored| Arc::new(stored.netmap.clone())),
        );
        let (status_out, status) = watch::channel(ControlStatus {
            state: ControlState::Waiting,
            since: now,
            last_error: None,
            stale_since: Some(stored.as_ref().map_or(now, |stored| stored.saved)),
            certificate_until: credential.validity().until,
        });
        let (report, report_in) = watch::channel(NodeReport::default());
        let (troubles, troubles_in) = watch::channel(Troubles::default());
        let (stop, stop_in) = watch::channel(false);
        let shell = stream::Shell::new(
            stream::Parts {
                enrolled: enrolled.clone(),
                coordinators: coordinators.clone(),
                version: config.version,
                state: state.clone(),
                credential: credential.clone(),
                netmap: netmap_out,
                status: status_out,
                report: report_in,
                troubles: troubles_in,
                stop: stop_in,
            },
            crate::random::seed().ok_or(SessionError::Random)?,
        );
        let task = Mutex::new(Some(tokio::spawn(shell.run().instrument(span(&enrolled)))));
        Ok(Self {
            enrolled,
            coordinators,
            credential,
            channel,
            report,
            troubles,
            netmap,
            status,
            stored,
            stop,
            task,
        })
    }

    /// Who this node is.
    pub fn enrolled(&self) -> &Enrolled {
        &self.enrolled
    }

    /// The newest netmap, the stored one at first; `None` until there is any. A relay has none.
    pub fn netmap(&self) -> watch::Receiver<Option<Arc<Netmap>>> {
        self.netmap.clone()
    }

    /// What was stored when the session started.
    pub fn stored(&self) -> Option<&StoredNetmap> {
        self.stored.as_ref()
    }

    /// How the session is doing.
    pub fn status(&self) -> watch::Receiver<ControlStatus> {
        self.status.clone()
    }

    /// Tells the coordinator about this node, now and on each new stream. The newest counts.
    pub fn report(&self, report: NodeReport) {
        self.report.send_if_modified(|current| {
            let differs = *current != report;
            *current = report;
            differs
        });
    }

    /// What is wrong that only this node sees; the next heartbeats tell of it.
    pub fn troubles(&self, troubles: Troubles) {
        self.troubles.send_if_modified(|current| {
            let differs = *current != troubles;
            *current = troubles;
            differs
        });
    }

    /// A channel to the coordinator with this node's certificate (the current one at each
    /// connect), for RPCs of its role. Connects when used; clones share the connection.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Where the coordinator is looked for.
    pub fn coordinators(&self) -> &[String] {
        &self.coordinators
    }

    /// Tells the coordinator that this node leaves its network for good.
    pub async fn leave(&self) -> Result<(), LeaveError> {
        grpc::leave(self.channel())
            .await
            .map_err(|error| LeaveError(error.into()))
    }

    /// Ends the session.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            // A panic of the task was reported when it happened; it has ended either way.
            let _ended = task.await;
        }
    }
}

impl Drop for ControlSession {
    fn drop(&mut self) {
        if let Some(task) = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task.abort();
        }
    }
}

/// What log lines of one node share, since several nodes may live in one process.
pub(crate) fn span(enrolled: &Enrolled) -> Span {
    let network = enrolled
        .network
        .as_ref()
        .map_or("", |network| network.as_str());
    tracing::info_span!("node", node = %enrolled.name, network)
}

/// The coordinator did not take the goodbye.
#[derive(Debug, thiserror::Error)]
#[error(
    "the coordinator could not be told that this node leaves: an operator can remove it with 'mesh node remove'"
)]
pub struct LeaveError(#[source] Box<dyn std::error::Error + Send + Sync>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_coordinator_is_told_with_what_is_held_meanwhile() {
        let mut status = ControlStatus {
            state: ControlState::Waiting,
            since: Timestamp::from_secs(951_782_400),
            last_error: Some("connection refused".to_owned()),
            stale_since: Some(Timestamp::from_secs(951_782_400)),
            certificate_until: Timestamp::from_secs(0),
        };
        let trouble = |status: &ControlStatus| status.trouble(Some("the netmap"));
        assert_eq!(
            trouble(&status).as_deref(),
            Some("connection refused; acting on the netmap of 2000-02-29 00:00 UTC")
        );
        assert_eq!(status.trouble(None).as_deref(), Some("connection refused"));
        status.state = ControlState::Connected;
        assert_eq!(trouble(&status).as_deref(), Some("connection refused"));
        status.last_error = None;
        assert_eq!(trouble(&status), None);
        status.state = ControlState::Connecting;
        assert!(trouble(&status).is_some_and(|text| text.starts_with("not connected yet; ")));
        status.state = ControlState::Removed;
        assert_eq!(trouble(&status), None);
    }
}
