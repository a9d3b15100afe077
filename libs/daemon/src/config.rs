//! Configuration in layers: defaults, `/etc/mesh/<service>.toml` (or `--config FILE`), environment
//! `MESH_<SERVICE>__SECTION__KEY`, flags. The later layer wins.
//!
//! Every fault of every layer is reported at once: unknown keys with the nearest known one, values
//! of the wrong type with where they come from, and whatever [`Settings::validate`] finds.
//!
//! Any key `x` has a twin `x_file`: the trimmed content of that file becomes `x`, so that secrets
//! need not stand in the file, in the environment or in the list of processes.
//!
//! A settings struct stands in [`settings!`](crate::settings), which takes its doc comments for
//! people, and derives `Serialize` and `Deserialize`, carries
//! `#[serde(default, deny_unknown_fields)]` and has a [`Default`]; what its default serialises to
//! is the list of known keys. Lists have a list (possibly empty) as their default, so that a
//! comma-separated text from environment or flags is understood.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::admin::AdminConfig;

mod args;
mod commented;
pub mod duration;
#[cfg(test)]
mod example;
mod faults;
mod heal;
mod layer;
mod load;
mod nearest;
mod production;
mod schema;
mod setting;

pub use args::{ConfigArgs, Overrides};
pub use commented::commented;
pub use faults::{ConfigFaults, Faults};
pub use heal::{HealError, Healed, heal};
pub use schema::{Key, Schema, Section};
pub use setting::{Field, Form, Kind, Secrecy, Setting, word};

/// Exit code for a faulty configuration.
pub const EXIT_CONFIG: i32 = 64;

/// What a service can be configured with.
pub trait Settings: Setting + Serialize + DeserializeOwned + Default {
    /// Adds a fault for each value that has the right type and still cannot be used.
    fn validate(&self, faults: &mut Faults) {
        let _ = faults;
    }

    /// The admin endpoint, when this process has one of its own.
    fn admin(&self) -> Option<&AdminConfig>;
}

/// Loads the settings of `service` (`traffic-gateway`: file `traffic-gateway.toml`, environment
/// `MESH_TRAFFIC_GATEWAY__…`).
///
/// # Errors
/// All faults of all layers.
pub fn load<T: Settings>(
    service: &str,
    args: &ConfigArgs,
    overrides: Overrides,
) -> Result<T, ConfigFaults> {
    load_from(service, args, overrides, environment())
}

/// Like [`load()`], with the environment given by the caller.
///
/// # Errors
/// All faults of all layers.
pub fn load_from<T: Settings>(
    service: &str,
    args: &ConfigArgs,
    overrides: Overrides,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigFaults> {
    load::run(service, args, overrides, environment.into_iter().collect())
}

/// Like [`load()`], without asking whether the values make sense together or are safe: for verbs
/// that only need to find the running service.
///
/// # Errors
/// Unknown keys and values of the wrong type.
pub fn load_unchecked<T: Settings>(
    service: &str,
    args: &ConfigArgs,
    overrides: Overrides,
) -> Result<T, ConfigFaults> {
    load::shape(service, args, overrides, environment().collect())
}

/// Loads the settings for a `main`: prints all faults and exits with [`EXIT_CONFIG`], and serves
/// `--check-config` and `--print-config` (exit code 0).
pub fn load_or_exit<T: Settings>(service: &str, args: &ConfigArgs, overrides: Overrides) -> T {
    #![expect(
        clippy::print_stderr,
        clippy::print_stdout,
        reason = "runs before there is a log"
    )]
    let loaded = load::run_noting(service, args, overrides, environment().collect());
    let (settings, relaxed): (T, Vec<String>) = match loaded {
        Ok(loaded) => loaded,
        Err(faults) => {
            eprintln!("error: {faults}");
            std::process::exit(EXIT_CONFIG);
        }
    };
    if args.print_config {
        print!("{}", to_toml(&settings));
        std::process::exit(0);
    }
    if args.check_config {
        println!("the configuration of {service} is good");
        if args.dev {
            println!("{}", relaxation(&relaxed));
        }
        std::process::exit(0);
    }
    if args.dev {
        // One process loads once; a second load has nothing new to tell.
        drop(RELAXED.set(relaxed));
    }
    settings
}

/// What `--dev` accepted, kept from [`load_or_exit`] until the process's log is there. Both belong
/// to the one `main`, and so does this.
static RELAXED: OnceLock<Vec<String>> = OnceLock::new();

/// Tells the log, once it is there, what `--dev` accepts.
pub(crate) fn log_relaxed() {
    if let Some(relaxed) = RELAXED.get() {
        tracing::info!("{}", relaxation(relaxed));
    }
}

/// What `--dev` accepts, for people.
fn relaxation(relaxed: &[String]) -> String {
    if relaxed.is_empty() {
        return "--dev was given, and nothing needs it".to_owned();
    }
    format!(
        "--dev accepts what production refuses:\n  {}",
        relaxed.join("\n  ")
    )
}

/// The settings as TOML, secrets redacted: what `--print-config` shows.
pub fn to_toml<T: Settings>(settings: &T) -> String {
    toml::to_string_pretty(settings)
        .unwrap_or_else(|error| format!("# cannot be shown as TOML: {error}\n"))
}

/// Where the file of `service` is looked for unless `--config` names one.
pub fn default_path(service: &str) -> PathBuf {
    PathBuf::from("/etc/mesh").join(format!("{service}.toml"))
}

/// The environment prefix of `service`, such as `MESH_TRAFFIC_GATEWAY`.
pub fn env_prefix(service: &str) -> String {
    format!("MESH_{}", service.replace('-', "_").to_uppercase())
}

/// The process's environment; variables that are no Unicode cannot be ours.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
