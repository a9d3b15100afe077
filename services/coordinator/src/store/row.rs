//! Checked ways from columns to values.

use std::str::FromStr;

use mesh_types::{IdentityPublicKey, NodeName, Timestamp, UptimeClass};
use serde::{Deserialize, Serialize};

use super::StoreError;

/// Names a column for the error that its value cannot be.
#[derive(Clone, Copy)]
pub(super) struct At(pub(super) &'static str, pub(super) &'static str);

impl At {
    pub(super) fn corrupt(self) -> StoreError {
        StoreError::Corrupt {
            table: self.0,
            column: self.1,
        }
    }

    /// Bytes as an id or a key.
    pub(super) fn bytes<'a, T: TryFrom<&'a [u8]>>(self, bytes: &'a [u8]) -> Result<T, StoreError> {
        T::try_from(bytes).map_err(|_| self.corrupt())
    }

    /// Text through its parser.
    pub(super) fn text<T: FromStr>(self, text: &str) -> Result<T, StoreError> {
        text.parse().map_err(|_| self.corrupt())
    }

    pub(super) fn identity(self, spki: &[u8]) -> Result<IdentityPublicKey, StoreError> {
        IdentityPublicKey::from_spki_der(spki).map_err(|_| self.corrupt())
    }

    pub(super) fn json<T: for<'de> Deserialize<'de>>(self, text: &str) -> Result<T, StoreError> {
        serde_json::from_str(text).map_err(|_| self.corrupt())
    }

    pub(super) fn unsigned(self, value: i64) -> Result<u64, StoreError> {
        u64::try_from(value).map_err(|_| self.corrupt())
    }

    pub(super) fn uptime_class(self, text: &str) -> Result<UptimeClass, StoreError> {
        [
            UptimeClass::AlwaysOn,
            UptimeClass::OnDemand,
            UptimeClass::WorkHours,
        ]
        .into_iter()
        .find(|class| class.as_str() == text)
        .ok_or_else(|| self.corrupt())
    }
}

/// That a statement about one row has found it.
pub(super) fn found(rows: u64) -> Result<(), StoreError> {
    if rows == 0 {
        Err(StoreError::Missing)
    } else {
        Ok(())
    }
}

/// A list as JSON text.
pub(super) fn to_json<T: Serialize>(values: &T) -> String {
    serde_json::to_string(values).expect("lists of strings and plain structs always serialise")
}

pub(super) fn time(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

/// Versions start at 0 and rise by one, so this never saturates in practice.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The first of `wished`, `wished-1`, … that `taken` does not hold.
pub(super) fn free_name(wished: &NodeName, taken: impl Fn(&NodeName) -> bool) -> NodeName {
    if !taken(wished) {
        return wished.clone();
    }
    (1..)
        .map(|n| wished.with_suffix(n))
        .find(|name| !taken(name))
        .expect("a finite table leaves one of endlessly many names free")
}
