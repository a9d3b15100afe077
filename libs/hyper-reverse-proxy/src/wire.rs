//! HTTP/1.1 as it is spoken with upstreams (RFC 9112), without any input or output of its own.
//!
//! Requests are written by [`write_request_head`]; a [`ResponseReader`] takes the bytes of
//! responses, cut anywhere. What can be read in two ways is refused: a response with two lengths,
//! a transfer coding that is not `chunked`, chunks that are not framed to the letter. Nothing that
//! was refused is ever followed by another response on the same connection.

mod chunked;
mod request;
mod response;

pub use chunked::ChunkReader;
pub use request::{RequestLength, write_request_head};
pub use response::{Length, ResponseHead, ResponseReader};

/// Why a response cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not HTTP/1.0 or HTTP/1.1, or more header lines than are accepted.
    #[error("its head is not HTTP/1.1")]
    Head,
    /// Longer than is accepted; in bytes.
    #[error("its head is longer than {0} bytes")]
    HeadTooLong(usize),
    /// Both `Content-Length` and `Transfer-Encoding` (RFC 9112, 6.3).
    #[error("it has both Content-Length and Transfer-Encoding")]
    AmbiguousLength,
    /// Several, or not a number (RFC 9112, 6.3).
    #[error("its Content-Length is not one number")]
    ContentLength,
    /// Anything but `chunked`, or in HTTP/1.0 (RFC 9112, 6.1).
    #[error("its Transfer-Encoding is not \"chunked\"")]
    TransferEncoding,
    /// Chunks that are not framed as RFC 9112, 7.1 says, or with too much beside their data.
    #[error("its chunks are not framed as they have to be")]
    Chunk,
    /// One interim response (1xx) after another.
    #[error("it sent too many interim responses")]
    Interim,
}

#[cfg(test)]
mod tests;
