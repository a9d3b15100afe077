//! One request in, one upstream, streaming and upgrades, on hyper 1.
//!
//! The name and the call shape are those of the published crate `hyper-reverse-proxy`, which this
//! one stands in for: that crate's last release is built on hyper 0.14, cannot carry a WebSocket
//! and loses all but one of several equal headers. The reasons and a measured comparison are in
//! the project's `docs/adr/0005-hyper-reverse-proxy.md`.
//!
//! ```no_run
//! use hyper_reverse_proxy::{Client, ReverseProxy, TcpConnector};
//!
//! # async fn serve(request: http::Request<hyper::body::Incoming>)
//! # -> Result<(), hyper_reverse_proxy::ProxyError> {
//! let proxy = ReverseProxy::new(Client::new(TcpConnector));
//! let client = "192.0.2.7".parse().expect("an address");
//! let response = proxy.call(client, "http://127.0.0.1:9090", request).await?;
//! # drop(response); Ok(()) }
//! ```
//!
//! [`ReverseProxy::forward`] is the same with everything said outright: who the client is and
//! whether it is to be believed ([`Inbound`]), where the upstream appears outside ([`Mount`]), and
//! what is dialled (any [`Connector`], so that upstreams may be inside an overlay).
//!
//! What it does to messages, each rule a pure function of [`headers`], [`mod@cookie`] and
//! [`location`]: takes off hop-by-hop headers and those that `Connection` nominates (RFC 9110,
//! 7.6.1), sets `X-Forwarded-*`, refuses requests that can be read in two ways (RFC 9112, 6.3),
//! confines cookies and redirects to the mount, drops what would speak for the whole origin.
//!
//! It does not choose upstreams, balance, retry what may not be repeated, cache, compress, speak
//! TLS or HTTP/2 to upstreams, or write error pages.

pub mod connect;
pub mod cookie;
pub mod error;
pub mod framing;
pub mod headers;
pub mod location;
pub mod mount;
pub mod wire;

mod body;
mod link;
mod pool;
mod proxy;
mod upgrade;

pub use body::{ProxyBody, RequestBody};
pub use connect::{Connector, TcpConnector};
pub use error::{BadRequest, BoxError, ConnectError, ProxyError, UpstreamError};
pub use framing::{Framing, GuardedIo};
pub use headers::{Inbound, Scheme};
pub use mount::{InvalidPrefix, Mount};
pub use pool::Limits;
pub use proxy::{Client, ReverseProxy, Upstream};
