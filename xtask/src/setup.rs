//! `setup`: what tests and benches need from the machine, and how to get it on Debian.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::process;

/// Arguments of `cargo xtask setup`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Args {
    /// Do not ask before root is used.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Only say what is missing; fail when something is.
    #[arg(long)]
    pub(crate) check: bool,
}

/// One Debian package: what shows that it is there, and what it is for.
struct Package {
    name: &'static str,
    probe: Probe,
    purpose: &'static str,
}

enum Probe {
    Program(&'static str),
    File(&'static str),
    /// A module that `python3` can import.
    Python(&'static str),
}

use Probe::{File, Program, Python};

const PACKAGES: &[Package] = &[
    package("gcc", Program("cc"), "building SQLite and ring"),
    package("g++", Program("c++"), "building the fuzzer"),
    package(
        "cockpit-ws",
        File("/usr/lib/cockpit/cockpit-ws"),
        "the console journey",
    ),
    package(
        "cockpit-bridge",
        Program("cockpit-bridge"),
        "the console journey",
    ),
    package(
        "cockpit-system",
        File("/usr/share/cockpit/shell"),
        "the console journey",
    ),
    package("chromium", Program("chromium"), "the console journey"),
    package(
        "chromium-driver",
        Program("chromedriver"),
        "the console journey",
    ),
    package("openssh-server", Program("sshd"), "the deploy journey"),
    package("openssh-client", Program("ssh"), "the deploy journey"),
    package("sshpass", Program("sshpass"), "the deploy journey"),
    package("rsync", Program("rsync"), "the deploy journey"),
    package("curl", Program("curl"), "all journeys"),
    package("nftables", Program("nft"), "journeys that cut links"),
    package(
        "iputils-ping",
        Program("ping"),
        "journeys that ping over the mesh",
    ),
    package("iperf3", Program("iperf3"), "the figures of the TUN shell"),
    package("iproute2", Program("ip"), "journeys in network namespaces"),
    package(
        "tcpdump",
        Program("tcpdump"),
        "the journey that looks for clear text",
    ),
    package(
        "tmux",
        Program("tmux"),
        "journeys that type into a terminal",
    ),
    package(
        "redis-server",
        Program("redis-server"),
        "the tests of the bus",
    ),
    package(
        "postgresql",
        File("/usr/lib/postgresql"),
        "the database suites",
    ),
    package("procps", Program("ps"), "journeys that look at processes"),
    package(
        "systemd",
        Program("systemd-analyze"),
        "checking the systemd units",
    ),
    package("zsh", Program("zsh"), "the completions"),
    package("fish", Program("fish"), "the completions"),
    package("socat", Program("socat"), "journeys that move bytes"),
    package(
        "faketime",
        Program("faketime"),
        "the journey with a clock that is off",
    ),
    package(
        "sqlite3",
        Program("sqlite3"),
        "journeys with a changed database",
    ),
    package("docker.io", Program("dockerd"), "the containers"),
    package(
        "debootstrap",
        Program("debootstrap"),
        "base images that are not fetched",
    ),
    package(
        "lintian",
        Program("lintian"),
        "checking the Debian packages",
    ),
    package("python3-venv", Python("ensurepip"), "cargo xtask k8s"),
    package("python3-pip", Program("pip3"), "docker compose v2"),
    package("nodejs", Program("node"), "cargo xtask k8s"),
    package("npm", Program("npm"), "cargo xtask k8s"),
    package(
        "prometheus",
        Program("promtool"),
        "the observability journey",
    ),
    package("nginx-light", Program("nginx"), "bench gateway"),
    package("haproxy", Program("haproxy"), "bench gateway"),
    package("caddy", Program("caddy"), "bench gateway"),
    package("wrk", Program("wrk"), "bench gateway"),
    package("wireguard-go", Program("wireguard-go"), "bench tun"),
    package("wireguard-tools", Program("wg"), "bench tun"),
];

const fn package(name: &'static str, probe: Probe, purpose: &'static str) -> Package {
    Package {
        name,
        probe,
        purpose,
    }
}

impl Package {
    fn is_there(&self) -> bool {
        match self.probe {
            Program(name) => process::find_program(name).is_some(),
            File(path) => Path::new(path).exists(),
            Python(module) => Command::new("python3")
                .args(["-c", &format!("import {module}")])
                .output()
                .is_ok_and(|output| output.status.success()),
        }
    }
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    rust_components(args)?;
    let missing: Vec<&Package> = PACKAGES
        .iter()
        .filter(|package| !package.is_there())
        .collect();
    if missing.is_empty() {
        println!("setup: all {} packages are there", PACKAGES.len());
        return Ok(());
    }
    println!(
        "setup: {} of {} packages are missing:",
        missing.len(),
        PACKAGES.len()
    );
    for package in &missing {
        println!("  {:<16} for {}", package.name, package.purpose);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!(
        "apt-get install --no-install-recommends {}",
        names.join(" ")
    );
    if args.check {
        bail!("packages are missing; install them with `cargo xtask setup` or: {by_hand}");
    }
    if process::find_program("apt-get").is_none() {
        bail!(
            "this machine has no apt-get; install these by hand (Debian names): {}",
            names.join(" ")
        );
    }
    if !agreed(args, &by_hand)? {
        bail!("packages are missing; install them as root with: {by_hand}");
    }
    install(&names)?;
    let still: Vec<&str> = missing
        .iter()
        .filter(|package| !package.is_there())
        .map(|package| package.name)
        .collect();
    if !still.is_empty() {
        bail!("still missing after apt-get: {}", still.join(" "));
    }
    println!("setup: done");
    Ok(())
}

/// Whether root may be used: `--yes`, CI, an answer, or being root already with nobody to ask.
fn agreed(args: &Args, by_hand: &str) -> Result<bool> {
    if args.yes || process::is_ci() {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Ok(process::is_root());
    }
    let with = if process::is_root() { "" } else { "sudo " };
    print!("Run `{with}{by_hand}` now? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn install(names: &[&str]) -> Result<()> {
    // Packages start their servers when they are installed; the tests start their own, on ports
    // of their own, so no server may be started here (policy-rc.d, exit code 101).
    const SCRIPT: &str = "set -e
        export DEBIAN_FRONTEND=noninteractive
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then
            printf '#!/bin/sh\\nexit 101\\n' > $policy
            chmod 755 $policy
            trap 'rm -f $policy' EXIT
        fi
        apt-get update -q
        apt-get install -q -y --no-install-recommends \"$@\"";
    let mut command = if process::is_root() {
        Command::new("sh")
    } else if process::find_program("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.arg("sh");
        sudo
    } else {
        bail!("this needs root, and there is no sudo: run `cargo xtask setup` as root");
    };
    println!(
        "+ apt-get install --no-install-recommends {}",
        names.join(" ")
    );
    let status = command.args(["-c", SCRIPT, "setup"]).args(names).status()?;
    if !status.success() {
        bail!("apt-get failed: {status}");
    }
    Ok(())
}

/// rustfmt and clippy; rust-toolchain.toml asks for them, so rustup has them as a rule.
fn rust_components(args: &Args) -> Result<()> {
    for component in ["fmt", "clippy"] {
        let there = process::cargo()
            .args([component, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if there {
            continue;
        }
        let name = if component == "fmt" {
            "rustfmt"
        } else {
            component
        };
        if args.check || process::find_program("rustup").is_none() {
            bail!("cargo {component} is missing; install it with `rustup component add {name}`");
        }
        process::run(Command::new("rustup").args(["component", "add", name]))?;
    }
    Ok(())
}
