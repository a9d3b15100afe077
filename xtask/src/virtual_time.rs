//! The build in which WireGuard's own clock is ours: boringtun's mock clock stands still for a whole
//! build, so what needs it has a target directory of its own.

use std::process::Command;

use crate::workspace;

/// Crates that thousands of simulated hours need to be fast, and their `opt-level`. On top of the
/// dev profile, so that nothing else is built for long.
const OPTIMISED: &[(&str, u8)] = &[
    ("crypto_box", 3),
    ("crypto_secretbox", 3),
    ("mesh-netmap", 1),
    ("mesh-sim", 1),
    ("mesh-types", 1),
    ("poly1305", 3),
    ("rand", 2),
    ("salsa20", 3),
    ("serde_json", 2),
    ("x25519-dalek", 3),
];

/// Makes a cargo command build there. The same for all, or they would undo each other's builds.
pub(crate) fn build_in(command: &mut Command) {
    for (name, level) in OPTIMISED {
        command
            .arg("--config")
            .arg(format!("profile.dev.package.{name}.opt-level={level}"));
    }
    command
        .arg("--target-dir")
        .arg(workspace::target_dir().join("virtual-time"));
}
