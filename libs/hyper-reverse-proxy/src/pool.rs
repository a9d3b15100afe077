//! Upstream connections, kept for later requests.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request;
use tokio::time::Instant;

use crate::body::{Outgoing, RequestBody};
use crate::connect::Connector;
use crate::error::{ConnectError, ProxyError};
use crate::headers::Forwarded;
use crate::link::{Failed, Link};
use crate::wire::ResponseHead;

/// How long upstreams may take, and how many connections to them are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For dialling.
    pub connect: Duration,
    /// From the end of the request to the beginning of the response. A body that moves, in either
    /// direction, has no deadline.
    pub first_byte: Duration,
    /// How long a client may send nothing of an unfinished body before the response has begun; looked
    /// at when `first_byte` is over, so up to that much later.
    pub client_silence: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
    /// How long nothing may come through a tunnel that one side has ended; up to twice that.
    pub half_closed: Duration,
    /// How many unused connections to one upstream are kept.
    pub idle_per_target: usize,
    /// The longest response head that is accepted, in bytes.
    pub response_head: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            client_silence: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            half_closed: Duration::from_secs(60),
            idle_per_target: 64,
            response_head: 64 * 1024,
        }
    }
}

/// Boxed, so that handing a connection on moves a pointer.
type Kept<C, B> = Box<Link<<C as Connector>::Stream, B>>;
type Idle<C, B> =
    HashMap<<C as Connector>::Target, Vec<Kept<C, B>>, BuildHasherDefault<TargetHasher>>;

/// A connection in use, and where it goes afterwards. Dropped, it closes the connection.
pub(crate) struct Lease<C: Connector, B: RequestBody> {
    link: Kept<C, B>,
    target: C::Target,
    pool: Arc<Pool<C, B>>,
}

impl<C: Connector, B: RequestBody> Lease<C, B> {
    /// The connection.
    pub(crate) fn link(&mut self) -> &mut Link<C::Stream, B> {
        &mut self.link
    }

    /// How many bytes of the response's body are still to come, when that is known.
    pub(crate) fn body_left(&self) -> Option<u64> {
        self.link.body_left()
    }

    /// Sends the request and waits for the head of the response.
    pub(crate) async fn send(
        &mut self,
        head: &mut request::Parts,
        forwarded: Option<Forwarded<'_>>,
        body: Outgoing<B>,
    ) -> Result<ResponseHead, Failed<B>> {
        let limits = self.pool.limits;
        self.link.send(head, forwarded, body, &limits).await
    }

    /// After a protocol switch: the stream, and what was read from it beyond the response's head.
    pub(crate) fn into_stream(self) -> Option<(C::Stream, Bytes)> {
        self.link.into_stream()
    }

    /// Gives the connection back. It is closed instead when it cannot take another request.
    pub(crate) fn release(self) {
        if self.link.is_reusable() {
            self.pool.put(&self.target, self.link);
        }
    }
}

/// The unused connections to all upstreams.
pub(crate) struct Pool<C: Connector, B: RequestBody> {
    connector: C,
    limits: Limits,
    idle: Mutex<Idle<C, B>>,
}

impl<C: Connector, B: RequestBody> Pool<C, B> {
    pub(crate) fn new(connector: C, limits: Limits) -> Self {
        Self {
            connector,
            limits,
            idle: Mutex::default(),
        }
    }

    pub(crate) fn connector(&self) -> &C {
        &self.connector
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A kept connection that still stands, or `None`.
    pub(crate) fn take(self: &Arc<Self>, target: &C::Target) -> Option<Lease<C, B>> {
        let now = Instant::now();
        loop {
            let mut link = self.lock().get_mut(target)?.pop()?;
            if link.take_up(now) < self.limits.idle && link.is_quiet() {
                return Some(Lease {
                    link,
                    target: target.clone(),
                    pool: Arc::clone(self),
                });
            }
        }
    }

    /// A new connection.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        target: &C::Target,
    ) -> Result<Lease<C, B>, ProxyError> {
        let dial = self.connector.connect(target);
        let stream = tokio::time::timeout(self.limits.connect, dial)
            .await
            .map_err(|_| ConnectError::TimedOut)??;
        Ok(Lease {
            link: Box::new(Link::new(stream, self.limits.response_head)),
            target: target.clone(),
            pool: Arc::clone(self),
        })
    }

    fn put(&self, target: &C::Target, link: Kept<C, B>) {
        let mut idle = self.lock();
        match idle.get_mut(target) {
            Some(links) if links.len() < self.limits.idle_per_target => links.push(link),
            Some(_) => {}
            None => {
                idle.insert(target.clone(), vec![link]);
            }
        }
    }

    /// Closes the kept connections that have ended, are too old, or lead to a target that `keep`
    /// does not want any more.
    pub(crate) fn sweep(&self, keep: impl Fn(&C::Target) -> bool) {
        let limit = self.limits.idle;
        self.lock().retain(|target, links| {
            links.retain_mut(|link| {
                link.shrink();
                keep(target) && link.used_at().elapsed() < limit && link.is_quiet()
            });
            !links.is_empty()
        });
    }

    /// How many connections are kept.
    pub(crate) fn idle_count(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Idle<C, B>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Connector, B: RequestBody> fmt::Debug for Pool<C, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("idle", &self.idle_count())
            .finish_non_exhaustive()
    }
}

/// Hashes targets. They come from the configuration, not from strangers, so that quick will do.
#[derive(Debug, Default)]
struct TargetHasher(u64);

impl TargetHasher {
    fn mix(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for TargetHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}
