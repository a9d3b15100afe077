//! The roles of this process: started in order, stopped in reverse.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use mesh_api::context::{Context as CliContext, Contexts, DeployManager};
use mesh_daemon::{Handles, Shutdown, ShutdownTrigger, Task, TaskEnd};
use mesh_trace::{Exporter, FLUSH};
use mesh_types::{NetworkName, Role};

use super::GRACE;
use super::joining::Joiner;
use super::listen::Bind;
use super::networks::Members;
use super::parts::Parts;
use super::start::{
    start_admin, start_coordinator, start_deploy_manager, start_gateway, start_relay, start_worker,
};
use crate::args::UpArgs;
use crate::commands::first_operator;

/// The context that `mesh up` writes and makes the current one.
pub(super) const CONTEXT: &str = "up";
/// The demo's workers.
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];

/// One running role.
#[derive(Debug)]
pub(super) struct RunningRole {
    name: String,
    trigger: ShutdownTrigger,
    task: Task,
}

/// Everything that runs, in the order it was started.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) roles: Vec<RunningRole>,
    /// Owned so that it ends with this process.
    networks: Task,
    traces: Exporter,
    pub(super) facts: Parts,
}

impl Running {
    /// Starts every role. What started is stopped again when a later one fails.
    pub(super) async fn start(args: &UpArgs, state_dir: &Path) -> Result<Self> {
        let handles = Handles {
            program: "mesh",
            ..Handles::default()
        };
        let traces = Exporter::from_env()?;
        let bind = Bind::of(args);
        let mut roles = Vec::new();
        let default = NetworkName::default_network();

        let coordinator = start_coordinator(
            args,
            &bind,
            state_dir,
            traced(&handles, &traces, "coordinator", "coordinator")?,
            &mut roles,
        )
        .await?;
        let mut context = first_operator(&coordinator.operator)?;
        let joiner = Joiner::new(
            context
                .coordinator()
                .await
                .context("reach our coordinator")?,
            coordinator.advertised.clone(),
        );

        let relay = start_relay(args, &bind, state_dir, &joiner, &handles, &mut roles).await?;
        let members = Members {
            joiner: joiner.clone(),
            gateway: state_dir.join("traffic-gateway"),
            deploy_manager: state_dir.join("deploy-manager"),
        };
        members.join_first().await?;
        let gateway = start_gateway(
            args,
            &bind,
            &members,
            traced(&handles, &traces, "traffic-gateway", "traffic-gateway")?,
            &mut roles,
        )
        .await?;
        let deploy = start_deploy_manager(
            args,
            &bind,
            &members,
            traced(&handles, &traces, "deploy-manager", "deploy-manager")?,
            &mut roles,
        )
        .await?;
        let mut workers = Vec::new();
        for name in WORKERS.iter().filter(|_| args.demo) {
            let dir = state_dir.join("demo").join(name);
            let enrolled = joiner.join(&dir, Role::Worker, &default, name).await?;
            let part = traced(&handles, &traces, "worker-agent", name)?;
            let node = start_worker(&dir, name, part, &mut roles).await?;
            workers.push((enrolled, node, dir));
        }
        let admin = start_admin(args, &handles, &mut roles)?;

        context.gateway = Some(gateway.url.clone());
        context.deploy = Some(DeployManager {
            addr: deploy.grpc.to_string(),
            node: deploy.enrolled.node,
        });
        for (network, opened) in deploy.networks.borrow().iter() {
            context
                .socks
                .insert(network.to_string(), opened.socks.to_string());
        }
        save_context(&context)?;
        let networks = Task::spawn(
            "networks",
            keep_context(members.clone(), context, deploy.networks.clone()),
        );
        let facts = Parts {
            handles,
            state_dir: state_dir.to_owned(),
            coordinator: coordinator.addr,
            relay,
            gateway,
            deploy,
            admin,
            workers,
        };
        Ok(Self {
            roles,
            networks,
            traces,
            facts,
        })
    }

    /// Stops what depends on others first; `grace` bounds each role's drain.
    pub(super) async fn stop(mut self, grace: Duration) {
        self.networks.abort();
        while let Some(mut role) = self.roles.pop() {
            role.trigger.trigger("mesh up is stopping");
            if tokio::time::timeout(grace, role.task.finished())
                .await
                .is_err()
            {
                tracing::info!(role = role.name, "did not finish in time and is cut");
            }
        }
        self.traces.shutdown(FLUSH).await;
    }
}

/// Resolves when a role ends although nobody asked it to.
pub(super) async fn failed(roles: &mut [RunningRole]) -> anyhow::Error {
    let ends = roles.iter_mut().map(|role| {
        Box::pin(async {
            let end = role.task.finished().await;
            anyhow!("{} ended: {}", role.name, describe(&end))
        })
    });
    futures_util::future::select_all(ends).await.0
}

fn describe(end: &TaskEnd) -> String {
    match end {
        TaskEnd::Completed => "without a reason".to_owned(),
        TaskEnd::Failed(error) => error.clone(),
        TaskEnd::Panicked(text) => format!("it panicked: {text}"),
        TaskEnd::Aborted => "it was aborted".to_owned(),
    }
}

/// Starts a role's task under a shutdown of its own.
pub(super) fn spawn<F>(roles: &mut Vec<RunningRole>, name: &str, run: impl FnOnce(Shutdown) -> F)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (trigger, shutdown) = ShutdownTrigger::new(GRACE);
    let task = Task::spawn("role", run(shutdown));
    roles.push(RunningRole {
        name: name.to_owned(),
        trigger,
        task,
    });
}

/// What a role of this process is handed: its own part of the figures, and spans under the name of
/// its own program.
fn traced(
    handles: &Handles,
    traces: &Exporter,
    program: &'static str,
    part: &str,
) -> Result<Handles> {
    Ok(handles.scoped(part).traced(traces.tracer(program, part)?))
}

fn save_context(context: &CliContext) -> Result<()> {
    Contexts::of_user()?
        .save(CONTEXT, context, true)
        .context("write the context of this mesh")
}

/// Joins networks as they are made, and keeps the context's SOCKS addresses up to date.
async fn keep_context(
    members: Members,
    mut context: CliContext,
    mut networks: deploy_manager::Networks,
) -> Result<()> {
    let _follow = Task::spawn("follow networks", members.follow());
    while networks.changed().await.is_ok() {
        let socks = networks
            .borrow_and_update()
            .iter()
            .map(|(network, opened)| (network.to_string(), opened.socks.to_string()))
            .collect();
        if context.socks != socks {
            context.socks = socks;
            save_context(&context)?;
        }
    }
    Ok(())
}
