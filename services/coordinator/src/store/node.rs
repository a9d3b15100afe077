//! Nodes, their host keys, and the tombstones they leave.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_types::{
    IdentityPublicKey, NetworkId, NodeId, NodeName, OverlayAddrs, Service, Timestamp, UptimeClass,
};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{CaseStatement, Expr, SimpleExpr};
use sea_orm::{
    ColumnTrait as _, Condition, ConnectionTrait, EntityTrait as _, QueryFilter as _,
    QueryOrder as _,
};

use super::entity::{host_key, node, tombstone};
use super::row::{At, found, signed, time, to_json};
use super::{Store, StoreError, Txn};
use crate::record::{NodeRecord, SshFacts};

const TABLE: &str = "node";
/// Of so many nodes one statement notes when they were last seen: all go out once a minute, and
/// whoever writes meanwhile waits.
const SEEN_AT_ONCE: usize = 100;

/// A node that is gone; kept so that others learn of it and that it is told so itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TombstoneRecord {
    /// Id of the node or relay.
    pub(crate) id: [u8; 16],
    /// `None` for relays.
    pub(crate) network: Option<NetworkId>,
    pub(crate) version: u64,
}

/// The column values of a node; `permit_*` stay as they are.
fn columns(record: &NodeRecord) -> node::ActiveModel {
    node::ActiveModel {
        id: Set(record.id.as_bytes().to_vec()),
        network_id: Set(record.network.as_bytes().to_vec()),
        name: Set(record.name.to_string()),
        role: Set(record.role.to_string()),
        owner: Set(record.owner.clone()),
        identity_key: Set(record.identity.as_spki_der().to_vec()),
        wg_key: Set(record.wg_key.as_bytes().to_vec()),
        disco_key: Set(record.disco_key.as_bytes().to_vec()),
        overlay_v4: Set(i64::from(record.addrs.v4.to_bits())),
        overlay_v6: Set(record.addrs.v6.octets().to_vec()),
        uptime_class: Set(record.uptime_class.as_str().to_owned()),
        version: Set(record.version.clone()),
        created_at: Set(record.created_at.as_micros()),
        last_seen: Set(record.last_seen.map(Timestamp::as_micros)),
        certificate_not_after: Set(record.certificate_not_after.as_micros()),
        services: Set(to_json(&record.services)),
        ssh_user: Set(record.ssh.user.clone()),
        ssh_via_loopback: Set(i32::from(record.ssh.via_loopback)),
        permit_hash: sea_orm::ActiveValue::NotSet,
        permit_expires_at: sea_orm::ActiveValue::NotSet,
        changed_version: Set(signed(record.changed_version)),
        labels: Set(to_json(&record.labels)),
    }
}

fn record(row: node::Model, keys: Vec<host_key::Model>) -> Result<NodeRecord, StoreError> {
    let at = |column| At(TABLE, column);
    let v4 = u32::try_from(row.overlay_v4).map_err(|_| at("overlay_v4").corrupt())?;
    let v6: [u8; 16] = at("overlay_v6").bytes(&row.overlay_v6)?;
    let uptime_class: UptimeClass = at("uptime_class").uptime_class(&row.uptime_class)?;
    let services: Vec<Service> = at("services").json(&row.services)?;
    let (held, pinned): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| key.held != 0);
    let lines = |keys: Vec<host_key::Model>| keys.into_iter().map(|key| key.line).collect();
    Ok(NodeRecord {
        id: at("id").bytes(&row.id)?,
        network: at("network_id").bytes(&row.network_id)?,
        name: at("name").text(&row.name)?,
        role: at("role").text(&row.role)?,
        owner: row.owner,
        identity: at("identity_key").identity(&row.identity_key)?,
        wg_key: at("wg_key").bytes(&row.wg_key)?,
        disco_key: at("disco_key").bytes(&row.disco_key)?,
        addrs: OverlayAddrs {
            v4: Ipv4Addr::from_bits(v4),
            v6: Ipv6Addr::from(v6),
        },
        uptime_class,
        labels: at("labels").json(&row.labels)?,
        version: row.version,
        created_at: time(row.created_at),
        last_seen: row.last_seen.map(time),
        certificate_not_after: time(row.certificate_not_after),
        services,
        ssh: SshFacts {
            user: row.ssh_user,
            via_loopback: row.ssh_via_loopback != 0,
            pinned: lines(pinned),
            held: lines(held),
        },
        changed_version: at("changed_version").unsigned(row.changed_version)?,
    })
}

async fn with_keys(
    on: &impl ConnectionTrait,
    row: Option<node::Model>,
) -> Result<Option<NodeRecord>, StoreError> {
    let Some(row) = row else { return Ok(None) };
    let keys = host_key::Entity::find()
        .filter(host_key::Column::NodeId.eq(row.id.clone()))
        .order_by_asc(host_key::Column::Line)
        .all(on)
        .await
        .map_err(StoreError::reading)?;
    record(row, keys).map(Some)
}

impl Store {
    /// All nodes of all networks, by id.
    pub(crate) async fn node_list(&self) -> Result<Vec<NodeRecord>, StoreError> {
        let mut keys: BTreeMap<Vec<u8>, Vec<host_key::Model>> = BTreeMap::new();
        let all = host_key::Entity::find()
            .order_by_asc(host_key::Column::Line)
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        for key in all {
            keys.entry(key.node_id.clone()).or_default().push(key);
        }
        node::Entity::find()
            .order_by_asc(node::Column::Id)
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?
            .into_iter()
            .map(|row| {
                let keys = keys.remove(&row.id).unwrap_or_default();
                record(row, keys)
            })
            .collect()
    }

    /// All tombstones.
    pub(crate) async fn tombstone_list(&self) -> Result<Vec<TombstoneRecord>, StoreError> {
        tombstone::Entity::find()
            .order_by_asc(tombstone::Column::Version)
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?
            .into_iter()
            .map(|row| {
                let at = |column| At("tombstone", column);
                Ok(TombstoneRecord {
                    id: at("id").bytes(&row.id)?,
                    network: row
                        .network_id
                        .map(|id| at("network_id").bytes(&id))
                        .transpose()?,
                    version: at("version").unsigned(row.version)?,
                })
            })
            .collect()
    }
}

impl Txn {
    pub(crate) async fn node_create(&self, record: &NodeRecord) -> Result<(), StoreError> {
        node::Entity::insert(columns(record))
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        self.host_keys_replace(record).await
    }

    /// Writes every column of the node; its host keys are replaced.
    pub(crate) async fn node_update(&self, record: &NodeRecord) -> Result<(), StoreError> {
        self.node_set(record.id, columns(record)).await?;
        self.host_keys_replace(record).await
    }

    async fn node_set(&self, id: NodeId, columns: node::ActiveModel) -> Result<(), StoreError> {
        let done = node::Entity::update_many()
            .set(columns)
            .filter(node::Column::Id.eq(id.as_bytes().to_vec()))
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        found(done.rows_affected)
    }

    async fn host_keys_replace(&self, record: &NodeRecord) -> Result<(), StoreError> {
        let node_id = record.id.as_bytes().to_vec();
        host_key::Entity::delete_many()
            .filter(host_key::Column::NodeId.eq(node_id.clone()))
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        let SshFacts {
            user: _,
            via_loopback: _,
            pinned,
            held,
        } = &record.ssh;
        let pinned = pinned.iter().map(|line| (line, 0));
        for (line, held) in pinned.chain(held.iter().map(|line| (line, 1))) {
            let row = host_key::ActiveModel {
                node_id: Set(node_id.clone()),
                line: Set(line.clone()),
                held: Set(held),
                seen_at: Set(record.last_seen.unwrap_or(record.created_at).as_micros()),
            };
            host_key::Entity::insert(row)
                .exec_without_returning(&self.inner)
                .await
                .map_err(StoreError::writing)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) async fn node_show(&self, id: NodeId) -> Result<Option<NodeRecord>, StoreError> {
        let row = node::Entity::find_by_id(id.as_bytes().to_vec())
            .one(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        with_keys(&self.inner, row).await
    }

    /// The node that is enrolled with this identity key.
    pub(crate) async fn node_by_identity(
        &self,
        identity: &IdentityPublicKey,
    ) -> Result<Option<NodeRecord>, StoreError> {
        self.node_find(node::Column::IdentityKey.eq(identity.as_spki_der().to_vec()))
            .await
    }

    /// A node other than `except` that is enrolled with one of these keys.
    pub(crate) async fn node_by_keys(
        &self,
        wg_key: &mesh_types::WgPublicKey,
        disco_key: &mesh_types::DiscoPublicKey,
        except: Option<NodeId>,
    ) -> Result<Option<NodeRecord>, StoreError> {
        let mut query = node::Entity::find().filter(
            Condition::any()
                .add(node::Column::WgKey.eq(wg_key.as_bytes().to_vec()))
                .add(node::Column::DiscoKey.eq(disco_key.as_bytes().to_vec())),
        );
        if let Some(except) = except {
            query = query.filter(node::Column::Id.ne(except.as_bytes().to_vec()));
        }
        let row = query.one(&self.inner).await.map_err(StoreError::reading)?;
        with_keys(&self.inner, row).await
    }

    /// The node that this permit, not yet expired, lets a machine join as.
    pub(crate) async fn node_by_permit(
        &self,
        permit_hash: &[u8; 32],
        now: Timestamp,
    ) -> Result<Option<NodeRecord>, StoreError> {
        let valid = Condition::all()
            .add(node::Column::PermitHash.eq(permit_hash.to_vec()))
            .add(node::Column::PermitExpiresAt.gt(now.as_micros()));
        let row = node::Entity::find()
            .filter(valid)
            .one(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        with_keys(&self.inner, row).await
    }

    async fn node_find(&self, by: SimpleExpr) -> Result<Option<NodeRecord>, StoreError> {
        let row = node::Entity::find()
            .filter(by)
            .one(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        with_keys(&self.inner, row).await
    }

    /// Stores the hash of a permit for one re-join, or takes it back.
    pub(crate) async fn node_set_permit(
        &self,
        id: NodeId,
        permit: Option<([u8; 32], Timestamp)>,
    ) -> Result<(), StoreError> {
        let columns = node::ActiveModel {
            permit_hash: Set(permit.map(|(hash, _)| hash.to_vec())),
            permit_expires_at: Set(permit.map(|(_, expires)| expires.as_micros())),
            ..Default::default()
        };
        self.node_set(id, columns).await
    }

    /// Notes until when the node's certificate holds.
    pub(crate) async fn node_set_certificate(
        &self,
        id: NodeId,
        not_after: Timestamp,
    ) -> Result<(), StoreError> {
        let columns = node::ActiveModel {
            certificate_not_after: Set(not_after.as_micros()),
            ..Default::default()
        };
        self.node_set(id, columns).await
    }

    /// Notes when the nodes were last seen; those that are gone are skipped.
    pub(crate) async fn node_set_last_seen(
        &self,
        seen: &[(NodeId, Timestamp)],
    ) -> Result<(), StoreError> {
        for batch in seen.chunks(SEEN_AT_ONCE) {
            let ids = batch.iter().map(|(id, _)| id.as_bytes().to_vec());
            let mut each = CaseStatement::new();
            for (id, at) in batch {
                let is_it = node::Column::Id.eq(id.as_bytes().to_vec());
                each = each.case(is_it, Expr::value(at.as_micros()));
            }
            node::Entity::update_many()
                .col_expr(node::Column::LastSeen, each.into())
                .filter(node::Column::Id.is_in(ids))
                .exec(&self.inner)
                .await
                .map_err(StoreError::writing)?;
        }
        Ok(())
    }

    /// Removes the node and leaves a tombstone of this network version.
    pub(crate) async fn node_remove(
        &self,
        id: NodeId,
        network: NetworkId,
        version: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let done = node::Entity::delete_by_id(id.as_bytes().to_vec())
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        found(done.rows_affected)?;
        self.tombstone_create(id.to_bytes(), Some(network), version, now)
            .await
    }

    pub(super) async fn tombstone_create(
        &self,
        id: [u8; 16],
        network: Option<NetworkId>,
        version: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let row = tombstone::ActiveModel {
            id: Set(id.to_vec()),
            network_id: Set(network.map(|id| id.as_bytes().to_vec())),
            version: Set(signed(version)),
            removed_at: Set(now.as_micros()),
        };
        tombstone::Entity::insert(row)
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }

    /// Whether a node of this name exists in the network.
    pub(crate) async fn node_name_taken(
        &self,
        network: NetworkId,
        name: &NodeName,
    ) -> Result<bool, StoreError> {
        let of_name = Condition::all()
            .add(node::Column::NetworkId.eq(network.as_bytes().to_vec()))
            .add(node::Column::Name.eq(name.as_str()));
        let row = node::Entity::find()
            .filter(of_name)
            .one(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        Ok(row.is_some())
    }
}
