//! `mesh db`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum DbVerb {
    /// Bring the schema up to date
    Migrate(DbArgs),
    /// Look for damage: schema, rows that refer to nothing, audit chain, sealed secrets
    Check(DbArgs),
    /// Copy everything into an empty database, such as from SQLite to Postgres, and compare
    Copy(DbCopy),
}

/// Which database: the coordinator's own, by its own configuration.
#[derive(Debug, ClapArgs)]
pub(crate) struct DbArgs {
    /// The coordinator's configuration file [default: /etc/mesh/coordinator.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set one of the coordinator's keys, such as store.url=postgres://… (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The coordinator's state directory
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Accept settings that are unsafe outside of development
    #[arg(long)]
    pub(crate) dev: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DbCopy {
    #[command(flatten)]
    pub(crate) from: DbArgs,
    /// The empty database: postgres://USER@HOST:PORT/DATABASE or sqlite:PATH
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// A file with the password for it
    #[arg(long, value_name = "FILE")]
    pub(crate) to_password_file: Option<PathBuf>,
    /// A file with the certificates (PEM) of the authorities that vouch for it
    #[arg(long, value_name = "FILE")]
    pub(crate) to_ca_file: Option<PathBuf>,
    /// How the connection to it is secured [default: verify-full, disable on loopback]
    #[arg(long, value_name = "MODE")]
    pub(crate) to_tls: Option<DbTls>,
}

/// How a connection to Postgres is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DbTls {
    VerifyFull,
    VerifyCa,
    Require,
    PrivateNetwork,
    Disable,
}

impl From<DbTls> for coordinator::StoreTls {
    fn from(mode: DbTls) -> Self {
        match mode {
            DbTls::VerifyFull => Self::VerifyFull,
            DbTls::VerifyCa => Self::VerifyCa,
            DbTls::Require => Self::Require,
            DbTls::PrivateNetwork => Self::PrivateNetwork,
            DbTls::Disable => Self::Disable,
        }
    }
}
