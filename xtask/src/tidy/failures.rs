//! What `docs/failures.md` names exists: findings, log lines, events, metrics and alerts. And each
//! finding that the code knows is there; and each failure says which events tell of it, or why none
//! can.

use std::collections::BTreeSet;

use super::{Findings, Tree};

const PAGE: &str = "docs/failures.md";
/// Where findings are made.
const ADVICE: [&str; 7] = [
    "libs/node/src/advice.rs",
    "libs/node/src/advice/membership.rs",
    "libs/node/src/advice/stopped.rs",
    "libs/types/src/finding.rs",
    "services/mesh/src/advice.rs",
    "services/relay/src/status.rs",
    "services/worker-agent/src/advice.rs",
];
/// Where events have their words, and the agent's counters their names.
const EVENTS: &str = "services/coordinator/src/record.rs";
const COUNTERS: &str = "libs/node/src/counters.rs";
/// What a registry puts in front of names, and after them.
const PREFIXES: [&str; 4] = [
    "mesh_coordinator_",
    "mesh_gateway_",
    "mesh_relay_",
    "mesh_deploy_manager_",
];

/// What the code knows.
struct Code {
    /// Words of findings.
    findings: BTreeSet<String>,
    events: String,
    counters: String,
    /// All sources but this program's, each run of blanks one space, strings joined over lines.
    sources: String,
    alerts: String,
}

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    let Some(page) = tree.text(PAGE) else {
        return findings.fault(format!("{PAGE} is not there"));
    };
    let source = |path: &str| tree.text(path).unwrap_or_default().to_owned();
    let all = tree.texts("rs").filter(|(path, _)| {
        let tests =
            path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests");
        !tests && (path.starts_with("libs") || path.starts_with("services"))
    });
    let code = Code {
        findings: ADVICE
            .iter()
            .flat_map(|path| codes(&source(path)))
            .collect(),
        events: source(EVENTS),
        counters: source(COUNTERS),
        sources: all.map(|(_, text)| joined(text)).collect(),
        alerts: source("docs/runbook.md"),
    };
    for fault in faults(page, &code) {
        findings.fault(format!("{PAGE}: {fault}"));
    }
}

fn faults(page: &str, code: &Code) -> Vec<String> {
    let mut faults = Vec::new();
    let mut told = BTreeSet::new();
    for line in page.lines() {
        let Some((kind, text)) = row(line) else {
            continue;
        };
        let quoted = || text.split('`').skip(1).step_by(2);
        match kind {
            "Finding" => {
                let words = quoted()
                    .filter(|word| !word.contains(' '))
                    .map(str::to_owned);
                told.extend(words);
            }
            "Log" => {
                let parts = quoted().flat_map(|text| text.split('…')).map(str::trim);
                for part in parts.filter(|part| !part.is_empty()) {
                    if !code.sources.contains(part) {
                        faults.push(format!("nothing says {part:?}"));
                    }
                }
            }
            "Event" => {
                for event in quoted() {
                    if !code.events.contains(&format!("= \"{event}\",")) {
                        faults.push(format!("there is no event {event}"));
                    }
                }
            }
            "Metric" => {
                let names = quoted().filter(|name| name.starts_with("mesh_"));
                for name in names.filter(|name| !is_metric(name, code)) {
                    faults.push(format!("there is no metric {name}"));
                }
            }
            "Alert" => {
                for alert in text.split(',').map(str::trim) {
                    if !code.alerts.contains(&format!("\n## {alert}\n")) {
                        faults.push(format!("there is no alert {alert}"));
                    }
                }
            }
            _ => {}
        }
    }
    for section in page.split("\n## ") {
        if section.contains("\n| ") && !section.contains("\n| Event | ") {
            let name = section.lines().next().unwrap_or_default();
            faults.push(format!("{name:?} has no line Event"));
        }
    }
    for word in told.difference(&code.findings) {
        faults.push(format!("there is no finding {word}"));
    }
    for word in code.findings.difference(&told) {
        faults.push(format!("the finding {word} is not told of"));
    }
    faults
}

/// A table's row: its first cell and the rest.
fn row(line: &str) -> Option<(&str, &str)> {
    let (kind, text) = line.strip_prefix("| ")?.split_once(" | ")?;
    Some((kind, text.trim_end_matches([' ', '|'])))
}

/// The words of the findings that a source makes: what stands first in parentheses, in quotes,
/// and is lower-case letters joined by `-`.
fn codes(source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let source = joined(source).replace("( \"", "(\"");
    let is_code = |text: &&str| {
        let letters = text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        letters && text.contains('-')
    };
    let firsts = source.split("(\"").skip(1);
    let firsts = firsts.filter_map(|rest| rest.split_once("\",").map(|(first, _)| first));
    firsts.filter(is_code).map(str::to_owned).collect()
}

/// A source with blanks made one, so that a text over several lines is found.
fn joined(source: &str) -> String {
    let lines: Vec<&str> = source.split_whitespace().collect();
    lines.join(" ").replace("\\ ", "")
}

/// Whether something is registered under this name, in whole or behind a prefix.
fn is_metric(name: &str, code: &Code) -> bool {
    let base = name.strip_suffix("_total").unwrap_or(name);
    let named = |name: &str| code.sources.contains(&format!("\"{name}\""));
    if named(base)
        || PREFIXES
            .iter()
            .any(|p| base.strip_prefix(p).is_some_and(named))
    {
        return true;
    }
    // The agent renames what carries its traffic.
    let Some(counter) = base.strip_prefix("mesh_agent_") else {
        return false;
    };
    let counter = counter
        .replace("sent_bytes", "tx_bytes")
        .replace("received_bytes", "rx_bytes");
    let counters = &code.counters;
    let has = |name: &str| {
        counters
            .lines()
            .any(|line| line.trim() == format!("{name},"))
    };
    has(&counter) || has(&format!("overlay_{counter}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "| Finding | `bus-down` |\n| Log | `the bus is down; everything … on` |\n| Event | `relay-offline` |\n| Metric | `mesh_process_open_files`; `mesh_coordinator_relays`; `mesh_agent_udp_received_bytes_total` of the latch `bus` |\n| Alert | RelayDown, NoRelay |\n";

    fn code() -> Code {
        let advice = "Finding::warning(\n    \"bus-down\",\n \"a b\")\nhas(&[\"read-only\", \"\"])\n#[cfg(test)]\n(\"not-this\",";
        Code {
            findings: codes(advice),
            events: "RelayOffline = \"relay-offline\",".to_owned(),
            counters: "    udp_rx_bytes,\n".to_owned(),
            sources: joined(
                "warn!(\"the bus is down; \\\n    everything goes on\")\n\"mesh_process_open_files\" \"relays\"",
            ),
            alerts: "# R\n\n## RelayDown\n\n## NoRelay\n".to_owned(),
        }
    }

    #[test]
    fn what_is_named_and_not_there_is_found_and_what_is_there_and_not_named() {
        assert_eq!(faults(PAGE, &code()), Vec::<String>::new());
        for (from, to, found_by) in [
            ("`bus-down`", "`bus-gone`", "no finding bus-gone"),
            ("`bus-down`", "nothing", "bus-down is not told of"),
            ("the bus is down", "the bus is up", "nothing says"),
            ("relay-offline", "relay-away", "no event relay-away"),
            ("| Event |", "| Events |", "no line Event"),
            (
                "open_files",
                "shut_files",
                "no metric mesh_process_shut_files",
            ),
            ("coordinator_relays", "coordinator_ralays", "no metric"),
            ("udp_received", "tcp_received", "no metric"),
            ("NoRelay", "NoRalay", "no alert NoRalay"),
        ] {
            assert!(PAGE.contains(from), "{from}");
            let found = faults(&PAGE.replace(from, to), &code()).join("\n");
            assert!(found.contains(found_by), "{from} as {to}: {found}");
        }
    }
}
