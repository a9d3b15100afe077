//! What is wrong with an agent, and what to type: its node's troubles, and those of what it serves.

use mesh_node::NodeStatus;
use mesh_types::{Finding, OpenFiles, Timestamp};

use crate::console::ConsoleState;
use crate::status::ConsoleStatus;

/// Everything that is wrong, the most far-reaching first; `was_low`: hardly any files could be
/// opened when that was looked at last. Pure.
pub(crate) fn advice(
    node: &NodeStatus,
    console: &ConsoleStatus,
    open_files: OpenFiles,
    was_low: bool,
    now: Timestamp,
) -> Vec<Finding> {
    let mut found = mesh_node::advice::advice(node, now);
    if node.control.is_removed() {
        return found;
    }
    found.extend(open_files.finding(was_low, "the agent", "mesh-worker-agent"));
    found.extend(of_console(console));
    found
}

fn of_console(console: &ConsoleStatus) -> Option<Finding> {
    match console.state {
        ConsoleState::Page | ConsoleState::Cockpit => None,
        ConsoleState::UrlRootMismatch => Some(Finding::warning(
            "console-path",
            format!(
                "Cockpit is set up for another path than {}, so its pages would stay blank",
                console.prefix
            ),
            "sudo worker-agent console configure",
        )),
        ConsoleState::NoCockpit => Some(Finding::warning(
            "console-away",
            "Cockpit does not answer, so there is no console",
            "sudo systemctl start cockpit.socket",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_that_is_not_as_it_should_be_names_the_next_command() {
        for (state, code) in [
            (ConsoleState::Page, None),
            (ConsoleState::Cockpit, None),
            (ConsoleState::UrlRootMismatch, Some("console-path")),
            (ConsoleState::NoCockpit, Some("console-away")),
        ] {
            let prefix = "/web/".to_owned();
            let found = of_console(&ConsoleStatus { state, prefix });
            let word = found.as_ref().map(|finding| finding.code.as_str());
            assert_eq!(word, code);
            assert!(found.is_none_or(|finding| finding.next.starts_with("sudo ")));
        }
    }
}
