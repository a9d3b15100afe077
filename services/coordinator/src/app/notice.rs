//! What other coordinators say. The store is the truth: a notice only says when to look there.
//!
//! Today one coordinator at a time may serve on a database, so one that finds changes of another in
//! the store holds an old state and ends, to be started again with the new one. A notice makes it
//! find that out at once; without one the store's regular trial finds it out.

use std::convert::Infallible;

use tokio::sync::broadcast::error::RecvError;

use super::Core;
use crate::bus::{Change, News};

impl Core {
    /// Follows the bus; never returns.
    pub(crate) async fn follow_bus(&self) -> Infallible {
        let mut news = self.bus.listen();
        loop {
            let looks = match news.recv().await {
                Ok(News::Changed(change)) => self.is_news(change).await,
                Ok(News::Gap) | Err(RecvError::Lagged(_)) => true,
                // INVARIANT: the bus lives as long as we do, and with it the sender.
                Err(RecvError::Closed) => std::future::pending().await,
            };
            if looks {
                self.examine_store().await;
            }
        }
    }

    /// Whether our state is older than what a notice says.
    async fn is_news(&self, change: Change) -> bool {
        let Change { network, version } = change;
        let known = self
            .netmap
            .with(move |engine, _| engine.version(network))
            .await;
        let is_news = !matches!(known, Ok(Some(known)) if known >= version);
        if is_news {
            tracing::info!(%network, version, "another coordinator changed a network");
        }
        is_news
    }
}
