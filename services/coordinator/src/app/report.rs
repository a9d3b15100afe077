//! What nodes and relays say over their streams: heartbeats, reports, leaving.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::model::node::NodeReport;
use mesh_netmap::{Rejected, SessionId};
use mesh_ssh::key::PublicKey;
use mesh_types::heartbeat::HeartbeatRefusal;
use mesh_types::{NetworkName, NodeId, RelayId, Service, Standing, Timestamp};

use super::enrol::short;
use super::heartbeat::refusal_word;
use super::{Core, relay_row};
use crate::error::Error;
use crate::metrics::Refusal;
use crate::record::{EventKind, NodeRecord, RelayRecord, SshFacts};

/// Whose stream it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Node(NodeId),
    Relay(RelayId),
}

impl Party {
    pub(crate) fn bytes(self) -> [u8; 16] {
        match self {
            Self::Node(id) => id.to_bytes(),
            Self::Relay(id) => id.to_bytes(),
        }
    }
}

/// What became of reported host keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostKeys {
    Pinned,
    Held,
}

/// The SSH facts after a report: the first host keys are pinned, different ones are held.
fn take_ssh(before: &SshFacts, report: &NodeReport) -> (SshFacts, Option<HostKeys>) {
    let mut after = SshFacts {
        user: report.ssh_user.clone(),
        via_loopback: report.ssh_via_loopback,
        ..before.clone()
    };
    let reported: BTreeSet<String> = report
        .ssh_host_keys
        .iter()
        .filter_map(|line| line.parse::<PublicKey>().ok())
        .map(|key| key.to_string())
        .collect();
    if reported.is_empty() {
        return (after, None);
    }
    if before.pinned.is_empty() {
        after.pinned = reported.into_iter().collect();
        after.held.clear();
        return (after, Some(HostKeys::Pinned));
    }
    after.held = reported
        .into_iter()
        .filter(|line| !before.pinned.contains(line))
        .collect();
    let news = !after.held.is_empty() && after.held != before.held;
    (after, news.then_some(HostKeys::Held))
}

/// How long a node's host keys stay as they are after a change, whatever it reports.
const KEYS_REST: Duration = Duration::from_secs(60);

/// When host keys of nodes changed last: a machine that reports others all the time makes an event,
/// an audit entry and a new netmap for everybody at most once a minute.
#[derive(Debug, Default)]
pub(crate) struct KeyChanges(HashMap<NodeId, Timestamp>);

impl KeyChanges {
    /// Whether this node's keys may change now; then that is noted.
    fn admit(&mut self, id: NodeId, now: Timestamp) -> bool {
        self.0.retain(|_, at| now.since(*at) < KEYS_REST);
        if self.0.contains_key(&id) {
            return false;
        }
        self.0.insert(id, now);
        true
    }
}

/// Services as they are kept: each name and each port once, the first counts.
fn take_services(reported: &[Service]) -> Vec<Service> {
    let (mut names, mut ports) = (BTreeSet::new(), BTreeSet::new());
    let mut kept: Vec<_> = reported
        .iter()
        .filter(|service| names.insert(&service.name) && ports.insert(service.port))
        .cloned()
        .collect();
    kept.sort();
    kept
}

impl Core {
    /// An accepted heartbeat.
    pub(crate) async fn heartbeat(&self, party: Party, said: Standing) -> Result<(), Error> {
        let at = self.now();
        let beat = self.netmap.with(move |engine, now| match party {
            Party::Node(id) => engine.heartbeat(id, at, now),
            Party::Relay(id) => engine.relay_heartbeat(id, at, now),
        });
        beat.await??;
        let id = match party {
            Party::Node(id) => id.to_bytes(),
            Party::Relay(id) => id.to_bytes(),
        };
        self.bus.note_seen(id, at);
        self.figures.heartbeats.inc();
        self.take_standing(party, said);
        let over = {
            let mut refusals = self
                .refusals
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            refusals.over(id)
        };
        if let Some(refusal) = over
            && let Some((network, name)) = self.named(party)
        {
            let detail = format!("after {}", refusal_word(refusal));
            self.happened(network, EventKind::HeartbeatAccepted, name, detail);
        }
        Ok(())
    }

    /// A refused heartbeat: counted, and an event at most once a minute per node and reason.
    /// Nobody waits for the event.
    pub(crate) fn heartbeat_refused(self: &Arc<Self>, party: Party, refusal: HeartbeatRefusal) {
        let reason = refusal_word(refusal);
        self.figures
            .heartbeat_refusals
            .get_or_create(&Refusal { reason })
            .inc();
        let admitted = {
            let mut refusals = self
                .refusals
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            refusals.admit(party.bytes(), refusal, self.now())
        };
        if !admitted {
            return;
        }
        let Some((network, name)) = self.named(party) else {
            return;
        };
        tracing::info!(name, reason, "a heartbeat was refused");
        let core = Arc::clone(self);
        let note = Box::pin(async move {
            let noted = core.note_refusal(network, &name, refusal).await;
            if let Err(error) = &noted {
                let error = mesh_daemon::report::chain(error);
                tracing::debug!(error, "a refused heartbeat was not recorded");
            }
            noted
        });
        drop(self.start("heartbeat-refused", note));
    }

    async fn note_refusal(
        &self,
        network: Option<NetworkName>,
        name: &str,
        refusal: HeartbeatRefusal,
    ) -> Result<(), Error> {
        let mut change = self.change("coordinator").await?;
        let detail = format!("{}: {refusal}", refusal_word(refusal));
        change.event(network.as_ref(), EventKind::HeartbeatRefused, name, detail);
        change.commit().await.map(drop)
    }

    /// Whether a program is of another version than we know.
    pub(crate) fn is_version_news(&self, party: Party, version: &str) -> bool {
        let version = short(version);
        match party {
            Party::Node(id) => self.members.node(id).is_some_and(|n| n.version != version),
            Party::Relay(id) => self.members.relay(id).is_some_and(|r| r.version != version),
        }
    }

    /// Takes over the version a program reports of itself.
    pub(crate) async fn hello(&self, party: Party, version: &str) -> Result<(), Error> {
        if !self.is_version_news(party, version) {
            return Ok(());
        }
        let version = short(version);
        let change = self.change("coordinator").await?;
        match party {
            Party::Node(id) => {
                let node = self.members.node(id).ok_or(Error::Removed("node"))?;
                let record = NodeRecord {
                    version,
                    ..Arc::unwrap_or_clone(node)
                };
                change.txn.node_update(&record).await?;
                let _turn = change.commit().await?;
                self.members.put_node(record);
            }
            Party::Relay(id) => {
                let relay = self.members.relay(id).ok_or(Error::Removed("relay"))?;
                let record = RelayRecord {
                    version,
                    ..Arc::unwrap_or_clone(relay)
                };
                change.txn.relay_update(&record).await?;
                let _turn = change.commit().await?;
                self.members.put_relay(record);
            }
        }
        Ok(())
    }

    /// Takes over what a node or relay says of itself. Volatile facts go to memory at once, also
    /// while the store is down; durable ones are written when they differ. What a node's stream says
    /// after another one has replaced it, which it may not know yet, counts no more.
    pub(crate) async fn report(
        &self,
        party: Party,
        session: SessionId,
        report: NodeReport,
    ) -> Result<(), Error> {
        match party {
            Party::Node(id) => self.node_report(id, session, report).await,
            Party::Relay(id) => self.relay_report(id, report).await,
        }
    }

    async fn node_report(
        &self,
        id: NodeId,
        session: SessionId,
        report: NodeReport,
    ) -> Result<(), Error> {
        let endpoints = report.endpoints.clone();
        let home = report
            .home_relay
            .filter(|relay| self.members.relay(*relay).is_some());
        let counts = self.netmap.with(move |engine, _| {
            let counts = !engine.is_replaced(id, session);
            if counts {
                engine.report(id, endpoints, home)?;
            }
            Ok::<_, Rejected>(counts)
        });
        if !counts.await?? {
            return Ok(());
        }

        let services = take_services(&report.services);
        let differs = |node: &NodeRecord| {
            node.services != services || node.ssh != take_ssh(&node.ssh, &report).0
        };
        let node = self.members.node(id).ok_or(Error::Removed("node"))?;
        if !differs(&node) {
            return Ok(());
        }
        let mut change = self.change(format!("node:{id}")).await?;
        let node = self.members.node(id).ok_or(Error::Removed("node"))?;
        if !differs(&node) {
            return Ok(());
        }
        let (ssh, news) = take_ssh(&node.ssh, &report);
        let changed = (&ssh.pinned, &ssh.held) != (&node.ssh.pinned, &node.ssh.held);
        if changed && news != Some(HostKeys::Pinned) {
            let mut changes = self
                .key_changes
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if !changes.admit(id, change.now) {
                // The stream tries the report again until it is taken over.
                return Err(Error::KeysChangeTooOften);
            }
        }
        let network = self.network_of(node.network)?;
        let name = &network.record.name;
        if let Some(news) = news {
            let (kind, action, keys) = match news {
                HostKeys::Pinned => (EventKind::HostKeyPinned, "host-key-pin", &ssh.pinned),
                HostKeys::Held => (EventKind::HostKeyHeld, "host-key-hold", &ssh.held),
            };
            let prints = fingerprints(keys);
            change.event(Some(name), kind, &node.name, &prints);
            change
                .audit(action, format!("node:{id}"), &[], &[("keys", &prints)])
                .await?;
        }
        let record = NodeRecord {
            services,
            ssh,
            changed_version: change.bump(node.network).await?,
            ..NodeRecord::clone(&node)
        };
        change.txn.node_update(&record).await?;
        let _turn = change.commit().await?;
        self.apply_node(record, false).await
    }

    async fn relay_report(&self, id: RelayId, report: NodeReport) -> Result<(), Error> {
        let usable = |addresses: &[String]| -> Vec<String> {
            addresses
                .iter()
                .filter(|a| crate::config::is_host_and_port(a))
                .cloned()
                .collect()
        };
        let (derp, stun) = (usable(&report.derp), usable(&report.stun));
        let differs = |relay: &RelayRecord| relay.derp != derp || relay.stun != stun;
        let relay = self.members.relay(id).ok_or(Error::Removed("relay"))?;
        if !differs(&relay) {
            return Ok(());
        }
        let change = self.change(format!("relay:{id}")).await?;
        let relay = self.members.relay(id).ok_or(Error::Removed("relay"))?;
        let record = RelayRecord {
            derp,
            stun,
            ..Arc::unwrap_or_clone(relay)
        };
        change.txn.relay_update(&record).await?;
        let _turn = change.commit().await?;
        let record = self.members.put_relay(record);
        let row = relay_row(&record, None);
        self.netmap
            .with(move |engine, _| engine.relay_changed(row))
            .await??;
        Ok(())
    }

    /// The node or relay leaves for good, by its own wish.
    pub(crate) async fn leave(&self, party: Party) -> Result<(), Error> {
        match party {
            Party::Node(id) => {
                let actor = format!("node:{id}");
                self.node_take_out(id, &actor, EventKind::NodeLeft, "node-leave")
                    .await
            }
            Party::Relay(id) => self.relay_remove(id, &format!("relay:{id}")).await,
        }
    }
}

/// SHA-256 fingerprints of OpenSSH public key lines, as `ssh-keygen -l` prints them.
pub(super) fn fingerprints(lines: &[String]) -> String {
    let prints: Vec<_> = lines
        .iter()
        .filter_map(|line| line.parse::<PublicKey>().ok())
        .map(|key| format!("{} {}", key.algorithm(), key.fingerprint()))
        .collect();
    prints.join(", ")
}

#[cfg(test)]
mod tests {
    use mesh_ssh::key::PrivateKey;
    use mesh_types::ServiceKind;

    use super::*;

    fn key() -> String {
        PrivateKey::generate().public_key().to_string()
    }

    fn report(keys: &[&String]) -> NodeReport {
        let ssh_host_keys = keys.iter().map(|key| (*key).clone()).collect();
        NodeReport {
            ssh_host_keys,
            ssh_user: "root".into(),
            ..NodeReport::default()
        }
    }

    #[test]
    fn the_first_host_keys_pin_and_different_ones_are_held() {
        let (old, new) = (key(), key());
        let (first, news) = take_ssh(&SshFacts::default(), &report(&[&old]));
        assert_eq!(
            (first.pinned.as_slice(), news),
            ([old.clone()].as_slice(), Some(HostKeys::Pinned))
        );

        let (same, news) = take_ssh(&first, &report(&[&old]));
        assert_eq!((&same, news), (&first, None));

        let (changed, news) = take_ssh(&first, &report(&[&new]));
        assert_eq!(changed.pinned, std::slice::from_ref(&old));
        assert_eq!(
            (changed.held.as_slice(), news),
            ([new.clone()].as_slice(), Some(HostKeys::Held))
        );
        let (_, news) = take_ssh(&changed, &report(&[&new]));
        assert_eq!(news, None, "told once");

        let (back, _) = take_ssh(&changed, &report(&[&old]));
        assert!(back.held.is_empty(), "the machine is itself again");
    }

    #[test]
    fn a_report_without_usable_keys_unpins_nothing() {
        let old = key();
        let (first, _) = take_ssh(&SshFacts::default(), &report(&[&old]));
        let junk = "not a key".to_owned();
        let (after, news) = take_ssh(&first, &report(&[&junk]));
        assert_eq!((after.pinned, news), (vec![old], None));
    }

    #[test]
    fn comments_of_host_keys_do_not_matter() {
        let old = key();
        let (first, _) = take_ssh(&SshFacts::default(), &report(&[&old]));
        let (_, news) = take_ssh(&first, &report(&[&format!("{old} root@host")]));
        assert_eq!(news, None);
    }

    #[test]
    fn keys_of_a_node_change_once_a_minute() {
        let (one, other) = (NodeId::from_bytes([1; 16]), NodeId::from_bytes([2; 16]));
        let now = Timestamp::from_secs(1_800_000_000);
        let mut changes = KeyChanges::default();
        assert!(changes.admit(one, now));
        assert!(!changes.admit(one, now.plus(Duration::from_secs(59))));
        assert!(changes.admit(other, now));
        assert!(changes.admit(one, now.plus(KEYS_REST)));
        assert_eq!(changes.0.len(), 1, "what is over is not remembered");
    }

    #[test]
    fn a_name_or_port_is_kept_once() {
        let service = |name: &str, port| Service {
            name: name.parse().expect("a name"),
            kind: ServiceKind::Http,
            port,
        };
        let kept = take_services(&[
            service("b", 2),
            service("a", 1),
            service("a", 3),
            service("c", 2),
        ]);
        assert_eq!(kept, [service("a", 1), service("b", 2)]);
    }
}
