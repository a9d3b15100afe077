//! Which build this is.

/// The version of the whole workspace, such as `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `<program> --version` prints, such as `relay 0.1.0`.
pub fn line(program: &str) -> String {
    format!("{program} {VERSION}")
}
