//! The packages on a machine whose first process is systemd: installed, joined, used, started again
//! with the machine, upgraded, and purged; then the same by `mesh service` ([`service`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

mod service;

use super::debian::Debian;
use super::packages::PACKAGES;
use crate::compose::Engine;
use crate::secrets::Secrets;
use crate::steps::Steps;

/// The machine's host name, which becomes the worker's.
const NAME: &str = "machine-1";
/// The password of `somebody`, who logs in to Cockpit.
const PASSWORD: &str = "correct-horse-battery";
/// The password of the SOCKS proxy.
const SOCKS_PASSWORD: &str = "staple-correct-battery-horse";
const SOON: Duration = Duration::from_secs(60);
/// Units that start once they have a token, in the order of docs/systemd.md: `(program, role)`.
const JOINING: [(&str, &str); 4] = [
    ("relay", "relay"),
    ("traffic-gateway", "gateway"),
    ("deploy-manager", "deployer"),
    ("worker-agent", "worker"),
];
/// The administrator's, who asked for it: `worker-agent console configure`.
const ADMINISTRATORS: [&str; 1] = ["/etc/cockpit/cockpit.conf"];

/// Runs the check; each part is one of `steps`.
pub(super) fn check(
    engine: &Engine,
    debs: &[PathBuf],
    artefacts: &Path,
    steps: &mut Steps,
) -> Result<()> {
    let debian = steps.step("machine: starts", || {
        let debian = Debian::start(engine, "machine")?;
        wait_until_running(&debian)?;
        Ok(debian)
    })?;
    let mut secrets = Secrets::default();
    let done = life(&debian, debs, &mut secrets, steps);
    let searched = steps.step("machine: journal", || {
        search_journal(&debian, &secrets, &artefacts.join("journal.log"))
    });
    done.and(searched)
}

fn life(
    debian: &Debian<'_>,
    debs: &[PathBuf],
    secrets: &mut Secrets,
    steps: &mut Steps,
) -> Result<()> {
    secrets.add("the password of somebody", PASSWORD)?;
    secrets.add("the password of the SOCKS proxy", SOCKS_PASSWORD)?;
    prepare_administrator(debian)?;
    let (before, begun) = (debian.files()?, journal_end(debian)?);
    let files = debian.copy_in(debs)?;
    steps.step("machine: packages", || install(debian, &files))?;
    steps.step("machine: joins", || {
        join(debian)?;
        learn(debian, secrets)
    })?;
    steps.step("machine: console and SSH", || {
        debian.sh("worker-agent console configure && systemctl restart cockpit")?;
        use_mesh(debian)
    })?;
    steps.step("machine: starts again", || {
        // Tokens are read once; what starts now has an identity.
        debian.sh("rm /etc/credstore/mesh-*.join-token")?;
        debian.restart()?;
        wait_until_running(debian)?;
        expect_active(debian)?;
        use_mesh(debian)
    })?;
    steps.step("machine: upgrade", || {
        upgrade(debian, &files)?;
        use_mesh(debian)
    })?;
    steps.step("machine: support bundle", || make_bundle(debian, secrets))?;
    // Until here, nothing was wrong.
    expect_clean_journal(debian, &begun)?;
    steps.step("machine: a wrong setting", || {
        live_with_a_wrong_setting(debian, &files)
    })?;
    steps.step("machine: purge", || {
        service::put_programs_aside(debian)?;
        purge(debian)?;
        debian.expect_as(&before, &ADMINISTRATORS)
    })?;
    steps.step("machine: mesh service", || {
        service::check(debian, &before, secrets)
    })
}

fn wait_until_running(debian: &Debian<'_>) -> Result<()> {
    debian.eventually(
        SOON,
        "test \"$(systemctl is-system-running)\" = running || { systemctl --failed; false; }",
    )?;
    Ok(())
}

/// What is on the machine before our packages: a password for somebody, and what docs/systemd.md
/// says about the SOCKS proxy.
fn prepare_administrator(debian: &Debian<'_>) -> Result<()> {
    debian.sh(&format!(
        "echo somebody:{PASSWORD} | chpasswd
        # At its first start Cockpit makes a certificate, which is not ours to purge.
        systemctl start cockpit
        umask 077
        mkdir -p /etc/systemd/system/mesh-deploy-manager.service.d
        echo {SOCKS_PASSWORD} > /root/socks-password
        printf somebody:{SOCKS_PASSWORD} > /root/socks-auth
        printf '%s\\n' '[Service]' 'LoadCredential=socks-password:/root/socks-password' \
            'Environment=MESH_DEPLOY_MANAGER__SOCKS__USER=somebody' \
            'Environment=MESH_DEPLOY_MANAGER__SOCKS__PASSWORD_FILE=%d/socks-password' \
            > /etc/systemd/system/mesh-deploy-manager.service.d/socks.conf
        systemctl daemon-reload"
    ))?;
    Ok(())
}

/// The coordinator runs at once; the others wait for a token, and say so.
fn install(debian: &Debian<'_>, files: &str) -> Result<()> {
    let said = debian.sh(&format!("dpkg --install {files} 2>&1"))?;
    ensure!(!said.contains("did not start"), "{said}");
    debian.sh("systemctl is-active mesh-coordinator")?;
    for (program, _) in JOINING {
        let state = debian.sh(&format!(
            "systemctl show --property=ActiveState,ConditionResult,UnitFileState mesh-{program}"
        ))?;
        for wanted in [
            "ActiveState=inactive",
            "ConditionResult=no",
            "UnitFileState=enabled",
        ] {
            ensure!(
                state.contains(wanted),
                "mesh-{program}: no {wanted}: {state}"
            );
        }
    }
    Ok(())
}

/// As docs/systemd.md says.
fn join(debian: &Debian<'_>) -> Result<()> {
    debian.sh("mesh login --coordinator-state /var/lib/mesh/coordinator")?;
    for (program, role) in JOINING {
        // Started at once: that it is ready is what the unit waits for.
        debian.sh(&format!(
            "mesh token create --role {role} --output /etc/credstore/mesh-{program}.join-token
            systemctl start mesh-{program}"
        ))?;
    }
    expect_active(debian)
}

/// What the machine keeps for itself by now, and no log may tell.
fn learn(debian: &Debian<'_>, secrets: &mut Secrets) -> Result<()> {
    for (what, script) in [
        ("a join token", "cat /etc/credstore/mesh-*.join-token"),
        (
            "a node's private keys",
            "find /var/lib/mesh -name node.key -exec cat {} +",
        ),
        ("the master key", "cat /var/lib/mesh/coordinator/master.key"),
    ] {
        secrets.add(what, &debian.sh(script)?)?;
    }
    let context = debian.sh("cat /root/.config/mesh/contexts/default.json")?;
    secrets.add_context("the operator's key", &context)
}

fn expect_active(debian: &Debian<'_>) -> Result<()> {
    for package in PACKAGES {
        if let Some(unit) = &package.unit {
            debian.eventually(
                SOON,
                &format!("systemctl is-active mesh-{0} && {0} health", unit.program),
            )?;
        }
    }
    Ok(())
}

/// Cockpit behind the gateway, with a login; SSH by deploy-cli; a fetch by SOCKS5.
fn use_mesh(debian: &Debian<'_>) -> Result<()> {
    let console = format!("http://127.0.0.1:8081/{NAME}");
    debian.eventually(
        SOON,
        &format!("curl -sS --fail --max-time 10 {console}/ | grep -q login-user-input"),
    )?;
    let login = format!("curl -sS --max-time 20 {console}/cockpit/login");
    let session = debian.sh(&format!("{login} --fail --user somebody:{PASSWORD}"))?;
    ensure!(session.contains("csrf-token"), "no session: {session}");
    let (code, refused) = debian.ran(&format!("{login} --fail --user somebody:wrong"))?;
    ensure!(code != Some(0), "a wrong password was taken: {refused}");

    let status = debian.sh("deploy-cli --socks-auth-file /root/socks-auth status all")?;
    ensure!(
        status.contains(&format!("[OK] {NAME} -> ")),
        "deploy-cli status all: {status}"
    );
    let page = debian.sh(&format!(
        "curl -sS --fail --max-time 10 --socks5-hostname 127.0.0.1:1080 \
            --proxy-user somebody:{SOCKS_PASSWORD} http://{NAME}:9090/{NAME}/ping"
    ))?;
    ensure!(page.contains("cockpit"), "by SOCKS5: {page}");
    Ok(())
}

/// The same packages once more: every service is started anew, with the identity that it had.
fn upgrade(debian: &Debian<'_>, files: &str) -> Result<()> {
    let processes = |debian: &Debian<'_>| -> Result<Vec<String>> {
        let units = PACKAGES.iter().filter_map(|package| package.unit.as_ref());
        units
            .map(|unit| {
                let show = "systemctl show --property=MainPID";
                debian.sh(&format!("{show} mesh-{}", unit.program))
            })
            .collect()
    };
    let nodes = "mesh node list --json | grep -o '\"id\":\"[^\"]*\"' | sort";
    let before = (processes(debian)?, debian.sh(nodes)?);
    let said = debian.sh(&format!("dpkg --install {files} 2>&1"))?;
    ensure!(!said.contains("did not start"), "{said}");
    expect_active(debian)?;
    let after = (processes(debian)?, debian.sh(nodes)?);
    for (old, new) in before.0.iter().zip(&after.0) {
        ensure!(
            old != new,
            "a service goes on with the old program: {old:?}"
        );
    }
    ensure!(
        before.1 == after.1,
        "other nodes after the upgrade: {before:?}, {after:?}"
    );
    Ok(())
}

/// What an administrator sends to somebody who helps has what each unit wrote, and no secret.
fn make_bundle(debian: &Debian<'_>, secrets: &Secrets) -> Result<()> {
    debian.sh("umask 077
        mesh support-bundle --output /root/bundle.tar.gz
        mkdir /root/bundle
        tar --extract --gzip --directory=/root/bundle --file=/root/bundle.tar.gz")?;
    for unit in PACKAGES.iter().filter_map(|package| package.unit.as_ref()) {
        let program = unit.program;
        let log = format!("-path '*/logs/mesh-{program}.service.log'");
        let text = debian.sh(&format!("find /root/bundle {log} -exec cat {{}} +"))?;
        ensure!(
            text.contains(&format!(" {program}[")),
            "the bundle lacks what mesh-{program} wrote: {text}"
        );
    }
    let all = debian.sh("find /root/bundle -type f -exec cat {} +")?;
    if let Some(told) = secrets.told(&all) {
        bail!("the support bundle: {told}");
    }
    debian.sh("rm -r /root/bundle /root/bundle.tar.gz")?;
    Ok(())
}

/// dpkg does its work although a service refuses its configuration; it says so, and the mended
/// service runs.
fn live_with_a_wrong_setting(debian: &Debian<'_>, files: &str) -> Result<()> {
    debian.sh("echo 'no_such_key = 1' >> /etc/mesh/relay.toml")?;
    let said = debian.sh(&format!("dpkg --install {files} 2>&1"))?;
    ensure!(
        said.contains("mesh-relay.service did not start: journalctl -u mesh-relay.service"),
        "no word of the service that does not start: {said}"
    );
    debian.sh("journalctl --unit=mesh-relay | grep -q no_such_key
        test \"$(systemctl show --property=Result --value mesh-relay)\" = exit-code
        sed -i '$d' /etc/mesh/relay.toml
        systemctl restart mesh-relay")?;
    expect_active(debian)
}

fn purge(debian: &Debian<'_>) -> Result<()> {
    let names: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
    debian.sh(&format!("dpkg --purge {}", names.join(" ")))?;
    expect_nothing_runs(debian)?;
    wait_until_running(debian)
}

/// No unit of ours is known, and no program of ours runs.
fn expect_nothing_runs(debian: &Debian<'_>) -> Result<()> {
    let units = debian.sh("systemctl list-units --all --plain --no-legend 'mesh-*'")?;
    ensure!(units.trim().is_empty(), "units are left: {units}");
    let programs = PACKAGES.iter().flat_map(|package| package.programs);
    for program in programs {
        let pattern = format!("/usr/(local/)?bin/{program}.*");
        let (code, said) = debian.ran(&format!("pgrep --exact --full '{pattern}'"))?;
        ensure!(code == Some(1), "{program} still runs: {said}");
    }
    Ok(())
}

/// Where the journal ends by now.
fn journal_end(debian: &Debian<'_>) -> Result<String> {
    let said = debian.sh("journalctl --sync && journalctl --lines=0 --show-cursor")?;
    let mut lines = said.lines();
    let cursor = lines.find_map(|line| line.strip_prefix("-- cursor: "));
    let cursor = cursor.with_context(|| format!("no cursor of the journal: {said}"))?;
    Ok(cursor.to_owned())
}

/// Nobody has warned since then.
fn expect_clean_journal(debian: &Debian<'_>, since: &str) -> Result<()> {
    let lines = debian.sh(&format!(
        "journalctl --sync
        journalctl --no-pager --output=cat --after-cursor='{since}' --unit='mesh-*'"
    ))?;
    ensure!(lines.lines().count() > 20, "hardly any log: {lines}");
    let alarms: Vec<&str> = lines
        .lines()
        .filter(|line| {
            line.contains("panicked at")
                || line
                    .split_whitespace()
                    .take(2)
                    .any(|word| ["WARN", "ERROR"].contains(&word))
        })
        .collect();
    ensure!(alarms.is_empty(), "in the journal:\n{}", alarms.join("\n"));
    Ok(())
}

/// Nothing secret is in the journal, which is kept as `file`; and it would be found there.
fn search_journal(debian: &Debian<'_>, secrets: &Secrets, file: &Path) -> Result<()> {
    // Whole: also what is long or cannot be printed.
    let journal = "journalctl --sync && journalctl --all --no-pager --output=short-precise";
    let text = debian.sh(journal)?;
    let told = secrets.told(&text);
    fs::write(file, text)?;
    if let Some(told) = told {
        bail!("{}: {told}", file.display());
    }
    debian.sh("systemd-cat cat /root/socks-password")?;
    let planted = secrets.told(&debian.sh(journal)?);
    let planted = planted.context("nobody finds a password that is planted in the journal")?;
    println!("deb: planted: a password in the journal: {planted}");
    Ok(())
}
