//! The programs themselves say whether they take what their containers give them: each is started
//! with the container's arguments and environment, and `--check-config`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::manifest::{Container, Manifest, list, text};
use crate::workspace;

pub(super) fn check(manifest: &Manifest) -> Result<Vec<String>> {
    let files = workspace::target_dir().join("k8s/files");
    if files.exists() {
        fs::remove_dir_all(&files)?;
    }
    let mut faults = Vec::new();
    for container in manifest.containers() {
        if let Some(program) = container.program() {
            faults.extend(ask(manifest, container, program, &files)?);
        }
    }
    Ok(faults)
}

fn ask(
    manifest: &Manifest,
    container: Container<'_>,
    program: &str,
    files: &Path,
) -> Result<Option<String>> {
    let path = workspace::target_dir().join("debug").join(program);
    if !path.is_file() {
        return Ok(Some(format!(
            "{}: there is no program {program}",
            container.key()
        )));
    }
    let stand_ins = StandIns::make(container, files)?;
    // What cannot be found is told by the references.
    let (Ok(arguments), environment) = (
        container.arguments(manifest),
        container.environment(manifest).into_iter().flatten(),
    ) else {
        return Ok(None);
    };
    let output = Command::new(path)
        .env_clear()
        .envs(environment.map(|(name, value)| (name, stand_ins.replace(&value))))
        .args(arguments.iter().map(|word| stand_ins.replace(word)))
        .args(["--config", "/dev/null", "--check-config"])
        .output()
        .with_context(|| format!("run {program}"))?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Some(format!("{}: {program} says: {said}", container.key())))
}

/// Files in place of the Secrets, which only a cluster has.
struct StandIns {
    /// Path in the container, path here.
    paths: Vec<(String, PathBuf)>,
}

impl StandIns {
    fn make(container: Container<'_>, files: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        for (at, volume, _) in container.mounts() {
            let volume = list(container.workload.pod, "/volumes")
                .find(|known| text(known, "/name") == volume);
            let Some(volume) = volume else { continue };
            let secret = text(volume, "/secret/secretName");
            for item in list(volume, "/secret/items") {
                let key = text(item, "/key");
                let file = files.join(secret).join(key);
                fs::create_dir_all(files.join(secret))?;
                fs::write(&file, secret_content(key))?;
                fs::set_permissions(&file, Permissions::from_mode(0o640))?;
                paths.push((format!("{at}/{}", text(item, "/path")), file));
            }
        }
        Ok(Self { paths })
    }

    fn replace(&self, value: &str) -> String {
        self.paths
            .iter()
            .find(|(path, _)| path == value)
            .map_or_else(|| value.to_owned(), |(_, file)| file.display().to_string())
    }
}

/// Something of the right form.
pub(super) fn secret_content(key: &str) -> String {
    match key {
        // 256 bits in hexadecimal; no pattern that a program may call weak.
        "master.key" => {
            "7c1f0a94e2b85d3368d1a7f0c95b2e4417f3a86d0be9c254d86a1f72b30c9ee5".to_owned()
        }
        _ => "k7Qm2vXz9RtLp4WsY6hN".to_owned(),
    }
}
