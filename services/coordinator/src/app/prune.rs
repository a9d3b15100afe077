//! Forgetting what is old, once an hour.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::Core;
use crate::config::StoreConfig;
use crate::error::Error;
use crate::store::{Cutoffs, Pruned};

/// How long after the start the first time.
const FIRST: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(60 * 60);

impl Core {
    /// Forgets what is older than the configuration keeps; never returns.
    pub(crate) async fn forget_old(self: &Arc<Self>, keep: StoreConfig) -> Infallible {
        let mut pause = FIRST;
        loop {
            tokio::time::sleep(pause).await;
            pause = EVERY;
            let (core, keep) = (Arc::clone(self), keep.clone());
            let action = async move { core.again(|| core.prune(&keep)).await };
            match self.finish("prune", action).await {
                Ok(pruned) if pruned == Pruned::default() => {}
                Ok(Pruned {
                    events,
                    tokens,
                    tombstones,
                    audit,
                }) => tracing::info!(events, tokens, tombstones, audit, "forgot what is old"),
                Err(error) => {
                    let error = mesh_daemon::report::chain(&error);
                    tracing::debug!(error, "what is old is forgotten later");
                }
            }
        }
    }

    async fn prune(&self, keep: &StoreConfig) -> Result<Pruned, Error> {
        let change = self.change("coordinator").await?;
        let cutoffs = Cutoffs {
            events: change.now.minus(keep.keep_events),
            tokens: change.now.minus(keep.keep_tokens),
            tombstones: change.now.minus(keep.keep_tombstones),
            audit: keep.keep_audit().map(|age| change.now.minus(age)),
        };
        let pruned = change.txn.prune(&cutoffs).await?;
        if pruned.audit > 0 {
            // Told by the chain itself, so that it shows who shortened it, and when.
            let rows = pruned.audit.to_string();
            let after = [("rows", rows.as_str())];
            change.audit("audit-prune", "audit", &[], &after).await?;
        }
        change.commit().await.map(drop)?;
        Ok(pruned)
    }
}
