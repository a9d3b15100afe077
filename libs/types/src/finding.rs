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
    /// What is wrong when nine in ten are in use. `whose` is the process, such as
    /// `the coordinator`, `unit` its systemd unit.
    pub fn finding(self, whose: &str, unit: &str) -> Option<Finding> {
        let Self { used, limit } = self;
        if limit == 0 || used < limit - limit / 10 {
            return None;
        }
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
        for (used, limit, told) in [
            (921, 1024, false),
            (922, 1024, true),
            (1024, 1024, true),
            (5, 0, false),
            (9, 10, true),
        ] {
            let finding = OpenFiles { used, limit }.finding("the agent", "mesh-worker-agent");
            assert_eq!(finding.is_some(), told, "{used} of {limit}");
        }
    }
}
