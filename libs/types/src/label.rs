//! Labels that operators put on nodes, and selectors that choose nodes by them.
//!
//! Grammar and meaning are those of Kubernetes' labels and equality-based selectors, without the
//! DNS prefix's own rules: a key may hold `/` and `.` anywhere but at its ends.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest key and value, in bytes.
const LONGEST: usize = 63;

/// The text is no label, or one label too many.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabel {
    /// The key has a wrong length or a wrong character.
    #[error(
        "{0:?} is not a label's key: use 1 to 63 of a-z, A-Z, 0-9, '-', '_', '.' and '/', starting \
         and ending with a letter or digit"
    )]
    Key(String),
    /// The value has a wrong length or a wrong character.
    #[error(
        "{0:?} is not a label's value: use up to 63 of a-z, A-Z, 0-9, '-', '_' and '.', starting \
         and ending with a letter or digit"
    )]
    Value(String),
    /// No `=` in it.
    #[error("{0:?} is not a label: write KEY=VALUE")]
    NoValue(String),
    /// A requirement of a selector that is neither of the four forms.
    #[error("{0:?} selects nothing: write KEY=VALUE, KEY!=VALUE, KEY or !KEY, joined by commas")]
    Requirement(String),
    /// More labels than a node may have.
    #[error("a node may have at most {} labels", Labels::MOST)]
    TooMany,
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_word(text: &str, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let ends_well = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    (1..=LONGEST).contains(&bytes.len())
        && ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || inner.contains(byte))
}

fn key(text: &str) -> Result<String, InvalidLabel> {
    if is_word(text, b"-_./") {
        Ok(text.to_owned())
    } else {
        Err(InvalidLabel::Key(shown(text)))
    }
}

fn value(text: &str) -> Result<String, InvalidLabel> {
    if text.is_empty() || is_word(text, b"-_.") {
        Ok(text.to_owned())
    } else {
        Err(InvalidLabel::Value(shown(text)))
    }
}

/// One label: `KEY=VALUE`; the value may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: String,
}

impl Label {
    /// A label of these two.
    pub fn new(of: &str, with: &str) -> Result<Self, InvalidLabel> {
        Ok(Self {
            key: key(of)?,
            value: value(with)?,
        })
    }

    /// Its key and its value.
    pub fn into_pair(self) -> (String, String) {
        (self.key, self.value)
    }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let Some((k, v)) = text.split_once('=') else {
            return Err(InvalidLabel::NoValue(shown(text)));
        };
        Self::new(k, v)
    }
}

/// The labels of a node, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// How many labels a node may have.
    pub const MOST: usize = 32;

    /// Sets a label, in the place of one with the same key.
    pub fn set(&mut self, label: Label) -> Result<(), InvalidLabel> {
        if self.0.len() >= Self::MOST && !self.0.contains_key(&label.key) {
            return Err(InvalidLabel::TooMany);
        }
        self.0.insert(label.key, label.value);
        Ok(())
    }

    /// Takes the label of this key off; whether there was one.
    pub fn remove(&mut self, key: &str) -> bool {
        self.0.remove(key).is_some()
    }

    /// The value of this key's label.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = InvalidLabel;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, InvalidLabel> {
        if map.len() > Self::MOST {
            return Err(InvalidLabel::TooMany);
        }
        for (k, v) in &map {
            key(k)?;
            value(v)?;
        }
        Ok(Self(map))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

/// `a=1,b=2`
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (key, value)) in self.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// Chooses nodes by their labels: requirements joined by commas, all of which must hold.
///
/// `env=prod` (the label is there with that value; `==` is the same), `env!=prod` (it is not there,
/// or with another value), `gpu` (it is there), `!gpu` (it is not).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

impl Selector {
    /// Whether all requirements hold.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Is(key, value) => labels.value(key) == Some(value),
            Requirement::IsNot(key, value) => labels.value(key) != Some(value),
            Requirement::Has(key) => labels.value(key).is_some(),
            Requirement::HasNot(key) => labels.value(key).is_none(),
        })
    }
}

impl FromStr for Selector {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let requirement = |part: &str| {
            let part = part.trim();
            let requirement = if let Some((k, v)) = part.split_once("!=") {
                Requirement::IsNot(key(k.trim())?, value(v.trim())?)
            } else if let Some((k, v)) = part.split_once('=') {
                let v = v.strip_prefix('=').unwrap_or(v);
                Requirement::Is(key(k.trim())?, value(v.trim())?)
            } else if let Some(k) = part.strip_prefix('!') {
                Requirement::HasNot(key(k.trim())?)
            } else if part.is_empty() {
                return Err(InvalidLabel::Requirement(shown(text)));
            } else {
                Requirement::Has(key(part)?)
            };
            Ok(requirement)
        };
        text.split(',')
            .map(requirement)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, requirement) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::Is(key, value) => write!(f, "{key}={value}")?,
                Requirement::IsNot(key, value) => write!(f, "{key}!={value}")?,
                Requirement::Has(key) => f.write_str(key)?,
                Requirement::HasNot(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(text: &str) -> Labels {
        let mut labels = Labels::default();
        for label in text.split(',').filter(|label| !label.is_empty()) {
            labels.set(label.parse().unwrap()).unwrap();
        }
        labels
    }

    #[test]
    fn a_selector_chooses_by_all_its_requirements() {
        for (selector, chosen, not_chosen) in [
            ("env=prod", "env=prod,a=b", "env=test"),
            ("env==prod", "env=prod", ""),
            ("env!=prod", "", "env=prod"),
            ("gpu", "gpu=", "env=prod"),
            ("!gpu", "env=prod", "gpu=a100"),
            ("env=prod, gpu", "env=prod,gpu=x", "env=prod"),
            ("site=", "site=", "site=x"),
            ("example.org/rack=r-1", "example.org/rack=r-1", "rack=r-1"),
        ] {
            let parsed: Selector = selector.parse().unwrap();
            assert!(parsed.matches(&labels(chosen)), "{selector} {chosen}");
            assert!(
                !parsed.matches(&labels(not_chosen)),
                "{selector} {not_chosen}"
            );
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }

    #[test]
    fn what_is_no_selector_or_label_says_why() {
        for selector in [
            "", ",", "a=b,", "=x", "!", "a=b=c", "a b", "-a", "a=x y", "ä=1",
        ] {
            assert!(selector.parse::<Selector>().is_err(), "{selector}");
        }
        for label in ["a", "=b", "a=-", "a=b/c", "a=ä"] {
            assert!(label.parse::<Label>().is_err(), "{label}");
        }
        let long = "x".repeat(64);
        assert_eq!(
            format!("{long}=v").parse::<Label>(),
            Err(InvalidLabel::Key(long))
        );
    }

    #[test]
    fn a_node_has_at_most_so_many_labels_but_may_change_them_all() {
        let mut labels = Labels::default();
        for n in 0..Labels::MOST {
            labels.set(format!("k{n}=1").parse().unwrap()).unwrap();
        }
        assert_eq!(
            labels.set("other=1".parse().unwrap()),
            Err(InvalidLabel::TooMany)
        );
        labels.set("k0=2".parse().unwrap()).unwrap();
        assert_eq!(labels.value("k0"), Some("2"));
        assert!(labels.remove("k0"));
        assert!(!labels.remove("k0"));
        labels.set("other=1".parse().unwrap()).unwrap();
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_means_what_it_prints(text in "[a-z!=,. /-]{0,24}") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse(), Ok(selector));
            }
            if let Ok(label) = text.parse::<Label>() {
                let mut labels = Labels::default();
                labels.set(label).unwrap();
                let selector: Selector = labels.to_string().parse().unwrap();
                prop_assert!(selector.matches(&labels));
                let map: BTreeMap<String, String> = labels.clone().into();
                prop_assert_eq!(Labels::try_from(map), Ok(labels));
            }
        }
    }
}
