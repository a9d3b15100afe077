//! `mesh service`: roles under systemd, on machines without the Debian packages.

mod uninstall;
mod units;
mod users;

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use self::uninstall::uninstall;
use self::units::{Places, Unit, hidden};
use self::users::make_user;
use super::{Session, read_input};
use crate::args::{ServiceInstall, ServiceRole, ServiceVerb};
use crate::output;

pub(super) fn run(session: &Session, verb: ServiceVerb) -> Result<()> {
    match verb {
        ServiceVerb::Install(args) => {
            let program = Unit::of(args.role).program;
            install(&args)?;
            // Steps are told on standard error as they are done; --print gives the unit itself.
            match session.json && !args.print {
                true => session.done("service install", program, ""),
                false => Ok(()),
            }
        }
        ServiceVerb::Uninstall(args) => {
            uninstall(&args)?;
            match session.json {
                true => session.done("service uninstall", Unit::of(args.role).program, ""),
                false => Ok(()),
            }
        }
        ServiceVerb::Status { role } => status(session, role),
    }
}

fn install(args: &ServiceInstall) -> Result<()> {
    let unit = Unit::of(args.role);
    let places = Places::below(&args.root);
    let bin_dir = match &args.bin_dir {
        Some(dir) => dir.clone(),
        None => own_directory()?,
    };
    ensure!(
        bin_dir.is_absolute(),
        "--bin-dir must be an absolute path, not {}",
        bin_dir.display()
    );
    let packaged = places.packaged(unit);
    let text = match &packaged {
        Some(path) => {
            fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?
        }
        None => unit.text(&bin_dir)?,
    };
    ensure!(
        args.ssh.is_none() || unit.role == ServiceRole::WorkerAgent,
        "--ssh says who answers SSH on a worker: it goes with worker-agent only"
    );
    ensure!(
        args.token_file.is_none() || unit.credential().is_some(),
        "the coordinator makes join tokens and needs none"
    );
    let drop_in = args.ssh.and_then(Unit::drop_in);
    if args.print {
        print!("{text}");
        if let Some(drop_in) = drop_in {
            print!("\n# {}\n{drop_in}", places.drop_in(unit).display());
        }
        return Ok(());
    }
    check_machine(&places, &format!("install {}", unit.program))?;
    if packaged.is_none() {
        check_program(&places, &bin_dir, unit)?;
    }

    if let (Some(name), Some(token)) = (unit.credential(), &args.token_file) {
        write_credential(&places.credential(&name), &read_input(token)?)?;
    }
    if packaged.is_none() {
        write(&places.sysusers(unit), unit.sysusers())?;
        make_user(&places, unit)?;
        write(&places.unit(unit), &text)?;
        write_config(&places, &bin_dir, unit)?;
    }
    if args.ssh.is_some() {
        let path = places.drop_in(unit);
        match drop_in {
            Some(drop_in) => write(&path, &drop_in)?,
            None => remove(&path)?,
        }
    }
    enable(&places, unit, args.no_start)
}

/// Where this program is; the others are beside it.
fn own_directory() -> Result<std::path::PathBuf> {
    let program = std::env::current_exe().context("find out where this program is")?;
    let dir = program
        .parent()
        .context("this program is in no directory")?;
    Ok(dir.to_owned())
}

fn check_machine(places: &Places, verb: &str) -> Result<()> {
    if !places.is_system() {
        ensure!(
            places.root().is_dir(),
            "there is no directory {}",
            places.root().display()
        );
        return Ok(());
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this writes below /etc and needs root: sudo mesh service {verb}"
    );
    ensure!(
        Path::new("/run/systemd/system").is_dir(),
        "this machine was not started by systemd; start the program itself by what it has instead"
    );
    Ok(())
}

fn check_program(places: &Places, bin_dir: &Path, unit: &Unit) -> Result<()> {
    let program = places.program(bin_dir, unit);
    ensure!(
        program.is_file(),
        "there is no {}: install it there, or name its directory with --bin-dir",
        program.display()
    );
    if let Some(hidden) = hidden(bin_dir) {
        bail!(
            "the service cannot see programs below {hidden}: copy {} to /usr/local/bin and give \
             --bin-dir /usr/local/bin",
            program.display()
        );
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => eprintln!("removed {}", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
    }
    Ok(())
}

/// A join token where only root, and so systemd, can read it.
fn write_credential(path: &Path, token: &str) -> Result<()> {
    use std::io::Write as _;
    let token = token.trim();
    token.parse::<mesh_types::JoinToken>()?;
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("make {}", dir.display()))?;
    }
    remove_silently(path)?;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| writeln!(file, "{token}"))
        .with_context(|| format!("write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn remove_silently(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The commented configuration that the program itself writes; one that is there stays.
fn write_config(places: &Places, bin_dir: &Path, unit: &Unit) -> Result<()> {
    let path = places.config(unit);
    if path.exists() {
        eprintln!("kept {}", path.display());
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let mut command = Command::new(places.program(bin_dir, unit));
    command.args(["config", "init", "--output"]).arg(&path);
    run_quietly(&mut command)?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn enable(places: &Places, unit: &Unit, no_start: bool) -> Result<()> {
    let name = unit.name();
    let mut command = Command::new("systemctl");
    if !places.is_system() {
        command.arg("--root").arg(places.root());
        run_quietly(command.args(["enable", &name]))?;
        eprintln!("enabled {name}");
        return Ok(());
    }
    run_quietly(Command::new("systemctl").arg("daemon-reload"))?;
    run_quietly(command.args(["enable", &name]))?;
    eprintln!("enabled {name}");
    if no_start {
        eprintln!("start it with: systemctl start {name}");
        return Ok(());
    }
    run_quietly(Command::new("systemctl").args(["restart", &name]))
        .with_context(|| format!("{name} did not start; see: journalctl -u {name}"))?;
    let now = Shown::of(unit)?;
    if now.active == "active" {
        eprintln!("{name} runs");
    } else if !now.condition {
        eprintln!(
            "{name} waits for a join token: mesh token create --role {} --output token, then: mesh \
             service install {} --token-file token",
            unit.token_role(),
            unit.program
        );
    } else {
        bail!("{name} is {}; see: journalctl -u {name}", now.active);
    }
    Ok(())
}

/// What systemd says of a unit.
#[derive(Debug, Serialize)]
struct Shown {
    role: &'static str,
    unit: String,
    /// `not-found`, `loaded`, `masked` …
    load: String,
    /// `active`, `inactive`, `failed` …
    active: String,
    /// `enabled`, `disabled` …; empty when there is none.
    enabled: String,
    /// What it says of itself.
    status: String,
    /// Why it ended, `success` as a rule.
    result: String,
    /// Whether there was something to do when it was started last.
    condition: bool,
}

impl Shown {
    fn of(unit: &Unit) -> Result<Self> {
        let name = unit.name();
        let output = Command::new("systemctl")
            .args(["show", &name, "--property"])
            .arg("LoadState,ActiveState,UnitFileState,StatusText,Result,ConditionResult")
            .stdin(Stdio::null())
            .output()
            .context("run systemctl: is this machine run by systemd?")?;
        ensure!(
            output.status.success(),
            "systemctl show {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(Self::parse(unit, &text))
    }

    fn parse(unit: &Unit, text: &str) -> Self {
        let value = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let mut found = lines.filter(|(key, _)| *key == name);
            found.next().map(|(_, value)| value.to_owned())
        };
        let text = |name: &str| value(name).unwrap_or_default();
        Self {
            role: unit.program,
            unit: unit.name(),
            load: text("LoadState"),
            active: text("ActiveState"),
            enabled: text("UnitFileState"),
            status: text("StatusText"),
            result: text("Result"),
            condition: text("ConditionResult") == "yes",
        }
    }

    /// One line about it for people.
    fn remark(&self) -> String {
        match (self.active.as_str(), self.condition) {
            ("active" | "activating" | "deactivating", _) => self.status.clone(),
            ("failed", _) => format!("{}; see: journalctl -u {}", self.result, self.unit),
            (_, false) if self.enabled == "enabled" => "waits for a join token".to_owned(),
            _ => String::new(),
        }
    }
}

fn status(session: &Session, role: Option<ServiceRole>) -> Result<()> {
    let mut shown = Vec::new();
    for unit in Unit::all() {
        if role.is_some_and(|role| role != unit.role) {
            continue;
        }
        let one = Shown::of(unit)?;
        if role.is_some() || one.load != "not-found" {
            shown.push(one);
        }
    }
    if session.json {
        return output::print_json("mesh.services/1", "services", shown);
    }
    if shown.is_empty() {
        say!("no role is installed here; next: mesh service install ROLE");
        return Ok(());
    }
    let rows = shown.iter().map(|one| {
        let state = match one.load.as_str() {
            "not-found" => "not installed",
            _ => one.active.as_str(),
        };
        [
            one.role.to_owned(),
            state.to_owned(),
            one.enabled.clone(),
            one.remark(),
        ]
    });
    say!(
        "{}",
        output::table(["ROLE", "STATE", "AT BOOT", "SAYS"], rows.collect())
    );
    Ok(())
}

/// Runs a program whose output only matters when it fails.
fn run_quietly(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {name}"))?;
    if !output.status.success() {
        let words: Vec<_> = command
            .get_args()
            .map(|arg| arg.to_string_lossy())
            .collect();
        bail!(
            "{name} {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\n\
        StatusText=not ready; coordinator: connecting\nResult=success\nConditionResult=yes\n";

    #[test]
    fn what_systemd_shows_is_read() {
        let unit = Unit::of(ServiceRole::Relay);
        let shown = Shown::parse(unit, RUNNING);
        assert_eq!(shown.active, "active");
        assert_eq!(shown.remark(), "not ready; coordinator: connecting");
        let waiting = "LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled\nStatusText=\n\
            Result=success\nConditionResult=no\n";
        assert_eq!(
            Shown::parse(unit, waiting).remark(),
            "waits for a join token"
        );
        let failed = "LoadState=loaded\nActiveState=failed\nUnitFileState=enabled\n\
            Result=exit-code\nConditionResult=yes\n";
        assert_eq!(
            Shown::parse(unit, failed).remark(),
            "exit-code; see: journalctl -u mesh-relay.service"
        );
    }

    #[test]
    fn only_join_tokens_are_stored_and_only_for_root() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("etc/credstore/mesh-relay.join-token");
        assert!(write_credential(&path, "no token").is_err());
        assert!(!path.exists());
        let token = mesh_types::JoinToken {
            ca_fingerprint: [1; 32],
            id: mesh_types::TokenId::from_bytes([2; 16]),
            secret: [3; 32],
            coordinators: vec!["mesh.example.org:8080".to_owned()],
        };
        let text = token.reveal();
        for _ in 0..2 {
            write_credential(&path, &format!("{text}\n")).expect("written");
        }
        assert_eq!(
            fs::read_to_string(&path).expect("read"),
            format!("{text}\n")
        );
        let mode = |path: &Path| {
            fs::metadata(path)
                .expect("it is there")
                .permissions()
                .mode()
        };
        assert_eq!(mode(&path) & 0o777, 0o600);
        assert_eq!(mode(path.parent().expect("a parent")) & 0o777, 0o700);
    }
}
