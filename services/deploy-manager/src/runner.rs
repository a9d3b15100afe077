//! One command on many nodes over the overlay.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use mesh_node::Node;
use mesh_ssh::fanout::{Connected, Fanout, drive};
use mesh_ssh::report::{Outcome, TargetReport};
use mesh_ssh::work::reason;
use mesh_ssh::{Credential, ExecEvent, Work};
use mesh_trace::{Kind, Tracer};
use mesh_types::{Netmap, Peer, Role};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Nodes worked on at the same time in one run.
const PARALLEL: NonZeroUsize = NonZeroUsize::new(32).expect("32 is not 0");
/// Output of one target on its way to the run's.
const EVENTS: usize = 64;

/// Why nothing was run on a target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("the overlay of this network is not up yet (see: deploy-manager status)")]
    NotReady,
    #[error("no such node in this network (see: mesh node list)")]
    UnknownTarget,
    #[error("{0} names no user to log in as; say one with --user")]
    NoUser(String),
    #[error("no credential for user {0}")]
    NoCredential(String),
}

/// A target: what was asked for, and whom it means.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) label: String,
    pub(crate) peer: Option<Peer>,
    /// Empty when neither the caller nor the node names one.
    pub(crate) user: String,
}

/// How to log in.
#[derive(Clone)]
pub(crate) enum Credentials {
    Same(Credential),
    PerUser(Arc<BTreeMap<String, Credential>>),
}

impl Credentials {
    fn of(&self, user: &str) -> Option<Credential> {
        match self {
            Self::Same(credential) => Some(credential.clone()),
            Self::PerUser(made) => made.get(user).cloned(),
        }
    }
}

/// Finds the nodes that `patterns` mean: names, overlay addresses, or `all` workers. Each node
/// comes once, in the order given; `user` overrides the nodes' own.
pub(crate) fn select(netmap: &Netmap, patterns: &[String], user: &str) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    let mut add = |label: &str, peer: Option<&Peer>| {
        let key = peer.map_or(label, |peer| peer.name.as_str());
        let known = |target: &Target| {
            target
                .peer
                .as_ref()
                .map_or(target.label.as_str(), |peer| peer.name.as_str())
                == key
        };
        if targets.iter().any(known) {
            return;
        }
        let own = peer.map_or("", |peer| peer.ssh_user.as_str());
        targets.push(Target {
            label: label.to_owned(),
            peer: peer.cloned(),
            user: if user.is_empty() { own } else { user }.to_owned(),
        });
    };
    for pattern in patterns {
        if pattern == "all" {
            let mut workers: Vec<&Peer> = netmap
                .peers
                .values()
                .filter(|peer| peer.role == Role::Worker)
                .collect();
            workers.sort_by(|a, b| a.name.cmp(&b.name));
            for worker in workers {
                add(worker.name.as_str(), Some(worker));
            }
            continue;
        }
        let peer = match pattern.parse::<IpAddr>() {
            Ok(ip) => netmap.peers.values().find(|peer| peer.addrs.contains(ip)),
            Err(_) => netmap
                .peers
                .values()
                .find(|peer| peer.name.as_str() == pattern),
        };
        add(pattern, peer);
    }
    targets
}

/// How long a node that has just joined may take to say whom to log in as.
const USER_PATIENCE: Duration = Duration::from_secs(1);

/// [`select`] by the newest netmap; `None` while there is none.
///
/// A node is in the netmap a moment before its report is, which names its user and its services:
/// so while a known target has neither, newer netmaps are waited for, a second at most.
pub(crate) async fn select_newest(
    mut netmap: watch::Receiver<Option<Arc<Netmap>>>,
    patterns: &[String],
    user: &str,
) -> Option<Vec<Target>> {
    let deadline = Instant::now() + USER_PATIENCE;
    loop {
        let newest = netmap.borrow_and_update().clone()?;
        let targets = select(&newest, patterns, user);
        let has_not_reported = |target: &Target| {
            let peer = target.peer.as_ref();
            target.user.is_empty() && peer.is_some_and(|peer| peer.services.is_empty())
        };
        if !targets.iter().any(has_not_reported) {
            return Some(targets);
        }
        match tokio::time::timeout_at(deadline, netmap.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Some(targets),
        }
    }
}

/// What happens on a target.
#[derive(Debug)]
pub(crate) enum Progress {
    Output(ExecEvent),
    /// It ended by itself; one whose time was up is in the results only.
    Ended(Outcome),
}

/// A run.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) node: Node,
    pub(crate) port: u16,
    pub(crate) command: String,
    pub(crate) credentials: Credentials,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) tracer: Tracer,
}

impl Run {
    /// Runs on all targets; results in their order. Dropping the future stops it all.
    pub(crate) async fn to_end(
        &self,
        targets: &[Target],
        events: mpsc::Sender<(usize, Progress)>,
    ) -> Vec<TargetReport> {
        let labels: Vec<String> = targets.iter().map(|target| target.label.clone()).collect();
        let fanout = Fanout::new(&labels, PARALLEL, self.time_limit);
        let run = self.clone();
        drive(fanout, move |index, connected| {
            let (run, target, events) = (run.clone(), targets[index].clone(), events.clone());
            // Each target's work runs in a task of its own.
            mesh_trace::in_current(async move {
                let span = run.tracer.start(Kind::Client, "ssh target");
                if let Some(peer) = &target.peer {
                    span.set("mesh.node", peer.name.to_string());
                    span.set("mesh.node.id", peer.id.to_string());
                }
                let work = run.clone().one(index, target, connected, events);
                let outcome = span.scope(work).await;
                if matches!(outcome, Outcome::Failed(_)) {
                    span.fail("no command was run to its end");
                }
                outcome
            })
        })
        .await
    }

    async fn one(
        self,
        index: usize,
        target: Target,
        connected: Connected,
        events: mpsc::Sender<(usize, Progress)>,
    ) -> Outcome {
        let (output, mut written) = mpsc::channel(EVENTS);
        let forward = async {
            while let Some((index, event)) = written.recv().await {
                // The receiver is gone only when the whole run is.
                drop(events.send((index, Progress::Output(event))).await);
            }
        };
        let (attempt, ()) = tokio::join!(self.attempt(index, target, connected, output), forward);
        let outcome = attempt.unwrap_or_else(|error| Outcome::Failed(reason(&*error)));
        drop(events.send((index, Progress::Ended(outcome.clone()))).await);
        outcome
    }

    async fn attempt(
        &self,
        index: usize,
        target: Target,
        connected: Connected,
        output: mpsc::Sender<(usize, ExecEvent)>,
    ) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
        let peer = target.peer.ok_or(RunError::UnknownTarget)?;
        if target.user.is_empty() {
            return Err(RunError::NoUser(peer.name.to_string()).into());
        }
        let credential = self
            .credentials
            .of(&target.user)
            .ok_or_else(|| RunError::NoCredential(target.user.clone()))?;
        let stream = self.node.dial((peer.addrs.v4, self.port).into()).await?;
        let work = Work {
            index,
            target: mesh_ssh::Target {
                node: peer.name.to_string(),
                host_keys: peer
                    .ssh_host_keys
                    .iter()
                    .filter_map(|line| line.parse().ok())
                    .collect(),
            },
            user: target.user,
            credential,
            command: self.command.clone(),
        };
        Ok(work.run(stream, connected, output).await)
    }
}

#[cfg(test)]
mod tests {
    use mesh_types::service::{CONSOLE_PORT, Service, ServiceKind};

    use super::*;
    use crate::fixture::netmap;

    fn chosen(patterns: &[&str], user: &str) -> Vec<(String, bool, String)> {
        let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
        select(&netmap(), &patterns, user)
            .into_iter()
            .map(|target| (target.label, target.peer.is_some(), target.user))
            .collect()
    }

    fn row(label: &str, found: bool, user: &str) -> (String, bool, String) {
        (label.to_owned(), found, user.to_owned())
    }

    #[test]
    fn targets_are_names_addresses_or_all_workers_and_come_once() {
        assert_eq!(
            chosen(&["100.64.0.3", "all", "nobody", "worker-node-2"], ""),
            [
                row("100.64.0.3", true, "deploy"),
                row("worker-node-1", true, "deploy"),
                row("nobody", false, ""),
            ]
        );
        assert_eq!(
            chosen(&["worker-node-1"], "root"),
            [row("worker-node-1", true, "root")]
        );
        assert_eq!(
            chosen(&["deploy-manager"], ""),
            [row("deploy-manager", false, "")]
        );
    }

    fn nameless() -> Netmap {
        let mut netmap = netmap();
        for peer in netmap.peers.values_mut() {
            peer.ssh_user.clear();
        }
        netmap
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_just_joined_gets_a_second_to_name_its_user() {
        let patterns = ["worker-node-1".to_owned(), "nobody".to_owned()];
        let (sender, receiver) = watch::channel(Some(Arc::new(nameless())));
        let begun = Instant::now();
        let reports = async {
            tokio::time::sleep(USER_PATIENCE / 4).await;
            sender.send_replace(Some(Arc::new(nameless())));
            tokio::time::sleep(USER_PATIENCE / 4).await;
            sender.send_replace(Some(Arc::new(netmap())));
        };
        let chosen = select_newest(receiver.clone(), &patterns, "");
        let (targets, ()) = tokio::join!(chosen, reports);
        assert_eq!(targets.expect("a netmap")[0].user, "deploy");
        assert_eq!(begun.elapsed(), USER_PATIENCE / 2);

        // One who never names any is not waited for for long, and not at all when it need not be.
        sender.send_replace(Some(Arc::new(nameless())));
        let begun = Instant::now();
        let targets = select_newest(receiver.clone(), &patterns, "").await;
        assert_eq!(targets.expect("a netmap")[0].user, "");
        assert_eq!(begun.elapsed(), USER_PATIENCE);

        // Not one that has reported and offers no SSH.
        let mut without_ssh = nameless();
        for peer in without_ssh.peers.values_mut() {
            peer.services.push(Service {
                name: "console".parse().expect("a name"),
                kind: ServiceKind::Console,
                port: CONSOLE_PORT,
            });
        }
        sender.send_replace(Some(Arc::new(without_ssh)));
        let begun = Instant::now();
        let targets = select_newest(receiver.clone(), &patterns, "").await;
        assert_eq!(targets.expect("a netmap")[0].user, "");
        let named = select_newest(receiver.clone(), &patterns, "root").await;
        assert_eq!(named.expect("a netmap")[0].user, "root");
        let unknown = select_newest(receiver.clone(), &patterns[1..], "").await;
        assert!(unknown.expect("a netmap")[0].peer.is_none());
        sender.send_replace(None);
        assert!(select_newest(receiver, &patterns, "").await.is_none());
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
