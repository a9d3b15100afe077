//! The flags every service has, and the typed ones a service adds.

use std::path::PathBuf;

/// Flags about configuration, for `#[command(flatten)]`; they may stand before or after a verb.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ConfigArgs {
    /// Read this file instead of the service's own in /etc/mesh
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, such as log.level=debug (repeatable; wins over file and environment)
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Say whether the configuration is good, and exit
    #[arg(long, global = true)]
    pub check_config: bool,
    /// Print the configuration in force, secrets redacted, and exit
    #[arg(long, global = true)]
    pub print_config: bool,
    /// Accept settings that are unsafe outside of development
    #[arg(long, global = true)]
    pub dev: bool,
}

/// Values from a service's own flags; they win over every other layer.
#[derive(Debug, Clone, Default)]
pub struct Overrides(pub(super) Vec<(String, String)>);

impl Overrides {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `key` (dotted, such as `server.listen`) has this value, if one was given.
    #[must_use]
    pub fn set(mut self, key: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.0.push((key.to_owned(), value.to_string()));
        }
        self
    }
}
