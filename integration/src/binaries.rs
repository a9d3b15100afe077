//! Where the binaries under test are.

use std::path::PathBuf;

use mesh_testkit::artefact;

/// The path of one of the product's binaries, beside the running test.
///
/// # Panics
/// When it was not built.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let path = artefact::profile_dir().join(name);
    let release = if path.parent().is_some_and(|dir| dir.ends_with("release")) {
        " --release"
    } else {
        ""
    };
    assert!(
        path.is_file(),
        "{} is missing: run 'cargo build --workspace{release}' first, the journeys start the \
         real binaries",
        path.display()
    );
    path
}
