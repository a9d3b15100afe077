//! Everything that is wrong with a configuration, together.

use std::fmt;

/// Collects what is wrong.
#[derive(Debug, Default)]
pub struct Faults {
    dev: bool,
    list: Vec<Fault>,
    /// What would be a fault without `--dev`.
    relaxed: Vec<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    key: String,
    /// Where the value stands; empty when it is a default or several places play a part.
    origin: String,
    text: String,
}

impl Faults {
    pub(super) fn new(dev: bool) -> Self {
        Self {
            dev,
            list: Vec::new(),
            relaxed: Vec::new(),
        }
    }

    /// `key` (dotted; may be empty) is wrong; `text` says how, and what to write instead.
    pub fn push(&mut self, key: &str, text: impl Into<String>) {
        self.push_at(key, "", text);
    }

    /// A fault unless `holds`.
    pub fn require(&mut self, holds: bool, key: &str, text: impl Into<String>) {
        if !holds {
            self.push(key, text);
        }
    }

    /// A fault unless `safe` or `--dev` was given.
    pub fn require_unless_dev(&mut self, safe: bool, key: &str, text: impl Into<String>) {
        if !safe {
            self.refuse_unless_dev(key, "", text);
        }
    }

    /// A fault, or with `--dev` something to be told at the start.
    pub(super) fn refuse_unless_dev(&mut self, key: &str, origin: &str, text: impl Into<String>) {
        let text = text.into();
        if self.dev {
            let fault = Fault {
                key: key.to_owned(),
                origin: origin.to_owned(),
                text,
            };
            if !self.relaxed.contains(&fault) {
                self.relaxed.push(fault);
            }
        } else {
            self.push_at(key, origin, format!("{text} (accepted with --dev only)"));
        }
    }

    /// One line for everything that only `--dev` accepts, for people.
    pub(super) fn relaxed(&self) -> Vec<String> {
        self.relaxed.iter().map(ToString::to_string).collect()
    }

    /// Whether `--dev` was given: values that are unsafe in production are then accepted.
    pub fn is_dev(&self) -> bool {
        self.dev
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn push_at(&mut self, key: &str, origin: &str, text: impl Into<String>) {
        let fault = Fault {
            key: key.to_owned(),
            origin: origin.to_owned(),
            text: text.into(),
        };
        if !self.list.contains(&fault) {
            self.list.push(fault);
        }
    }

    pub(super) fn into_result(self, service: &str) -> Result<(), ConfigFaults> {
        if self.list.is_empty() {
            Ok(())
        } else {
            Err(ConfigFaults {
                service: service.to_owned(),
                list: self.list,
            })
        }
    }
}

/// All faults of one configuration; shown one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFaults {
    service: String,
    list: Vec<Fault>,
}

impl ConfigFaults {
    /// How many there are; at least one.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// The keys that are wrong, in the order found.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|fault| fault.key.as_str())
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.list.len() == 1 {
            "fault"
        } else {
            "faults"
        };
        write!(
            f,
            "the configuration of {} has {} {noun}:",
            self.service,
            self.list.len()
        )?;
        for fault in &self.list {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, origin, text } = self;
        match (key.is_empty(), origin.is_empty()) {
            (false, false) => write!(f, "{key} ({origin}): ")?,
            (false, true) => write!(f, "{key}: ")?,
            (true, false) => write!(f, "{origin}: ")?,
            (true, true) => {}
        }
        f.write_str(text)
    }
}

impl std::error::Error for ConfigFaults {}
