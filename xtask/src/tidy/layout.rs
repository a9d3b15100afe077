//! File names, sizes and manifests.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::source::code_lines;
use super::{Findings, Tree};

const BANNED_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc"];
const ADVISED_LINES: usize = 500;
const MOST_LINES: usize = 800;

pub(super) fn check(tree: &Tree, findings: &mut Findings) -> Result<()> {
    for path in tree.paths() {
        names(path, findings);
    }
    for (path, source) in tree.texts("rs") {
        if !path.starts_with("libs/api/src/gen") {
            size(path, source, findings);
        }
    }
    for (path, text) in tree.texts("toml") {
        if path.file_name().is_some_and(|name| name == "Cargo.toml") {
            let manifest: toml::Table = text
                .parse()
                .with_context(|| format!("read {}", path.display()))?;
            check_manifest(path, &manifest, findings);
        }
    }
    Ok(())
}

fn names(path: &Path, findings: &mut Findings) {
    if path.extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    if path.file_name().is_some_and(|name| name == "mod.rs") {
        findings.fault(format!(
            "{}: write foo.rs beside foo/ instead of mod.rs",
            path.display()
        ));
    }
    let banned = path
        .iter()
        .filter_map(|part| part.to_str())
        .map(|part| part.trim_end_matches(".rs"));
    for name in banned.filter(|name| BANNED_NAMES.contains(name)) {
        findings.fault(format!(
            "{}: `{name}` says nothing; name what is in it",
            path.display()
        ));
    }
}

fn size(path: &Path, source: &str, findings: &mut Findings) {
    let lines = source.lines().count();
    if lines > MOST_LINES {
        findings.fault(format!(
            "{}: {lines} lines, {MOST_LINES} at most",
            path.display()
        ));
        return;
    }
    let code = code_lines(source).last().map_or(0, |(number, _)| *number);
    if code > ADVISED_LINES {
        findings.advise(format!(
            "{}: {code} lines without tests; split it",
            path.display()
        ));
    }
}

fn check_manifest(path: &Path, manifest: &toml::Table, findings: &mut Findings) {
    let is_root = path == Path::new("Cargo.toml");
    // The fuzz crate is no member: its flags would rebuild the whole workspace.
    if is_root || path.starts_with("fuzz") {
        return;
    }
    let lints = manifest
        .get("lints")
        .and_then(|lints| lints.get("workspace"));
    if lints.and_then(toml::Value::as_bool) != Some(true) {
        findings.fault(format!(
            "{}: needs [lints] workspace = true",
            path.display()
        ));
    }
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(toml::Value::as_table));
    }
    for table in tables {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = table.get(kind).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, value) in dependencies {
                let inherits = value.get("workspace").and_then(toml::Value::as_bool);
                if inherits != Some(true) {
                    findings.fault(format!(
                        "{}: {name} must be `workspace = true`; versions stand in the root only",
                        path.display()
                    ));
                }
            }
        }
    }
}
