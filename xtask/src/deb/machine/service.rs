//! The same machine after the packages were purged: every role by `mesh service` and programs in
//! /usr/local/bin, until nothing of it is left either.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{
    ADMINISTRATORS, JOINING, expect_active, expect_clean_journal, expect_nothing_runs, journal_end,
    learn, use_mesh, wait_until_running,
};
use crate::deb::debian::Debian;
use crate::deb::packages::PACKAGES;
use crate::secrets::Secrets;

/// Where the packages' programs are while nothing is installed.
const ASIDE: &str = "/root/programs";
const BIN: &str = "/usr/local/bin";
/// Which nodes the mesh has.
const NODES: &str = "mesh node list --json | grep -o '\"id\":\"[^\"]*\"' | sort";

/// Keeps the programs of the packages that are installed.
pub(super) fn put_programs_aside(debian: &Debian<'_>) -> Result<()> {
    let names = PACKAGES.iter().flat_map(|package| package.programs);
    let paths: Vec<String> = names.map(|name| format!("/usr/bin/{name}")).collect();
    debian.sh(&format!("mkdir {ASIDE} && cp {} {ASIDE}", paths.join(" ")))?;
    Ok(())
}

/// From a machine with the files `before` to one with the same files.
pub(super) fn check(
    debian: &Debian<'_>,
    before: &BTreeSet<String>,
    secrets: &mut Secrets,
) -> Result<()> {
    let begun = journal_end(debian)?;
    debian.sh(&format!("cp {ASIDE}/* {BIN}"))?;
    expect_status(debian, None)?;
    install(debian)?;
    learn(debian, secrets)?;
    expect_status(debian, Some("active"))?;
    use_mesh(debian)?;
    install_again(debian)?;
    uninstall_and_come_back(debian)?;
    expect_clean_journal(debian, &begun)?;
    purge(debian)?;
    debian.sh(&format!(
        "for it in {ASIDE}/*; do rm {BIN}/${{it##*/}}; done"
    ))?;
    let [administrators] = ADMINISTRATORS;
    debian.expect_as(before, &[administrators, "/etc/credstore"])
}

fn programs() -> impl Iterator<Item = &'static str> {
    let units = PACKAGES.iter().filter_map(|package| package.unit.as_ref());
    units.map(|unit| unit.program)
}

/// Every role is in `state`, or none is installed.
fn expect_status(debian: &Debian<'_>, state: Option<&str>) -> Result<()> {
    let said = debian.sh("mesh service status")?;
    let Some(state) = state else {
        ensure!(said.contains("no role is installed here"), "{said}");
        return Ok(());
    };
    for program in programs() {
        let wanted = [program, state, "enabled"];
        let is_told = said
            .lines()
            .any(|line| line.split_whitespace().take(3).eq(wanted));
        ensure!(is_told, "{program} is not {state}: {said}");
    }
    Ok(())
}

/// As docs/systemd.md says.
fn install(debian: &Debian<'_>) -> Result<()> {
    let waits = debian.sh("mesh service install relay")?;
    ensure!(
        waits.contains("mesh-relay.service waits for a join token"),
        "{waits}"
    );
    let runs = debian.sh("mesh service install coordinator")?;
    ensure!(runs.contains("mesh-coordinator.service runs"), "{runs}");
    debian.sh("mesh login --coordinator-state /var/lib/mesh/coordinator")?;
    for (program, role) in JOINING {
        let runs = debian.sh(&format!(
            "mesh token create --role {role} --output /root/{program}.token
            mesh service install {program} --token-file /root/{program}.token
            rm /root/{program}.token"
        ))?;
        let wanted = format!("mesh-{program}.service runs");
        ensure!(runs.contains(&wanted), "{runs}");
    }
    expect_active(debian)
}

/// Nothing changes, but for what is asked for: the worker's agent gives up root.
fn install_again(debian: &Debian<'_>) -> Result<()> {
    let (files, nodes) = (debian.files()?, debian.sh(NODES)?);
    for program in programs() {
        let said = debian.sh(&format!("mesh service install {program}"))?;
        let kept = format!("kept /etc/mesh/{program}.toml");
        ensure!(said.contains(&kept), "{said}");
    }
    expect_active(debian)?;
    debian.expect_as(&files, &[])?;

    debian.sh("mesh service install worker-agent --ssh off")?;
    expect_active(debian)?;
    let user = "systemctl show --property=MainPID --value mesh-worker-agent";
    let user = debian.sh(&format!("ps -o user:20= -p $({user})"))?;
    ensure!(user.trim() == "mesh-agent", "the agent runs as {user}");
    ensure!(nodes == debian.sh(NODES)?, "other nodes than {nodes}");
    Ok(())
}

/// Without --purge every role keeps who it is.
fn uninstall_and_come_back(debian: &Debian<'_>) -> Result<()> {
    let nodes = debian.sh(NODES)?;
    for program in programs() {
        debian.sh(&format!("mesh service uninstall {program}"))?;
        debian.sh(&format!("test -d /var/lib/mesh/{program}"))?;
    }
    expect_nothing_runs(debian)?;
    expect_status(debian, None)?;
    for program in programs() {
        debian.sh(&format!("mesh service install {program}"))?;
    }
    expect_active(debian)?;
    ensure!(nodes == debian.sh(NODES)?, "other nodes than {nodes}");
    Ok(())
}

/// One after the other, also a role that failed and one whose user is needed.
fn purge(debian: &Debian<'_>) -> Result<()> {
    debian.sh("echo 'no_such_key = 1' >> /etc/mesh/traffic-gateway.toml")?;
    let (code, said) = debian.ran("mesh service install traffic-gateway")?;
    ensure!(
        code == Some(1) && said.contains("see: journalctl -u mesh-traffic-gateway.service"),
        "a wrong setting: {code:?}: {said}"
    );
    debian.sh("systemd-run --quiet --unit=needy --uid=mesh-relay sleep infinity")?;
    let (code, said) = debian.ran("mesh service uninstall relay --purge")?;
    ensure!(
        code == Some(1) && said.contains("processes run as the user mesh-relay: "),
        "a user that is needed: {code:?}: {said}"
    );
    debian.sh("test -f /etc/mesh/relay.toml && test -d /var/lib/mesh/relay")?;
    debian.sh("systemctl stop needy")?;
    for program in programs() {
        let said = debian.sh(&format!("mesh service uninstall {program} --purge"))?;
        ensure!(said.contains("removed the user mesh-"), "{said}");
    }
    expect_nothing_runs(debian)?;
    expect_status(debian, None)?;
    wait_until_running(debian)
}
