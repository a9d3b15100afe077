//! Tunnels: connections that have switched protocols, WebSocket above all.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
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
/// the other one open.
pub(crate) async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    client: OnUpgrade,
    (mut upstream, early): (S, Bytes),
) {
    let mut client = match client.await {
        Ok(client) => TokioIo::new(client),
        Err(err) => {
            tracing::debug!(error = %err, "protocol switch broke off");
            return;
        }
    };
    let copied = async {
        client.write_all(&early).await?;
        copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await
    };
    match copied.await {
        Ok((sent, received)) => tracing::debug!(sent, received, "tunnel closed"),
        Err(err) => tracing::debug!(error = %err, "tunnel broke off"),
    }
}
