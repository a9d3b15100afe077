//! Who a certificate speaks for: its URI subject alternative name (RFC 5280, 4.2.1.6).

use std::fmt;
use std::str::FromStr;

use mesh_types::{NetworkName, NodeId, OperatorId, RelayId};

/// Whom the coordinator's CA certified.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A node of a network: `mesh://<network>/<node id>`.
    Node {
        /// The network's name when the certificate was made.
        network: NetworkName,
        /// The node.
        node: NodeId,
    },
    /// A relay of the installation: `mesh://relay/<relay id>`.
    Relay(RelayId),
    /// An operator: `mesh://operator/<operator id>`.
    Operator(OperatorId),
}

/// The URI names nobody this product knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate names nobody of this mesh")]
pub struct InvalidSubject;

/// Networks may not take these names, since they are the other kinds of subject.
pub const RESERVED_NETWORK_NAMES: [&str; 2] = ["relay", "operator"];

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { network, node } => write!(f, "mesh://{network}/{node}"),
            Self::Relay(id) => write!(f, "mesh://relay/{id}"),
            Self::Operator(id) => write!(f, "mesh://operator/{id}"),
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(uri: &str) -> Result<Self, InvalidSubject> {
        let rest = uri.strip_prefix("mesh://").ok_or(InvalidSubject)?;
        let (head, id) = rest.split_once('/').ok_or(InvalidSubject)?;
        match head {
            "relay" => id.parse().map(Self::Relay).map_err(|_| InvalidSubject),
            "operator" => id.parse().map(Self::Operator).map_err(|_| InvalidSubject),
            network => Ok(Self::Node {
                network: network.parse().map_err(|_| InvalidSubject)?,
                node: id.parse().map_err(|_| InvalidSubject)?,
            }),
        }
    }
}

impl Subject {
    /// The subject of a certificate: its only `mesh://` URI name.
    ///
    /// Chain and validity are not checked here; TLS does that.
    pub fn from_certificate(der: &[u8]) -> Result<Self, InvalidSubject> {
        use x509_parser::extensions::GeneralName;

        let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| InvalidSubject)?;
        let names = cert
            .subject_alternative_name()
            .map_err(|_| InvalidSubject)?;
        let names = names.ok_or(InvalidSubject)?;
        let mut uris = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) if uri.starts_with("mesh://") => Some(*uri),
                _ => None,
            });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse(),
            _ => Err(InvalidSubject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_subject_survives_its_uri() {
        for subject in [
            Subject::Node {
                network: NetworkName::default_network(),
                node: NodeId::from_bytes([1; 16]),
            },
            Subject::Relay(RelayId::from_bytes([2; 16])),
            Subject::Operator(OperatorId::from_bytes([3; 16])),
        ] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
    }

    #[test]
    fn other_uris_name_nobody() {
        for uri in [
            "https://x/y",
            "mesh://",
            "mesh://default",
            "mesh://Default/x",
            "mesh://relay/x",
        ] {
            assert_eq!(uri.parse::<Subject>(), Err(InvalidSubject), "{uri}");
        }
    }
}
