//! Relays of the installation.

use mesh_types::{IdentityPublicKey, NodeName, RelayId, Timestamp};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _};

use super::entity::relay;
use super::row::{At, found, free_name, time, to_json};
use super::{Store, StoreError, Txn};
use crate::record::RelayRecord;

const TABLE: &str = "relay";

impl TryFrom<relay::Model> for RelayRecord {
    type Error = StoreError;

    fn try_from(row: relay::Model) -> Result<Self, StoreError> {
        let at = |column| At(TABLE, column);
        Ok(Self {
            id: at("id").bytes(&row.id)?,
            name: at("name").text(&row.name)?,
            owner: row.owner,
            identity: at("identity_key").identity(&row.identity_key)?,
            derp: at("derp").json(&row.derp)?,
            stun: at("stun").json(&row.stun)?,
            version: row.version,
            created_at: time(row.created_at),
            last_seen: row.last_seen.map(time),
            certificate_not_after: time(row.certificate_not_after),
        })
    }
}

fn columns(record: &RelayRecord) -> relay::ActiveModel {
    relay::ActiveModel {
        id: Set(record.id.as_bytes().to_vec()),
        name: Set(record.name.to_string()),
        owner: Set(record.owner.clone()),
        identity_key: Set(record.identity.as_spki_der().to_vec()),
        derp: Set(to_json(&record.derp)),
        stun: Set(to_json(&record.stun)),
        version: Set(record.version.clone()),
        created_at: Set(record.created_at.as_micros()),
        last_seen: Set(record.last_seen.map(Timestamp::as_micros)),
        certificate_not_after: Set(record.certificate_not_after.as_micros()),
    }
}

impl Store {
    /// All relays, by id.
    pub(crate) async fn relay_list(&self) -> Result<Vec<RelayRecord>, StoreError> {
        relay::Entity::find()
            .order_by_asc(relay::Column::Id)
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?
            .into_iter()
            .map(RelayRecord::try_from)
            .collect()
    }
}

impl Txn {
    pub(crate) async fn relay_create(&self, record: &RelayRecord) -> Result<(), StoreError> {
        relay::Entity::insert(columns(record))
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }

    pub(crate) async fn relay_update(&self, record: &RelayRecord) -> Result<(), StoreError> {
        let done = relay::Entity::update_many()
            .set(columns(record))
            .filter(relay::Column::Id.eq(record.id.as_bytes().to_vec()))
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        found(done.rows_affected)
    }

    pub(crate) async fn relay_set_last_seen(
        &self,
        seen: &[(RelayId, Timestamp)],
    ) -> Result<(), StoreError> {
        for (id, at) in seen {
            relay::Entity::update_many()
                .col_expr(relay::Column::LastSeen, Expr::value(at.as_micros()))
                .filter(relay::Column::Id.eq(id.as_bytes().to_vec()))
                .exec(&self.inner)
                .await
                .map_err(StoreError::writing)?;
        }
        Ok(())
    }

    /// The relay that is enrolled with this identity key.
    pub(crate) async fn relay_by_identity(
        &self,
        identity: &IdentityPublicKey,
    ) -> Result<Option<RelayRecord>, StoreError> {
        let row = relay::Entity::find()
            .filter(relay::Column::IdentityKey.eq(identity.as_spki_der().to_vec()))
            .one(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        row.map(RelayRecord::try_from).transpose()
    }

    /// `wished`, or `wished-1`, … when a relay of that name exists.
    pub(crate) async fn relay_free_name(&self, wished: &NodeName) -> Result<NodeName, StoreError> {
        let rows = relay::Entity::find()
            .all(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        Ok(free_name(wished, |name| {
            rows.iter().any(|row| row.name == name.as_str())
        }))
    }

    /// Removes the relay and leaves a tombstone.
    pub(crate) async fn relay_remove(&self, id: RelayId, now: Timestamp) -> Result<(), StoreError> {
        let done = relay::Entity::delete_by_id(id.as_bytes().to_vec())
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        found(done.rows_affected)?;
        self.tombstone_create(id.to_bytes(), None, 0, now).await
    }
}
