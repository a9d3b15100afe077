//! Dependencies that nothing in their crate mentions.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::source::mentions;
use super::{Findings, Tree};

pub(super) fn check(tree: &Tree, findings: &mut Findings) -> Result<()> {
    for (path, text) in tree.texts("toml") {
        if path.file_name().is_none_or(|name| name != "Cargo.toml") {
            continue;
        }
        let manifest: toml::Table = text
            .parse()
            .with_context(|| format!("read {}", path.display()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        check_crate(tree, path, dir, &manifest, findings);
    }
    Ok(())
}

fn check_crate(
    tree: &Tree,
    path: &Path,
    dir: &Path,
    manifest: &toml::Table,
    findings: &mut Findings,
) {
    for (kind, folders) in [
        (
            "dependencies",
            ["src", "fuzz_targets", "build.rs"].as_slice(),
        ),
        ("dev-dependencies", &["src", "tests", "benches", "examples"]),
    ] {
        let table = manifest.get(kind).and_then(toml::Value::as_table);
        for (name, value) in table.into_iter().flatten() {
            // An optional one may be there for a feature of somebody else only.
            if value.get("optional").is_some() {
                continue;
            }
            let crate_name = name.replace('-', "_");
            let used = tree.texts("rs").any(|(file, source)| {
                folders
                    .iter()
                    .any(|folder| file.starts_with(dir.join(folder)))
                    && source.lines().any(|line| mentions(line, &crate_name))
            });
            if !used {
                findings.fault(format!("{}: {name} ({kind}) is not used", path.display()));
            }
        }
    }
}
