//! `mesh db`: looking after the coordinator's database, on its machine, while it is stopped.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use coordinator::{Config, StoreConfig, database};
use mesh_daemon::{ConfigArgs, Overrides, Secret};

use super::Session;
use crate::args::{DbArgs, DbCopy, DbVerb};
use crate::output::{print_json, table};

pub(super) async fn run(session: &Session, verb: DbVerb) -> Result<ExitCode> {
    match verb {
        DbVerb::Migrate(args) => migrate(session, &args).await,
        DbVerb::Check(args) => check(session, &args).await,
        DbVerb::Copy(args) => copy(session, args).await,
    }
}

/// The coordinator's own configuration: file, environment, flags.
fn config(args: &DbArgs) -> Config {
    let flags = ConfigArgs {
        config: args.config.clone(),
        set: args.set.clone(),
        dev: args.dev,
        ..ConfigArgs::default()
    };
    let state_dir = args.state_dir.as_ref().map(|dir| dir.display().to_string());
    let overrides = Overrides::new().set("state_dir", state_dir);
    mesh_daemon::config::load_or_exit("coordinator", &flags, overrides)
}

async fn migrate(session: &Session, args: &DbArgs) -> Result<ExitCode> {
    let done = database::migrate(&config(args)).await?;
    if session.json {
        print_json("mesh.db-migrate/1", "migrate", &done)?;
    } else if done.applied.is_empty() {
        say!("{} is up to date.", done.database);
    } else {
        say!("{}: ran {}.", done.database, done.applied.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(session: &Session, args: &DbArgs) -> Result<ExitCode> {
    let found = database::check(&config(args)).await?;
    let healthy = found.problems.is_empty();
    if session.json {
        print_json("mesh.db-check/1", "check", &found)?;
    } else {
        let version = found
            .state_version
            .map_or_else(|| "none".to_owned(), |v| v.to_string());
        say!("{}, state version {version}", found.database);
        let rows = found.tables.iter();
        let rows = rows.map(|count| [count.table.clone(), count.rows.to_string()]);
        say!("{}", table(["TABLE", "ROWS"], rows.collect()));
        say!("{} sealed secrets open with the master key.", found.secrets);
        for problem in &found.problems {
            say!("PROBLEM: {problem}");
        }
        if healthy {
            say!("No damage found.");
        }
    }
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn copy(session: &Session, args: DbCopy) -> Result<ExitCode> {
    let config = config(&args.from);
    let read = |path: Option<std::path::PathBuf>| -> Result<String> {
        path.map_or_else(
            || Ok(String::new()),
            |path| {
                std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
            },
        )
    };
    let url = args.to.clone();
    let to = StoreConfig {
        url: args.to,
        password: Secret::new(read(args.to_password_file)?.trim_end_matches(['\r', '\n'])),
        ca: read(args.to_ca_file)?,
        tls: args.to_tls.map(Into::into),
        ..StoreConfig::default()
    };
    let shows = std::io::stderr().is_terminal() && !session.json;
    let mut progress = |table: &'static str, rows: u64| {
        if shows {
            eprint!("\r\x1b[K{table}: {rows} rows");
        }
    };
    let done = database::copy(&config, &to, &mut progress).await;
    if shows {
        eprint!("\r\x1b[K");
    }
    let done = done?;
    let same = done.tables.iter().all(|table| table.same);
    if session.json {
        print_json("mesh.db-copy/1", "copy", &done)?;
    } else {
        say!("{} -> {}", done.from, done.to);
        let rows = done.tables.iter().map(|copy| {
            let verdict = if copy.same { "same" } else { "DIFFERENT" };
            [
                copy.table.clone(),
                copy.rows.to_string(),
                copy.rows_copied.to_string(),
                copy.checksum.chars().take(16).collect(),
                copy.checksum_copied.chars().take(16).collect(),
                verdict.to_owned(),
            ]
        });
        let head = ["TABLE", "ROWS", "COPIED", "SHA-256", "SHA-256 COPIED", ""];
        say!("{}", table(head, rows.collect()));
        if same {
            say!(
                "Both hold the same. Now set store.url to {url} in the coordinator's configuration \
                 (and its password_file and ca_file), keep the master key, and start it."
            );
        } else {
            say!("The copy differs: do not use it; make the database anew and copy again.");
        }
    }
    Ok(if same {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
