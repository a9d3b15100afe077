//! Names that become DNS labels and URL path segments.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text is not a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a {kind} name: use 1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'"
)]
pub struct InvalidName {
    kind: &'static str,
    text: String,
}

/// Whether the text is a lower-case DNS label (RFC 1123, 2.1).
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        ///
        /// A lower-case DNS label: 1 to 63 of `a-z`, `0-9`, `-` (RFC 1123, 2.1).
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_label(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    let text = text.chars().take(80).collect();
                    Err(InvalidName { kind: $kind, text })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(
    /// A node's name, unique in its network.
    NodeName, "node"
);
name!(
    /// A network's name, unique in the installation.
    NetworkName, "network"
);
name!(
    /// A published service's name, unique on its node.
    ServiceName, "service"
);

impl NodeName {
    /// The nearest valid node name to a machine's host name: its first label, lower-cased, with
    /// every other character turned into `-`. `None` when nothing usable is left.
    pub fn from_hostname(hostname: &str) -> Option<Self> {
        let label = hostname.split('.').next().unwrap_or_default();
        let mapped: String = label
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .take(63)
            .collect();
        mapped.trim_matches('-').parse().ok()
    }

    /// This name with `-n` appended, shortened so that it stays a label. Used when the plain name
    /// is taken: `name-1`, `name-2`, ….
    pub fn with_suffix(&self, n: u32) -> Self {
        let suffix = format!("-{n}");
        let keep = self.0.len().min(63 - suffix.len());
        Self(format!("{}{suffix}", self.0[..keep].trim_end_matches('-')))
    }
}

impl NetworkName {
    /// The network every installation starts with.
    pub fn default_network() -> Self {
        Self("default".to_owned())
    }

    /// Whether this is the network every installation starts with.
    pub fn is_default(&self) -> bool {
        self.0 == "default"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_accepted_and_everything_else_is_refused() {
        for good in ["a", "worker-node-1", "0", &"x".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a/b",
            "ü",
            "a b",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hostname_becomes_the_nearest_label() {
        let name = |text| NodeName::from_hostname(text).map(String::from);
        assert_eq!(name("Annas_MacBook.local"), Some("annas-macbook".into()));
        assert_eq!(name("..."), None);
        assert_eq!(name("__"), None);
    }

    #[test]
    fn a_suffix_keeps_the_name_a_label() {
        let long: NodeName = "x".repeat(63).parse().expect("a label");
        assert_eq!(long.with_suffix(12).as_str().len(), 63);
        let short: NodeName = "web".parse().expect("a label");
        assert_eq!(short.with_suffix(1).as_str(), "web-1");
    }
}
