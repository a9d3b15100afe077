//! The bus over Redis, with the bus of one process as its stand-in.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mesh_daemon::Task;
use mesh_types::Timestamp;
use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use super::link::Link;
use super::{Bus, BusState, Change, LocalBus, News, SEEN_LIFE, TAKE_LIMIT};
use crate::rate::{RateConfig, RateKey};

/// How long a start waits for sightings of before.
const SEEN_LIMIT: Duration = Duration::from_secs(2);
/// How many keys are asked for at once.
const BATCH: usize = 1000;

/// One token bucket: takes a call, or answers how many milliseconds until there is one. Redis' own
/// clock counts, since those of coordinators may differ.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local burst, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
        local time = redis.call('TIME')
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
        local tokens = tonumber(held[1]) or burst
        local at = tonumber(held[2]) or now
        tokens = math.min(burst, tokens + math.max(0, now - at) * rate / 1000)
        local wait = 0
        if tokens >= 1 then
            tokens = tokens - 1
        else
            wait = math.ceil((1 - tokens) * 1000 / rate)
        end
        redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', now)
        redis.call('PEXPIRE', KEYS[1], math.ceil((burst - tokens) * 1000 / rate) + 1000)
        return wait
        ",
    )
});

/// The bus over Redis.
#[derive(Debug)]
pub(crate) struct RemoteBus {
    link: Arc<Link>,
    stand_in: LocalBus,
    limits: crate::rate::Rates,
    _keeper: Task,
}

impl RemoteBus {
    /// Starts the task that keeps the connections up.
    pub(super) fn start(link: Link, stand_in: LocalBus) -> Self {
        let limits = stand_in.limits();
        let link = Arc::new(link);
        let kept = Arc::clone(&link);
        let keeper = Task::spawn("bus", async move {
            kept.run().await;
        });
        Self {
            link,
            stand_in,
            limits,
            _keeper: keeper,
        }
    }

    /// How many rates were counted without Redis.
    #[cfg(test)]
    pub(super) fn fallbacks(&self) -> u64 {
        self.link.figures.fallbacks.get()
    }

    /// Asks Redis; `None` when it cannot say.
    async fn take_shared(
        &self,
        mut commands: MultiplexedConnection,
        key: RateKey,
    ) -> Option<Result<(), Duration>> {
        let RateConfig { burst, per_second } = self.limits.of(key);
        let mut take = TAKE.key(self.link.names.rate(&key));
        take.arg(burst).arg(per_second);
        let asked = take.invoke_async::<u64>(&mut commands);
        match timeout(TAKE_LIMIT, asked).await {
            Ok(Ok(0)) => Some(Ok(())),
            Ok(Ok(wait)) => Some(Err(Duration::from_millis(wait))),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the shared count of a rate failed");
                self.link.suspect();
                None
            }
            Err(_) => {
                self.link.suspect();
                None
            }
        }
    }

    async fn seen_shared(&self, ids: &[[u8; 16]]) -> redis::RedisResult<HashMap<[u8; 16], i64>> {
        let mut up = self.link.state.subscribe();
        // The caller's limit ends this wait.
        drop(up.wait_for(|state| *state == BusState::Up).await);
        let mut found = HashMap::new();
        let Some(mut commands) = self.link.commands() else {
            return Ok(found);
        };
        for batch in ids.chunks(BATCH) {
            let mut get = redis::cmd("MGET");
            for id in batch {
                get.arg(self.link.names.seen(id));
            }
            let answers: Vec<Option<i64>> = get.query_async(&mut commands).await?;
            let known = batch.iter().zip(answers);
            found.extend(known.filter_map(|(id, at)| Some((*id, at?))));
        }
        Ok(found)
    }
}

impl Bus for RemoteBus {
    fn take(&self, key: RateKey) -> BoxFuture<'_, Result<(), Duration>> {
        async move {
            let shared = match self.link.commands() {
                Some(commands) => self.take_shared(commands, key).await,
                None => None,
            };
            shared.unwrap_or_else(|| {
                self.link.figures.fallbacks.inc();
                self.stand_in.take_now(key)
            })
        }
        .boxed()
    }

    fn announce(&self, change: Change) {
        self.link.announce(change);
    }

    fn note_seen(&self, id: [u8; 16], at: Timestamp) {
        self.link.note_seen(id, at);
    }

    fn seen<'a>(
        &'a self,
        ids: &'a [[u8; 16]],
        now: Timestamp,
    ) -> BoxFuture<'a, HashMap<[u8; 16], Timestamp>> {
        async move {
            if ids.is_empty() {
                return HashMap::new();
            }
            let found = match timeout(SEEN_LIMIT, self.seen_shared(ids)).await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => {
                    tracing::info!(%error, "the bus did not say who was seen last");
                    HashMap::new()
                }
                Err(_) => HashMap::new(),
            };
            // Nobody was seen in the future, and what is older than that is no news.
            found
                .into_iter()
                .map(|(id, micros)| (id, Timestamp::from_micros(micros)))
                .filter(|(_, at)| *at <= now && now.since(*at) < SEEN_LIFE)
                .collect()
        }
        .boxed()
    }

    fn listen(&self) -> broadcast::Receiver<News> {
        self.link.news.subscribe()
    }

    fn state(&self) -> watch::Receiver<BusState> {
        self.link.state.subscribe()
    }
}
