//! `config init`, `heal`, `check` and `keys`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line prints its answers"
)]

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::exit_config;
use crate::config::{
    self, ConfigArgs, Key, Overrides, Schema, Settings, commented, default_path, heal,
};

/// Verbs about the configuration file.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum ConfigVerb {
    /// Write a file with every key, its default and what it is for
    Init {
        /// Where to; must not exist yet (default: standard output)
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Add to a file the keys that it lacks, and change nothing else in it
    Heal {
        /// The file (default: the service's own)
        file: Option<PathBuf>,
    },
    /// Say whether the configuration is good, as --check-config does
    Check,
    /// List every key with its type, default and environment variable
    Keys {
        /// As JSON, with the texts
        #[arg(long)]
        json: bool,
    },
}

impl ConfigVerb {
    pub(super) fn run<T: Settings>(
        self,
        service: &str,
        args: &ConfigArgs,
        overrides: Overrides,
    ) -> ExitCode {
        let schema = Schema::of::<T>(service);
        match self {
            Self::Init { output: None } => {
                print!("{}", commented(&schema));
                ExitCode::SUCCESS
            }
            Self::Init { output: Some(file) } => init(&schema, &file),
            Self::Heal { file } => {
                let file = file.or_else(|| args.config.clone());
                heal_file(&schema, &file.unwrap_or_else(|| default_path(service)))
            }
            Self::Check => {
                let check = ConfigArgs {
                    check_config: true,
                    ..args.clone()
                };
                drop(config::load_or_exit::<T>(service, &check, overrides));
                ExitCode::SUCCESS
            }
            Self::Keys { json } => {
                keys(&schema, json);
                ExitCode::SUCCESS
            }
        }
    }
}

fn init(schema: &Schema, file: &Path) -> ExitCode {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(file)
        .and_then(|mut open| open.write_all(commented(schema).as_bytes()));
    match written {
        Ok(()) => {
            println!("wrote {}", file.display());
            ExitCode::SUCCESS
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            eprintln!(
                "error: {0} is there already; add the keys that it lacks with: {1} config heal {0}",
                file.display(),
                schema.service()
            );
            ExitCode::FAILURE
        }
        Err(error) => failed("write", file, &error),
    }
}

fn heal_file(schema: &Schema, file: &Path) -> ExitCode {
    // The file itself, not a link to it, is what gets replaced.
    let real = match fs::canonicalize(file) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!(
                "error: there is no {0}; make it with: {1} config init --output {0}",
                file.display(),
                schema.service()
            );
            return ExitCode::FAILURE;
        }
        Err(error) => return failed("read", file, &error),
    };
    let text = match fs::read_to_string(&real) {
        Ok(text) => text,
        Err(error) => return failed("read", file, &error),
    };
    let healed = match heal(&text, schema) {
        Ok(healed) => healed,
        Err(error) => {
            let text = crate::report::chain(&error);
            eprintln!("error: {} cannot be healed: {text}", file.display());
            return exit_config();
        }
    };
    if healed.text != text
        && let Err(error) = replace(&real, healed.text.as_bytes())
    {
        return failed("write", file, &error);
    }
    if healed.added.is_empty() {
        println!("{} has every key already", file.display());
    }
    for key in &healed.added {
        println!("added {key}");
    }
    for key in &healed.left_alone {
        println!("not added {key}: its section is written as one value; the default is in force");
    }
    for (key, instead) in &healed.unknown {
        eprintln!("unknown key {key}; {instead}");
    }
    if healed.unknown.is_empty() {
        ExitCode::SUCCESS
    } else {
        exit_config()
    }
}

/// Puts a new file in the place of the old one, with the same owner and mode, whole or not at all.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let old = fs::metadata(file)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let fresh = file.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        let mut open = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        open.write_all(content)?;
        let new = open.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(&open, Some(old.uid()), Some(old.gid()))?;
        }
        open.set_permissions(old.permissions())?;
        open.sync_all()?;
        fs::rename(&fresh, file)
    })();
    if written.is_err() {
        // The first fault is the one to report.
        drop(fs::remove_file(&fresh));
    }
    written
}

fn keys(schema: &Schema, json: bool) {
    if json {
        println!("{}", schema.to_json());
        return;
    }
    let rows: Vec<[String; 4]> = schema.keys().map(row).collect();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths = [width(0), width(1), width(2)];
    for [key, form, default, variable] in &rows {
        println!(
            "{key:0$}  {form:1$}  {default:2$}  {variable}",
            widths[0], widths[1], widths[2]
        );
    }
}

fn row(key: &Key) -> [String; 4] {
    let default = match (&key.default, key.shown) {
        (_, Some(shown)) => shown.to_owned(),
        (Some(default), None) => default.to_string(),
        (None, None) => "-".to_owned(),
    };
    let variable = if key.is_table {
        format!("{}__<NAME>", key.environment)
    } else {
        key.environment.clone()
    };
    [key.path.clone(), key.form.text.clone(), default, variable]
}

fn failed(action: &str, file: &Path, error: &io::Error) -> ExitCode {
    eprintln!("error: cannot {action} {}: {error}", file.display());
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests;
