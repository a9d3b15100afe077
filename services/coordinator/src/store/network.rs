//! Networks and their versions.

use mesh_types::NetworkId;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, ExprTrait as _, QueryFilter as _,
    QueryOrder as _,
};

use super::entity::network;
use super::row::{At, found, signed, time};
use super::{Store, StoreError, Txn};
use crate::record::NetworkRecord;

const TABLE: &str = "network";

impl TryFrom<network::Model> for NetworkRecord {
    type Error = StoreError;

    fn try_from(row: network::Model) -> Result<Self, StoreError> {
        let network::Model {
            id,
            name,
            version,
            trimmed: _,
            created_at,
        } = row;
        Ok(Self {
            id: At(TABLE, "id").bytes(&id)?,
            name: At(TABLE, "name").text(&name)?,
            version: At(TABLE, "version").unsigned(version)?,
            created_at: time(created_at),
        })
    }
}

async fn by_id(
    on: &impl ConnectionTrait,
    id: NetworkId,
) -> Result<Option<NetworkRecord>, StoreError> {
    let row = network::Entity::find_by_id(id.as_bytes().to_vec())
        .one(on)
        .await
        .map_err(StoreError::reading)?;
    row.map(NetworkRecord::try_from).transpose()
}

impl Store {
    /// All networks, by name.
    pub(crate) async fn network_list(&self) -> Result<Vec<NetworkRecord>, StoreError> {
        network::Entity::find()
            .order_by_asc(network::Column::Name)
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?
            .into_iter()
            .map(NetworkRecord::try_from)
            .collect()
    }
}

impl Txn {
    pub(crate) async fn network_create(&self, record: &NetworkRecord) -> Result<(), StoreError> {
        let row = network::ActiveModel {
            id: Set(record.id.as_bytes().to_vec()),
            name: Set(record.name.to_string()),
            version: Set(signed(record.version)),
            trimmed: Set(0),
            created_at: Set(record.created_at.as_micros()),
        };
        network::Entity::insert(row)
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }

    /// Raises the network's version and answers the new one.
    pub(crate) async fn network_bump(&self, id: NetworkId) -> Result<u64, StoreError> {
        network::Entity::update_many()
            .col_expr(
                network::Column::Version,
                Expr::col(network::Column::Version).add(1),
            )
            .filter(network::Column::Id.eq(id.as_bytes().to_vec()))
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        let record = by_id(&self.inner, id).await?.ok_or(StoreError::Missing)?;
        Ok(record.version)
    }

    /// Removes the network with its tokens and nodes.
    pub(crate) async fn network_delete(&self, id: NetworkId) -> Result<(), StoreError> {
        let done = network::Entity::delete_by_id(id.as_bytes().to_vec())
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        found(done.rows_affected)
    }
}
