//! Nodes as operators see and change them.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mesh_types::{
    Endpoint, Label, NetworkId, NetworkName, NodeId, NodeName, NodeState, RelayId, Timestamp,
    Troubles, UptimeClass,
};

use super::enrol::secret_hash;
use super::report::fingerprints;
use super::{Change, Core, usable_name};
use crate::error::Error;
use crate::members::NetworkInfo;
use crate::record::{EventKind, NodeRecord, RelayRecord};

/// How long a permit to re-join may be used.
const PERMIT_LIFE: Duration = Duration::from_secs(60 * 60);
const SEE: &str = "'mesh node list'";

/// A node by name, overlay address or id, in a network (empty: default).
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeRefText {
    pub(crate) network: String,
    pub(crate) name: String,
}

/// What operators change of a node; what is not named stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeSettings {
    pub(crate) uptime_class: Option<UptimeClass>,
    pub(crate) set_labels: Vec<Label>,
    /// Keys; taken off before the others are set.
    pub(crate) remove_labels: Vec<String>,
}

/// A node with its volatile facts.
#[derive(Debug, Clone)]
pub(crate) struct NodeView {
    pub(crate) record: Arc<NodeRecord>,
    pub(crate) network: NetworkName,
    pub(crate) state: NodeState,
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) home_relay: Option<RelayId>,
    /// What it says is wrong, while it is online.
    pub(crate) troubles: Troubles,
}

impl Core {
    fn node_named(&self, wanted: &NodeRefText) -> Result<Arc<NodeRecord>, Error> {
        let missing = || Error::not_found("node", &wanted.name, SEE);
        if let Ok(id) = wanted.name.parse::<NodeId>() {
            return self.members.node(id).ok_or_else(missing);
        }
        let network = self.network_named(&wanted.network)?.record.id;
        let addr: Option<IpAddr> = wanted.name.parse().ok();
        self.members
            .nodes(Some(network))
            .into_iter()
            .find(|node| {
                node.name.as_str() == wanted.name
                    || addr.is_some_and(|addr| node.addrs.contains(addr))
            })
            .ok_or_else(missing)
    }

    /// A relay is in no network, so whichever is named, as command lines always do, does not matter.
    fn relay_named(&self, wanted: &NodeRefText) -> Option<Arc<RelayRecord>> {
        let id = wanted.name.parse::<RelayId>().ok();
        let named =
            |relay: &Arc<RelayRecord>| Some(relay.id) == id || relay.name.as_str() == wanted.name;
        self.members.relays().into_iter().find(named)
    }

    /// Adds their volatile facts to these nodes, keeping the order.
    async fn viewed(&self, records: Vec<Arc<NodeRecord>>) -> Result<Vec<NodeView>, Error> {
        let networks: Vec<Arc<NetworkInfo>> = self.members.networks();
        let mut views: Vec<NodeView> = self
            .netmap
            .with(move |engine, _| {
                let view = |record: Arc<NodeRecord>| {
                    let node = engine.node(record.id);
                    let network = networks
                        .iter()
                        .find(|info| info.record.id == record.network)?;
                    Some(NodeView {
                        network: network.record.name.clone(),
                        state: node
                            .as_ref()
                            .map_or(NodeState::Offline, |node| node.state()),
                        last_seen: node.as_ref().and_then(|node| node.last_seen()),
                        endpoints: node
                            .as_ref()
                            .map(|node| node.endpoints().to_vec())
                            .unwrap_or_default(),
                        home_relay: node.as_ref().and_then(|node| node.home_relay()),
                        troubles: Troubles::default(),
                        record,
                    })
                };
                records.into_iter().filter_map(view).collect()
            })
            .await?;
        let standings = self.standings.lock();
        let standings = standings.unwrap_or_else(PoisonError::into_inner);
        for view in &mut views {
            if view.state == NodeState::Online {
                view.troubles = standings.of(view.record.id);
            }
        }
        Ok(views)
    }

    async fn view(&self, record: Arc<NodeRecord>) -> Result<NodeView, Error> {
        let mut views = self.viewed(vec![record]).await?;
        views.pop().ok_or(Error::Removed("node"))
    }

    /// The nodes of a network, or of all, by network and name.
    pub(crate) async fn node_list(
        &self,
        network: Option<NetworkId>,
    ) -> Result<Vec<NodeView>, Error> {
        let mut views = self.viewed(self.members.nodes(network)).await?;
        views.sort_by(|a, b| (&a.network, &a.record.name).cmp(&(&b.network, &b.record.name)));
        Ok(views)
    }

    pub(crate) async fn node_show(&self, wanted: &NodeRefText) -> Result<NodeView, Error> {
        self.view(self.node_named(wanted)?).await
    }

    /// Gives a node another name; the name must be free.
    pub(crate) async fn node_rename(
        &self,
        operator: &str,
        wanted: &NodeRefText,
        new_name: &str,
    ) -> Result<NodeView, Error> {
        let name: NodeName = new_name
            .parse()
            .map_err(|error: mesh_types::name::InvalidName| Error::Invalid(error.to_string()))?;
        let mut change = self.change(format!("operator:{operator}")).await?;
        let node = self.node_named(wanted)?;
        let network = self.network_of(node.network)?;
        if node.name == name {
            return self.view(node).await;
        }
        if usable_name(&network.record.name, name.clone()) != name {
            return Err(Error::Invalid(format!(
                "{name:?} is a path of the gateway: choose another name"
            )));
        }
        if change.txn.node_name_taken(node.network, &name).await? {
            return Err(Error::Exists {
                kind: "node",
                name: name.to_string(),
            });
        }
        let record = NodeRecord {
            name: name.clone(),
            changed_version: change.bump(node.network).await?,
            ..NodeRecord::clone(&node)
        };
        change.txn.node_update(&record).await?;
        let detail = format!("was {}", node.name);
        change.event(
            Some(&network.record.name),
            EventKind::NodeRenamed,
            &name,
            detail,
        );
        let (before, after) = ([("name", node.name.as_str())], [("name", name.as_str())]);
        change
            .audit("node-rename", format!("node:{}", node.id), &before, &after)
            .await?;
        self.commit_node(change, record).await
    }

    /// Makes a changed node durable, applies it, and answers it as it is then.
    async fn commit_node(&self, change: Change<'_>, record: NodeRecord) -> Result<NodeView, Error> {
        let turn = change.commit().await?;
        let id = record.id;
        self.apply_node(record, false).await?;
        drop(turn);
        self.view(self.members.node(id).ok_or(Error::Removed("node"))?)
            .await
    }

    /// Changes what operators say of a node.
    pub(crate) async fn node_set(
        &self,
        operator: &str,
        wanted: &NodeRefText,
        settings: NodeSettings,
    ) -> Result<NodeView, Error> {
        let mut change = self.change(format!("operator:{operator}")).await?;
        let node = self.node_named(wanted)?;
        let network = self.network_of(node.network)?;
        let uptime_class = settings.uptime_class.unwrap_or(node.uptime_class);
        let mut labels = node.labels.clone();
        for key in &settings.remove_labels {
            labels.remove(key);
        }
        for label in settings.set_labels {
            labels
                .set(label)
                .map_err(|error| Error::Invalid(error.to_string()))?;
        }
        if node.uptime_class == uptime_class && node.labels == labels {
            return self.view(node).await;
        }
        let record = NodeRecord {
            uptime_class,
            labels,
            changed_version: change.bump(node.network).await?,
            ..NodeRecord::clone(&node)
        };
        change.txn.node_update(&record).await?;
        let shown = |record: &NodeRecord| {
            let labels = record.labels.to_string();
            [
                ("uptime", record.uptime_class.as_str().to_owned()),
                ("labels", labels),
            ]
        };
        let (before, after) = (shown(&node), shown(&record));
        let detail = before.iter().zip(&after).filter(|(was, is)| was != is);
        let detail: Vec<String> = detail
            .map(|((what, was), (_, is))| format!("{what} {is:?}, was {was:?}"))
            .collect();
        change.event(
            Some(&network.record.name),
            EventKind::NodeSet,
            &node.name,
            detail.join("; "),
        );
        let before = before.each_ref().map(|(what, text)| (*what, text.as_str()));
        let after = after.each_ref().map(|(what, text)| (*what, text.as_str()));
        change
            .audit("node-set", format!("node:{}", node.id), &before, &after)
            .await?;
        self.commit_node(change, record).await
    }

    /// Removes a node, or a relay of this name or id; its streams end at once.
    pub(crate) async fn node_remove(
        &self,
        operator: &str,
        wanted: &NodeRefText,
    ) -> Result<(), Error> {
        let actor = format!("operator:{operator}");
        match self.node_named(wanted) {
            Ok(node) => {
                self.node_take_out(node.id, &actor, EventKind::NodeRemoved, "node-remove")
                    .await
            }
            Err(missing) => match self.relay_named(wanted) {
                Some(relay) => self.relay_remove(relay.id, &actor).await,
                None => Err(missing),
            },
        }
    }

    pub(super) async fn node_take_out(
        &self,
        id: NodeId,
        actor: &str,
        kind: EventKind,
        action: &str,
    ) -> Result<(), Error> {
        let mut change = self.change(actor).await?;
        let node = self.members.node(id).ok_or(Error::Removed("node"))?;
        let network = self.network_of(node.network)?;
        let version = change.bump(node.network).await?;
        change
            .txn
            .node_remove(id, node.network, version, change.now)
            .await?;
        change.event(Some(&network.record.name), kind, &node.name, "");
        let before = [("name", node.name.as_str()), ("role", node.role.as_str())];
        change
            .audit(action, format!("node:{id}"), &before, &[])
            .await?;
        let _turn = change.commit().await?;
        self.members.remove_node(id);
        self.netmap
            .with(move |engine, _| engine.node_removed(id, version))
            .await??;
        self.forget_standings([id]);
        tracing::info!(node = %id, name = %node.name, network = %network.record.name, "a node was removed");
        Ok(())
    }

    pub(super) async fn relay_remove(&self, id: RelayId, actor: &str) -> Result<(), Error> {
        let mut change = self.change(actor).await?;
        let relay = self.members.relay(id).ok_or(Error::Removed("relay"))?;
        change.txn.relay_remove(id, change.now).await?;
        change.event(None, EventKind::RelayRemoved, &relay.name, "");
        let before = [("name", relay.name.as_str())];
        change
            .audit("relay-remove", format!("relay:{id}"), &before, &[])
            .await?;
        let _turn = change.commit().await?;
        self.members.remove_relay(id);
        self.netmap
            .with(move |engine, _| engine.relay_removed(id))
            .await??;
        Ok(())
    }

    /// Trusts the host keys that are held: each takes the place of the pinned one of its kind.
    pub(crate) async fn host_key_accept(
        &self,
        operator: &str,
        wanted: &NodeRefText,
    ) -> Result<NodeView, Error> {
        let mut change = self.change(format!("operator:{operator}")).await?;
        let node = self.node_named(wanted)?;
        if node.ssh.held.is_empty() {
            return Err(Error::Invalid(format!(
                "{} has no host keys that wait to be accepted",
                node.name
            )));
        }
        let network = self.network_of(node.network)?;
        let mut record = NodeRecord::clone(&node);
        record.ssh.pinned = accepted(&node.ssh.pinned, &node.ssh.held);
        record.ssh.held.clear();
        record.changed_version = change.bump(node.network).await?;
        change.txn.node_update(&record).await?;
        let (old, new) = (
            fingerprints(&node.ssh.pinned),
            fingerprints(&record.ssh.pinned),
        );
        change.event(
            Some(&network.record.name),
            EventKind::HostKeyAccepted,
            &node.name,
            &new,
        );
        let subject = format!("node:{}", node.id);
        change
            .audit(
                "host-key-accept",
                subject,
                &[("keys", &old)],
                &[("keys", &new)],
            )
            .await?;
        self.commit_node(change, record).await
    }

    /// Lets a machine that lost its keys join once as this node, within an hour.
    pub(crate) async fn permit_rejoin(
        &self,
        operator: &str,
        wanted: &NodeRefText,
    ) -> Result<[u8; 32], Error> {
        let permit: [u8; 32] = self.random()?;
        let mut change = self.change(format!("operator:{operator}")).await?;
        let node = self.node_named(wanted)?;
        let network = self.network_of(node.network)?;
        let expires = change.now.plus(PERMIT_LIFE);
        change
            .txn
            .node_set_permit(node.id, Some((secret_hash(&permit), expires)))
            .await?;
        change.event(
            Some(&network.record.name),
            EventKind::RejoinPermitted,
            &node.name,
            "",
        );
        change
            .audit("permit-rejoin", format!("node:{}", node.id), &[], &[])
            .await?;
        change.commit().await.map(drop)?;
        Ok(permit)
    }
}

/// The pinned keys whose algorithm is not among the held ones, and the held ones.
fn accepted(pinned: &[String], held: &[String]) -> Vec<String> {
    let algorithm = |line: &String| line.split(' ').next().map(str::to_owned);
    let replaced: Vec<_> = held.iter().map(algorithm).collect();
    let mut keys: Vec<_> = pinned
        .iter()
        .filter(|line| !replaced.contains(&algorithm(line)))
        .chain(held)
        .cloned()
        .collect();
    keys.sort();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_key_takes_the_place_of_the_one_of_its_kind() {
        let line = |text: &str| text.to_owned();
        let pinned = [line("ecdsa-sha2-nistp256 OLD"), line("ssh-ed25519 OLD")];
        assert_eq!(
            accepted(&pinned, &[line("ssh-ed25519 NEW")]),
            ["ecdsa-sha2-nistp256 OLD", "ssh-ed25519 NEW"]
        );
    }
}
