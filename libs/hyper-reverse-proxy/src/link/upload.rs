//! The body of a request, counted as it goes out.

use crate::error::UpstreamError;
use crate::wire::RequestLength;

/// The body of a request on its way.
#[derive(Debug)]
pub(super) struct Upload<B> {
    pub(super) body: B,
    pub(super) length: RequestLength,
    /// The client is waited for: that is not the upstream being slow.
    pub(super) waits_for_client: bool,
}

impl<B> Upload<B> {
    /// So many bytes of the body go out. Whether they are the last ones.
    pub(super) fn note(&mut self, len: usize) -> Result<bool, UpstreamError> {
        match &mut self.length {
            RequestLength::Chunked => Ok(false),
            RequestLength::Exact(left) => {
                *left = left
                    .checked_sub(len as u64)
                    .ok_or(UpstreamError::RequestLength)?;
                Ok(*left == 0)
            }
        }
    }
}
