//! Packages are looked at by lintian, and installed, used and purged in a fresh Debian.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::file_name;
use super::packages::PACKAGES;
use crate::process;

/// What lintian may say: there is no mail address yet, and no bug that asked for a package.
const SUPPRESSED: &str = "bogus-mail-host,initial-upload-closes-no-bugs";

/// Debian's release that packages are made for.
const SUITE: &str = "bookworm";

pub(super) fn run(debs: &[PathBuf], out: &Path) -> Result<()> {
    lintian(debs)?;
    ensure!(
        process::is_root(),
        "a fresh Debian to install into needs root: run `cargo xtask deb --check` as root"
    );
    let root = out.join("debian");
    debootstrap(&root)?;
    let debian = Debian { root };
    let before = debian.files()?;
    debian.install(debs)?;
    debian.use_them()?;
    debian.purge()?;
    let after = debian.files()?;
    let left: Vec<_> = after.difference(&before).collect();
    ensure!(left.is_empty(), "purging leaves {left:?}");
    println!(
        "deb: {} packages install, run and purge cleanly",
        debs.len()
    );
    fs::remove_dir_all(&debian.root)?;
    Ok(())
}

fn lintian(debs: &[PathBuf]) -> Result<()> {
    let mut command = Command::new("lintian");
    command.args(["--allow-root", "--fail-on", "error,warning"]);
    command.args(["--suppress-tags", SUPPRESSED]).args(debs);
    let output = command
        .output()
        .context("run lintian: `cargo xtask setup` installs it")?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    ensure!(output.status.success(), "lintian found faults");
    Ok(())
}

/// The smallest Debian that has systemd, whose tools the packages call.
fn debootstrap(root: &Path) -> Result<()> {
    let mut command = Command::new("debootstrap");
    command
        .args(["--variant=minbase", "--include=systemd", SUITE])
        .arg(root);
    if let Some(mirror) = mirror() {
        command.arg(mirror);
    }
    let output = command
        .output()
        .context("run debootstrap: `cargo xtask setup` installs it")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        bail!("debootstrap: {}", last.join(" | "));
    }
    Ok(())
}

/// Where this machine's apt gets its packages from; debootstrap knows a place by itself.
fn mirror() -> Option<String> {
    let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").ok()?;
    let uris = sources
        .lines()
        .find_map(|line| line.strip_prefix("URIs:"))?;
    uris.split_whitespace().next().map(str::to_owned)
}

struct Debian {
    root: PathBuf,
}

impl Debian {
    /// Runs a script inside; what it prints.
    fn sh(&self, script: &str) -> Result<String> {
        let output = Command::new("chroot")
            .arg(&self.root)
            .args(["/bin/sh", "-ec", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .context("run chroot")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "in the fresh Debian: {script}\n{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// Everything below the places where packages put things, dpkg's own books left out, and all
    /// users.
    fn files(&self) -> Result<BTreeSet<String>> {
        let found = self.sh(
            "find /etc /usr /var /opt -xdev -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' \
                -not -path '/var/cache/*' -not -path '/etc/*-' -not -path '/etc/.pwd.lock' \
                -not -path '/var/lib/systemd/*'
            cut -d: -f1 /etc/passwd /etc/group",
        )?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    fn install(&self, debs: &[PathBuf]) -> Result<()> {
        let place = self.root.join("tmp");
        let mut names = Vec::new();
        for deb in debs {
            let name = file_name(deb);
            fs::copy(deb, place.join(&name))?;
            names.push(format!("/tmp/{name}"));
        }
        self.sh(&format!("dpkg --install {}", names.join(" ")))?;
        // A second time is an upgrade to the same version: it changes nothing.
        self.sh(&format!(
            "dpkg --install {}; rm /tmp/*.deb",
            names.join(" ")
        ))?;
        Ok(())
    }

    fn use_them(&self) -> Result<()> {
        for package in PACKAGES {
            for program in package.programs {
                let said = self.sh(&format!("{program} --version"))?;
                ensure!(said.contains(program), "{program} --version said {said:?}");
                self.sh(&format!("test -s /usr/share/man/man1/{program}.1.gz"))?;
            }
            let Some(unit) = &package.unit else { continue };
            let (program, user) = (unit.program, unit.user);
            let enabled = self.sh(&format!("systemctl is-enabled mesh-{program}.service"))?;
            ensure!(enabled.trim() == "enabled", "mesh-{program} is {enabled}");
            self.sh(&format!(
                "getent passwd {user} | grep -q ':/usr/sbin/nologin$'
                {program} run --check-config
                mkdir -p /var/lib/mesh/{program} && touch /var/lib/mesh/{program}/node.key"
            ))?;
        }
        Ok(())
    }

    fn purge(&self) -> Result<()> {
        let names: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
        let names = names.join(" ");
        self.sh(&format!("dpkg --remove {names}"))?;
        // Removal alone keeps what cannot be made again.
        self.sh("test -e /var/lib/mesh/relay/node.key && test -e /etc/mesh/relay.toml")?;
        self.sh(&format!("dpkg --purge {names}"))?;
        Ok(())
    }
}
