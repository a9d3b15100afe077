//! What happens of itself, to the coordinator and to its members, as events: told once, with the
//! time at which it happened, and stored as soon as the store takes changes. None of it comes more
//! often than once a minute for one thing, however often it happens.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mesh_types::time::span;
use mesh_types::{NetworkName, NodeState, Timestamp};
use tokio::time::timeout;

use super::{Core, Party};
use crate::error::Error;
use crate::record::{EventKind, EventRecord};

/// How many wait at most to be taken up; what comes beyond them is not told.
pub(super) const WAITING: usize = 1024;
/// The least time between two tellings of one thing.
const QUIET: Duration = Duration::from_secs(60);
/// That often within [`QUIET`] a stream is taken over by two machines with one identity, which try
/// again every 5 s at the latest; a machine that reconnects takes over its own old stream once.
const TAKE_OVERS: u32 = 5;
/// How many identities' take-overs are remembered at most.
const CAPACITY: usize = 10_000;
/// Certificates are renewed with a third of their life left, nodes' (30 days) as well as
/// operators' (90 days): less than this means that it failed for days.
const CERTIFICATE_LOW: Duration = Duration::from_secs(5 * 86_400);
/// Among so many of the newest events one is looked for that a running coordinator noted.
const LATEST: u64 = 50;
/// When certificates are looked at after the start, and how often from then on.
const FIRST_LOOK: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(60 * 60);

/// Tells of one thing's outages, their beginnings and their ends. Of outages that begin within a
/// minute only the first is told.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    /// Since when it is away, and whether that was told.
    since: Option<(Timestamp, bool)>,
    told: Option<Timestamp>,
}

/// A beginning or an end that is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is away now.
    Began,
    /// It is back, after this time.
    Ended(Duration),
}

impl Outages {
    /// Takes note of how it is at `now`; answers what there is to tell.
    pub(crate) fn note(&mut self, is_away: bool, now: Timestamp) -> Option<Turn> {
        match (is_away, self.since) {
            (true, None) => {
                let tells = self.told.is_none_or(|at| now.since(at) >= QUIET);
                self.since = Some((now, tells));
                if !tells {
                    return None;
                }
                self.told = Some(now);
                Some(Turn::Began)
            }
            (false, Some((since, told))) => {
                self.since = None;
                told.then(|| Turn::Ended(now.since(since)))
            }
            _ => None,
        }
    }
}

/// Who was taken over how often lately.
#[derive(Debug, Default)]
pub(super) struct TakeOvers(HashMap<[u8; 16], (Timestamp, u32)>);

impl TakeOvers {
    /// Whether this one makes two machines with one identity out of what may be reconnects; at most
    /// once a minute for each identity.
    fn tells(&mut self, id: [u8; 16], now: Timestamp) -> bool {
        if self.0.len() >= CAPACITY {
            self.0.retain(|_, (since, _)| now.since(*since) < QUIET);
            if self.0.len() >= CAPACITY {
                return false;
            }
        }
        let (since, count) = self.0.entry(id).or_insert((now, 0));
        if now.since(*since) >= QUIET {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count == TAKE_OVERS
    }
}

/// What is told of a renewal; `None` when it came in good time.
pub(super) fn renewed_late(ended: Timestamp, now: Timestamp) -> Option<String> {
    if now >= ended {
        return Some(format!("it had ended {} before", span(now.since(ended))));
    }
    let left = ended.since(now);
    (left < CERTIFICATE_LOW).then(|| format!("{} before its end", span(left)))
}

/// How the coordinator's last run ended, as far as the store tells.
fn downtime(last: &EventRecord, sign: Timestamp, now: Timestamp) -> String {
    match last.kind {
        EventKind::CoordinatorStopped => {
            format!("it was stopped {} before", span(now.since(last.time)))
        }
        _ => format!(
            "it had ended without a word, {} before at most",
            span(now.since(sign.max(last.time)))
        ),
    }
}

impl Core {
    /// Notes an event of now. Never waits; it is stored and told when the store takes changes.
    pub(crate) fn happened(
        &self,
        network: Option<NetworkName>,
        kind: EventKind,
        subject: impl Display,
        detail: impl Display,
    ) {
        let record = EventRecord {
            id: 0,
            time: self.now(),
            network,
            kind,
            subject: subject.to_string(),
            detail: detail.to_string(),
        };
        if let Err(refused) = self.happened.try_send(record) {
            tracing::debug!(
                kind = refused.into_inner().kind.as_str(),
                "too much happens: an event is not told"
            );
        }
    }

    /// Tells of an outage of `subject`; `problem`: why it is away now, if it is.
    pub(crate) fn note_outage(
        &self,
        outages: &mut Outages,
        subject: &str,
        [down, up]: &[EventKind; 2],
        problem: Option<&str>,
    ) {
        match outages.note(problem.is_some(), self.now()) {
            Some(Turn::Began) => {
                self.happened(None, down.clone(), subject, problem.unwrap_or_default());
            }
            Some(Turn::Ended(after)) => {
                self.happened(
                    None,
                    up.clone(),
                    subject,
                    format!("it was away for {}", span(after)),
                );
            }
            None => {}
        }
    }

    /// Tells that the coordinator has started, and for how long there was none.
    pub(crate) async fn note_start(&self) {
        let kinds = [EventKind::CoordinatorStarted, EventKind::CoordinatorStopped];
        let detail = match self.store.event_newest(&kinds).await {
            Ok(Some(last)) => {
                let nodes = self.members.nodes(None).into_iter();
                let relays = self.members.relays().into_iter();
                let seen = nodes.filter_map(|node| node.last_seen);
                let seen = seen.chain(relays.filter_map(|relay| relay.last_seen));
                let latest = self.store.event_list(None, 0, LATEST).await;
                // Who could not start was no coordinator.
                let is_sign = |event: &&EventRecord| event.kind != EventKind::CoordinatorNotStarted;
                let newest = latest.iter().flatten().rev().find(is_sign);
                let newest = newest.map(|event| event.time);
                let sign = seen.chain(newest).max().unwrap_or(last.time);
                downtime(&last, sign, self.started_at)
            }
            Ok(None) if self.is_new => "for the first time".to_owned(),
            // The last start was one of a program that noted none, or is forgotten.
            Ok(None) => String::new(),
            Err(error) => {
                let error = mesh_daemon::report::chain(&error);
                tracing::debug!(error, "when the coordinator ended is not known");
                String::new()
            }
        };
        self.happened(None, EventKind::CoordinatorStarted, "coordinator", detail);
    }

    /// Tells that the coordinator is being stopped; to its end also when the caller is ended.
    async fn note_stop(self: &Arc<Self>) -> Result<(), Error> {
        let core = Arc::clone(self);
        let write = async move {
            core.again(|| async {
                let mut change = core.change("coordinator").await?;
                change.event(None, EventKind::CoordinatorStopped, "coordinator", "");
                change.commit().await.map(drop)
            })
            .await
        };
        self.finish("stopped", write).await
    }

    /// Writes down who was seen last, and that the coordinator is being stopped; neither waits for
    /// the other, and each may take `limit`.
    pub(crate) async fn note_end(self: &Arc<Self>, limit: Duration) {
        let seen = timeout(limit, self.note_last_seen(Timestamp::default()));
        let stop = timeout(limit, self.note_stop());
        let (seen, stop) = tokio::join!(seen, stop);
        for (what, written) in [("last-seen times", seen), ("the end", stop)] {
            let error = match written {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => mesh_daemon::report::chain(&error),
                Err(_) => "the store does not answer".to_owned(),
            };
            tracing::info!(what, error, "something was not written at the end");
        }
    }

    /// The stream of this member was ended by another one with its identity.
    pub(crate) fn taken_over(&self, party: Party) {
        let mut take_overs = self
            .take_overs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let tells = take_overs.tells(party.bytes(), self.now());
        drop(take_overs);
        if let Some((network, name)) = self.named(party).filter(|_| tells) {
            tracing::info!(name, "two machines seem to use one identity");
            let detail = "its streams take turns: two machines seem to use its identity";
            self.happened(network, EventKind::IdentityTwice, name, detail);
        }
    }

    /// A member's network and name.
    pub(super) fn named(&self, party: Party) -> Option<(Option<NetworkName>, String)> {
        match party {
            Party::Node(id) => {
                let node = self.members.node(id)?;
                let network = self.members.network(node.network);
                let network = network.map(|info| info.record.name.clone());
                Some((network, node.name.to_string()))
            }
            Party::Relay(id) => Some((None, self.members.relay(id)?.name.to_string())),
        }
    }

    /// Tells of certificates that should have been renewed by now, once of each; never returns.
    pub(crate) async fn watch_certificates(&self) -> Infallible {
        let mut told = HashMap::new();
        let mut pause = FIRST_LOOK;
        loop {
            tokio::time::sleep(pause).await;
            pause = LOOK;
            self.look_at_certificates(&mut told).await;
        }
    }

    /// `told`: the ends that were told, by member.
    async fn look_at_certificates(&self, told: &mut HashMap<[u8; 16], Timestamp>) {
        let now = self.now();
        let low = self.low_certificates(now);
        told.retain(|id, until| low.iter().any(|(low, _, end)| low == id && end == until));
        for (id, whose, until) in low {
            if told.contains_key(&id) {
                continue;
            }
            let named = match &whose {
                // Expiry strands nobody: whoever is away renews when it comes back.
                Whose::Member(party) if !self.is_online(*party).await => None,
                Whose::Member(party) => self.named(*party),
                Whose::Operator(name) => Some((None, format!("operator {name}"))),
            };
            let Some((network, name)) = named else {
                continue;
            };
            told.insert(id, until);
            let detail = if now >= until {
                format!("it ended {} ago", span(now.since(until)))
            } else {
                format!("it ends in {} and was not renewed", span(until.since(now)))
            };
            self.happened(network, EventKind::CertificateLow, name, detail);
        }
    }

    /// Whose certificates are near their ends, and when those are.
    fn low_certificates(&self, now: Timestamp) -> Vec<([u8; 16], Whose, Timestamp)> {
        let mut all = Vec::new();
        for node in self.members.nodes(None) {
            let party = Party::Node(node.id);
            all.push((
                party.bytes(),
                Whose::Member(party),
                node.certificate_not_after,
            ));
        }
        for relay in self.members.relays() {
            let party = Party::Relay(relay.id);
            all.push((
                party.bytes(),
                Whose::Member(party),
                relay.certificate_not_after,
            ));
        }
        let operators = self.members.operators().into_iter();
        for operator in operators.filter(|operator| operator.revoked_at.is_none()) {
            let whose = Whose::Operator(operator.name.clone());
            all.push((
                operator.id.to_bytes(),
                whose,
                operator.certificate_not_after,
            ));
        }
        all.retain(|(_, _, until)| until.since(now) < CERTIFICATE_LOW);
        all
    }

    async fn is_online(&self, party: Party) -> bool {
        let state = self.netmap.with(move |engine, _| match party {
            Party::Node(id) => engine.node(id).map(|node| node.state()),
            Party::Relay(id) => engine.relay(id).map(|relay| relay.state()),
        });
        matches!(state.await, Ok(Some(NodeState::Online)))
    }
}

/// Whose a certificate is.
enum Whose {
    Member(Party),
    Operator(String),
}

#[cfg(test)]
mod tests;
