//! How the proxy gets a byte stream to an upstream.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::error::ConnectError;

/// Dials upstreams. The proxy holds one and keeps the streams it made for later requests.
pub trait Connector: Send + Sync + 'static {
    /// Names an upstream; streams to equal targets are interchangeable. Cloned for each request,
    /// so keep it small.
    type Target: Clone + Eq + Hash + Debug + Send + Sync + Unpin + 'static;
    /// A connected byte stream. TCP streams have `TCP_NODELAY` set by the connector.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Dials `target`. The proxy bounds the time this may take.
    fn connect(
        &self,
        target: &Self::Target,
    ) -> impl Future<Output = Result<Self::Stream, ConnectError>> + Send;

    /// A stream has switched protocols: from now on it carries what somebody works with, for as
    /// long as it lasts.
    fn upgraded(&self, _stream: &Self::Stream) {}
}

/// Dials plain TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    type Target = SocketAddr;
    type Stream = TcpStream;

    async fn connect(&self, target: &SocketAddr) -> Result<TcpStream, ConnectError> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
