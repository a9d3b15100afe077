//! Upstream connections, kept for later requests.
//!
//! A connection has no task of its own. Whoever uses it drives it: the request while it waits for
//! the response's head, the body while it is read. That saves the hops between tasks and, more
//! than that, the second write of each response: the body is there when the head is written. An
//! idle connection is driven by nobody; it is looked at when it is taken out and by [`Pool::sweep`].

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep};

use crate::body::{Outgoing, RequestBody, Upload};
use crate::connect::Connector;
use crate::error::{ConnectError, ProxyError};

/// How long upstreams may take, and how many connections to them are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For dialling.
    pub connect: Duration,
    /// From the end of the request to the beginning of the response. A body that is still under
    /// way, in either direction, has no deadline.
    pub first_byte: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
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
            idle: Duration::from_secs(60),
            idle_per_target: 256,
            response_head: 64 * 1024,
        }
    }
}

type Driver<C, B> = Connection<TokioIo<<C as Connector>::Stream>, Outgoing<B>>;

/// One connection to an upstream. Boxed, so that handing it on moves a pointer.
struct Link<C: Connector, B: RequestBody> {
    sender: SendRequest<Outgoing<B>>,
    driver: Driver<C, B>,
    /// The driver is done and must not be polled again.
    ended: bool,
    /// The deadline of the request that is waited for. Kept with the connection, because moving a
    /// registered timer further away takes no lock.
    deadline: Pin<Box<Sleep>>,
    /// When its last request was sent, or when it was made.
    used_at: Instant,
    /// How long it had been unused before its present request.
    idle_for: Duration,
    reused: bool,
}

impl<C: Connector, B: RequestBody> Link<C, B> {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended
            && let Poll::Ready(end) = Pin::new(&mut self.driver).poll(cx)
        {
            if let Err(err) = end {
                tracing::debug!(error = %err, "upstream connection ended");
            }
            self.ended = true;
        }
    }

    /// Whether it can take another request. Looks at the socket without waiting for it.
    fn is_usable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.ended && self.sender.is_ready()
    }
}

/// A connection in use, and where it goes afterwards. Dropped, it closes the connection.
pub(crate) struct Lease<C: Connector, B: RequestBody> {
    link: Box<Link<C, B>>,
    target: C::Target,
    pool: Arc<Pool<C, B>>,
}

/// How an exchange failed, and what is left of the request.
pub(crate) struct Failed<B> {
    pub(crate) error: ProxyError,
    /// The request, when nothing of it has reached the upstream.
    pub(crate) request: Option<Request<Outgoing<B>>>,
}

impl<C: Connector, B: RequestBody> Lease<C, B> {
    /// Whether the connection has served a request before.
    pub(crate) fn is_reused(&self) -> bool {
        self.link.reused
    }

    /// How long the connection was unused before.
    pub(crate) fn idle_for(&self) -> Duration {
        self.link.idle_for
    }

    /// Lets the connection do what it can do now; `cx` is woken when it can do more.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        self.link.drive(cx);
    }

    /// Sends the request and waits for the head of the response.
    pub(crate) async fn send(
        &mut self,
        request: Request<Outgoing<B>>,
    ) -> Result<Response<Incoming>, Failed<B>> {
        let limit = self.pool.limits.first_byte;
        let upload: Option<Arc<Upload>> = request.body().upload();
        let link = &mut *self.link;
        link.deadline.as_mut().reset(link.used_at + limit);
        let mut reply = pin!(link.sender.try_send_request(request));
        poll_fn(|cx| {
            if !link.ended && Pin::new(&mut link.driver).poll(cx).is_ready() {
                link.ended = true;
            }
            if let Poll::Ready(reply) = reply.as_mut().poll(cx) {
                return Poll::Ready(reply.map_err(|mut failed: TrySendError<_>| Failed {
                    request: failed.take_message(),
                    error: ProxyError::Upstream(failed.into_error()),
                }));
            }
            while link.deadline.as_mut().poll(cx).is_ready() {
                if !upload
                    .as_ref()
                    .is_some_and(|upload| upload.excuses_silence())
                {
                    return Poll::Ready(Err(Failed {
                        request: None,
                        error: ProxyError::FirstByte(limit),
                    }));
                }
                link.deadline.as_mut().reset(Instant::now() + limit);
            }
            Poll::Pending
        })
        .await
    }

    /// After a protocol switch: the stream, and what was read from it beyond the response's head.
    pub(crate) async fn into_stream(mut self) -> (C::Stream, Bytes) {
        poll_fn(|cx| {
            self.link.drive(cx);
            if self.link.ended {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let parts = self.link.driver.into_parts();
        (parts.io.into_inner(), parts.read_buf)
    }

    /// Gives the connection back. It is closed instead when it cannot take another request.
    pub(crate) fn release(mut self) {
        if self.link.is_usable() {
            self.link.reused = true;
            let pool = Arc::clone(&self.pool);
            pool.put(self.target, self.link);
        }
    }
}

/// The unused connections to all upstreams.
pub(crate) struct Pool<C: Connector, B: RequestBody> {
    connector: C,
    pub(crate) limits: Limits,
    builder: http1::Builder,
    idle: Mutex<HashMap<C::Target, Vec<Box<Link<C, B>>>>>,
}

impl<C: Connector, B: RequestBody> Pool<C, B> {
    pub(crate) fn new(connector: C, limits: Limits) -> Self {
        let mut builder = http1::Builder::new();
        builder.max_header_size(limits.response_head);
        Self {
            connector,
            limits,
            builder,
            idle: Mutex::default(),
        }
    }

    pub(crate) fn connector(&self) -> &C {
        &self.connector
    }

    /// A kept connection that still stands, or `None`.
    pub(crate) fn take(self: &Arc<Self>, target: &C::Target) -> Option<Lease<C, B>> {
        let now = Instant::now();
        loop {
            let mut link = self.lock().get_mut(target)?.pop()?;
            link.idle_for = now.saturating_duration_since(link.used_at);
            if link.idle_for < self.limits.idle && link.is_usable() {
                link.used_at = now;
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
        let (sender, connection) = self
            .builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ProxyError::Upstream)?;
        let now = Instant::now();
        Ok(Lease {
            link: Box::new(Link {
                sender,
                driver: connection,
                ended: false,
                deadline: Box::pin(tokio::time::sleep_until(now + self.limits.first_byte)),
                used_at: now,
                idle_for: Duration::ZERO,
                reused: false,
            }),
            target: target.clone(),
            pool: Arc::clone(self),
        })
    }

    fn put(&self, target: C::Target, link: Box<Link<C, B>>) {
        let mut idle = self.lock();
        let links = idle.entry(target).or_default();
        if links.len() < self.limits.idle_per_target {
            links.push(link);
        }
    }

    /// Closes the kept connections that have ended, are too old, or lead to a target that `keep`
    /// does not want any more.
    pub(crate) fn sweep(&self, keep: impl Fn(&C::Target) -> bool) {
        let limit = self.limits.idle;
        self.lock().retain(|target, links| {
            links.retain_mut(|link| {
                keep(target) && link.used_at.elapsed() < limit && link.is_usable()
            });
            !links.is_empty()
        });
    }

    /// How many connections are kept.
    pub(crate) fn idle_count(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<C::Target, Vec<Box<Link<C, B>>>>> {
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
