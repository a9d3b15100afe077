//! Runs commands on the nodes of a mesh: `deploy-cli`, and `mesh deploy`, `mesh nc`, `mesh
//! ssh-config`.
//!
//! It speaks SSH itself, through the deploy-manager's SOCKS5 listener (`--via socks`), or leaves
//! that to the deploy-manager (`--via grpc`). Targets, pinned host keys, users and certificates
//! come from the coordinator of the context; while it does not answer, targets and host keys are
//! those that it told last, and logging in takes a key or a password. It does not dial nodes
//! directly and keeps nothing but that list and what `ssh-config` writes for OpenSSH.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line prints"
)]
#![allow(
    unreachable_pub,
    reason = "the modules are private; what is public is at the top"
)]

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use mesh_ssh::report::{Report, TargetReport};
use mesh_trace::{Exporter, FLUSH, Kind};

use args::{Cli, Options, Targets, Verb};
use output::{Live, exit_code, lines};
use run::{Done, Job, fill_status};
use setting::Setting;

mod args;
mod cockpit;
mod grpc;
mod last_nodes;
mod legacy;
pub mod nc;
mod output;
mod run;
mod setting;
mod socks;
mod ssh_config;
mod target;

/// How long `status` waits for a target when the caller does not say.
const STATUS_TIMEOUT: Duration = Duration::from_secs(30);
/// What `status` runs: POSIX, and the same everywhere.
const STATUS_COMMAND: &str = "uname -n";
const USAGE: u8 = 2;

/// The command line's shape, for completions and documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs a command line, without the program's name. `context` is used when `--context` is not
/// given.
///
/// The exit code is 0 when every target went well, 1 when one failed, 2 for a wrong command line;
/// `exec` on a single target gives the remote code, 255 when the command did not run.
pub async fn run(args: impl IntoIterator<Item = OsString>, context: Option<String>) -> ExitCode {
    let name = std::iter::once(OsString::from("deploy-cli"));
    let cli = match Cli::try_parse_from(name.chain(legacy::rewrite(args))) {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails only when nobody reads it.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let failed = match &cli.verb {
        Verb::Exec { targets, .. } if targets.is_single() => 255,
        _ => 1,
    };
    match traced(cli, context).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(failed)
        }
    }
}

/// Does what is asked in a span of its own, the root of the trace, when the environment names a
/// collector.
async fn traced(cli: Cli, context: Option<String>) -> anyhow::Result<u8> {
    let exporter = Exporter::from_env()?;
    let span = match &cli.verb {
        Verb::Status { .. } => "deploy-cli status",
        Verb::Exec { .. } => "deploy-cli exec",
        Verb::InstallCockpit { .. } => "deploy-cli install-cockpit",
        // These last as long as somebody uses them, or ask nobody.
        Verb::Nc { .. } | Verb::SshConfig { .. } | Verb::Completions { .. } => {
            return perform(cli, context).await;
        }
    };
    let span = exporter
        .tracer("deploy-cli", "")?
        .start(Kind::Internal, span);
    let done = span.scope(perform(cli, context)).await;
    match &done {
        Ok(code) => span.set("process.exit.code", i64::from(*code)),
        Err(_) => span.fail("not done"),
    }
    drop(span);
    exporter.shutdown(FLUSH).await;
    done
}

async fn perform(cli: Cli, context: Option<String>) -> anyhow::Result<u8> {
    let Cli { options, verb } = cli;
    let open = || Setting::open(&options, context.as_deref());
    match verb {
        Verb::Status { targets } => status(&open()?, &options, &targets).await,
        Verb::Exec { command, targets } => exec(&open()?, &options, &command, &targets).await,
        Verb::InstallCockpit { targets } => install_cockpit(&open()?, &options, &targets).await,
        Verb::Nc { host, port } => {
            nc::join(&open()?.proxy(&options)?, &host, port).await?;
            Ok(0)
        }
        Verb::SshConfig { refresh } => {
            let context = options.context.as_deref().or(context.as_deref());
            ssh_config(&open()?, &options, context, refresh.as_deref()).await
        }
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut command(), "deploy-cli", &mut std::io::stdout());
            Ok(0)
        }
    }
}

async fn status(setting: &Setting, options: &Options, targets: &Targets) -> anyhow::Result<u8> {
    let job = Job {
        command: STATUS_COMMAND,
        targets,
        live: Live::Kept,
        default_timeout: Some(STATUS_TIMEOUT),
    };
    let mut done = run::run(setting, options, &job).await?;
    fill_status(&mut done);
    let code = exit_code(&done.results, false);
    conclude("status", options, done.results)?;
    Ok(code)
}

async fn exec(
    setting: &Setting,
    options: &Options,
    command: &str,
    targets: &Targets,
) -> anyhow::Result<u8> {
    let single = targets.is_single();
    let job = Job {
        command,
        targets,
        live: match (options.json, single) {
            (true, _) => Live::Kept,
            (false, true) => Live::Plain,
            (false, false) => Live::prefixed(),
        },
        default_timeout: None,
    };
    let Done { results, .. } = run::run(setting, options, &job).await?;
    let code = exit_code(&results, single);
    if single && !options.json {
        // The output is the command's alone; only a command that did not run is spoken of.
        if let [result] = results.as_slice()
            && result.exit_code.is_none()
        {
            eprint!("{}", lines(&results));
        }
        return Ok(code);
    }
    conclude("exec", options, results)?;
    Ok(code)
}

async fn install_cockpit(
    setting: &Setting,
    options: &Options,
    targets: &Targets,
) -> anyhow::Result<u8> {
    let job = Job {
        command: cockpit::SCRIPT,
        targets,
        live: if options.json {
            Live::Kept
        } else {
            Live::prefixed()
        },
        default_timeout: None,
    };
    let Done { results, chosen } = run::run(setting, options, &job).await?;
    let code = exit_code(&results, false);
    let urls = cockpit::urls(&setting.context, &chosen, |index| results[index].ok);
    conclude("install-cockpit", options, results)?;
    if !options.json {
        show(&urls)?;
    }
    Ok(code)
}

async fn ssh_config(
    setting: &Setting,
    options: &Options,
    context: Option<&str>,
    refresh: Option<&str>,
) -> anyhow::Result<u8> {
    let dir = ssh_config::default_dir(&setting.network)?;
    if let Some(host) = refresh {
        ssh_config::refresh(setting, host, options.user.as_deref(), &dir).await?;
        return Ok(0);
    }
    let program = std::env::current_exe()?;
    let blocks = ssh_config::Blocks {
        network: &setting.network,
        program: &program,
        context,
        socks: options.socks.as_deref(),
        dir: &dir,
        user: options.user.as_deref(),
    };
    show(&ssh_config::print(setting, &blocks).await?)?;
    Ok(0)
}

fn conclude(verb: &str, options: &Options, results: Vec<TargetReport>) -> anyhow::Result<()> {
    if options.json {
        let report = serde_json::to_string(&Report::new(verb, results))?;
        show(&format!("{report}\n"))
    } else {
        show(&lines(&results))
    }
}

/// Prints the answer. A reader that goes away (`… | head`) has seen what it wanted.
fn show(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}
