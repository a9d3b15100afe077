//! `mesh service`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceVerb {
    /// Write a role's unit, user and configuration, enable and start it (root)
    Install(ServiceInstall),
    /// Stop a role and remove its unit; state, configuration and user stay (root)
    Uninstall(ServiceUninstall),
    /// Say which roles are installed here and how they are doing
    Status {
        /// Only this one
        role: Option<ServiceRole>,
    },
}

/// A role that runs by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ServiceRole {
    Coordinator,
    Relay,
    TrafficGateway,
    DeployManager,
    WorkerAgent,
}

/// Who answers SSH on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ServiceSsh {
    /// The agent, which then runs as root and without a sandbox
    Agent,
    /// The machine's own sshd; the agent runs without root, shut in
    Sshd,
    /// Nobody; the agent runs without root, shut in
    Off,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServiceInstall {
    /// Which role
    pub(crate) role: ServiceRole,
    /// The join token it uses at its first start; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Who answers SSH on a worker [default: agent]
    #[arg(long)]
    pub(crate) ssh: Option<ServiceSsh>,
    /// Where the programs are [default: where this one is]
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Only print the unit
    #[arg(long)]
    pub(crate) print: bool,
    /// Enable it, but do not start it now
    #[arg(long)]
    pub(crate) no_start: bool,
    /// Install into the system below this directory, such as an image, and start nothing
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServiceUninstall {
    /// Which role
    pub(crate) role: ServiceRole,
    /// Remove its configuration, keys, state and user too: it is gone from the mesh for good
    #[arg(long)]
    pub(crate) purge: bool,
    /// Uninstall from the system below this directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
}
