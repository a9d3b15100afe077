//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand};
use mesh_daemon::{ConfigArgs, Overrides, ServiceVerb, config as settings};
use mesh_types::ServiceName;

use crate::config::Config;

mod machine;
mod membership;
mod running;

const SERVICE: &str = "worker-agent";

/// Joins this machine to a mesh and keeps it there.
#[derive(Debug, Parser)]
#[command(name = "worker-agent", version, long_version = mesh_daemon::build_info::long_version(), propagate_version = true)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Clone, ClapArgs)]
struct Common {
    /// Where this machine's identity is kept
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Common {
    /// The settings in force; faults end the process with 64.
    fn load(&self) -> Config {
        self.load_with(None)
    }

    /// The same with what `run --net` says.
    fn load_with(&self, net: Option<&str>) -> Config {
        settings::load_or_exit(SERVICE, &self.config, self.overrides().set("net", net))
    }

    fn overrides(&self) -> Overrides {
        let state_dir = self.state_dir.as_ref().map(|dir| dir.display().to_string());
        Overrides::new().set("state_dir", state_dir)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine part of a network
    Join(JoinArgs),
    /// Run the agent
    Run(RunArgs),
    /// Tell how the running agent is doing, what is wrong and what to type next; exit code 1 when
    /// something that should work does not
    Status {
        /// Print one JSON document instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Leave the network for good, and forget its keys
    Leave {
        /// Leave even when the coordinator cannot be told
        #[arg(long)]
        force: bool,
    },
    /// Offer a service of this machine's loopback to the mesh
    Publish {
        /// What to call it
        name: ServiceName,
        /// Its port, on 127.0.0.1 and on the mesh
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// It speaks something else than HTTP
        #[arg(long)]
        tcp: bool,
        /// With a TUN device, let the machine itself answer: whatever listens on the mesh address
        #[arg(long)]
        direct: bool,
    },
    /// Take a published service back
    Unpublish {
        /// Its name
        name: ServiceName,
    },
    /// This machine's web console
    #[command(subcommand)]
    Console(ConsoleVerb),
    /// This machine's SSH
    #[command(subcommand)]
    Ssh(SshVerb),
    #[command(flatten)]
    Service(ServiceVerb),
}

#[derive(Debug, Default, ClapArgs)]
struct RunArgs {
    /// File with a join token, used when this machine has not joined yet; - is standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The name to ask for when joining; the machine's host name unless given
    #[arg(long, value_name = "NAME", env = "MESH_HOSTNAME")]
    hostname: Option<String>,
    /// Put the whole machine on the mesh, by a network device, or this program alone; the setting
    /// net unless given
    #[arg(long, value_name = "tun|userspace")]
    net: Option<String>,
}

#[derive(Debug, ClapArgs)]
struct JoinArgs {
    /// Read the join token from this file; - reads it from standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The join token itself (visible to every user of this machine: prefer --token-file)
    #[arg(value_name = "TOKEN", env = "MESH_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The name to ask for; the machine's host name unless given
    #[arg(long, alias = "name", value_name = "NAME")]
    hostname: Option<String>,
    /// An operator's permit to take the place of an existing node ('mesh node permit')
    #[arg(long, value_name = "PERMIT")]
    permit: Option<String>,
    /// Give up after so long, such as 30s
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: String,
}

#[derive(Debug, Subcommand)]
enum ConsoleVerb {
    /// Set Cockpit up for the path that the gateway gives this machine (root)
    Configure {
        /// The path, when the agent does not run and cannot be asked
        #[arg(long, value_name = "PATH")]
        prefix: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum SshVerb {
    /// Make the machine's sshd accept the network's certificates (root)
    Trust {
        /// Only print the certificate authority's public key
        #[arg(long)]
        print: bool,
        /// Where sshd's settings are
        #[arg(long, value_name = "DIR", default_value = "/etc/ssh")]
        sshd_dir: PathBuf,
    },
}

/// Does what the command line asks for.
pub async fn run(args: Args) -> ExitCode {
    let Args { mut common, verb } = args;
    common.config = common.config.with_every_set(Args::command());
    let outcome = match verb {
        Verb::Service(verb) => {
            return verb.run::<Config>(Args::command(), &common.config, common.overrides());
        }
        Verb::Run(args) => running::run(common.load_with(args.net.as_deref()), args).await,
        Verb::Join(join) => membership::join(&common.load(), join).await,
        Verb::Leave { force } => membership::leave(&common.load(), force).await,
        Verb::Status { json } => match running::status(&common.load(), json).await {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Verb::Publish {
            name,
            port,
            tcp,
            direct,
        } => running::publish(&common.load(), name, port, tcp, direct).await,
        Verb::Unpublish { name } => running::unpublish(&common.load(), name).await,
        Verb::Console(ConsoleVerb::Configure { prefix }) => {
            machine::configure_console(&common.load(), prefix).await
        }
        Verb::Ssh(SshVerb::Trust { print, sshd_dir }) => {
            machine::trust_ssh(&common.load(), print, &sshd_dir).await
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[allow(
    clippy::print_stderr,
    reason = "a command line tells people what went wrong there"
)]
fn complain(text: &str) {
    eprintln!("worker-agent: {text}");
}

#[allow(clippy::print_stdout, reason = "a command line's answer")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_the_documents_tell_people_to_type_is_understood() {
        mesh_testkit::documented::assert_understood(&Args::command());
    }

    #[test]
    fn common_flags_may_follow_the_verb() {
        let args = Args::try_parse_from([
            "worker-agent",
            "run",
            "--set",
            "state_dir=/x",
            "--set",
            "log.level=debug",
        ]);
        let args = args.expect("parses");
        assert_eq!(args.common.config.set.len(), 2);
        assert!(matches!(args.verb, Verb::Run(_)));
    }

    #[test]
    fn common_flags_may_stand_between_two_verbs() {
        let args = [
            "worker-agent",
            "ssh",
            "--set",
            "state_dir=/x",
            "trust",
            "--print",
        ];
        let args = Args::try_parse_from(args).expect("parses");
        assert_eq!(args.common.config.set, ["state_dir=/x"]);
        assert!(matches!(
            args.verb,
            Verb::Ssh(SshVerb::Trust { print: true, .. })
        ));
    }

    #[test]
    fn a_token_comes_from_one_place_only() {
        let both = ["worker-agent", "join", "--token-file", "-", "mesh1.x"];
        assert!(Args::try_parse_from(both).is_err());
    }

    #[test]
    fn names_and_ports_are_checked_before_anything_is_asked() {
        for bad in [["Web", "80"], ["web", "0"], ["web", "70000"]] {
            assert!(Args::try_parse_from(["worker-agent", "publish", bad[0], bad[1]]).is_err());
        }
    }
}
