//! Packages are looked at by lintian, then installed, used and purged in a fresh Debian: once where
//! nothing runs, as when an image is made, and once on a machine whose first process is systemd
//! ([`machine`]).

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::debian::{Debian, prepare};
use super::packages::PACKAGES;
use super::{file_name, machine};
use crate::compose::{self, Engine};
use crate::steps::Steps;
use crate::workspace;

/// What lintian may say: there is no mail address yet, and no bug that asked for a package.
const SUPPRESSED: &str = "bogus-mail-host,initial-upload-closes-no-bugs";

/// Checks `debs`; with `local_images` in a Debian made of its packages instead of a fetched one.
pub(super) fn run(debs: &[PathBuf], local_images: bool) -> Result<()> {
    let mut steps = Steps::default();
    let done = every_step(debs, local_images, &mut steps);
    steps.print();
    done?;
    println!(
        "deb: {} packages install, run and purge cleanly",
        debs.len()
    );
    Ok(())
}

fn every_step(debs: &[PathBuf], local_images: bool, steps: &mut Steps) -> Result<()> {
    steps.step("lintian", || lintian(debs))?;
    let artefacts = workspace::target_dir().join("ci/deb");
    std::fs::create_dir_all(&artefacts)?;
    let engine = steps.step("container engine", || Engine::open(&artefacts))?;
    if local_images {
        steps.step("base image", || compose::debian_image(&engine))?;
    }
    steps.step("a Debian with Cockpit", || prepare(&engine, &artefacts))?;
    steps.step("where nothing runs", || where_nothing_runs(&engine, debs))?;
    machine::check(&engine, debs, &artefacts, steps)
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

fn where_nothing_runs(engine: &Engine, debs: &[PathBuf]) -> Result<()> {
    let debian = Debian::start(engine, "image")?;
    let before = debian.files()?;
    let files = debian.copy_in(debs)?;
    debian.sh(&format!("dpkg --install {files}"))?;
    // A second time is an upgrade to the same version: it changes nothing.
    debian.sh(&format!("dpkg --install {files}"))?;
    use_them(&debian)?;
    stop_at_faults(&debian, debs)?;

    let names: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
    let names = names.join(" ");
    debian.sh(&format!("dpkg --remove {names}"))?;
    // Removal alone keeps what cannot be made again.
    debian.sh("test -e /var/lib/mesh/relay/node.key && test -e /etc/mesh/relay.toml")?;
    debian.sh(&format!("dpkg --purge {names}"))?;
    debian.expect_as(&before, &[])
}

fn use_them(debian: &Debian<'_>) -> Result<()> {
    for package in PACKAGES {
        for program in package.programs {
            let said = debian.sh(&format!("{program} --version"))?;
            ensure!(said.contains(program), "{program} --version said {said:?}");
            debian.sh(&format!("test -s /usr/share/man/man1/{program}.1.gz"))?;
        }
        let Some(unit) = &package.unit else { continue };
        let (program, user) = (unit.program, unit.user);
        let enabled = debian.sh(&format!("systemctl is-enabled mesh-{program}.service"))?;
        ensure!(enabled.trim() == "enabled", "mesh-{program} is {enabled}");
        debian.sh(&format!(
            "getent passwd {user} | grep -q ':/usr/sbin/nologin$'
            {program} run --check-config
            mkdir -p /var/lib/mesh/{program} && touch /var/lib/mesh/{program}/node.key"
        ))?;
    }
    Ok(())
}

/// A maintainer script that cannot do its work stops dpkg, and says how to go on.
fn stop_at_faults(debian: &Debian<'_>, debs: &[PathBuf]) -> Result<()> {
    let relay = debs
        .iter()
        .map(|deb| file_name(deb))
        .find(|name| name.contains("-relay_"))
        .context("there is no package of the relay")?;
    debian.sh("mkdir /tmp/broken
        printf '#!/bin/sh\\necho planted >&2\\nexit 1\\n' > /tmp/broken/deb-systemd-helper
        chmod 0755 /tmp/broken/deb-systemd-helper")?;
    let install = format!("PATH=/tmp/broken:$PATH dpkg --install /root/debs/{relay}");
    let (code, said) = debian.ran(&install)?;
    ensure!(
        code != Some(0) && said.contains("deb-systemd-helper unmask mesh-relay.service\" failed"),
        "dpkg ended with {code:?} although enabling the unit failed: {said}"
    );
    ensure!(said.contains("dpkg --configure -a"), "no advice: {said}");
    debian.sh("rm -r /tmp/broken; dpkg --configure -a")?;
    Ok(())
}
