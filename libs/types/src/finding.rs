//! What is wrong, and what to type about it: the words of every `status`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad it is; the worse is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nobody must act.
    Notice,
    /// It works, though not as well as it should or not for long: somebody should act.
    Warning,
    /// Something that should work does not: a person must act.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A stable word for programs, such as `coordinator-unreachable`; `docs/failures.md` has each.
    pub code: String,
    /// What is wrong, in a sentence without a full stop.
    pub what: String,
    /// The next command to type, or the next thing to do.
    pub next: String,
}

impl Finding {
    /// Something that a person must see to.
    pub fn error(code: &str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, what, next)
    }

    /// Something that somebody should see to.
    pub fn warning(code: &str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, what, next)
    }

    /// Something worth knowing.
    pub fn notice(code: &str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Severity::Notice, code, what, next)
    }

    fn new(
        severity: Severity,
        code: &str,
        what: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            code: code.to_owned(),
            what: what.into(),
            next: next.into(),
        }
    }

    /// Whether one of these keeps a `status` from exit code 0: only errors do, so that a script may
    /// wait for it.
    pub fn any_error(findings: &[Self]) -> bool {
        findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }
}

/// For people, on two lines: a mark (`!!` must, `!` should, `i` may be seen to) with what is wrong,
/// and below it the next command.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.severity {
            Severity::Error => "!!",
            Severity::Warning => "! ",
            Severity::Notice => "i ",
        };
        write!(f, "{mark} {}\n   next: {}", self.what, self.next)
    }
}

/// What a process has open of what it may have: when it nears its limit, somebody should know
/// before connections are refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFiles {
    /// File descriptors in use.
    pub used: u64,
    /// Most it may have (the soft `RLIMIT_NOFILE`); 0 when not known.
    pub limit: u64,
}

impl OpenFiles {
    /// Whether hardly any are left: nine in ten are in use, or, where that was so `before`, more
    /// than eight in ten still.
    pub const fn is_low(self, before: bool) -> bool {
        let Self { used, limit } = self;
        let tenth = limit / 10;
        limit > 0 && (used >= limit - tenth || (before && used > limit - 2 * tenth))
    }

    /// What is wrong when hardly any are left; `before`: that is how it was. `whose` is the process,
    /// such as `the coordinator`, `unit` its systemd unit.
    pub fn finding(self, before: bool, whose: &str, unit: &str) -> Option<Finding> {
        if !self.is_low(before) {
            return None;
        }
        let Self { used, limit } = self;
        Some(Finding::warning(
            "descriptors-low",
            format!(
                "{whose} has {used} of {limit} file descriptors in use: at the limit it takes no \
                 new connections"
            ),
            format!("raise LimitNOFILE: systemctl edit {unit} (or 'ulimit -n' of its shell)"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_end_a_status_with_one() {
        let (error, warning, notice) = (
            Finding::error("a", "b", "c"),
            Finding::warning("a", "b", "c"),
            Finding::notice("a", "b", "c"),
        );
        assert!(Finding::any_error(&[notice.clone(), error.clone()]));
        assert!(!Finding::any_error(&[warning.clone(), notice]));
        assert!(error.severity > warning.severity);
        assert_eq!(error.to_string(), "!! b\n   next: c");
    }

    #[test]
    fn descriptors_are_told_of_before_there_are_none() {
        for (used, limit, told, goes_on) in [
            (820, 1024, false, false),
            (821, 1024, false, true),
            (921, 1024, false, true),
            (922, 1024, true, true),
            (1024, 1024, true, true),
            (5, 0, false, false),
            (8, 10, false, false),
            (9, 10, true, true),
            (4, 5, false, false),
            (5, 5, true, true),
        ] {
            let files = OpenFiles { used, limit };
            for (before, told) in [(false, told), (true, goes_on)] {
                let finding = files.finding(before, "the agent", "mesh-worker-agent");
                assert_eq!(
                    finding.is_some(),
                    told,
                    "{used} of {limit}, before: {before}"
                );
            }
        }
    }
}
