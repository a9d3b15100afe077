//! Sealed secrets and the public halves beside them. Sealing happens above; here are only bytes.

use mesh_types::Timestamp;
use sea_orm::ActiveValue::Set;
use sea_orm::{EntityTrait as _, PaginatorTrait as _};

use super::entity::secret;
use super::{Store, StoreError, Txn};

/// A sealed secret with what may be shown of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedSecret {
    pub(crate) sealed: Vec<u8>,
    pub(crate) public: Vec<u8>,
}

impl Store {
    pub(crate) async fn secret_show(&self, name: &str) -> Result<Option<SealedSecret>, StoreError> {
        let row = secret::Entity::find_by_id(name)
            .one(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        Ok(row.map(|row| SealedSecret {
            sealed: row.sealed,
            public: row.public,
        }))
    }

    /// Whether anything was ever sealed.
    pub(crate) async fn secret_any(&self) -> Result<bool, StoreError> {
        let count = secret::Entity::find()
            .count(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        Ok(count > 0)
    }
}

impl Txn {
    pub(crate) async fn secret_create(
        &self,
        name: &str,
        secret: &SealedSecret,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let row = secret::ActiveModel {
            name: Set(name.to_owned()),
            sealed: Set(secret.sealed.clone()),
            public: Set(secret.public.clone()),
            created_at: Set(now.as_micros()),
        };
        secret::Entity::insert(row)
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }

    pub(crate) async fn secret_delete(&self, name: &str) -> Result<(), StoreError> {
        secret::Entity::delete_by_id(name)
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }
}
