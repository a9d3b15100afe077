//! What the images' builds may read: every member of the workspace, or cargo finds no manifest
//! there and no image can be built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Findings;
use crate::{process, workspace};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: PathBuf,
}

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let path = workspace::root().join(".dockerignore");
    let text = fs::read_to_string(path).context("read .dockerignore")?;
    for member in members()? {
        if !lets_in(&text, &member) {
            findings.fault(format!(
                ".dockerignore keeps {} out, and the images' builds need every member of the \
                 workspace: add !{}",
                member.display(),
                member
                    .iter()
                    .next()
                    .map(Path::new)
                    .unwrap_or(&member)
                    .display()
            ));
        }
    }
    Ok(())
}

/// The directories of the workspace's members, relative to its root.
fn members() -> Result<Vec<PathBuf>> {
    let output = process::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("read what cargo metadata prints")?;
    let directory = |package: Package| {
        let manifest = package.manifest_path.strip_prefix(workspace::root())?;
        Ok(manifest.parent().unwrap_or(Path::new("")).to_owned())
    };
    metadata.packages.into_iter().map(directory).collect()
}

/// Whether a build sees all of `dir`. The last line that speaks of it decides; `*` alone is the
/// only pattern with a wildcard that is understood, any other speaks of everything and shuts out.
fn lets_in(dockerignore: &str, dir: &Path) -> bool {
    let mut seen = true;
    for line in dockerignore.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (pattern, lets) = match line.strip_prefix('!') {
            Some(pattern) => (pattern, true),
            None => (line, false),
        };
        let pattern = pattern.trim_matches('/');
        let wild = pattern.contains(['*', '?', '[']);
        // What is below it matters too when it is shut out.
        let speaks = dir.starts_with(pattern) || (!lets && Path::new(pattern).starts_with(dir));
        if (wild && !lets) || (!wild && speaks) {
            seen = lets;
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_speaks_of_a_directory_decides() {
        let text = "# words\n*\n!libs\n!services/\n\n!sim\nservices/relay\nlibs/api/src\n";
        for (dir, wanted) in [
            ("libs/node", true),
            ("services/mesh", true),
            ("sim", true),
            ("simulation", false),
            ("xtask", false),
            // Shut out again, itself or a part of it.
            ("services/relay", false),
            ("libs/api", false),
        ] {
            assert_eq!(lets_in(text, Path::new(dir)), wanted, "{dir}");
        }
        assert!(lets_in("target\n", Path::new("libs/api")), "nothing said");
        assert!(
            !lets_in("!libs\nl*\n", Path::new("libs/api")),
            "not understood"
        );
    }
}
