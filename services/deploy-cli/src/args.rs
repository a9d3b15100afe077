//! The command line as clap reads it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use mesh_types::Selector;
use zeroize::Zeroizing;

/// Runs commands on the nodes of a mesh.
#[derive(Debug, Parser)]
#[command(
    name = "deploy-cli",
    version,
    long_version = mesh_daemon::build_info::long_version(),
    about = "Runs commands on the nodes of a mesh",
    after_help = "Exit codes: 0 every target went well; 1 at least one failed; 2 usage; a single-target exec \
                  gives the remote command's own code, 255 when it did not run.",
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Args)]
pub struct Options {
    /// The deploy-manager's SOCKS5 listener (default: the context's, else localhost:1080)
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub socks: Option<String>,
    /// File with "user:password" for a SOCKS5 listener that asks for it
    #[arg(long, global = true, value_name = "FILE", env = "MESH_SOCKS_AUTH_FILE")]
    pub socks_auth_file: Option<PathBuf>,
    /// The user to log in as (default: each node's own)
    #[arg(long, global = true)]
    pub user: Option<String>,
    /// The SSH port on the nodes
    #[arg(long, global = true, default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// The network (default: the context's)
    #[arg(long, global = true)]
    pub network: Option<String>,
    /// The context to use (default: $MESH_CONTEXT, else the current one)
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// How to reach the nodes: SSH from here through SOCKS5, or by the deploy-manager's gRPC
    #[arg(long, global = true, value_enum, default_value_t = Via::Socks)]
    pub via: Via,
    /// Log in with the password in this file ("-": standard input) instead of a certificate
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["identity", "password"])]
    pub password_file: Option<PathBuf>,
    /// Log in with this private key file instead of a certificate
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "password")]
    pub identity: Option<PathBuf>,
    /// Every user of this machine can read it here: use --password-file
    #[arg(long, global = true, hide = true, value_parser = secret)]
    pub password: Option<Secret>,
    /// Give up on a target after this long, such as 90s or 10m (default: status 30s, others never)
    #[arg(long, global = true, value_parser = duration)]
    pub timeout: Option<Duration>,
    /// While the coordinator does not answer, go by the last list of nodes even if it is older than
    /// a day
    #[arg(long, global = true)]
    pub old_nodes: bool,
    /// Targets worked on at the same time
    #[arg(long, global = true, value_name = "N", default_value = "16")]
    pub parallel: NonZeroUsize,
}

/// A password from the command line; never shown.
#[derive(Clone)]
pub struct Secret(pub Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

#[expect(clippy::unnecessary_wraps, reason = "clap wants a fallible parser")]
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret(Zeroizing::new(text.to_owned())))
}

/// How the nodes are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// SSH from this process, through the deploy-manager's SOCKS5 listener.
    Socks,
    /// The deploy-manager's own SSH runner.
    Grpc,
}

/// Whom to do it to.
#[derive(Debug, Args)]
pub struct Targets {
    /// Node names, overlay addresses, or "all"
    #[arg(required_unless_present = "selector", value_name = "TARGET")]
    pub named: Vec<String>,
    /// Also every worker whose labels match: KEY=VALUE, KEY!=VALUE, KEY or !KEY, joined by commas
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub selector: Option<Selector>,
}

impl Targets {
    /// Whether one node was named: its output is shown as it is, and its exit code passed on.
    pub fn is_single(&self) -> bool {
        self.selector.is_none() && matches!(self.named.as_slice(), [name] if name != "all")
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Log in and ask each target its host name
    Status {
        #[command(flatten)]
        targets: Targets,
    },
    /// Run one command on each target
    Exec {
        /// The command line, run by the user's shell
        command: String,
        #[command(flatten)]
        targets: Targets,
    },
    /// Install Cockpit from the machine's own packages, and set it up for the gateway
    InstallCockpit {
        #[command(flatten)]
        targets: Targets,
    },
    /// Connect standard input and output to a port of a node (for ssh's ProxyCommand)
    Nc {
        /// Node name or overlay address
        host: String,
        /// TCP port
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Print Host blocks for ~/.ssh/config, so that ssh, rsync and editors reach the nodes
    SshConfig {
        /// Only make a fresh certificate for this node (used by the printed blocks)
        #[arg(long, value_name = "HOST")]
        refresh: Option<String>,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// A number and `ms`, `s`, `m` or `h`; seconds without a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time: use 500ms, 90s, 10m or 1h");
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(millis) {
        None | Some(0) => Err(wrong()),
        Some(millis) => Ok(Duration::from_millis(millis)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("deploy-cli").chain(line.split(' ')))
    }

    #[test]
    fn options_may_stand_on_either_side_of_the_verb() {
        for line in ["--user root status a b", "status --user root a b"] {
            let cli = parse(line).unwrap();
            assert_eq!(cli.options.user.as_deref(), Some("root"));
            assert!(matches!(cli.verb, Verb::Status { targets } if targets.named == ["a", "b"]));
        }
    }

    #[test]
    fn a_selector_stands_for_targets() {
        for line in [
            "status -l env=prod",
            "exec ls --selector env=prod,!gpu",
            "exec ls -l gpu a",
        ] {
            let cli = parse(line).unwrap();
            let (Verb::Status { targets } | Verb::Exec { targets, .. }) = cli.verb else {
                panic!("{line}");
            };
            assert!(targets.selector.is_some(), "{line}");
            assert!(!targets.is_single(), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "status",
            "exec ls",
            "status --selector a=b=c",
            "--port 0 status a",
            "--timeout 0s status a",
            "--timeout 1y status a",
            "--identity k --password-file p status a",
            "--parallel 0 status a",
            "reboot a",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn what_the_documents_tell_people_to_type_is_understood() {
        use clap::CommandFactory as _;
        let lines = mesh_testkit::documented::command_lines("deploy-cli");
        assert!(!lines.is_empty());
        for mut line in lines {
            let words = line.words.split_off(1).into_iter().map(Into::into);
            let words = crate::legacy::rewrite(words);
            let words = words.iter().map(|word| word.to_string_lossy().into_owned());
            line.words.extend(words);
            assert_eq!(line.fault(&Cli::command()), None);
        }
    }

    #[test]
    fn times_are_read_with_their_units() {
        for (text, millis) in [
            ("90s", 90_000),
            ("500ms", 500),
            ("10m", 600_000),
            ("7", 7000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        }
    }

    #[test]
    fn a_password_on_the_command_line_is_not_shown() {
        let cli = parse("--password hunter2 status a").unwrap();
        assert!(!format!("{cli:?}").contains("hunter2"));
    }
}
