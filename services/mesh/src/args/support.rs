//! `mesh support-bundle`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args as ClapArgs;

#[derive(Debug, ClapArgs)]
pub(crate) struct SupportBundleArgs {
    /// Where to write it [default: mesh-support-TIME.tar.gz in this directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    pub(crate) force: bool,
    /// The end of this log file too, such as what 'mesh up' printed (repeatable)
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Vec<PathBuf>,
    /// A state directory beside the usual ones (repeatable)
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Vec<PathBuf>,
    /// An admin endpoint beside the configured ones (repeatable)
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) admin: Vec<SocketAddr>,
    /// Where the services' configuration files are
    #[arg(long, value_name = "DIR", default_value = "/etc/mesh")]
    pub(crate) config_dir: PathBuf,
}
