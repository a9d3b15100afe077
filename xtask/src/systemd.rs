//! `systemd`: the units in deploy/systemd say what they mean, are shut in as tightly as they claim,
//! and start programs that take their arguments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process, workspace};

/// A unit as it is run: with or without a drop-in beside it.
struct Case {
    unit: &'static str,
    drop_in: Option<&'static str>,
    /// What `systemd-analyze security` may say at most, in tenths: 0 is shut in best, 100 not at
    /// all.
    exposure: u32,
}

const CASES: &[Case] = &[
    case("mesh-coordinator.service", None, 12),
    case("mesh-relay.service", None, 13),
    case("mesh-traffic-gateway.service", None, 13),
    case("mesh-deploy-manager.service", None, 13),
    // Root's shells must be able to do what root's shells do: see the unit.
    case("mesh-worker-agent.service", None, 96),
    case("mesh-worker-agent.service", Some("sshd.conf"), 13),
];

const fn case(unit: &'static str, drop_in: Option<&'static str>, exposure: u32) -> Case {
    Case {
        unit,
        drop_in,
        exposure,
    }
}

/// Arguments of `cargo xtask systemd`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Args {
    /// Ask the programs of the debug build as it is, without building.
    #[arg(long)]
    no_build: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    let source = workspace::root().join("deploy/systemd");
    every_unit_has_a_case(&source)?;
    if !args.no_build {
        process::run(process::cargo().args(["build", "--workspace", "--bins"]))?;
    }
    let scratch = workspace::target_dir().join("systemd");
    for case in CASES {
        let unit = stage(&source, &scratch, case)?;
        verify(&unit)?;
        let score = security(&unit, case.exposure)?;
        arguments(&unit, &source.join(case.unit))?;
        let with = case
            .drop_in
            .map_or(String::new(), |name| format!(" with {name}"));
        println!(
            "systemd: {}{with}: exposure {}.{} of 10",
            case.unit,
            score / 10,
            score % 10
        );
    }
    Ok(())
}

fn every_unit_has_a_case(source: &Path) -> Result<()> {
    for entry in fs::read_dir(source)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let known = CASES.iter().any(|case| case.unit == name);
        ensure!(
            known || !name.ends_with(".service"),
            "{name} is new: say in xtask's systemd.rs how tightly it is shut in"
        );
    }
    Ok(())
}

/// Puts one unit into a directory of its own, with a program that is there on every machine.
fn stage(source: &Path, scratch: &Path, case: &Case) -> Result<PathBuf> {
    if scratch.exists() {
        fs::remove_dir_all(scratch)?;
    }
    fs::create_dir_all(scratch)?;
    let text = read(&source.join(case.unit))?;
    let unit = scratch.join(case.unit);
    fs::write(&unit, with_true(&text))?;
    if let Some(name) = case.drop_in {
        let dir = format!("{}.d", case.unit);
        fs::create_dir_all(scratch.join(&dir))?;
        fs::copy(source.join(&dir).join(name), scratch.join(&dir).join(name))?;
    }
    Ok(unit)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The unit with `/bin/true` in place of its program, which is not installed here.
fn with_true(text: &str) -> String {
    text.lines()
        .map(|line| match line.strip_prefix("ExecStart=") {
            Some(command) => {
                let rest = command.split_once(' ').map_or("", |(_, rest)| rest);
                format!("ExecStart=/bin/true {rest}\n")
            }
            None => format!("{line}\n"),
        })
        .collect()
}

/// Everything systemd says about the unit is a fault, also what it only warns of, such as an unknown
/// key.
fn verify(unit: &Path) -> Result<()> {
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(unit)
        .output()
        .context("run systemd-analyze: `cargo xtask setup` installs it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let name = unit.file_name().unwrap_or_default().to_string_lossy();
    let about_it: Vec<&str> = said
        .lines()
        .filter(|line| line.contains(name.trim_end_matches(".service")))
        .collect();
    ensure!(
        output.status.success() && about_it.is_empty(),
        "{name}: {}",
        if about_it.is_empty() {
            said.trim().to_owned()
        } else {
            about_it.join("; ")
        }
    );
    Ok(())
}

/// The exposure in tenths; an error when it is above `limit`.
fn security(unit: &Path, limit: u32) -> Result<u32> {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--no-pager"])
        .arg(format!("--threshold={limit}"))
        .arg(unit)
        .output()
        .context("run systemd-analyze: `cargo xtask setup` installs it")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let score = score(&said).with_context(|| {
        format!(
            "systemd-analyze security gave no score for {}: {}",
            unit.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })?;
    if !output.status.success() || score > limit {
        let open: Vec<&str> = said.lines().filter(|line| line.contains('✗')).collect();
        bail!(
            "{}: exposure {}.{}, at most {}.{} is allowed; open are:\n{}",
            unit.display(),
            score / 10,
            score % 10,
            limit / 10,
            limit % 10,
            open.join("\n")
        );
    }
    Ok(score)
}

/// "Overall exposure level for x.service: 1.3 OK" as 13.
fn score(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.contains("exposure level"))?;
    let number = line
        .rsplit_once(": ")?
        .1
        .split_whitespace()
        .next()?
        .replace('.', "");
    number.parse().ok()
}

/// The real program takes the unit's arguments and environment.
fn arguments(staged: &Path, source: &Path) -> Result<()> {
    let mut text = read(source)?;
    let dir = staged.with_extension("service.d");
    if dir.is_dir() {
        for entry in fs::read_dir(&dir)? {
            text.push_str(&read(&entry?.path())?);
        }
    }
    let start = value(&text, "ExecStart").context("the unit starts nothing")?;
    let mut words = start.split_whitespace();
    let program = words
        .next()
        .and_then(|path| path.strip_prefix("/usr/bin/"))
        .context("the program is not in /usr/bin")?;
    let mut command = Command::new(workspace::target_dir().join("debug").join(program));
    command
        .env_clear()
        .args(words.map(|word| word.replace("%d", "/run/credentials/none")))
        .args(["--config", "/dev/null", "--check-config"]);
    for pair in text
        .lines()
        .filter_map(|line| line.strip_prefix("Environment="))
    {
        let (name, value) = pair
            .split_once('=')
            .context("Environment= without a value")?;
        command.env(name, value.replace("%S", "/var/lib"));
    }
    let output = command.output().with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} does not take what its unit gives it: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The relay's unit after a change, in a directory of its own.
    fn planted(name: &str, from: &str, to: &str) -> PathBuf {
        let dir = workspace::target_dir().join("systemd-planted").join(name);
        fs::create_dir_all(&dir).expect("a directory");
        let source = workspace::root().join("deploy/systemd/mesh-relay.service");
        let text = read(&source).expect("the unit");
        assert!(text.contains(from), "nothing to plant in");
        let unit = dir.join("mesh-relay.service");
        fs::write(&unit, with_true(&text.replace(from, to))).expect("written");
        unit
    }

    #[test]
    fn a_misspelt_key_is_found() {
        let unit = planted("key", "ProtectHome=yes", "ProtectHomes=yes");
        let fault = verify(&unit).expect_err("a fault").to_string();
        assert!(fault.contains("ProtectHomes"), "{fault}");
    }

    #[test]
    fn a_wrong_value_is_found() {
        let unit = planted("value", "AF_NETLINK", "AF_NETLINKS");
        let fault = verify(&unit).expect_err("a fault").to_string();
        assert!(fault.contains("AF_NETLINKS"), "{fault}");
    }

    #[test]
    fn an_opened_sandbox_is_found() {
        let unit = planted("sandbox", "SystemCallFilter=@system-service\n", "");
        verify(&unit).expect("it is still a unit");
        let fault = security(&unit, 13).expect_err("a fault").to_string();
        assert!(fault.contains("at most 1.3"), "{fault}");
        let unit = planted("sound", "AF_NETLINK", "AF_NETLINK");
        verify(&unit).expect("sound");
        assert!(security(&unit, 13).expect("tight") <= 13);
    }

    #[test]
    fn the_score_is_read() {
        let line = "→ Overall exposure level for mesh-relay.service: 1.3 OK :-)";
        assert_eq!(score(line), Some(13));
        assert_eq!(score("nothing"), None);
    }
}
