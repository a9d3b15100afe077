//! One command on all targets, over SOCKS5 from here or by the deploy-manager.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use mesh_ssh::fanout::{Connected, Fanout, drive};
use mesh_ssh::report::{Outcome, TargetReport};
use mesh_ssh::work::reason;
use mesh_ssh::{ExecEvent, Target, Work};
use mesh_types::NodeId;
use tokio::sync::mpsc;

use crate::args::{Options, Targets, Via};
use crate::grpc;
use crate::output::{Display, Live};
use crate::setting::{Credentials, Method, Setting};
use crate::socks::Proxy;
use crate::target::{Chosen, Node, choose};

/// Events on their way to the display.
const EVENTS: usize = 256;

/// What to run on whom.
pub struct Job<'a> {
    pub command: &'a str,
    pub targets: &'a Targets,
    pub live: Live,
    /// When the caller gave none.
    pub default_timeout: Option<Duration>,
}

/// The results, and the targets they are of, in the same order.
pub struct Done {
    pub results: Vec<TargetReport>,
    pub chosen: Vec<Chosen>,
}

/// Runs the job on all its targets.
pub async fn run(setting: &Setting, options: &Options, job: &Job<'_>) -> anyhow::Result<Done> {
    let method = Method::from_options(options)?;
    let (coordinator, nodes) = setting
        .nodes_even_without_coordinator(options.old_nodes)
        .await?;
    let chosen = choose(
        &job.targets.named,
        job.targets.selector.as_ref(),
        &nodes,
        setting.network.as_str(),
    )?;
    let labels: Vec<String> = chosen.iter().map(|target| target.label.clone()).collect();
    let timeout = options.timeout.or(job.default_timeout);
    let (events, mut shown) = mpsc::channel(EVENTS);
    let (out, err) = (std::io::stdout(), std::io::stderr());
    let mut display = Display::new(job.live, labels.clone(), out, err);
    let show = async {
        while let Some((index, event)) = shown.recv().await {
            display.event(index, &event);
        }
    };
    let work = async {
        match options.via {
            Via::Socks => {
                let plan = Plan {
                    proxy: setting.proxy(options)?,
                    credentials: Credentials::new(method, coordinator, &setting.network),
                    user: options.user.clone(),
                    port: options.port,
                    network: setting.network.to_string(),
                    command: job.command.to_owned(),
                    chosen: chosen.clone(),
                };
                Ok(over_socks(plan, &labels, options.parallel, timeout, events).await)
            }
            Via::Grpc => {
                let ask = grpc::Ask {
                    command: job.command,
                    timeout,
                    method,
                };
                grpc::run(setting, options, ask, &chosen, events).await
            }
        }
    };
    let (results, ()) = tokio::join!(work, show);
    let mut results = results?;
    display.finish(&mut results);
    Ok(Done { results, chosen })
}

/// All that the work on one target needs.
struct Plan {
    proxy: Proxy,
    credentials: Credentials,
    user: Option<String>,
    port: u16,
    network: String,
    command: String,
    chosen: Vec<Chosen>,
}

async fn over_socks(
    plan: Plan,
    labels: &[String],
    parallel: NonZeroUsize,
    timeout: Option<Duration>,
    events: mpsc::Sender<(usize, ExecEvent)>,
) -> Vec<TargetReport> {
    let fanout = Fanout::new(labels, parallel, timeout);
    let plan = Arc::new(plan);
    // The closure owns the last sender; the display ends when it is dropped.
    drive(fanout, move |index, connected| {
        let (plan, events) = (Arc::clone(&plan), events.clone());
        mesh_trace::in_current(async move { plan.one(index, connected, events).await })
    })
    .await
}

impl Plan {
    async fn one(
        &self,
        index: usize,
        connected: Connected,
        events: mpsc::Sender<(usize, ExecEvent)>,
    ) -> Outcome {
        match self.attempt(index, connected, events).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(reason(&*error)),
        }
    }

    async fn attempt(
        &self,
        index: usize,
        connected: Connected,
        events: mpsc::Sender<(usize, ExecEvent)>,
    ) -> anyhow::Result<Outcome> {
        let node = known(&self.chosen[index], &self.network)?;
        let user = login_user(node, self.user.as_deref())?;
        let credential = self.credentials.of(user, &self.of_user(user)).await?;
        let stream = self.proxy.connect(&node.name, self.port).await?;
        let work = Work {
            index,
            target: Target {
                node: node.name.clone(),
                host_keys: node.host_keys.clone(),
            },
            user: user.to_owned(),
            credential,
            command: self.command.clone(),
        };
        Ok(work.run(stream, connected, events).await)
    }

    /// The targets that are logged in to as `user`: they share a certificate.
    fn of_user(&self, user: &str) -> Vec<NodeId> {
        self.chosen
            .iter()
            .filter_map(|target| target.node.as_ref())
            .filter(|node| login_user(node, self.user.as_deref()).is_ok_and(|other| other == user))
            .map(|node| node.id)
            .collect()
    }
}

/// The target's node, or what to say when there is none.
pub fn known<'a>(target: &'a Chosen, network: &str) -> anyhow::Result<&'a Node> {
    target
        .node
        .as_ref()
        .ok_or_else(|| anyhow::anyhow!("no such node in network {network} (see: mesh node list)"))
}

/// The user to log in as: the caller's wish, else the node's own.
pub fn login_user<'a>(node: &'a Node, wish: Option<&'a str>) -> anyhow::Result<&'a str> {
    match wish {
        Some(user) => Ok(user),
        None if node.user.is_empty() => {
            anyhow::bail!(
                "{} names no user to log in as; say one with --user",
                node.name
            )
        }
        None => Ok(&node.user),
    }
}

/// Puts what `status` found into the results: the host name from the output, the address from the
/// node list.
pub fn fill_status(done: &mut Done) {
    let addresses: BTreeMap<usize, String> = done
        .chosen
        .iter()
        .enumerate()
        .filter_map(|(index, target)| Some((index, target.node.as_ref()?.addrs.v4.to_string())))
        .collect();
    for (index, result) in done.results.iter_mut().enumerate() {
        result.mesh_ip = addresses.get(&index).cloned();
        let output = result.stdout.take().unwrap_or_default();
        result.stderr = None;
        if !result.ok || result.hostname.is_some() {
            continue;
        }
        match output.lines().next().map(str::trim) {
            Some(name) if !name.is_empty() => result.hostname = Some(name.to_owned()),
            _ => {
                result.ok = false;
                result.reason = Some("it did not say its host name".to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_ssh::Exit;
    use mesh_ssh::report::TargetState;

    use super::*;
    use crate::target::tests::node;

    fn done(output: &str, code: u32) -> Done {
        let node = node(4, "web", true);
        let mut result = TargetReport::new("web", TargetState::Running);
        result.set_outcome(Outcome::Exited(Exit::Status(code)));
        result.stdout = Some(output.to_owned());
        let chosen = Chosen {
            label: "web".to_owned(),
            node: Some(node),
        };
        Done {
            results: vec![result],
            chosen: vec![chosen],
        }
    }

    #[test]
    fn status_takes_the_host_name_from_the_output_and_the_address_from_the_list() {
        let mut good = done("debian\n", 0);
        fill_status(&mut good);
        assert_eq!(good.results[0].hostname.as_deref(), Some("debian"));
        assert_eq!(good.results[0].mesh_ip.as_deref(), Some("100.64.0.4"));
        assert_eq!(good.results[0].stdout, None);
        let mut silent = done("", 0);
        fill_status(&mut silent);
        assert!(!silent.results[0].ok);
        let mut failed = done("debian\n", 1);
        fill_status(&mut failed);
        assert_eq!(failed.results[0].hostname, None);
    }

    #[test]
    fn the_user_is_the_callers_else_the_nodes_else_an_error_that_says_the_flag() {
        let mut node = node(1, "web", true);
        assert_eq!(login_user(&node, Some("root")).unwrap(), "root");
        assert_eq!(login_user(&node, None).unwrap(), "deploy");
        node.user.clear();
        assert!(
            login_user(&node, None)
                .unwrap_err()
                .to_string()
                .contains("--user")
        );
    }
}
