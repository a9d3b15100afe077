//! Where tests leave what people look at afterwards: `target/ci`.

use std::path::PathBuf;

/// The target directory of the running test.
///
/// # Panics
/// When the running program does not lie in a target directory.
pub fn target_dir() -> PathBuf {
    // <target>/<profile>/deps/<test>
    profile_dir()
        .parent()
        .expect("a profile directory lies in a target directory")
        .to_owned()
}

/// The profile's directory of the running test, where cargo puts binaries: `target/debug`.
///
/// # Panics
/// When the running program does not lie in a target directory.
pub fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    let deps = exe.parent().expect("a program lies in a directory");
    if deps.file_name().is_some_and(|name| name == "deps") {
        deps.parent()
            .expect("deps lies in a profile directory")
            .to_owned()
    } else {
        deps.to_owned()
    }
}

/// The directory `target/ci/<kind>`, made when it is missing.
///
/// # Panics
/// When it cannot be made.
pub fn dir(kind: &str) -> PathBuf {
    let dir = target_dir().join("ci").join(kind);
    std::fs::create_dir_all(&dir)
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
    dir
}

/// A name for the running test that fits into file names: the test's own, or, when tests run one
/// by one on the main thread, that of their file.
pub(crate) fn test_name() -> String {
    let thread = std::thread::current();
    let name = thread
        .name()
        .filter(|name| *name != "main")
        .map(str::to_owned);
    let name = name.unwrap_or_else(|| {
        let exe = std::env::current_exe().unwrap_or_default();
        let stem = exe
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // cargo adds a hash to the name of a test's program.
        stem.rsplit_once('-')
            .map_or(stem.clone(), |(name, _)| name.to_owned())
    });
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    name.chars()
        .map(|c| if fits(c) { c } else { '_' })
        .collect()
}
