//! The agent's main loop: the one owner of what the agent serves.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_daemon::{Latch, Shutdown, Tasks, build_info, report};
use mesh_node::{ControlStatus, Node, PublishError, Published, StateDir};
use mesh_types::{Netmap, OpenFiles, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::facts;
use crate::advice::advice;
use crate::config::{SshConfig, SshMode};
use crate::console;
use crate::local::{Answer, Asked, Request};
use crate::page;
use crate::services::{Offer, Services, on_this_machine};
use crate::ssh;
use crate::status::{AgentStatus, ConsoleStatus, SCHEMA, SshStatus};

/// How often a missing host key of sshd is asked for again.
const HOST_KEY_RETRY: Duration = Duration::from_secs(10);
/// How often a known one is looked at again.
const HOST_KEY_RECHECK: Duration = Duration::from_secs(300);
/// How long leaving may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// What the main loop listens to.
pub(super) struct Loops {
    pub(super) asked: mpsc::Receiver<Asked>,
    pub(super) facts: watch::Sender<page::Facts>,
    pub(super) latch: Latch,
    pub(super) ssh: SshConfig,
}

/// Why the main loop ended.
pub(super) enum Ended {
    Shutdown,
    Left(oneshot::Sender<Answer>),
}

/// The one owner of what the agent serves.
pub(super) struct Agent {
    pub(super) node: Node,
    pub(super) state: StateDir,
    pub(super) services: Services,
    pub(super) ssh_mode: SshMode,
    pub(super) ssh: ssh::Facts,
    pub(super) console: watch::Receiver<console::ConsoleState>,
}

impl Agent {
    pub(super) async fn run(
        &mut self,
        mut loops: Loops,
        tasks: &mut Tasks,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Ended> {
        let mut netmap = self.node.netmap();
        let mut control = self.node.control();
        let mut ready = false;
        let mut removed = false;
        let mut next_look = Instant::now() + HOST_KEY_RETRY;
        netmap.mark_changed();
        control.mark_changed();
        loop {
            tokio::select! {
                () = shutdown.draining() => return Ok(Ended::Shutdown),
                asked = loops.asked.recv() => {
                    let Some((request, reply)) = asked else { anyhow::bail!("the control socket ended") };
                    if let Request::Leave { force } = request {
                        match self.leave(force).await {
                            Ok(()) => return Ok(Ended::Left(reply)),
                            Err(answer) => drop(reply.send(answer)),
                        }
                    } else {
                        // Whoever asked may have gone meanwhile.
                        drop(reply.send(self.answer(request)));
                    }
                }
                changed = netmap.changed(), if !removed => {
                    ended_unless_removed(changed, &control)?;
                    let known = netmap.borrow_and_update().is_some();
                    loops.facts.send_replace(facts(self.node.enrolled(), &self.node));
                    // What is stored may be the netmap of a node that was removed meanwhile.
                    if known && !ready && !control.borrow().is_removed() {
                        ready = true;
                        loops.latch.ready();
                        let enrolled = self.node.enrolled();
                        tracing::info!(name = %enrolled.name, node = %enrolled.node, "ready");
                    }
                }
                changed = control.changed(), if !removed => {
                    ended_unless_removed(changed, &control)?;
                    let status = control.borrow_and_update().clone();
                    loops.facts.send_replace(facts(self.node.enrolled(), &self.node));
                    if status.is_removed() && !removed {
                        removed = true;
                        self.withdraw();
                        loops.latch.not_ready("removed from the network");
                        tracing::info!("removed from the network by an operator; to join again, run 'worker-agent leave' and 'worker-agent join'");
                    }
                }
                () = sleep_until(next_look), if self.ssh_mode == SshMode::Sshd && !removed => {
                    self.ask_host_key(&loops.ssh).await;
                    next_look = Instant::now() + self.host_key_pause(&loops.ssh);
                }
                // A removed node serves nothing, and what served it ends; so do some parts at a
                // shutdown, ahead of this loop.
                (name, end) = tasks.next_end(), if !removed => {
                    if shutdown.is_draining() {
                        return Ok(Ended::Shutdown);
                    }
                    // What it served may end before the word of its removal is read above.
                    if !control.borrow().is_removed() {
                        anyhow::bail!("{name} ended: {end:?}")
                    }
                }
            }
        }
    }

    /// Publishes what every agent serves. A node that has ended by its removal already is no fault:
    /// the main loop tells of it.
    pub(super) fn serve(&self, published: Published) -> Result<(), PublishError> {
        match self.node.publish(published) {
            Err(error) if !error.is_removed() => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn publish_services(&self) {
        for offer in self.services.iter() {
            if let Err(error) = self.serve(on_this_machine(offer.clone())) {
                let error = report::chain(&error);
                tracing::warn!(service = %offer.service.name, error, "a service cannot be published");
            }
        }
    }

    /// Nothing is served any more: the node is nobody's peer now.
    fn withdraw(&self) {
        for service in self.node.published() {
            self.node.unpublish(&service.name);
        }
    }

    /// A key that is not known yet is looked for often; one that may have changed too where that
    /// means reading a file, and seldom where it means a line in sshd's log.
    fn host_key_pause(&self, config: &SshConfig) -> Duration {
        if self.ssh.host_keys.is_empty() || !config.host_keys.is_empty() {
            HOST_KEY_RETRY
        } else {
            HOST_KEY_RECHECK
        }
    }

    async fn ask_host_key(&mut self, config: &SshConfig) {
        match ssh::sshd_keys(config).await {
            Ok(keys) if !keys.is_empty() && keys != self.ssh.host_keys => {
                tracing::info!(addr = %config.sshd_addr, "reporting sshd's host keys");
                self.ssh.host_keys = keys;
                self.node.report(self.ssh.report());
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(error = report::chain(&error), "no host key of sshd"),
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Publish { service } => self.publish(service),
            Request::Unpublish { name } => {
                let mut services = self.services.clone();
                let stored = services
                    .remove(&name)
                    .and_then(|()| services.store(&self.state));
                match stored {
                    Ok(()) => {
                        self.services = services;
                        self.node.unpublish(&name);
                        Answer::Done
                    }
                    Err(error) => refused(error),
                }
            }
            Request::Leave { .. } => refused(Unanswerable),
        }
    }

    fn publish(&mut self, offer: Offer) -> Answer {
        let mut services = self.services.clone();
        if let Err(error) = services.add(offer.clone()) {
            return refused(error);
        }
        if let Err(error) = self.node.publish(on_this_machine(offer)) {
            return refused(error);
        }
        if let Err(error) = services.store(&self.state) {
            return refused(error);
        }
        self.services = services;
        Answer::Done
    }

    /// Tells the coordinator; `force` leaves without it.
    async fn leave(&self, force: bool) -> Result<(), Answer> {
        let removed = self.node.control().borrow().is_removed();
        if removed {
            return Ok(());
        }
        let told = tokio::time::timeout(LEAVE_LIMIT, self.node.leave()).await;
        match told {
            Ok(Ok(())) => Ok(()),
            _ if force => Ok(()),
            Ok(Err(error)) => Err(refused(Leaving(error.into()))),
            Err(_) => Err(refused(Unanswered)),
        }
    }

    fn status(&self) -> AgentStatus {
        let netmap = self.node.netmap().borrow().clone();
        let node = netmap.as_deref().map(|netmap: &Netmap| &netmap.node);
        let of_node = self.node.status();
        let console = ConsoleStatus {
            state: *self.console.borrow(),
            prefix: node
                .map_or(&self.node.enrolled().console_prefix, |n| &n.console_prefix)
                .clone(),
        };
        let (used, limit) = mesh_daemon::open_files();
        let open_files = OpenFiles { used, limit };
        let now = Timestamp::from(SystemTime::now());
        AgentStatus {
            schema: SCHEMA.to_owned(),
            version: build_info::VERSION.to_owned(),
            findings: advice(
                &of_node,
                &console,
                open_files,
                self.node.is_low_on_files(),
                now,
            ),
            node: of_node,
            console,
            open_files,
            ssh: SshStatus {
                mode: self.ssh_mode,
                host_keys: self.ssh.host_keys.clone(),
                user: self.ssh.user.clone(),
                authority: node.map(|node| node.ssh_ca.clone()).unwrap_or_default(),
            },
        }
    }
}

/// A node that was removed ends of itself; any other end is a fault.
fn ended_unless_removed(
    changed: Result<(), watch::error::RecvError>,
    control: &watch::Receiver<ControlStatus>,
) -> anyhow::Result<()> {
    match changed {
        Err(error) if !control.borrow().is_removed() => Err(error).context("the node ended"),
        _ => Ok(()),
    }
}

/// `leave` is answered by the main loop alone.
#[derive(Debug, thiserror::Error)]
#[error("this request is not for here")]
struct Unanswerable;

/// The coordinator could not be told.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator was not told; 'worker-agent leave --force' leaves without it")]
struct Leaving(#[source] Box<dyn std::error::Error + Send + Sync>);

/// The coordinator did not answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "the coordinator does not answer; 'worker-agent leave --force' leaves without it, and an operator removes the node with 'mesh node remove'"
)]
struct Unanswered;

pub(super) fn refused(error: impl std::error::Error + 'static) -> Answer {
    Answer::Refused {
        message: report::chain(&error),
    }
}
