//! `mesh service uninstall`: a role stops and its unit goes; with `--purge` nothing of it stays.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::units::{Places, Unit};
use super::users::{processes_of_user, remove_user, unit_that_uses};
use super::{Shown, check_machine, remove, run_quietly};
use crate::args::ServiceUninstall;

pub(super) fn uninstall(args: &ServiceUninstall) -> Result<()> {
    let unit = Unit::of(args.role);
    let places = Places::below(&args.root);
    check_machine(&places, &format!("uninstall {}", unit.program))?;
    if let Some(path) = places.packaged(unit) {
        bail!(
            "{} came with a package: apt-get remove wonder-mesh-{}",
            path.display(),
            unit.program
        );
    }
    let path = places.unit(unit);
    // Without a unit there is still what an uninstallation kept, or a purge could not remove.
    ensure!(
        path.is_file() || (args.purge && places.sysusers(unit).is_file()),
        "{} is not installed: there is no {}",
        unit.name(),
        path.display()
    );
    if args.purge {
        expect_unused(&places, unit)?;
    }
    remove_unit(&places, unit)?;
    if args.purge {
        purge(&places, unit)
    } else {
        for kept in [places.config(unit), places.state(unit)] {
            if kept.exists() {
                eprintln!("kept {} (--purge removes it)", kept.display());
            }
        }
        eprintln!(
            "kept the user {} (--purge removes it)",
            unit.account().user()
        );
        Ok(())
    }
}

/// Before anything goes: what somebody else runs as the role's user may be the role itself, on the
/// state that a purge removes.
fn expect_unused(places: &Places, unit: &Unit) -> Result<()> {
    let (name, user) = (unit.name(), unit.account().user());
    let again = format!("mesh service uninstall {} --purge", unit.program);
    if let Some(path) = unit_that_uses(places, unit)? {
        bail!(
            "nothing was removed: {} runs with the user or group {user}; give it another, or stop \
             it and remove the file, then run this again: {again}",
            path.display()
        );
    }
    if places.is_system() && places.unit(unit).is_file() {
        run_quietly(Command::new("systemctl").args(["stop", &name]))?;
        eprintln!("stopped {name}");
    }
    let processes = processes_of_user(places, user)?;
    ensure!(
        processes.is_empty(),
        "nothing was removed: processes run as the user {user}: {}; end them (systemctl status PID \
         tells what started one), then run this again: {again}",
        processes.join(", ")
    );
    Ok(())
}

/// Stops it, and takes away everything that makes systemd start it.
fn remove_unit(places: &Places, unit: &Unit) -> Result<()> {
    let (name, path) = (unit.name(), places.unit(unit));
    if path.is_file() {
        let mut disable = Command::new("systemctl");
        if places.is_system() {
            run_quietly(disable.args(["disable", "--now", &name]))?;
            // systemd remembers a failure, and calls the machine degraded, also without the unit.
            if Shown::of(unit)?.active == "failed" {
                run_quietly(Command::new("systemctl").args(["reset-failed", &name]))?;
            }
        } else {
            disable.arg("--root").arg(places.root());
            run_quietly(disable.args(["disable", &name]))?;
        }
        remove(&path)?;
    }
    let drop_in = places.drop_in(unit);
    remove(&drop_in)?;
    // Somebody's own drop-ins stay, and then the directory does.
    remove_if_empty(drop_in.parent());
    if let Some(credential) = unit.credential() {
        remove(&places.credential(&credential))?;
    }
    if places.is_system() {
        run_quietly(Command::new("systemctl").arg("daemon-reload"))?;
    }
    Ok(())
}

fn purge(places: &Places, unit: &Unit) -> Result<()> {
    let (config, state) = (places.config(unit), places.state(unit));
    remove(&config)?;
    if state.exists() {
        fs::remove_dir_all(&state).with_context(|| format!("remove {}", state.display()))?;
        eprintln!("removed {}", state.display());
    }
    // Last, when nothing is left that belongs to it. If it cannot go, its file stays, by which the
    // same command goes on.
    remove_user(places, unit)?;
    let sysusers = places.sysusers(unit);
    remove(&sysusers)?;
    // The last role takes along what all of them share, but for /etc/credstore, which newer versions
    // of systemd make at boot.
    for shared in [&config, &state, &sysusers] {
        remove_if_empty(shared.parent());
    }
    Ok(())
}

fn remove_if_empty(dir: Option<&Path>) {
    if let Some(dir) = dir {
        drop(fs::remove_dir(dir));
    }
}
