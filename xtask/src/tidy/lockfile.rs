//! What may be in Cargo.lock.

use anyhow::{Context as _, Result};

use super::{Findings, Tree};

/// ring is the only cryptography library: with a second one rustls panics unless every `main`
/// chooses, and each of these needs more than a C compiler.
const BANNED: &[&str] = &[
    "aws-lc-rs",
    "aws-lc-sys",
    "openssl",
    "openssl-sys",
    "native-tls",
];

/// One of each, or types of the same name do not fit together.
const ONCE: &[&str] = &[
    "tokio", "hyper", "h2", "rustls", "tonic", "prost", "axum", "ring",
];

pub(super) fn check(tree: &Tree, findings: &mut Findings) -> Result<()> {
    let text = tree.text("Cargo.lock").context("there is no Cargo.lock")?;
    let lock: toml::Table = text.parse().context("read Cargo.lock")?;
    let packages = lock
        .get("package")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten();
    let mut seen: Vec<&str> = Vec::new();
    for package in packages {
        let field = |name: &str| package.get(name).and_then(toml::Value::as_str);
        let Some(name) = field("name") else { continue };
        if BANNED.contains(&name) {
            findings.fault(format!(
                "Cargo.lock: {name} is banned; find who brings it: cargo tree -i {name}"
            ));
        }
        if field("source").is_some_and(|source| !source.starts_with("registry+")) {
            findings.fault(format!(
                "Cargo.lock: {name} comes from elsewhere than the registry"
            ));
        }
        if ONCE.contains(&name) && seen.contains(&name) {
            findings.fault(format!("Cargo.lock: two versions of {name}"));
        }
        seen.push(name);
    }
    Ok(())
}
