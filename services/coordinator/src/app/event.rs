//! Following events: the past from the store, then what happens, without gaps.

use std::sync::Arc;

use mesh_types::NetworkName;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Core;
use crate::error::Error;
use crate::record::{AuditEntry, EventRecord};

/// How many past events and entries are told unless asked otherwise, and at most.
const PAST: u64 = 100;
const PAST_MAX: u64 = 10_000;

/// Events as one watcher wants them.
#[derive(Debug)]
pub(crate) struct EventFeed {
    core: Arc<Core>,
    network: Option<NetworkName>,
    live: broadcast::Receiver<Arc<EventRecord>>,
    last: i64,
}

impl Core {
    /// The newest entries of the audit chain with their places in it, oldest first.
    pub(crate) async fn audit(&self, limit: u32) -> Result<Vec<(i64, AuditEntry)>, Error> {
        Ok(self.store.audit_list(past(limit)).await?)
    }

    /// Past events, oldest first, and a feed of what follows them. `network` empty: all.
    pub(crate) async fn events(
        self: &Arc<Self>,
        network: &str,
        limit: u32,
    ) -> Result<(Vec<EventRecord>, EventFeed), Error> {
        let network = match network {
            "" => None,
            // Events of deleted networks may be asked for, so the name need not exist.
            name => Some(
                name.parse()
                    .map_err(|_| Error::Invalid("not a network name".into()))?,
            ),
        };
        // Listening starts before the past is read, so nothing falls in between.
        let live = self.feed.subscribe();
        let limit = past(limit);
        let name = network.as_ref().map(NetworkName::as_str);
        let past = self.store.event_list(name, 0, limit).await?;
        let last = past.last().map_or(0, |event| event.id);
        Ok((
            past,
            EventFeed {
                core: Arc::clone(self),
                network,
                live,
                last,
            },
        ))
    }
}

/// How many are told when so many are wished.
fn past(limit: u32) -> u64 {
    match limit {
        0 => PAST,
        limit => u64::from(limit).min(PAST_MAX),
    }
}

impl EventFeed {
    /// The next events; a watcher that was too slow gets what it missed from the store.
    /// Cancel-safe but for events being read from the store, which are then read again.
    pub(crate) async fn next(&mut self) -> Result<Vec<EventRecord>, Error> {
        loop {
            let events = match self.live.recv().await {
                Ok(event) => vec![EventRecord::clone(&event)],
                Err(RecvError::Lagged(_)) => {
                    let name = self.network.as_ref().map(NetworkName::as_str);
                    self.core
                        .store
                        .event_list(name, self.last, PAST_MAX)
                        .await?
                }
                Err(RecvError::Closed) => return Err(Error::ShuttingDown),
            };
            let wanted = |event: &EventRecord| {
                event.id > self.last && (self.network.is_none() || event.network == self.network)
            };
            let events: Vec<_> = events.into_iter().filter(wanted).collect();
            if let Some(newest) = events.last() {
                self.last = newest.id;
                return Ok(events);
            }
        }
    }
}
