//! The command line of the `coordinator` binary.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};
use coordinator::{ACCOUNT_DIR, NODES_NAMESPACE, ProvisionOptions, PublishOptions};
use mesh_daemon::{ConfigArgs, Overrides, ServiceVerb};
use mesh_types::Role;

/// The control plane of a Wonder Mesh: networks, join tokens, identities, netmaps.
#[derive(Debug, Parser)]
#[command(
    name = "coordinator",
    version,
    long_version = mesh_daemon::build_info::long_version(),
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve until a signal (also without any verb).
    Run(RunArgs),
    /// Make what services need before they start, and end: certificate authority, first operator
    /// with its context, one join token per role. Safe to repeat.
    Bootstrap(BootstrapArgs),
    /// Put what `bootstrap` wrote into Secrets of the Kubernetes cluster that this runs in, and end.
    /// Safe to repeat.
    PublishSecrets(PublishSecretsArgs),
    #[command(flatten)]
    Service(ServiceVerb),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Where gRPC and HTTPS are served, such as 0.0.0.0:8080; port 0 takes any free one.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// host:port under which nodes find this coordinator; several separated by commas.
    #[arg(long)]
    advertise: Option<String>,
    /// Database, keys and the first operator's credential.
    #[arg(long)]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BootstrapArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Gets the join tokens: relay/token, gateway/token, deployer/token, worker/token.
    #[arg(long, value_name = "DIR")]
    tokens_dir: PathBuf,
    /// Gets the operator's context in mesh/contexts, so that it can be used as XDG_CONFIG_HOME
    /// (default: operator in --tokens-dir).
    #[arg(long, value_name = "DIR")]
    operator_dir: Option<PathBuf>,
    /// The gateway's URL as operators reach it, for the context.
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// The deploy-manager's SOCKS5 listener as operators reach it, for the context.
    #[arg(long, value_name = "HOST:PORT")]
    socks: Option<String>,
    /// Roles whose tokens let in any number of machines; those of the others let in one.
    #[arg(
        long,
        value_name = "ROLE,…",
        value_delimiter = ',',
        default_value = "worker"
    )]
    reusable: Vec<Role>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PublishSecretsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// What `bootstrap --tokens-dir` wrote.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Gets the Secrets of relay, gateway, deployer and operator (default: the pod's own).
    #[arg(long, value_parser = namespace)]
    namespace: Option<String>,
    /// Gets the workers' Secret.
    #[arg(
        long,
        value_name = "NAMESPACE",
        value_parser = namespace,
        default_value = NODES_NAMESPACE
    )]
    nodes_namespace: String,
    /// Has the token, ca.crt and namespace of the pod's account.
    #[arg(long, value_name = "DIR", default_value = ACCOUNT_DIR)]
    account_dir: PathBuf,
}

/// A name as Kubernetes takes it (RFC 1123 label); it becomes part of a path.
fn namespace(text: &str) -> Result<String, &'static str> {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = (1..=63).contains(&text.len())
        && text.bytes().all(is_good)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_name {
        Ok(text.to_owned())
    } else {
        Err("a namespace has 1 to 63 small letters, digits and hyphens in between")
    }
}

impl RunArgs {
    /// What the flags say about the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        let state_dir = self.state_dir.as_ref().map(|dir| dir.display().to_string());
        Overrides::new()
            .set("server.listen", self.listen)
            .set("server.advertise", self.advertise.as_deref())
            .set("state_dir", state_dir)
    }
}

impl RunArgs {
    /// With what was set before a verb, too.
    pub(crate) fn whole(mut self) -> Self {
        self.config = self.config.with_every_set(Args::command());
        self
    }
}

impl BootstrapArgs {
    /// What is to be made.
    pub(crate) fn options(&self) -> ProvisionOptions {
        let operator_dir = self.operator_dir.clone();
        ProvisionOptions {
            tokens_dir: self.tokens_dir.clone(),
            operator_dir: operator_dir.unwrap_or_else(|| self.tokens_dir.join("operator")),
            gateway: self.gateway.clone(),
            socks: self.socks.clone(),
            reusable: self.reusable.iter().copied().collect(),
        }
    }
}

impl PublishSecretsArgs {
    /// The flags about configuration, with what was set before the verb.
    pub(crate) fn config(&self) -> ConfigArgs {
        self.config.clone().with_every_set(Args::command())
    }

    /// What is to be published.
    pub(crate) fn options(&self) -> PublishOptions {
        PublishOptions {
            from: self.from.clone(),
            namespace: self.namespace.clone(),
            nodes_namespace: self.nodes_namespace.clone(),
            account_dir: self.account_dir.clone(),
        }
    }
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
    fn roles_are_given_as_a_list_and_the_context_has_a_place_of_its_own() {
        let line = "coordinator bootstrap --tokens-dir /t --reusable worker,relay";
        let args = Args::try_parse_from(line.split(' ')).expect("parses");
        let Some(Command::Bootstrap(args)) = args.command else {
            panic!("another verb")
        };
        let options = args.options();
        assert_eq!(options.operator_dir, PathBuf::from("/t/operator"));
        assert_eq!(options.reusable, [Role::Worker, Role::Relay].into());
        let line = "coordinator bootstrap --tokens-dir /t --reusable cat";
        assert!(Args::try_parse_from(line.split(' ')).is_err());
    }

    #[test]
    fn namespaces_are_names() {
        let parse = |name: &str| {
            let line = format!("coordinator publish-secrets --from /t --nodes-namespace {name}");
            Args::try_parse_from(line.split(' '))
        };
        let Some(Command::PublishSecrets(args)) = parse("my-nodes-2").expect("parses").command
        else {
            panic!("another verb")
        };
        let options = args.options();
        assert_eq!(options.nodes_namespace, "my-nodes-2");
        assert_eq!(options.namespace, None);
        assert_eq!(options.account_dir, PathBuf::from(ACCOUNT_DIR));
        for bad in [
            "",
            "a/b",
            "A",
            "a_b",
            "a-",
            "-a",
            "a?force=true",
            &"a".repeat(64),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
