//! Identifiers: one newtype per kind of thing, so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The text or bytes are not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id (expected a UUID such as 018f3c1e-7d3a-7c21-9a5e-0242ac120002)")]
pub struct InvalidId {
    kind: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        ///
        /// 16 bytes, shown as a hyphenated UUID. Ordered by its bytes, which for the version 7
        /// UUIDs (RFC 9562) that the coordinator makes is the order of creation.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The identifier with exactly these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// A version 7 UUID from the time and randomness given by the caller.
            ///
            /// `unix_millis` is milliseconds since the Unix epoch; its low 48 bits are used.
            pub fn from_parts(unix_millis: u64, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(unix_millis, &random).into_uuid())
            }

            /// The 16 bytes, as they travel.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The 16 bytes by value.
            pub const fn to_bytes(self) -> [u8; 16] {
                *self.0.as_bytes()
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;

            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| InvalidId { kind: $kind })
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId { kind: $kind })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, ":{}"), self.0)
            }
        }
    };
}

id!(
    /// A node: one enrolled machine (or in-process role) in one network.
    NodeId, "node"
);
id!(
    /// A network: the unit of isolation.
    NetworkId, "network"
);
id!(
    /// A join token.
    TokenId, "token"
);
id!(
    /// A relay of the installation.
    RelayId, "relay"
);
id!(
    /// An operator credential.
    OperatorId, "operator"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_bytes() {
        let id = NodeId::from_parts(1_700_000_000_000, [7; 10]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(NodeId::try_from(id.as_bytes().as_slice()), Ok(id));
    }

    #[test]
    fn ids_made_later_sort_later() {
        assert!(NodeId::from_parts(1, [255; 10]) < NodeId::from_parts(2, [0; 10]));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(NodeId::try_from([0u8; 15].as_slice()).is_err());
        assert!("node-1".parse::<NodeId>().is_err());
    }
}
