//! Networks: made, listed, deleted.

use std::sync::Arc;

use mesh_api::uri::RESERVED_NETWORK_NAMES;
use mesh_netmap::NetworkRow;
use mesh_types::{NetworkId, NetworkName};

use super::Core;
use super::bootstrap::{new_ssh_ca, ssh_secret};
use crate::error::Error;
use crate::members::NetworkInfo;
use crate::record::{EventKind, NetworkRecord};

impl Core {
    /// Makes a network with an SSH authority of its own.
    pub(crate) async fn network_create(
        &self,
        operator: &str,
        name: &str,
    ) -> Result<Arc<NetworkInfo>, Error> {
        let name: NetworkName = name
            .parse()
            .map_err(|error: mesh_types::name::InvalidName| Error::Invalid(error.to_string()))?;
        if RESERVED_NETWORK_NAMES.contains(&name.as_str()) {
            return Err(Error::Invalid(format!(
                "{name:?} is reserved: choose another name"
            )));
        }
        let mut change = self.change(format!("operator:{operator}")).await?;
        if self.members.network_by_name(&name).is_some() {
            return Err(Error::Exists {
                kind: "network",
                name: name.to_string(),
            });
        }
        let (millis, random) = self.id_parts(change.now)?;
        let record = NetworkRecord {
            id: NetworkId::from_parts(millis, random),
            name: name.clone(),
            version: 0,
            created_at: change.now,
        };
        let (ssh_ca, sealed) = new_ssh_ca(&self.sealer, record.id)?;
        change.txn.network_create(&record).await?;
        change
            .txn
            .secret_create(&ssh_secret(record.id), &sealed, change.now)
            .await?;
        change.event(Some(&name), EventKind::NetworkCreated, &name, "");
        let subject = format!("network:{}", record.id);
        change
            .audit("network-create", subject, &[], &[("name", name.as_str())])
            .await?;
        let _turn = change.commit().await?;
        let row = NetworkRow {
            id: record.id,
            name,
            version: 0,
            trimmed: 0,
            ssh_ca: ssh_ca.clone(),
        };
        let info = NetworkInfo {
            record,
            ssh_ca,
            ssh_ca_sealed: sealed.sealed,
        };
        self.members.put_network(info.clone());
        self.netmap
            .with(move |engine, _| engine.network_added(row))
            .await??;
        Ok(Arc::new(info))
    }

    /// Deletes a network; `force` removes the nodes that are left in it.
    pub(crate) async fn network_delete(
        &self,
        operator: &str,
        name: &str,
        force: bool,
    ) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::Invalid("name the network to delete".into()));
        }
        let actor = format!("operator:{operator}");
        let mut change = self.change(actor).await?;
        let info = self.network_named(name)?;
        let (id, name) = (info.record.id, &info.record.name);
        if name.is_default() {
            return Err(Error::Invalid(
                "the default network cannot be deleted".into(),
            ));
        }
        let nodes = self.members.nodes(Some(id));
        if !nodes.is_empty() && !force {
            return Err(Error::NetworkNotEmpty {
                name: name.to_string(),
                nodes: nodes.len(),
            });
        }
        let mut removed = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let version = change.bump(id).await?;
            change
                .txn
                .node_remove(node.id, id, version, change.now)
                .await?;
            change.event(
                Some(name),
                EventKind::NodeRemoved,
                &node.name,
                "network deleted",
            );
            removed.push((node.id, version));
        }
        change.txn.secret_delete(&ssh_secret(id)).await?;
        change.txn.network_delete(id).await?;
        change.event(Some(name), EventKind::NetworkDeleted, name, "");
        let before = [("name", name.as_str())];
        change
            .audit("network-delete", format!("network:{id}"), &before, &[])
            .await?;
        let _turn = change.commit().await?;
        for (node, _) in &removed {
            self.members.remove_node(*node);
        }
        self.members.remove_network(id);
        let gone = removed.iter().map(|(node, _)| *node).collect::<Vec<_>>();
        self.netmap
            .with(move |engine, _| {
                for (node, version) in removed {
                    engine.node_removed(node, version)?;
                }
                engine.network_removed(id)
            })
            .await??;
        self.forget_standings(gone);
        Ok(())
    }
}
