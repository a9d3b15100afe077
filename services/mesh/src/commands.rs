//! The verbs.

mod context;
mod db;
mod events;
mod login;
mod network;
mod node;
mod operator;
mod service;
mod status;
mod support_bundle;
mod token;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use mesh_api::context::{Context, Contexts};
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_types::NetworkName;
use tonic::transport::Channel;

use crate::args::{Args, Verb};
use crate::up;

pub(crate) use login::first_operator;

/// Does what was typed.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let session = Session {
        name: args.context,
        json: args.json,
    };
    match args.verb {
        Verb::Up(up_args) => return up::run(*up_args, session.json).await,
        Verb::Status => return status::run(&session).await,
        Verb::Token(verb) => token::run(&session, verb).await?,
        Verb::Node(verb) => return node::run(&session, verb).await,
        Verb::Network(verb) => network::run(&session, verb).await?,
        Verb::Operator(verb) => operator::run(&session, verb).await?,
        Verb::Login(login) => login::run(&session, login).await?,
        Verb::Context(verb) => context::run(&session, verb).await?,
        Verb::Db(verb) => return db::run(&session, *verb).await,
        Verb::Events(events) => events::run(&session, events).await?,
        Verb::Deploy { args } => return Ok(session.deploy_cli(None, args).await),
        Verb::Nc { args } => return Ok(session.deploy_cli(Some("nc"), args).await),
        Verb::SshConfig { args } => return Ok(session.deploy_cli(Some("ssh-config"), args).await),
        Verb::Service(verb) => service::run(&session, verb)?,
        Verb::SupportBundle(args) => support_bundle::run(&session, *args).await?,
        Verb::Completions { shell } => {
            let mut command = crate::command();
            clap_complete::generate(shell, &mut command, "mesh", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Who asks, and how the answer is wanted.
#[derive(Debug)]
pub(crate) struct Session {
    /// The context named on the command line.
    pub(crate) name: Option<String>,
    /// JSON instead of tables.
    pub(crate) json: bool,
}

impl Session {
    /// The operator's context.
    pub(crate) fn context(&self) -> Result<Context> {
        Ok(Contexts::of_user()?.load(self.name.as_deref())?)
    }

    /// Says that something was done.
    pub(crate) fn done(&self, verb: &str, subject: &str, text: &str) -> Result<()> {
        crate::output::done(self.json, verb, subject, text)
    }

    /// Hands the words on to deploy-cli, below one of its verbs or none.
    async fn deploy_cli(&self, verb: Option<&str>, args: Vec<OsString>) -> ExitCode {
        let json = self.json.then_some("--json");
        let words = verb.into_iter().chain(json).map(OsString::from).chain(args);
        deploy_cli::run(words, self.name.clone()).await
    }

    /// The context and a client to its coordinator.
    pub(crate) async fn admin(&self) -> Result<(Context, AdminServiceClient<Channel>)> {
        let mut context = self.context()?;
        let channel = context
            .coordinator()
            .await
            .context("connect to the coordinator")?;
        login::renew_when_due(self, &mut context, channel.clone()).await;
        let client = AdminServiceClient::new(channel).max_decoding_message_size(64 << 20);
        Ok((context, client))
    }
}

/// The network named on the command line, else the context's.
pub(crate) fn network_or(context: &Context, network: Option<NetworkName>) -> String {
    network.map_or_else(|| context.network.clone(), String::from)
}

/// Reads a file, or standard input for `-`.
pub(crate) fn read_input(path: &std::path::Path) -> Result<String> {
    if path.as_os_str() == "-" {
        return std::io::read_to_string(std::io::stdin()).context("read standard input");
    }
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
