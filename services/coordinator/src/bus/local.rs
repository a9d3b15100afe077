//! The bus of one process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mesh_types::Timestamp;
use tokio::sync::{broadcast, watch};

use super::{Bus, BusState, Change, NEWS, News, SEEN_LIFE};
use crate::rate::{RateKey, RateLimiter, Rates};

/// How many members' sightings are kept; old ones go first.
const CAPACITY: usize = 65_536;

/// What the coordinators of one process share.
#[derive(Debug)]
struct Hub {
    rates: Mutex<RateLimiter>,
    seen: Mutex<HashMap<[u8; 16], Timestamp>>,
    readers: Mutex<Vec<broadcast::Sender<News>>>,
}

/// One coordinator's end of it.
#[derive(Debug)]
pub(crate) struct LocalBus {
    hub: Arc<Hub>,
    /// Which of the hub's readers is us.
    own: usize,
    news: broadcast::Sender<News>,
    state: watch::Sender<BusState>,
}

impl LocalBus {
    /// The only one of its process.
    pub(crate) fn new(rates: Rates) -> Self {
        Self::on(Arc::new(Hub {
            rates: Mutex::new(RateLimiter::new(rates)),
            seen: Mutex::default(),
            readers: Mutex::default(),
        }))
    }

    fn on(hub: Arc<Hub>) -> Self {
        let news = broadcast::Sender::new(NEWS);
        let mut readers = hub.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let own = readers.len();
        readers.push(news.clone());
        drop(readers);
        Self {
            hub,
            own,
            news,
            state: watch::Sender::new(BusState::InProcess),
        }
    }

    /// Another coordinator on the same bus.
    #[cfg(test)]
    pub(crate) fn another(&self) -> Self {
        Self::on(Arc::clone(&self.hub))
    }

    /// How much each may do.
    pub(super) fn limits(&self) -> Rates {
        let rates = self
            .hub
            .rates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rates.limits()
    }

    /// Takes one call, at once.
    pub(super) fn take_now(&self, key: RateKey) -> Result<(), Duration> {
        let now = tokio::time::Instant::now().into_std();
        let mut rates = self
            .hub
            .rates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rates.take(key, now)
    }
}

impl Bus for LocalBus {
    fn take(&self, key: RateKey) -> BoxFuture<'_, Result<(), Duration>> {
        std::future::ready(self.take_now(key)).boxed()
    }

    fn announce(&self, change: Change) {
        let readers = self
            .hub
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (at, reader) in readers.iter().enumerate() {
            if at != self.own {
                // Nobody may listen there just now.
                drop(reader.send(News::Changed(change)));
            }
        }
    }

    fn note_seen(&self, id: [u8; 16], at: Timestamp) {
        let mut seen = self.hub.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= CAPACITY {
            seen.retain(|_, last| at.since(*last) < SEEN_LIFE);
        }
        if seen.len() < CAPACITY || seen.contains_key(&id) {
            seen.insert(id, at);
        }
    }

    fn seen<'a>(
        &'a self,
        ids: &'a [[u8; 16]],
        now: Timestamp,
    ) -> BoxFuture<'a, HashMap<[u8; 16], Timestamp>> {
        let seen = self.hub.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = ids.iter().filter_map(|id| {
            let at = *seen.get(id)?;
            (at <= now && now.since(at) < SEEN_LIFE).then_some((*id, at))
        });
        std::future::ready(found.collect()).boxed()
    }

    fn listen(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    fn state(&self) -> watch::Receiver<BusState> {
        self.state.subscribe()
    }
}
