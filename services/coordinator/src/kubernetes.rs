//! `coordinator publish-secrets`: puts what `coordinator bootstrap` wrote into Secrets of the cluster
//! that it runs in, by server-side apply, with nothing but what Kubernetes gives a pod.
//!
//! A verb of its own, so that it runs in a container of its own: who holds the master key and the
//! database has no right in the cluster, and who may change Secrets there sees neither.

mod account;
mod answer;
mod api;
mod error;
mod secret;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use self::account::Account;
use self::answer::{Done, Failure};
use self::api::Server;
pub use self::error::PublishError;
use self::secret::Secret;

/// Where Kubernetes puts what a pod needs to speak to its API.
pub const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where the worker agents run, in `deploy/k8s`.
pub const NODES_NAMESPACE: &str = "wonder-mesh-nodes";

/// What is published, and where.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// What `coordinator bootstrap --tokens-dir` wrote.
    pub from: PathBuf,
    /// Gets the Secrets of relay, gateway, deployer and operator; `None`: the pod's own.
    pub namespace: Option<String>,
    /// Gets the Secret of the workers.
    pub nodes_namespace: String,
    /// Has `token`, `ca.crt` and `namespace`.
    pub account_dir: PathBuf,
}

/// What was done with each Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// `namespace/name`, and what was done with it.
    secrets: Vec<(String, Done)>,
    /// The bootstrap wrote no context for an operator.
    is_without_operator: bool,
}

/// How long the API is waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For one request, from the connection to the end of the answer.
    request: Duration,
    /// Between the first two tries; twice as long each time, up to `longest_pause`.
    first_pause: Duration,
    longest_pause: Duration,
    /// For all Secrets together; what starts us again does the rest.
    all: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(8),
            all: Duration::from_secs(120),
        }
    }
}

/// Applies every Secret. Safe to repeat: what is there and the same stays as it is.
///
/// # Errors
/// A sentence for people: this is no pod, it has no token, the API cannot be reached or trusted, or
/// it refuses; those before have been applied.
pub async fn publish_secrets(options: &PublishOptions) -> Result<Published, PublishError> {
    let server = Server::from_environment(|name| std::env::var(name).ok())?;
    publish(&server, options, Patience::default()).await
}

async fn publish(
    server: &Server,
    options: &PublishOptions,
    patience: Patience,
) -> Result<Published, PublishError> {
    let account = Account::open(&options.account_dir)?;
    let namespace = match &options.namespace {
        Some(namespace) => namespace.clone(),
        None => account.namespace()?,
    };
    let all = secret::read(&options.from, &namespace, &options.nodes_namespace)?;
    let until = Instant::now() + patience.all;
    let mut published = Published {
        secrets: Vec::new(),
        is_without_operator: !all.iter().any(Secret::is_operator),
    };
    for secret in &all {
        let done = insist(server, &account, secret, patience, until).await?;
        published.secrets.push((secret.to_string(), done));
    }
    Ok(published)
}

/// Applies one Secret, again and again while the API is away.
async fn insist(
    server: &Server,
    account: &Account,
    secret: &Secret,
    patience: Patience,
    until: Instant,
) -> Result<Done, PublishError> {
    let mut pause = patience.first_pause;
    loop {
        let tried = timeout(patience.request, server.apply(account, secret)).await;
        let (said, asked) = match tried {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(Failure::Final(error))) => return Err(*error),
            Ok(Err(Failure::Passing { said, wait })) => (said, wait),
            Err(_) => (
                format!("no answer within {} s", patience.request.as_secs_f32()),
                None,
            ),
        };
        let wait = asked.unwrap_or(pause);
        let wait = wait.clamp(patience.first_pause, patience.longest_pause);
        if Instant::now() + wait > until {
            return Err(PublishError::Away {
                server: server.to_string(),
                said,
                seconds: patience.all.as_secs(),
            });
        }
        tracing::info!(
            secret = %secret, server = %server, reason = said, wait = ?wait,
            "Kubernetes' API does not take it now; trying again"
        );
        sleep(wait).await;
        pause = (pause * 2).min(patience.longest_pause);
    }
}

impl fmt::Display for Published {
    /// One line for each Secret, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (secret, done) in &self.secrets {
            let done = match done {
                Done::Made => "made",
                Done::Applied => "applied",
            };
            writeln!(f, "{done} Secret {secret}")?;
        }
        if self.is_without_operator {
            writeln!(
                f,
                "no operator's context was written by the bootstrap: Secret {} stays as it is",
                secret::OPERATOR
            )?;
        }
        Ok(())
    }
}
