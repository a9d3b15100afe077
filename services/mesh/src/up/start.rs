//! How each role of this process is started.

use std::error::Error as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use mesh_daemon::{AdminConfig, AdminServer, BindError, Handles};
use mesh_node::{Enrolled, Node};
use mesh_types::{NetworkName, Role};
use traffic_gateway::server::ListenError;

use super::joining::Joiner;
use super::listen::{Bind, not_started};
use super::networks::Members;
use super::parts::{DeployFacts, GatewayFacts, RelayAddrs};
use super::roles::{RunningRole, spawn};
use crate::args::UpArgs;

#[derive(Debug)]
pub(super) struct StartedCoordinator {
    pub(super) addr: SocketAddr,
    /// Where joined nodes look for it.
    pub(super) advertised: Vec<String>,
    pub(super) operator: coordinator::OperatorFiles,
}

/// Holds the coordinator's port of the last start: any free one is chosen only once, since nodes
/// that have joined look for the coordinator where it was.
const PORT_FILE: &str = "coordinator.port";

/// The port of the last start; what is no port is none.
fn last_port(state_dir: &Path) -> Result<Option<u16>> {
    let path = state_dir.join(PORT_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).unwrap_or_default();
            Ok(text.trim().parse().ok().filter(|port| *port != 0))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// What a start says when it cannot have the port of the last one. Any free port was asked for
/// already, so that is nothing to choose.
fn not_bound_again(error: anyhow::Error, last: u16) -> anyhow::Error {
    let cause = match error.downcast_ref::<BindError>() {
        Some(bind) if bind.addr.port() == last => bind.source().map(ToString::to_string),
        _ => return error,
    };
    anyhow!(
        "the coordinator cannot have its last port, {last}, where nodes that have joined look for \
         it ({}): stop what has it, or move the coordinator with --coordinator-port PORT",
        cause.unwrap_or_default()
    )
}

fn free_port(bind: &Bind) -> Result<u16> {
    let bound = std::net::TcpListener::bind(bind.at(0)).and_then(|free| free.local_addr());
    Ok(bound
        .context("find a free port for the coordinator")?
        .port())
}

fn keep_port(state_dir: &Path, port: u16) -> Result<()> {
    let path = state_dir.join(PORT_FILE);
    mesh_daemon::write_private(&path, format!("{port}\n").as_bytes())
        .with_context(|| format!("write {}", path.display()))
}

pub(super) async fn start_coordinator(
    args: &UpArgs,
    bind: &Bind,
    state_dir: &Path,
    handles: Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<StartedCoordinator> {
    let mut config = coordinator::Config {
        state_dir: state_dir.join("coordinator"),
        ..Default::default()
    };
    let any = args.coordinator_port == 0;
    let last = if any { last_port(state_dir)? } else { None };
    let port = match (last, &bind.advertise) {
        (Some(last), _) => last,
        // It is part of what is advertised, so it must be known before it is bound.
        (None, Some(_)) if any => free_port(bind)?,
        (None, _) => args.coordinator_port,
    };
    config.server.listen = bind.at(port);
    if let Some(host) = &bind.advertise {
        config.server.advertise = vec![format!("{host}:{port}")];
    }
    config.admin = None;
    let app = coordinator::App::build(config, handles)
        .await
        .map_err(|error| {
            let error = match last {
                Some(last) => not_bound_again(error, last),
                None => error,
            };
            not_started("coordinator", &[("--coordinator-port", port)], error)
        })?;
    let started = StartedCoordinator {
        addr: app.local_addr(),
        advertised: app.advertised().to_vec(),
        operator: app.operator()?,
    };
    keep_port(state_dir, started.addr.port())?;
    spawn(roles, "coordinator", |shutdown| app.run(shutdown));
    Ok(started)
}

pub(super) async fn start_relay(
    args: &UpArgs,
    bind: &Bind,
    state_dir: &Path,
    joiner: &Joiner,
    handles: &Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<RelayAddrs> {
    let dir = state_dir.join("relay");
    joiner
        .join(&dir, Role::Relay, &NetworkName::default_network(), "relay")
        .await?;
    let mut config = relay::Config {
        state_dir: dir,
        ..Default::default()
    };
    config.server.listen = bind.at(args.relay_port);
    config.stun.listen = bind.at(args.stun_port);
    config.advertise.host = bind.advertise.clone();
    config.admin = None;
    let app = relay::App::build(config, handles.scoped("relay"))
        .await
        .map_err(|error| {
            let flags = [
                ("--relay-port", args.relay_port),
                ("--stun-port", args.stun_port),
            ];
            not_started("relay", &flags, error)
        })?;
    let addrs = RelayAddrs {
        derp: app.derp_addr(),
        stun: app.stun_addr(),
    };
    spawn(roles, "relay", |shutdown| app.run(shutdown));
    Ok(addrs)
}

pub(super) async fn start_gateway(
    args: &UpArgs,
    bind: &Bind,
    members: &Members,
    handles: Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<GatewayFacts> {
    let default = NetworkName::default_network();
    let mut config = traffic_gateway::Config {
        state_dir: members.gateway.clone(),
        ..Default::default()
    };
    config.server.listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), args.gateway_port);
    config.wireguard.listen = vec![bind.at(args.wg_port)];
    config.admin = None;
    let state = members.gateway.join(format!("network-{default}"));
    let enrolled = enrolment(&state)?;
    let app = traffic_gateway::App::build(config, handles)
        .await
        .map_err(|error| {
            let error = match error.downcast::<ListenError>() {
                Ok(ListenError::Bind(bind)) => bind.into(),
                Ok(other) => other.into(),
                Err(error) => error,
            };
            let flags = [
                ("--gateway-port", args.gateway_port),
                ("--wg-port", args.wg_port),
            ];
            not_started("traffic-gateway", &flags, error)
        })?;
    let node = app
        .node(&default)
        .context("the gateway has no default network")?;
    let facts = GatewayFacts {
        addr: app.local_addr(),
        url: format!("{}/", app.url().trim_end_matches('/')),
        enrolled,
        node,
        state,
    };
    spawn(roles, "traffic-gateway", |shutdown| app.run(shutdown));
    Ok(facts)
}

pub(super) async fn start_deploy_manager(
    args: &UpArgs,
    bind: &Bind,
    members: &Members,
    handles: Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<DeployFacts> {
    let default = NetworkName::default_network();
    let mut config = deploy_manager::Config {
        state_dir: members.deploy_manager.clone(),
        ..Default::default()
    };
    let loopback = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    config.server.listen = loopback(args.deploy_port);
    config.socks.listen = loopback(args.socks_port);
    config.wireguard.listen = vec![bind.at(0)];
    config.admin = None;
    let state = members.deploy_manager.join(format!("network-{default}"));
    let enrolled = enrolment(&state)?;
    let app = deploy_manager::App::build(config, handles)
        .await
        .map_err(|error| {
            let flags = [
                ("--deploy-port", args.deploy_port),
                ("--socks-port", args.socks_port),
            ];
            not_started("deploy-manager", &flags, error)
        })?;
    let facts = DeployFacts {
        grpc: app.grpc_addr(),
        networks: app.networks(),
        enrolled,
        state,
    };
    spawn(roles, "deploy-manager", |shutdown| app.run(shutdown));
    Ok(facts)
}

pub(super) async fn start_worker(
    dir: &Path,
    name: &str,
    handles: Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<Node> {
    let mut config = worker_agent::Config {
        state_dir: Some(dir.to_owned()),
        admin: None,
        ..Default::default()
    };
    config.wireguard.listen = vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)];
    // The demo's workers are this machine: they show their own page, not its Cockpit.
    config.console.mode = worker_agent::config::ConsoleMode::Page;
    let app = worker_agent::App::build(config, handles)
        .await
        .with_context(|| format!("start {name}"))?;
    let node = app.node().clone();
    spawn(roles, name, |shutdown| app.run(shutdown));
    Ok(node)
}

pub(super) fn start_admin(
    args: &UpArgs,
    handles: &Handles,
    roles: &mut Vec<RunningRole>,
) -> Result<Option<SocketAddr>> {
    let server =
        AdminServer::bind(&AdminConfig::at(args.admin_port), handles.clone()).map_err(|error| {
            not_started(
                "health endpoint",
                &[("--admin-port", args.admin_port)],
                error.into(),
            )
        })?;
    let bound = server.local_addr();
    spawn(roles, "health endpoint", |shutdown| async move {
        Ok(server.run(shutdown).await?)
    });
    Ok(Some(bound))
}

/// Who an identity is, from its directory, before a role locks it.
fn enrolment(state: &Path) -> Result<Enrolled> {
    let dir = mesh_node::StateDir::open(state)?;
    dir.enrolment()?
        .with_context(|| format!("{} is not enrolled", state.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_port_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(last_port(dir.path()).expect("none"), None);
        for (bytes, port) in [
            (&b"8080\n"[..], Some(8080)),
            (b"0\n", None),
            (b"70000\n", None),
            (b"", None),
            (b"\xff\xfe80", None),
        ] {
            std::fs::write(dir.path().join(PORT_FILE), bytes).expect("written");
            assert_eq!(last_port(dir.path()).expect("read"), port, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn only_a_last_port_that_is_taken_is_told_as_one() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = holder.local_addr().expect("bound");
        let taken = || {
            let bound = mesh_daemon::bind_tcp(addr, "HTTPS and gRPC", "server.listen");
            anyhow::Error::new(bound.expect_err("taken")).context("open the server")
        };
        let told = format!("{:#}", not_bound_again(taken(), addr.port()));
        assert!(
            told.contains(&format!("its last port, {}, ", addr.port())),
            "{told}"
        );
        assert!(
            told.contains("in use") && told.contains("--coordinator-port PORT"),
            "{told}"
        );
        assert!(!told.contains("any free"), "{told}");
        // Another address, and another fault.
        for error in [taken(), anyhow!("the store is damaged")] {
            let before = format!("{error:#}");
            assert_eq!(format!("{:#}", not_bound_again(error, 1)), before);
        }
    }
}
