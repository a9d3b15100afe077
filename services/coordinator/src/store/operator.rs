//! Operator credentials. A revoked one stays in the table, so that it is told why it is refused.

use mesh_types::{OperatorId, Timestamp};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _};

use super::entity::operator;
use super::row::{At, found, time};
use super::{Store, StoreError, Txn};
use crate::record::OperatorRecord;

impl TryFrom<operator::Model> for OperatorRecord {
    type Error = StoreError;

    fn try_from(row: operator::Model) -> Result<Self, StoreError> {
        let at = |column| At("operator", column);
        Ok(Self {
            id: at("id").bytes(&row.id)?,
            name: row.name,
            identity: at("identity_key").identity(&row.identity_key)?,
            created_at: time(row.created_at),
            certificate_not_after: time(row.certificate_not_after),
            revoked_at: row.revoked_at.map(time),
        })
    }
}

fn columns(record: &OperatorRecord) -> operator::ActiveModel {
    operator::ActiveModel {
        id: Set(record.id.as_bytes().to_vec()),
        name: Set(record.name.clone()),
        identity_key: Set(record.identity.as_spki_der().to_vec()),
        created_at: Set(record.created_at.as_micros()),
        certificate_not_after: Set(record.certificate_not_after.as_micros()),
        revoked_at: Set(record.revoked_at.map(Timestamp::as_micros)),
    }
}

impl Store {
    /// All operators, revoked ones too, by id.
    pub(crate) async fn operator_list(&self) -> Result<Vec<OperatorRecord>, StoreError> {
        operator::Entity::find()
            .order_by_asc(operator::Column::Id)
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?
            .into_iter()
            .map(OperatorRecord::try_from)
            .collect()
    }
}

impl Txn {
    pub(crate) async fn operator_create(&self, record: &OperatorRecord) -> Result<(), StoreError> {
        operator::Entity::insert(columns(record))
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }

    /// Notes a new certificate of an operator who is not revoked; whether there is such a one.
    pub(crate) async fn operator_renew(
        &self,
        id: OperatorId,
        certificate_not_after: Timestamp,
    ) -> Result<bool, StoreError> {
        let not_after = Expr::value(certificate_not_after.as_micros());
        let done = operator::Entity::update_many()
            .col_expr(operator::Column::CertificateNotAfter, not_after)
            .filter(operator::Column::Id.eq(id.as_bytes().to_vec()))
            .filter(operator::Column::RevokedAt.is_null())
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(done.rows_affected > 0)
    }

    pub(crate) async fn operator_update(&self, record: &OperatorRecord) -> Result<(), StoreError> {
        let done = operator::Entity::update_many()
            .set(columns(record))
            .filter(operator::Column::Id.eq(record.id.as_bytes().to_vec()))
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        found(done.rows_affected)
    }
}
