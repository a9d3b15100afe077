//! What can go wrong between one request and its upstream.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use http::StatusCode;

use crate::wire::WireError;

/// Any error, as hyper and tower pass them around.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The upstream could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Something answered, and nothing listens there.
    #[error("the upstream refuses connections")]
    Refused(#[source] BoxError),
    /// Nothing answered for the time given.
    #[error("the upstream did not answer the dial")]
    TimedOut,
    /// There is no way to it at present.
    #[error("the upstream cannot be reached")]
    Unreachable(#[source] BoxError),
}

impl From<io::Error> for ConnectError {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(err.into()),
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Unreachable(err.into()),
        }
    }
}

/// Why a request is not fit to be forwarded. Nothing of it reaches the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Both `Content-Length` and `Transfer-Encoding` (RFC 9112, 6.1): a smuggling attempt.
    #[error("the request has both Content-Length and Transfer-Encoding")]
    AmbiguousLength,
    /// A `Transfer-Encoding` other than `chunked` (RFC 9112, 6.1): nothing here undoes it.
    #[error("the request's Transfer-Encoding is not chunked alone")]
    TransferEncoding,
    /// `Content-Length` is not one number (RFC 9112, 6.3).
    #[error("the request's Content-Length is not one number")]
    ContentLength,
    /// No `Host`, or more than one (RFC 9112, 3.2).
    #[error("the request has no Host header, or more than one")]
    Host,
    /// `CONNECT`, or a target without a path: only an ordinary resource can be forwarded.
    #[error("the request's method or target cannot be forwarded")]
    Target,
    /// The forward address given by the caller is not an `http` URI with a host.
    #[error("the address to forward to is not an http:// URI with a host")]
    ForwardUri,
}

/// What broke in the middle of an exchange.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The upstream closed the connection before it answered.
    #[error("it closed the connection before it answered")]
    Closed,
    /// The upstream closed the connection before its response ended.
    #[error("it closed the connection in the middle of its response")]
    Truncated,
    /// The connection failed.
    #[error("the connection to it failed")]
    Io(#[source] io::Error),
    /// What came is not a response, or can be read in two ways.
    #[error("its response cannot be read")]
    Response(#[source] WireError),
    /// The body of the request broke off on the client's side.
    #[error("the request's body broke off")]
    Request(#[source] BoxError),
    /// The client stopped in the middle of the request's body, for this long.
    #[error("the client sent nothing more of the request's body for {} s", .0.as_secs_f32())]
    RequestStalled(Duration),
    /// The body of the request is not as long as it was said to be.
    #[error("the request's body has another length than it was said to have")]
    RequestLength,
}

/// Why there is no response from the upstream.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The request is not fit to be forwarded.
    #[error("bad request")]
    Request(#[from] BadRequest),
    /// The upstream could not be dialled.
    #[error("cannot dial the upstream")]
    Connect(#[from] ConnectError),
    /// The upstream was dialled but did not begin to answer in time.
    #[error("the upstream did not begin to answer within {} s", .0.as_secs_f32())]
    FirstByte(Duration),
    /// The upstream closed the connection or answered something that is not HTTP/1.1.
    #[error("the upstream broke off or does not speak HTTP/1.1")]
    Upstream(#[source] UpstreamError),
    /// The upstream switched protocols although nobody asked, or to another protocol.
    #[error("the upstream switched to a protocol that was not asked for")]
    Upgrade,
}

impl ProxyError {
    /// Whether the client is to blame, and not the upstream.
    pub const fn is_clients(&self) -> bool {
        matches!(
            self,
            Self::Request(_)
                | Self::Upstream(
                    UpstreamError::Request(_)
                        | UpstreamError::RequestLength
                        | UpstreamError::RequestStalled(_)
                )
        )
    }

    /// The status that tells a client this: 400, 408, 502, 503 or 504.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Upstream(UpstreamError::RequestStalled(_)) => StatusCode::REQUEST_TIMEOUT,
            _ if self.is_clients() => StatusCode::BAD_REQUEST,
            Self::Request(_) => StatusCode::BAD_REQUEST,
            Self::Connect(ConnectError::Unreachable(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Connect(ConnectError::TimedOut) | Self::FirstByte(_) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Connect(ConnectError::Refused(_)) | Self::Upstream(_) | Self::Upgrade => {
                StatusCode::BAD_GATEWAY
            }
        }
    }
}
