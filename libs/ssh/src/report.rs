//! What came of a run on many nodes, as people and programs read it.

use serde::{Deserialize, Serialize};

use crate::client::Exit;

/// Names the form of [`Report`]; raised when a field changes its meaning or goes.
pub const SCHEMA: &str = "mesh.deploy/1";

/// How it went on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    /// Not begun.
    Queued,
    /// On the way to the node.
    Connecting,
    /// The command runs.
    Running,
    /// The command ran to an end.
    Exited,
    /// The command did not run, or its end is unknown.
    Failed,
    /// The caller's time was up.
    TimedOut,
}

/// One target's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReport {
    /// The target as it was asked for.
    pub target: String,
    /// Whether it went well.
    pub ok: bool,
    /// How far it got.
    pub state: TargetState,
    /// The remote exit status, when the command exited.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_code: Option<u32>,
    /// The signal that ended the command, without the `SIG`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<String>,
    /// Why it failed, for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The machine's own host name (`status`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hostname: Option<String>,
    /// Its overlay address (`status`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mesh_ip: Option<String>,
    /// What it wrote to standard output; cut at the end when it is long.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stdout: Option<String>,
    /// What it wrote to standard error; cut at the end when it is long.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stderr: Option<String>,
    /// Whether `stdout` or `stderr` was cut.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub truncated: bool,
    /// From the start on this target to its end, in milliseconds.
    pub duration_ms: u64,
}

/// The results of one run, in the order in which the targets were given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// What was run: `status`, `exec`, `install-cockpit`.
    pub verb: String,
    /// Whether every target went well.
    pub ok: bool,
    /// One entry per target.
    pub results: Vec<TargetReport>,
}

impl Report {
    /// The report of these results.
    pub fn new(verb: &str, results: Vec<TargetReport>) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            verb: verb.to_owned(),
            ok: results.iter().all(|result| result.ok),
            results,
        }
    }
}

/// The result of one target, as its work gives it to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended.
    Exited(Exit),
    /// It did not run, for this reason.
    Failed(String),
}

impl TargetReport {
    /// A result with its state only.
    pub fn new(target: &str, state: TargetState) -> Self {
        Self {
            target: target.to_owned(),
            ok: false,
            state,
            exit_code: None,
            signal: None,
            reason: None,
            hostname: None,
            mesh_ip: None,
            stdout: None,
            stderr: None,
            truncated: false,
            duration_ms: 0,
        }
    }

    /// Takes over how the work ended.
    pub fn set_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Exited(Exit::Status(code)) => {
                self.state = TargetState::Exited;
                self.ok = code == 0;
                self.exit_code = Some(code);
                if code != 0 {
                    self.reason = Some(format!("exit status {code}"));
                }
            }
            Outcome::Exited(Exit::Signal(signal)) => {
                self.state = TargetState::Exited;
                self.reason = Some(format!("ended by signal {signal}"));
                self.signal = Some(signal);
            }
            Outcome::Exited(Exit::Lost) => {
                self.state = TargetState::Failed;
                self.reason = Some("the connection was lost while the command ran".to_owned());
            }
            Outcome::Failed(reason) => {
                self.state = TargetState::Failed;
                self.reason = Some(reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_target_makes_the_report_fail_and_absent_facts_are_left_out() {
        let mut good = TargetReport::new("a", TargetState::Queued);
        good.set_outcome(Outcome::Exited(Exit::Status(0)));
        let mut bad = TargetReport::new("b", TargetState::Queued);
        bad.set_outcome(Outcome::Exited(Exit::Signal("KILL".into())));
        let report = Report::new("exec", vec![good, bad]);
        assert!(!report.ok);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(
            json,
            "{\"schema\":\"mesh.deploy/1\",\"verb\":\"exec\",\"ok\":false,\"results\":[\
             {\"target\":\"a\",\"ok\":true,\"state\":\"exited\",\"exit_code\":0,\"duration_ms\":0},\
             {\"target\":\"b\",\"ok\":false,\"state\":\"exited\",\"signal\":\"KILL\",\
             \"reason\":\"ended by signal KILL\",\"duration_ms\":0}]}"
        );
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
