//! `mesh up`: every role in this process, on an embedded database.
//!
//! The services are started as they are: each with its own state directory, identity and sockets.
//! What one needs of another goes over TLS and WireGuard on loopback, exactly as between machines.

mod joining;
mod listen;
mod networks;
mod parts;
mod report;
mod roles;
mod start;

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mesh_daemon::{LogConfig, ShutdownTrigger};

use crate::args::UpArgs;
use crate::output;

/// How long the roles get to finish what runs, all together about.
const GRACE: Duration = Duration::from_secs(3);
/// How long until everything must be reachable.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Runs until a signal, or until a role fails.
pub(crate) async fn run(args: UpArgs, json: bool) -> Result<ExitCode> {
    let log = LogConfig {
        level: args.log.clone(),
        ..LogConfig::default()
    };
    let _log = mesh_daemon::telemetry::init(&log).context("set up logging")?;
    let state_dir = state_dir(args.state_dir.as_deref())?;
    let is_first = !state_dir.join("coordinator").exists();
    mesh_daemon::private_dir(&state_dir)
        .with_context(|| format!("prepare the state directory {}", state_dir.display()))?;
    let _lock = lock(&state_dir)?;

    let (trigger, shutdown) = ShutdownTrigger::new(GRACE);
    let _signals = mesh_daemon::signals(trigger.clone()).context("listen for signals")?;
    if !json && is_first {
        eprintln!(
            "Starting for the first time: making keys and a database in {}.",
            state_dir.display()
        );
    } else if !json {
        eprintln!("Starting.");
    }
    let started = tokio::select! {
        started = roles::Running::start(&args, &state_dir) => started,
        () = shutdown.draining() => {
            eprintln!("Stopped before everything was up.");
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut running = started?;
    let outcome = serve(&mut running, &args, json, &shutdown).await;
    if !json {
        eprintln!("Stopping.");
    }
    running.stop(GRACE).await;
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn serve(
    running: &mut roles::Running,
    args: &UpArgs,
    json: bool,
    shutdown: &mesh_daemon::Shutdown,
) -> Result<()> {
    let roles::Running {
        roles,
        facts: parts,
        ..
    } = running;
    tokio::select! {
        ready = tokio::time::timeout(READY_WITHIN, parts.ready()) => if ready.is_err() {
            bail!(
                "not everything was up within {} s: {}",
                READY_WITHIN.as_secs(),
                parts.not_ready()
            );
        },
        failed = roles::failed(roles) => return Err(failed),
        () = shutdown.draining() => return Ok(()),
    }
    let facts = parts.facts(args)?;
    let text = if json {
        facts.json()
    } else {
        facts.text(output::coloured())
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .context("write to standard output")?;
    drop(out);
    tokio::select! {
        failed = roles::failed(roles) => Err(failed),
        () = shutdown.draining() => Ok(()),
    }
}

/// The lock of the state directory, held until it is dropped.
fn lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join("up.lock");
    let fault = || format!("lock {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(fault)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).with_context(fault)?;
            bail!(
                "another 'mesh up' (process {}) runs on {}: stop it, or choose another directory \
                 with --state-dir",
                holder.trim(),
                state_dir.display()
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(fault),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(fault)?;
    Ok(file)
}

/// The directory named, else `$XDG_DATA_HOME/mesh`, else `~/.local/share/mesh`; absolute.
pub(crate) fn state_dir(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(named) = named {
        return std::path::absolute(named).context("find the state directory");
    }
    if let Some(base) = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from)
        && base.is_absolute()
    {
        return Ok(base.join("mesh"));
    }
    let home = std::env::var_os("HOME").context("there is no $HOME: say --state-dir DIR")?;
    Ok(Path::new(&home).join(".local/share/mesh"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_on_the_same_state_is_told_who_has_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let _first = lock(dir.path()).expect("free");
        let error = lock(dir.path()).expect_err("taken").to_string();
        let pid = std::process::id().to_string();
        assert!(
            error.contains(&pid) && error.contains("--state-dir"),
            "{error}"
        );
    }

    #[test]
    fn the_lock_is_free_again_once_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        drop(lock(dir.path()).expect("free"));
        lock(dir.path()).expect("free again");
    }
}
