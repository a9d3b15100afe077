//! What can be typed after `mesh`.

mod db;
mod service;
mod support;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand};
use mesh_types::{Label, NetworkName, NodeName, Role, Selector, UptimeClass};

pub(crate) use db::{DbArgs, DbCopy, DbVerb};
pub(crate) use service::{ServiceInstall, ServiceRole, ServiceSsh, ServiceUninstall, ServiceVerb};
pub(crate) use support::SupportBundleArgs;

/// Runs and manages a Wonder Mesh.
#[derive(Debug, Parser)]
#[command(
    name = "mesh",
    version,
    long_version = mesh_daemon::build_info::long_version(),
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Args {
    /// The context to use instead of the current one
    #[arg(long, global = true, env = "MESH_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The command line's shape, for completions and the generated reference.
pub fn command() -> clap::Command {
    Args::command()
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run every role in this process, on an embedded database
    Up(Box<UpArgs>),
    /// Say how the mesh is doing, what is wrong and what to type next
    Status,
    /// Make, list and revoke join tokens
    #[command(subcommand)]
    Token(TokenVerb),
    /// List, show, rename, set and remove nodes
    #[command(subcommand)]
    Node(NodeVerb),
    /// Make, list and delete networks
    #[command(subcommand)]
    Network(NetworkVerb),
    /// Add, list and revoke operators
    #[command(subcommand)]
    Operator(OperatorVerb),
    /// Become an operator on this machine
    Login(LoginArgs),
    /// List contexts, or choose the current one
    #[command(subcommand)]
    Context(ContextVerb),
    /// Show what happened
    Events(EventsArgs),
    /// Migrate, check or copy the coordinator's database, while the coordinator is stopped
    #[command(subcommand)]
    Db(Box<DbVerb>),
    /// Run commands on nodes: all of deploy-cli
    #[command(disable_help_flag = true)]
    Deploy {
        /// deploy-cli's own arguments; see 'mesh deploy --help'
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Connect standard input and output to a port of a node: mesh nc HOST PORT
    #[command(disable_help_flag = true)]
    Nc {
        /// See 'mesh nc --help'
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Print Host blocks for ~/.ssh/config, so that plain ssh, rsync and editors reach the nodes
    #[command(disable_help_flag = true)]
    SshConfig {
        /// See 'mesh ssh-config --help'
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Run roles of this machine under systemd
    #[command(subcommand)]
    Service(ServiceVerb),
    /// Write one file with what somebody who helps would ask for, without secrets
    SupportBundle(Box<SupportBundleArgs>),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UpArgs {
    /// Add two workers, worker-node-1 and worker-node-2, inside this process
    #[arg(long)]
    pub(crate) demo: bool,
    /// Where keys and the database are kept [default: $XDG_DATA_HOME/mesh]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The address that other machines reach this one at; without it everything stays on loopback
    #[arg(long, value_name = "HOST")]
    pub(crate) advertise: Option<String>,
    /// Coordinator, HTTPS and gRPC (0: any free port)
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    pub(crate) coordinator_port: u16,
    /// Traffic-gateway, HTTP (0: any free port)
    #[arg(long, default_value_t = 8081, value_name = "PORT")]
    pub(crate) gateway_port: u16,
    /// Deploy-manager, gRPC (0: any free port)
    #[arg(long, default_value_t = 8082, value_name = "PORT")]
    pub(crate) deploy_port: u16,
    /// SOCKS5 of the default network, loopback only (0: any free port)
    #[arg(long, default_value_t = 1080, value_name = "PORT")]
    pub(crate) socks_port: u16,
    /// Relay, DERP over TLS (0: any free port)
    #[arg(long, default_value_t = 8443, value_name = "PORT")]
    pub(crate) relay_port: u16,
    /// Relay, STUN (0: any free port)
    #[arg(long, default_value_t = 3478, value_name = "PORT")]
    pub(crate) stun_port: u16,
    /// WireGuard of the gateway; further nodes take any free port (0: any free port)
    #[arg(long, default_value_t = 51820, value_name = "PORT")]
    pub(crate) wg_port: u16,
    /// Health and metrics of the process, loopback only (0: any free port)
    #[arg(long, default_value_t = 9464, value_name = "PORT")]
    pub(crate) admin_port: u16,
    /// How much to log: error, warn, info, debug or trace, also per module
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    pub(crate) log: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a join token; it is shown once
    Create {
        /// What the machine that joins will be
        #[arg(long, default_value = "worker", value_parser = role)]
        role: Role,
        /// The network it joins [default: the context's]
        #[arg(long)]
        network: Option<NetworkName>,
        /// Whose machine it is; machines of one owner reach each other [default: you]
        #[arg(long)]
        owner: Option<String>,
        /// Let any number of machines join with it
        #[arg(long)]
        reusable: bool,
        /// How long it works: 1m to 24h
        #[arg(long, default_value = "30m", value_parser = lifetime)]
        expires: Duration,
        /// Write the token to this file (0600) instead of printing it
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List join tokens; secrets are never shown again
    List {
        /// Only those of this network
        #[arg(long)]
        network: Option<NetworkName>,
    },
    /// Make a join token useless at once
    Revoke {
        /// Its id, from 'mesh token list'
        id: String,
    },
}

fn role(text: &str) -> Result<Role, mesh_types::node::InvalidRole> {
    text.parse()
}

fn uptime(text: &str) -> Result<UptimeClass, mesh_types::node::InvalidUptimeClass> {
    text.parse()
}

fn lifetime(text: &str) -> Result<Duration, String> {
    crate::text::parse_duration(text)
        .filter(|span| (60..=86_400).contains(&span.as_secs()))
        .ok_or_else(|| "say 1m to 24h, such as 30m or 12h".to_owned())
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NodeArg {
    /// A node's name, overlay address or id
    pub(crate) node: String,
    /// Its network [default: the context's]
    #[arg(long)]
    pub(crate) network: Option<NetworkName>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List nodes
    List {
        /// Only those of this network [default: the context's]
        #[arg(long)]
        network: Option<NetworkName>,
        /// Those of every network
        #[arg(long, conflicts_with = "network")]
        all_networks: bool,
        /// Only those whose labels match: KEY=VALUE, KEY!=VALUE, KEY or !KEY, joined by commas
        #[arg(long, short = 'l', value_name = "SELECTOR")]
        selector: Option<Selector>,
    },
    /// Show all that is known of a node
    Show(NodeArg),
    /// Give a node another name
    Rename {
        #[command(flatten)]
        node: NodeArg,
        /// Its new name
        new_name: NodeName,
    },
    /// Label a node, and say when it is expected to be there
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
    Set {
        #[command(flatten)]
        node: NodeArg,
        /// always-on, on-demand, or work-hours (Monday to Friday, 07:00 to 19:00 UTC): its absence
        /// at other times is no alarm
        #[arg(long, value_name = "CLASS", value_parser = uptime, group = "what")]
        uptime: Option<UptimeClass>,
        /// Set a label; repeatable
        #[arg(long, value_name = "KEY=VALUE", group = "what")]
        label: Vec<Label>,
        /// Take a label off; repeatable
        #[arg(long, value_name = "KEY", group = "what")]
        unlabel: Vec<String>,
    },
    /// Remove a node: its connections end within 2 s
    Remove {
        #[command(flatten)]
        node: NodeArg,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Take a node's changed SSH host key
    #[command(subcommand)]
    HostKey(HostKeyVerb),
    /// Let a machine that lost its keys join again as this node
    Permit(NodeArg),
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostKeyVerb {
    /// Trust the SSH host keys that the node reports now
    Accept(NodeArg),
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkVerb {
    /// Make a network
    Create {
        /// Its name
        name: NetworkName,
    },
    /// List networks
    List,
    /// Delete a network
    Delete {
        /// Its name
        name: NetworkName,
        /// Also when nodes are left in it: they are removed
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorVerb {
    /// Make somebody an operator, from the request that 'mesh login --request' made
    Add {
        /// Their name
        name: String,
        /// Their request file; - for standard input
        #[arg(long, value_name = "FILE")]
        request: PathBuf,
        /// Write the credential for them to this file instead of printing it
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List operators
    List,
    /// End an operator's rights at once
    Revoke {
        /// Their name or id
        name: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LoginArgs {
    /// Make a key on this machine and write a request for 'mesh operator add' to FILE
    #[arg(long, value_name = "FILE", group = "how")]
    pub(crate) request: Option<PathBuf>,
    /// On the coordinator's own machine: use the first operator's key in its state directory
    #[arg(long, value_name = "DIR", group = "how")]
    pub(crate) coordinator_state: Option<PathBuf>,
    /// The credential that 'mesh operator add' gave; - for standard input
    #[arg(
        value_name = "CREDENTIAL",
        group = "how",
        required_unless_present_any = ["request", "coordinator_state"]
    )]
    pub(crate) credential: Option<PathBuf>,
    /// The name of the context that is made
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextVerb {
    /// List contexts
    List,
    /// Make a context the current one
    Use {
        /// Its name
        name: String,
    },
    /// Set where this context finds the rest of the mesh
    Set {
        /// A network's SOCKS5 listener, such as default=localhost:1080
        #[arg(long, value_name = "NETWORK=HOST:PORT", value_parser = socks)]
        socks: Vec<(NetworkName, String)>,
        /// The deploy-manager's gRPC
        #[arg(long, value_name = "HOST:PORT")]
        deploy: Option<String>,
        /// The deploy-manager's node name, when there are several
        #[arg(long, value_name = "NODE", requires = "deploy")]
        deploy_node: Option<String>,
        /// The gateway's address for browsers
        #[arg(long, value_name = "URL")]
        gateway: Option<String>,
        /// The network that is meant when none is named
        #[arg(long)]
        network: Option<NetworkName>,
    },
}

fn socks(text: &str) -> Result<(NetworkName, String), String> {
    let (network, addr) = text.split_once('=').ok_or("say NETWORK=HOST:PORT")?;
    let network = network
        .parse()
        .map_err(|error: mesh_types::name::InvalidName| error.to_string())?;
    Ok((network, addr.to_owned()))
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EventsArgs {
    /// Only those of this network
    #[arg(long)]
    pub(crate) network: Option<NetworkName>,
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// How many past events
    #[arg(long, short = 'n', default_value_t = 20)]
    pub(crate) lines: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn a_token_lives_one_minute_to_a_day() {
        assert_eq!(lifetime("30m"), Ok(Duration::from_secs(1800)));
        for wrong in ["59s", "25h", "soon", ""] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_the_documents_tell_people_to_type_is_understood() {
        let lines = mesh_testkit::documented::command_lines("mesh");
        assert!(!lines.is_empty());
        for mut line in lines {
            // What is handed on to deploy-cli is its business.
            let handed_on = match line.words.get(1).map(String::as_str) {
                Some("deploy") => 2,
                Some("nc" | "ssh-config") => 1,
                _ => {
                    assert_eq!(line.fault(&command()), None);
                    continue;
                }
            };
            line.words.splice(..handed_on, ["deploy-cli".to_owned()]);
            assert_eq!(line.fault(&deploy_cli::command()), None);
        }
    }

    #[test]
    fn deploy_hands_every_argument_on() {
        let args =
            Args::try_parse_from(["mesh", "deploy", "-user", "x", "status", "--json", "all"])
                .expect("accepted");
        let Verb::Deploy { args } = args.verb else {
            panic!("another verb")
        };
        assert_eq!(args.len(), 5);
    }
}
