//! Events: what happened, newest kept, oldest forgotten.

use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use super::entity::event;
use super::row::{At, time};
use super::{Store, StoreError, Txn};
use crate::record::{EventKind, EventRecord};

/// How many events are kept.
const KEEP: i64 = 50_000;
/// How often, in events, old ones are dropped.
const TRIM_EVERY: i64 = 1_000;

impl TryFrom<event::Model> for EventRecord {
    type Error = StoreError;

    fn try_from(row: event::Model) -> Result<Self, StoreError> {
        let at = |column| At("event", column);
        Ok(Self {
            id: row.id,
            time: time(row.time),
            network: row
                .network
                .map(|name| at("network").text(&name))
                .transpose()?,
            kind: EventKind::from_word(&row.kind),
            subject: row.subject,
            detail: row.detail,
        })
    }
}

impl Store {
    /// The newest event of one of these kinds.
    pub(crate) async fn event_newest(
        &self,
        kinds: &[EventKind],
    ) -> Result<Option<EventRecord>, StoreError> {
        let words = kinds.iter().map(EventKind::as_str);
        let row = event::Entity::find()
            .filter(event::Column::Kind.is_in(words))
            .order_by_desc(event::Column::Id)
            .one(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        row.map(EventRecord::try_from).transpose()
    }

    /// Events after the one with id `after`, oldest first, at most the newest `limit` of them.
    pub(crate) async fn event_list(
        &self,
        network: Option<&str>,
        after: i64,
        limit: u64,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let mut query = event::Entity::find()
            .filter(event::Column::Id.gt(after))
            .order_by_desc(event::Column::Id)
            .limit(limit);
        if let Some(network) = network {
            query = query.filter(event::Column::Network.eq(network));
        }
        let rows = query
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        rows.into_iter().rev().map(EventRecord::try_from).collect()
    }
}

impl Txn {
    /// Stores the event and answers its id.
    pub(crate) async fn event_create(&self, record: &EventRecord) -> Result<i64, StoreError> {
        let row = event::ActiveModel {
            id: NotSet,
            time: Set(record.time.as_micros()),
            network: Set(record.network.as_ref().map(ToString::to_string)),
            kind: Set(record.kind.as_str().to_owned()),
            subject: Set(record.subject.clone()),
            detail: Set(record.detail.clone()),
        };
        let done = event::Entity::insert(row)
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        let id = done.last_insert_id;
        if id % TRIM_EVERY == 0 {
            event::Entity::delete_many()
                .filter(event::Column::Id.lte(id - KEEP))
                .exec(&self.inner)
                .await
                .map_err(StoreError::writing)?;
        }
        Ok(id)
    }
}
