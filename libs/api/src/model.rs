//! Conversions between the wire and the vocabulary.
//!
//! Outgoing is infallible (`From<types::X> for pb::X`); incoming is checked here, once
//! (`TryFrom<pb::X> for types::X`). Unknown enum numbers that decide access are refused; those
//! that inform become the safest value.

pub mod addr;
pub mod enrolment;
pub mod enums;
pub mod heartbeat;
pub mod netmap;
pub mod node;

use crate::error::ProtocolError;

/// The field, or the error that it is absent.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, ProtocolError> {
    value.ok_or(ProtocolError::Missing(field))
}

/// The field through its parser.
pub(crate) fn parsed<T: std::str::FromStr>(
    field: &'static str,
    text: &str,
) -> Result<T, ProtocolError>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error| ProtocolError::invalid(field, error))
}

/// The field's bytes as an id or a key.
pub(crate) fn from_bytes<'a, T: TryFrom<&'a [u8]>>(
    field: &'static str,
    bytes: &'a [u8],
) -> Result<T, ProtocolError>
where
    T::Error: std::fmt::Display,
{
    T::try_from(bytes).map_err(|error| ProtocolError::invalid(field, error))
}
