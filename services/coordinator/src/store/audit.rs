//! The audit chain: who did what. Each row holds the hash of the one before, so that a changed or
//! missing row shows. Rows are added at one end; only the oldest part may be forgotten, and the chain
//! remembers up to where.

use mesh_types::Timestamp;
use ring::digest::{Context, SHA256};
use sea_orm::ActiveValue::Set;
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use super::entity::audit;
use super::meta::{one_value, read_meta, set_meta};
use super::{Store, StoreError, Txn};
use crate::record::AuditEntry;

const GENESIS: [u8; 32] = [0; 32];
/// The row of `meta` with the last link that was forgotten.
const TRIMMED_KEY: &str = "audit_trimmed";

/// SHA-256 over the previous hash and every field, each with its length ahead of it.
fn link(previous: &[u8], seq: i64, entry: &AuditEntry) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    let mut field = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    field(previous);
    field(&seq.to_be_bytes());
    field(&entry.time.as_micros().to_be_bytes());
    for text in [
        &entry.actor,
        &entry.action,
        &entry.subject,
        &entry.before,
        &entry.after,
    ] {
        field(text.as_bytes());
    }
    context.finish().as_ref().to_vec()
}

fn entry(row: &audit::Model) -> AuditEntry {
    AuditEntry {
        time: super::row::time(row.time),
        actor: row.actor.clone(),
        action: row.action.clone(),
        subject: row.subject.clone(),
        before: row.before.clone(),
        after: row.after.clone(),
    }
}

impl Txn {
    /// Adds a link to the chain.
    pub(crate) async fn audit_append(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        let last = audit::Entity::find()
            .order_by_desc(audit::Column::Seq)
            .one(&self.inner)
            .await
            .map_err(StoreError::reading)?;
        let (seq, previous) = last.map_or((1, GENESIS.to_vec()), |row| {
            (row.seq.saturating_add(1), row.hash)
        });
        let row = audit::ActiveModel {
            seq: Set(seq),
            time: Set(entry.time.as_micros()),
            actor: Set(entry.actor.clone()),
            action: Set(entry.action.clone()),
            subject: Set(entry.subject.clone()),
            before: Set(entry.before.clone()),
            after: Set(entry.after.clone()),
            hash: Set(link(&previous, seq, entry)),
            previous_hash: Set(previous),
        };
        audit::Entity::insert(row)
            .exec_without_returning(&self.inner)
            .await
            .map_err(StoreError::writing)?;
        Ok(())
    }

    /// Forgets the oldest links up to the first one that is not older than `cutoff`, never the
    /// newest one; answers how many.
    pub(super) async fn audit_trim(&self, cutoff: Timestamp) -> Result<u64, StoreError> {
        let cutoff = cutoff.as_micros();
        let first_kept = format!(
            "SELECT coalesce((SELECT min(seq) FROM audit WHERE time >= {cutoff}), \
             (SELECT max(seq) FROM audit), 0)"
        );
        let first_kept = one_value(&self.inner, first_kept).await;
        let first_kept = first_kept.map_err(StoreError::reading)?;
        let gone = audit::Entity::delete_many()
            .filter(audit::Column::Seq.lt(first_kept))
            .exec(&self.inner)
            .await
            .map_err(StoreError::writing)?
            .rows_affected;
        if gone > 0 {
            set_meta(&self.inner, TRIMMED_KEY, first_kept - 1).await?;
        }
        Ok(gone)
    }
}

/// How many rows are read at once.
const PAGE: u64 = 1_000;

impl Store {
    /// The newest `limit` links with their places in the chain, oldest first.
    pub(crate) async fn audit_list(
        &self,
        limit: u64,
    ) -> Result<Vec<(i64, AuditEntry)>, StoreError> {
        let rows = audit::Entity::find()
            .order_by_desc(audit::Column::Seq)
            .limit(limit)
            .all(&self.reader())
            .await
            .map_err(StoreError::reading)?;
        let entries = rows.iter().rev().map(|row| (row.seq, entry(row)));
        Ok(entries.collect())
    }

    /// Walks the whole chain from the first link that is kept. `Ok(n)`: all links up to `n` hold;
    /// `Err` of the first that does not.
    pub(crate) async fn audit_verify(&self) -> Result<Result<i64, i64>, StoreError> {
        let mut trimmed = self.audit_trimmed().await?;
        loop {
            let walked = self.audit_walk(trimmed).await?;
            // Links that went meanwhile because they were old are no gap.
            let now = self.audit_trimmed().await?;
            if walked.is_ok() || now == trimmed {
                return Ok(walked);
            }
            trimmed = now;
        }
    }

    async fn audit_trimmed(&self) -> Result<i64, StoreError> {
        Ok(read_meta(&self.reader(), TRIMMED_KEY).await?.unwrap_or(0))
    }

    /// Walks the chain behind the links that were forgotten.
    pub(super) async fn audit_walk(&self, trimmed: i64) -> Result<Result<i64, i64>, StoreError> {
        // The hash of the last link that was forgotten is known from its successor only.
        let mut previous = (trimmed == 0).then(|| GENESIS.to_vec());
        let mut links = trimmed;
        loop {
            let rows = audit::Entity::find()
                .filter(audit::Column::Seq.gt(links))
                .order_by_asc(audit::Column::Seq)
                .limit(PAGE)
                .all(&self.reader())
                .await
                .map_err(StoreError::reading)?;
            if rows.is_empty() {
                return Ok(Ok(links));
            }
            for row in rows {
                let seq = links + 1;
                let before = previous.unwrap_or_else(|| row.previous_hash.clone());
                let holds = row.seq == seq
                    && row.previous_hash == before
                    && row.hash == link(&before, seq, &entry(&row));
                if !holds {
                    return Ok(Err(seq));
                }
                previous = Some(row.hash);
                links = seq;
            }
        }
    }
}
