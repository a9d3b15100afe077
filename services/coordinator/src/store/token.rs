//! Join tokens and whom they let in.

use mesh_types::{IdentityPublicKey, NetworkId, Timestamp, TokenId};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, ExprTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};

use super::entity::{token, token_use};
use super::row::{At, found, time};
use super::{Store, StoreError, Txn};
use crate::record::{TokenRecord, TokenUse};

const TABLE: &str = "token";

impl TryFrom<token::Model> for TokenRecord {
    type Error = StoreError;

    fn try_from(row: token::Model) -> Result<Self, StoreError> {
        let token::Model {
            id,
            network_id,
            role,
            owner,
            reusable,
            secret_hash,
            created_at,
            expires_at,
            revoked_at,
            uses,
        } = row;
        Ok(Self {
            id: At(TABLE, "id").bytes(&id)?,
            network: network_id
                .map(|id| At(TABLE, "network_id").bytes(&id))
                .transpose()?,
            role: At(TABLE, "role").text(&role)?,
            owner,
            reusable: reusable != 0,
            secret_hash: At(TABLE, "secret_hash").bytes(&secret_hash)?,
            created_at: time(created_at),
            expires_at: time(expires_at),
            revoked_at: revoked_at.map(time),
            uses: u32::try_from(uses).map_err(|_| At(TABLE, "uses").corrupt())?,
        })
    }
}

impl Store {
    /// Tokens, oldest first; of one network or all.
    pub(crate) async fn token_list(
        &self,
        network: Option<NetworkId>,
    ) -> Result<Vec<TokenRecord>, StoreError> {
        let mut query = token::Entity::find().order_by_asc(token::Column::Id);
        if let Some(network) = network {
            query = query.filter(token::Column::NetworkId.eq(network.as_bytes().to_vec()));
        }
        let rows = query
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        rows.into_iter().map(TokenRecord::try_from).collect()
    }

    /// The newest tokens that are neither over nor revoked, newest first.
    pub(crate) async fn token_live(
        &self,
        now: Timestamp,
        most: usize,
    ) -> Result<Vec<TokenId>, StoreError> {
        let ids: Vec<Vec<u8>> = token::Entity::find()
            .select_only()
            .column(token::Column::Id)
            .filter(token::Column::RevokedAt.is_null())
            .filter(token::Column::ExpiresAt.gt(now.as_micros()))
            .order_by_desc(token::Column::Id)
            .limit(most as u64)
            .into_tuple()
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        ids.iter().map(|id| At("token", "id").bytes(id)).collect()
    }

    /// The token as it was committed last. Waits for no writer.
    pub(crate) async fn token_peek(&self, id: TokenId) -> Result<Option<TokenRecord>, StoreError> {
        let row = token::Entity::find_by_id(id.as_bytes().to_vec())
            .one(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        row.map(TokenRecord::try_from).transpose()
    }
}

impl Txn {
    pub(crate) async fn token_create(&self, record: &TokenRecord) -> Result<(), StoreError> {
        let row = token::ActiveModel {
            id: Set(record.id.as_bytes().to_vec()),
            network_id: Set(record.network.map(|id| id.as_bytes().to_vec())),
            role: Set(record.role.to_string()),
            owner: Set(record.owner.clone()),
            reusable: Set(i32::from(record.reusable)),
            secret_hash: Set(record.secret_hash.to_vec()),
            created_at: Set(record.created_at.as_micros()),
            expires_at: Set(record.expires_at.as_micros()),
            revoked_at: Set(record.revoked_at.map(Timestamp::as_micros)),
            uses: Set(i32::try_from(record.uses).unwrap_or(i32::MAX)),
        };
        token::Entity::insert(row)
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }

    pub(crate) async fn token_show(&self, id: TokenId) -> Result<Option<TokenRecord>, StoreError> {
        let row = token::Entity::find_by_id(id.as_bytes().to_vec())
            .one(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        row.map(TokenRecord::try_from).transpose()
    }

    pub(crate) async fn token_revoke(&self, id: TokenId, now: Timestamp) -> Result<(), StoreError> {
        let done = token::Entity::update_many()
            .col_expr(token::Column::RevokedAt, Expr::value(now.as_micros()))
            .filter(token::Column::Id.eq(id.as_bytes().to_vec()))
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        found(done.rows_affected)
    }

    /// Whom this token let in with this identity key, if it did.
    pub(crate) async fn token_use_show(
        &self,
        id: TokenId,
        identity: &IdentityPublicKey,
    ) -> Result<Option<TokenUse>, StoreError> {
        let key = (id.as_bytes().to_vec(), identity.as_spki_der().to_vec());
        let row = token_use::Entity::find_by_id(key)
            .one(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        row.map(|row| {
            let subject = At("token_use", "subject").bytes(&row.subject)?;
            Ok(TokenUse { subject })
        })
        .transpose()
    }

    /// Counts a use of the token and remembers whom it let in.
    pub(crate) async fn token_use_record(
        &self,
        id: TokenId,
        identity: &IdentityPublicKey,
        subject: [u8; 16],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        token::Entity::update_many()
            .col_expr(token::Column::Uses, Expr::col(token::Column::Uses).add(1))
            .filter(token::Column::Id.eq(id.as_bytes().to_vec()))
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        let row = token_use::ActiveModel {
            token_id: Set(id.as_bytes().to_vec()),
            identity_key: Set(identity.as_spki_der().to_vec()),
            subject: Set(subject.to_vec()),
            used_at: Set(now.as_micros()),
        };
        let replace =
            OnConflict::columns([token_use::Column::TokenId, token_use::Column::IdentityKey])
                .update_columns([token_use::Column::Subject, token_use::Column::UsedAt])
                .to_owned();
        token_use::Entity::insert(row)
            .on_conflict(replace)
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }
}
