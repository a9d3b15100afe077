//! What the coordinators of one installation share besides the database: notices of change, when
//! members were seen last, and how much callers may still do.
//!
//! INVARIANT: nothing here is the truth. Identity facts are in the store, who is online is in the
//! netmap engine, and a rate is a courtesy: without the bus everything works, a notice is found out
//! later by looking into the store, and each coordinator counts rates for itself.
//!
//! [`LocalBus`] is the bus of one process; [`RemoteBus`] goes over Redis, which only this module
//! speaks to. Nothing here makes a caller wait longer than [`TAKE_LIMIT`].

mod link;
mod local;
mod message;
mod remote;
mod target;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use mesh_daemon::Metrics;
use mesh_types::{NetworkId, Timestamp};
use tokio::sync::{broadcast, watch};

use self::link::{BusFigures, Link, Names};
pub(crate) use self::local::LocalBus;
pub(crate) use self::remote::RemoteBus;
pub(crate) use self::target::{InvalidTarget, Place, Target};
use crate::config::Config;
use crate::rate::{RateKey, Rates};

/// How long a call waits for the shared count of its rate before ours counts.
pub(crate) const TAKE_LIMIT: Duration = Duration::from_millis(100);
/// How long it is remembered that somebody was seen: as long as that makes them online or stale.
pub(crate) const SEEN_LIFE: Duration = Duration::from_secs(105);
/// How many notices may wait for a slow reader.
const NEWS: usize = 256;

/// A network is at a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) network: NetworkId,
    pub(crate) version: u64,
}

/// What came over the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Another coordinator changed a network.
    Changed(Change),
    /// Notices may have been missed: the store knows.
    Gap,
}

/// How the bus does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BusState {
    /// There is none but this process.
    InProcess,
    /// Redis answers.
    Up,
    /// Redis was not tried yet; we do without.
    NotTried,
    /// Redis does not answer, and why; we do without.
    Down(String),
}

impl BusState {
    /// Why there is no bus now but this process, although there should be one.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Self::InProcess | Self::Up => None,
            Self::NotTried => Some("not connected yet".to_owned()),
            Self::Down(reason) => Some(reason.clone()),
        }
    }
}

/// The bus.
pub(crate) trait Bus: fmt::Debug + Send + Sync {
    /// Takes one call from the share of `key`; the error says how long until there is one.
    fn take(&self, key: RateKey) -> BoxFuture<'_, Result<(), Duration>>;

    /// Tells the other coordinators of a change that was committed. Never waits.
    fn announce(&self, change: Change);

    /// Notes that a member was seen, by its id. Never waits.
    fn note_seen(&self, id: [u8; 16], at: Timestamp);

    /// When these were seen last, of those that the bus knows anything about.
    fn seen<'a>(
        &'a self,
        ids: &'a [[u8; 16]],
        now: Timestamp,
    ) -> BoxFuture<'a, HashMap<[u8; 16], Timestamp>>;

    /// What comes from others from now on. A reader that is too slow has missed something, as
    /// after [`News::Gap`].
    fn listen(&self) -> broadcast::Receiver<News>;

    /// How the bus does.
    fn state(&self) -> watch::Receiver<BusState>;
}

/// Opens the bus that is configured. One over Redis comes up by itself, now or later.
///
/// `installation` tells apart what shares a Redis, `epoch` one start of a coordinator from others.
///
/// # Errors
/// When the configuration cannot be used.
pub(crate) fn open(
    config: &Config,
    installation: [u8; 32],
    epoch: u64,
    metrics: &Metrics,
) -> Result<Arc<dyn Bus>, InvalidTarget> {
    let rates = Rates::from(&config.limits);
    Ok(match Target::new(&config.bus)? {
        None => Arc::new(LocalBus::new(rates)),
        Some(target) => {
            let names = Names::new(installation);
            let link = Link::new(target, names, Replica(epoch), BusFigures::register(metrics));
            Arc::new(RemoteBus::start(link, LocalBus::new(rates)))
        }
    })
}

/// Which coordinator says something: chosen anew at each start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replica(u64);

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
