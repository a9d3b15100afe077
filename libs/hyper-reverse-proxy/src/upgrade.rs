//! Tunnels: connections that have switched protocols, WebSocket above all.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Bytes that one direction of a tunnel may hold.
const BUFFER: usize = 16 * 1024;

/// The tunnels of one proxy. Dropping the last handle ends them.
#[derive(Clone, Default)]
pub(crate) struct Tunnels(Arc<Mutex<JoinSet<()>>>);

impl Tunnels {
    /// Runs `tunnel` until it ends, or the proxy does.
    pub(crate) fn spawn(&self, tunnel: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while set.try_join_next().is_some() {}
        set.spawn(tunnel);
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while set.try_join_next().is_some() {}
        set.len()
    }

    /// Ends them all.
    pub(crate) fn close(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .abort_all();
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tunnels").field(&self.count()).finish()
    }
}

/// Copies both ways until both sides have ended. The end of one direction is passed on and leaves
/// the other one open, but not for longer than `half_closed` without a byte.
pub(crate) async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    client: OnUpgrade,
    (upstream, early): (S, Bytes),
    half_closed: Duration,
) {
    let client = match client.await {
        Ok(client) => TokioIo::new(client),
        Err(err) => {
            tracing::debug!(error = %err, "protocol switch broke off");
            return;
        }
    };
    let seen = Seen::default();
    let (mut client, mut upstream) = (Watched::new(client, &seen), Watched::new(upstream, &seen));
    let copied = async {
        client.write_all(&early).await?;
        copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await
    };
    tokio::select! {
        copied = copied => match copied {
            Ok((sent, received)) => tracing::debug!(sent, received, "tunnel closed"),
            Err(err) => tracing::debug!(error = %err, "tunnel broke off"),
        },
        () = seen.stands_still(half_closed) => {
            tracing::debug!("half of a tunnel was closed and the other one stood still");
        }
    }
}

/// What was read from the two sides of a tunnel.
#[derive(Debug, Default)]
struct Seen {
    bytes: AtomicUsize,
    /// Told when one of them ends.
    end: Notify,
}

impl Seen {
    /// Waits until one side has ended and nothing has come from the other one for so long.
    async fn stands_still(&self, limit: Duration) {
        self.end.notified().await;
        loop {
            let before = self.bytes.load(Ordering::Relaxed);
            tokio::time::sleep(limit).await;
            if self.bytes.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// One side of a tunnel.
struct Watched<'a, T> {
    io: T,
    seen: &'a Seen,
}

impl<'a, T> Watched<'a, T> {
    fn new(io: T, seen: &'a Seen) -> Self {
        Self { io, seen }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        match buf.filled().len() - before {
            0 => self.seen.end.notify_one(),
            n => {
                self.seen.bytes.fetch_add(n, Ordering::Relaxed);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<'_, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
