//! The audit chain: who did what. Rows are only ever added; each holds the hash of the one before,
//! so that a changed or missing row shows.

use ring::digest::{Context, SHA256};
use sea_orm::ActiveValue::Set;
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use super::entity::audit;
use super::{Store, StoreError, Txn};
use crate::record::AuditEntry;

const GENESIS: [u8; 32] = [0; 32];

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
}

/// How many rows are read at once.
const PAGE: u64 = 1_000;

impl Store {
    /// Walks the whole chain. `Ok(n)`: all `n` links hold; `Err` of the first that does not.
    pub(crate) async fn audit_verify(&self) -> Result<Result<i64, i64>, StoreError> {
        let mut previous = GENESIS.to_vec();
        let mut links = 0;
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
                let holds = row.seq == seq
                    && row.previous_hash == previous
                    && row.hash == link(&previous, seq, &entry(&row));
                if !holds {
                    return Ok(Err(seq));
                }
                previous = row.hash;
                links = seq;
            }
        }
    }
}
