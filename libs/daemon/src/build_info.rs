//! Which build this is: the one version manifest of all programs.
//!
//! `--version`, `/version` of each admin endpoint, and what programs tell each other come from
//! here.

use std::sync::LazyLock;

use serde_json::{Value, json};

/// The version of the whole workspace, such as `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, where the build was told (`MESH_COMMIT`). It is not asked of git, so
/// that the same source gives the same bytes wherever it is built.
pub const COMMIT: Option<&str> = option_env!("MESH_COMMIT");

/// The versions of what programs of different builds speak with each other.
pub const PROTOCOLS: &[(&str, &str)] =
    &[("grpc", "mesh.v1"), ("join-token", "mesh1"), ("derp", "2")];

/// What `<program> --version` prints, such as `relay 0.1.0`.
pub fn line(program: &str) -> String {
    format!("{program} {VERSION}")
}

/// Version, commit and protocols, for `--version` of a command line.
pub fn long_version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let protocols: Vec<String> = PROTOCOLS
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        let commit = COMMIT
            .filter(|commit| !commit.is_empty())
            .unwrap_or("unknown");
        format!(
            "{VERSION}\ncommit: {commit}\nprotocols: {}",
            protocols.join(", ")
        )
    });
    &TEXT
}

/// What `/version` answers for `program`.
pub fn manifest(program: &str) -> Value {
    let protocols: serde_json::Map<String, Value> = PROTOCOLS
        .iter()
        .map(|(name, version)| ((*name).to_owned(), json!(version)))
        .collect();
    json!({
        "name": program,
        "version": VERSION,
        "commit": COMMIT.filter(|commit| !commit.is_empty()),
        "protocols": protocols,
    })
}
