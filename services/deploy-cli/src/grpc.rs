//! gRPC: the deploy-manager's own SSH runner (port 8082), and what the coordinator is asked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_api::pb;
use mesh_api::pb::deploy_service_client::DeployServiceClient;
use mesh_api::pb::exec_response::Event;
use mesh_api::pb::ssh_auth;
use mesh_ssh::report::{Outcome, TargetReport, TargetState};
use mesh_ssh::{ExecEvent, Exit};
use tokio::sync::mpsc;

use crate::args::Options;
use crate::run::known;
use crate::setting::{Method, Setting};
use crate::target::Chosen;

mod coordinator;

pub use coordinator::{Unavailable, issue, nodes};

/// What to ask for.
pub struct Ask<'a> {
    pub command: &'a str,
    pub timeout: Option<Duration>,
    pub method: Method,
}

/// Runs the command on all targets; results in their order.
pub async fn run(
    setting: &Setting,
    options: &Options,
    ask: Ask<'_>,
    chosen: &[Chosen],
    events: mpsc::Sender<(usize, ExecEvent)>,
) -> anyhow::Result<Vec<TargetReport>> {
    let deploy = setting.context.deploy.as_ref().context(
        "the context names no deploy-manager: store one with: mesh context set --deploy HOST:PORT",
    )?;
    let network = setting.network.to_string();
    let mut results = Results::new(chosen, &network);
    let targets: Vec<String> = results.by_name.keys().cloned().collect();
    if targets.is_empty() {
        return Ok(results.reports);
    }
    let request = pb::ExecRequest {
        network,
        targets,
        command: ask.command.to_owned(),
        user: options.user.clone().unwrap_or_default(),
        port: u32::from(options.port),
        auth: Some(auth(ask.method)?),
        timeout_millis: ask.timeout.map_or(0, |limit| {
            u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
        }),
    };
    let channel = setting.context.deploy_manager(deploy).await?;
    let mut client = DeployServiceClient::with_interceptor(channel, mesh_trace::propagate);
    let mut answers = client.exec(request).await.map_err(refused)?.into_inner();
    while let Some(answer) = answers.message().await.map_err(refused)? {
        if let Some((index, event)) = results.take(answer) {
            // The display is gone only when the whole run is.
            drop(events.send((index, event)).await);
        }
    }
    Ok(results.reports)
}

fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("the deploy-manager refused: {}", status.message())
}

fn auth(method: Method) -> anyhow::Result<pb::SshAuth> {
    let method = match method {
        Method::Certificate => ssh_auth::Method::Certificate(pb::CertificateAuth {}),
        Method::Key(key) => ssh_auth::Method::PrivateKey(key.to_openssh()?.to_string()),
        Method::Password(password) => ssh_auth::Method::Password(password.to_string()),
    };
    Ok(pb::SshAuth {
        method: Some(method),
    })
}

/// Results as they come in; a target without one has lost its connection.
struct Results {
    reports: Vec<TargetReport>,
    by_name: BTreeMap<String, usize>,
    started: Instant,
}

impl Results {
    fn new(chosen: &[Chosen], network: &str) -> Self {
        let mut by_name = BTreeMap::new();
        let mut reports = Vec::new();
        for (index, target) in chosen.iter().enumerate() {
            let mut report = TargetReport::new(&target.label, TargetState::Running);
            match known(target, network) {
                Ok(node) => {
                    by_name.insert(node.name.clone(), index);
                    report.set_outcome(Outcome::Exited(Exit::Lost));
                }
                Err(error) => report.set_outcome(Outcome::Failed(error.to_string())),
            }
            reports.push(report);
        }
        Self {
            reports,
            by_name,
            started: Instant::now(),
        }
    }

    fn take(&mut self, answer: pb::ExecResponse) -> Option<(usize, ExecEvent)> {
        let index = *self.by_name.get(&answer.target)?;
        match answer.event? {
            Event::Stdout(data) => Some((index, ExecEvent::Stdout(data.into()))),
            Event::Stderr(data) => Some((index, ExecEvent::Stderr(data.into()))),
            Event::Exit(exit) => {
                let report = &mut self.reports[index];
                report.reason = None;
                report.set_outcome(match exit.code {
                    Some(code) => Outcome::Exited(Exit::Status(code)),
                    None => Outcome::Failed(exit.failure),
                });
                let took = self.started.elapsed().as_millis();
                report.duration_ms = u64::try_from(took).unwrap_or(u64::MAX);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::tests::node;

    fn answer(target: &str, event: Event) -> pb::ExecResponse {
        pb::ExecResponse {
            target: target.to_owned(),
            event: Some(event),
        }
    }

    #[test]
    fn results_keep_the_order_asked_for_and_silence_counts_as_a_lost_connection() {
        let chosen = |label: &str, node| Chosen {
            label: label.to_owned(),
            node,
        };
        let mut results = Results::new(
            &[
                chosen("100.64.0.2", Some(node(2, "b", true))),
                chosen("nobody", None),
                chosen("a", Some(node(1, "a", true))),
                chosen("c", Some(node(3, "c", true))),
            ],
            "default",
        );
        let exit = |code, failure: &str| {
            Event::Exit(pb::ExecExit {
                code,
                failure: failure.to_owned(),
            })
        };
        let event = results.take(answer("b", Event::Stdout(b"x".to_vec())));
        assert_eq!(event, Some((0, ExecEvent::Stdout("x".into()))));
        assert_eq!(results.take(answer("a", exit(None, "refused"))), None);
        assert_eq!(results.take(answer("b", exit(Some(0), ""))), None);
        assert_eq!(results.take(answer("stranger", exit(Some(0), ""))), None);
        let got: Vec<(bool, Option<&str>)> = results
            .reports
            .iter()
            .map(|report| (report.ok, report.reason.as_deref()))
            .collect();
        assert_eq!(
            got,
            [
                (true, None),
                (
                    false,
                    Some("no such node in network default (see: mesh node list)")
                ),
                (false, Some("refused")),
                (false, Some("the connection was lost while the command ran")),
            ]
        );
    }
}
