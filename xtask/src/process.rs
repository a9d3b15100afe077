//! Running child processes, with what is run shown to the person who waits.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// The cargo that started us, in the repository's root.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    // Set for us by `cargo run`; inner builds must not take them for their own.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Shows the command line and runs it; an error when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("+ {line}");
    let status = command.status().with_context(|| format!("start {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Like [`run`], and what it prints on standard output is also appended to `log`.
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let line = describe(command);
    eprintln!("+ {line}");
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).open(log)?;
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {line}"))?;
    let output = child
        .stdout
        .take()
        .context("the child has no standard output")?;
    for bytes in BufReader::new(output).split(b'\n') {
        let bytes = bytes.with_context(|| format!("read what {line} prints"))?;
        let text = String::from_utf8_lossy(&bytes);
        println!("{text}");
        writeln!(file, "{text}")?;
    }
    let status = child.wait().with_context(|| format!("wait for {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Runs a command whose output is of interest only when it fails; all of it is added to `log`.
pub(crate) fn run_quietly(command: &mut Command, log: &Path) -> Result<()> {
    let line = describe(command);
    eprintln!("+ {line} (output in {})", log.display());
    let file = OpenOptions::new().create(true).append(true).open(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let status = command.status().with_context(|| format!("start {line}"))?;
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(40)..] {
            eprintln!("  {line}");
        }
        bail!("{line}: {status}");
    }
    Ok(())
}

/// What a command prints on standard output, trimmed; what it complains of is the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("start {line}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{line}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_else(|| command.get_program())
        .to_string_lossy()
        .into_owned();
    std::iter::once(program)
        .chain(
            command
                .get_args()
                .map(|arg| arg.to_string_lossy().into_owned()),
        )
        .collect::<Vec<_>>()
        .join(" ")
}

/// Where a program is, looking also where only root's PATH leads.
pub(crate) fn find_program(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name.as_ref()))
        .find(|file| file.is_file())
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether this is a CI run (`CI=true`): nothing is asked and nothing may be skipped.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}
