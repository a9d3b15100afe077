//! Names that may stand only in certain files.

use std::path::Path;

use super::source::{code_lines, is_test_path, mentions};
use super::{Findings, Tree};

struct Rule {
    word: &'static str,
    /// Path prefixes where it may stand.
    allowed: &'static [&'static str],
    /// Path prefixes where it is looked for; empty means everywhere.
    scope: &'static [&'static str],
    /// Whether tests and benches are looked at too.
    in_tests: bool,
    why: &'static str,
}

const CORES: &[&str] = &["libs/types/src", "libs/netmap/src", "libs/tunnel/src"];

const RULES: &[Rule] = &[
    everywhere(
        "sea_orm",
        &["services/coordinator/src/store"],
        "SQL never gets past `store`",
    ),
    everywhere(
        "sea_orm_migration",
        &["services/coordinator/src/store"],
        "SQL stays in `store`",
    ),
    everywhere(
        "redis",
        // The harness that starts the server.
        &["services/coordinator/src/bus", "libs/testkit/src"],
        "Redis never gets past `bus`",
    ),
    everywhere(
        "boringtun",
        // The benchmark compares with it, a journey sends what no node of ours would.
        &[
            "libs/tunnel/src/wg",
            "libs/tunnel/benches",
            "integration/src/wireguard",
        ],
        "WireGuard stays behind tunnel::wg",
    ),
    everywhere("russh", &["libs/ssh/src"], "SSH stays behind mesh_ssh"),
    everywhere(
        "fast_socks5",
        &["services/deploy-manager/src"],
        "SOCKS belongs to deploy-manager",
    ),
    everywhere(
        "smoltcp",
        &["libs/node/src"],
        "the netstack stays in mesh_node",
    ),
    Rule {
        word: "tokio::spawn",
        allowed: &[],
        scope: &["services"],
        in_tests: false,
        why: "every task has a name and an owner: mesh_daemon::Task, or a JoinSet",
    },
    core("Instant::now", "a core is told the time"),
    core("SystemTime::now", "a core is told the time"),
    core("tokio", "a core does no IO"),
    core("TcpStream", "a core does no IO"),
    core("TcpListener", "a core does no IO"),
    core("UdpSocket", "a core does no IO"),
    core("std::fs", "a core does no IO"),
    core("thread_rng", "a core's randomness comes from its seed"),
    core("rand::rng", "a core's randomness comes from its seed"),
    core("SystemRandom", "a core's randomness comes from its seed"),
    core("OsRng", "a core's randomness comes from its seed"),
    core("SysRng", "a core's randomness comes from its seed"),
];

const fn everywhere(
    word: &'static str,
    allowed: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule {
        word,
        allowed,
        scope: &[],
        in_tests: true,
        why,
    }
}

const fn core(word: &'static str, why: &'static str) -> Rule {
    Rule {
        word,
        allowed: &[],
        scope: CORES,
        in_tests: false,
        why,
    }
}

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    for (path, source) in tree.texts("rs") {
        if starts_with_any(path, &["xtask", "fuzz", "libs/api/src/gen"]) {
            continue;
        }
        let test_path = is_test_path(path);
        let code = code_lines(source);
        for rule in RULES {
            let in_scope = rule.scope.is_empty() || starts_with_any(path, rule.scope);
            if !in_scope || starts_with_any(path, rule.allowed) || (test_path && !rule.in_tests) {
                continue;
            }
            let at = lines_with(&code, rule.word);
            if !at.is_empty() {
                let path = path.display();
                findings.fault(format!("{path}:{at}: `{}`: {}", rule.word, rule.why));
            }
        }
        if !test_path {
            check_wire(path, &code, findings);
        }
    }
}

/// Where the wire may be seen besides files named grpc*.
const WIRE: &[&str] = &[
    "libs/api",
    "integration",
    "services/mesh/src",
    "services/deploy-cli/src",
];

/// Generated types live in libs/api and, in services, in files named grpc*; the journeys speak the
/// wire themselves to try what no client of ours would send, and command lines are gRPC clients.
fn check_wire(path: &Path, code: &[(usize, String)], findings: &mut Findings) {
    let mut parts = path.iter().map(|part| part.to_string_lossy());
    if starts_with_any(path, WIRE) || parts.any(|part| part.starts_with("grpc")) {
        return;
    }
    let at = lines_with(code, "pb::");
    if !at.is_empty() {
        findings.fault(format!(
            "{}:{at}: `pb::`: generated types never get past libs/api, command lines and files named grpc*",
            path.display()
        ));
    }
}

/// The numbers of the lines that mention `word`, separated by commas.
fn lines_with(code: &[(usize, String)], word: &str) -> String {
    let found = code.iter().filter(|(_, line)| mentions(line, word));
    found
        .map(|(number, _)| number.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

/// `services/coordinator/src/store` covers `store.rs` and `store/…`, and no `storefront.rs`.
fn starts_with_any(path: &Path, prefixes: &[&str]) -> bool {
    prefixes
        .iter()
        .any(|prefix| path.starts_with(prefix) || path.with_extension("") == Path::new(prefix))
}
