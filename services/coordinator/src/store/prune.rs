//! Forgetting what is old: events, spent join tokens, tombstones, and where it is wished the oldest
//! part of the audit chain.

use std::collections::BTreeMap;

use mesh_types::{NetworkId, Timestamp};
use sea_orm::{ConnectionTrait as _, EntityTrait as _};

use super::entity::network;
use super::row::At;
use super::{Store, StoreError, Txn};

/// What is older than these is forgotten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cutoffs {
    pub(crate) events: Timestamp,
    /// Of the end of a token's life.
    pub(crate) tokens: Timestamp,
    pub(crate) tombstones: Timestamp,
    /// `None`: the audit is kept for ever.
    pub(crate) audit: Option<Timestamp>,
}

/// How many rows were forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pruned {
    pub(crate) events: u64,
    pub(crate) tokens: u64,
    pub(crate) tombstones: u64,
    pub(crate) audit: u64,
}

impl Txn {
    /// Removes what is older. A network remembers up to which version its tombstones are gone, so
    /// that an older cursor is answered by a whole map.
    pub(crate) async fn prune(&self, cutoffs: &Cutoffs) -> Result<Pruned, StoreError> {
        let Cutoffs {
            events,
            tokens,
            tombstones,
            audit,
        } = cutoffs;
        let [events, tokens, tombstones] =
            [events, tokens, tombstones].map(|cutoff| cutoff.as_micros());
        let run = async |sql: String| {
            let done = self.inner.execute_unprepared(&sql).await;
            done.map(|done| done.rows_affected())
                .map_err(StoreError::writing)
        };
        let old =
            format!("tombstone.network_id = network.id AND tombstone.removed_at < {tombstones}");
        run(format!(
            "UPDATE network SET trimmed = \
             (SELECT max(tombstone.version) FROM tombstone WHERE {old}) \
             WHERE EXISTS (SELECT 1 FROM tombstone WHERE {old} AND tombstone.version > trimmed)"
        ))
        .await?;
        let audit = match audit {
            Some(cutoff) => self.audit_trim(*cutoff).await?,
            None => 0,
        };
        Ok(Pruned {
            audit,
            events: run(format!("DELETE FROM event WHERE time < {events}")).await?,
            tokens: run(format!(
                "DELETE FROM token WHERE expires_at < {tokens} OR revoked_at < {tokens}"
            ))
            .await?,
            tombstones: run(format!(
                "DELETE FROM tombstone WHERE removed_at < {tombstones}"
            ))
            .await?,
        })
    }
}

impl Store {
    /// Up to which version the tombstones of each network are forgotten.
    pub(crate) async fn network_trimmed(&self) -> Result<BTreeMap<NetworkId, u64>, StoreError> {
        let rows = network::Entity::find().all(&self.reader()).await;
        let at = |column| At("network", column);
        rows.map_err(StoreError::reading)?
            .into_iter()
            .map(|row| {
                Ok((
                    at("id").bytes(&row.id)?,
                    at("trimmed").unsigned(row.trimmed)?,
                ))
            })
            .collect()
    }
}
