//! What a test needs of the machine, and what happens when it is not there.

use std::fmt;
use std::io::Write as _;
use std::path::Path;

use crate::artefact;

/// Something of the machine that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Running as root.
    Root,
    /// A program: a name looked for in `PATH` and the system directories, or an absolute path.
    Program(&'static str),
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root rights"),
            Self::Program(name) => write!(f, "the program {name}"),
        }
    }
}

impl Need {
    fn met(self) -> bool {
        match self {
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Program(name) => program(name).is_some(),
        }
    }
}

/// Whether all `needed` is there. When not, it says `SKIPPED: …` on the real standard error, and
/// the test returns; under `MESH_TEST_REQUIRE_ALL=1` it fails instead.
///
/// ```no_run
/// use mesh_testkit::{Need, needs};
/// if !needs(&[Need::Root, Need::Program("nft")]) {
///     return;
/// }
/// ```
#[track_caller]
pub fn needs(needed: &[Need]) -> bool {
    let missing: Vec<String> = needed
        .iter()
        .filter(|need| !need.met())
        .map(ToString::to_string)
        .collect();
    if missing.is_empty() {
        return true;
    }
    let test = artefact::test_name();
    let why = missing.join(" and ");
    assert!(
        std::env::var_os("MESH_TEST_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "{test} needs {why}, and MESH_TEST_REQUIRE_ALL=1 forbids to skip it \
         ('cargo xtask setup' installs what is missing)"
    );
    // The test runner captures what print macros write, and shows it for failures only.
    if writeln!(std::io::stderr(), "SKIPPED: {test} needs {why}").is_err() {
        eprintln!("SKIPPED: {test} needs {why}");
    }
    false
}

/// The path of a program, or `None` when the machine does not have it.
pub fn program(name: &str) -> Option<std::path::PathBuf> {
    let named = Path::new(name);
    if named.is_absolute() {
        return named.is_file().then(|| named.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/bin"].map(Into::into))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_every_system_has_is_found() {
        assert!(program("sh").is_some());
        assert!(program("/bin/sh").is_some());
    }

    #[test]
    fn a_program_that_nobody_has_is_missing() {
        assert_eq!(program("mesh-no-such-program"), None);
        assert!(!Need::Program("/no/such/program").met());
    }
}
