//! A node that an operator removes is out everywhere within two seconds.

use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{Agent, Cli, MeshUp, metrics};
use mesh_testkit::{Child, eventually};

use super::{SOON, wait_for_console, without_workers};

const NODE: &str = "attic";
/// Does nothing by itself any more.
const FROZEN: &str = "cellar";
const LIMIT: Duration = Duration::from_secs(2);

/// A command that runs until its connection ends.
fn endless(cli: &Cli, via: &str, node: &str) -> Child {
    let spec = cli.product("deploy-cli");
    let spec = spec.args(["--via", via, "exec", "echo begun; sleep 300", node]);
    let child = spec
        .name(format!("exec-{via}-{node}"))
        .spawn()
        .expect("starts");
    child.wait_for_line("begun", SOON);
    child
}

fn clients(up: &MeshUp) -> anyhow::Result<u64> {
    Ok(metrics::count(&up.metrics()?, &["mesh_relay_clients"]))
}

/// Removes the node, and waits until commands on it, its client of the relay and its console are
/// gone, each within the time, counted from the start of the operator's command.
#[track_caller]
fn remove(cli: &Cli, up: &MeshUp, agent: &Agent) {
    let name = agent.name();
    wait_for_console(up, name, SOON);
    // Gateway, deploy-manager and the agent.
    let before = eventually("all are at the relay", SOON, || {
        let now = clients(up)?;
        ensure!(now >= 3, "{now} clients");
        Ok(now)
    });
    let mut commands = ["socks", "grpc"].map(|via| endless(cli, via, name));
    let frozen = name == FROZEN;
    if frozen {
        agent.child().freeze().expect("signalled");
    }

    let begun = Instant::now();
    let remove = ["node", "remove", "--yes", name];
    let removing = cli.product("mesh").args(remove).run(SOON);
    removing.expect("runs").expect_code(0);
    // The coordinator answers when the node is out.
    let answered = begun.elapsed();
    for command in &mut commands {
        let ran = command.finish(LIMIT).expect("ends");
        assert_eq!(ran.code, Some(255), "{}", ran.all());
    }
    let ssh = begun.elapsed();
    if !frozen {
        let told = "removed from the network by an operator";
        agent.child().wait_for_line(told, LIMIT);
    }
    let stream = begun.elapsed();
    eventually("the relay has one client fewer", LIMIT, || {
        let now = clients(up)?;
        ensure!(now < before, "{now} of {before} clients");
        Ok(())
    });
    let relay = begun.elapsed();
    eventually("the gateway knows it no more", LIMIT, || {
        let status = up.get(&format!("/{name}/"))?.status;
        ensure!(status == 404, "{status}");
        Ok(())
    });
    let all = begun.elapsed();
    println!(
        "{name}: answer {answered:?}, ssh {ssh:?}, stream {stream:?}, relay {relay:?}, all {all:?}"
    );
    assert!(all < LIMIT, "all of it took {all:?}");
}

#[test]
fn a_removed_node_is_cut_from_stream_relay_peers_and_ssh_within_two_seconds() {
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let mut agent = Agent::new(&cli, NODE).joined(&cli, "default");
    remove(&cli, &up, &agent);
    // A new start hears it at once.
    agent.stop();
    let again = agent.verb(&["run"]).spawn().expect("starts");
    again.wait_for_line("removed from the network by an operator", SOON);
    up.child().assert_log_clean(&[]);
}

/// A node that closes nothing itself: the others do all of it.
#[test]
fn a_removed_node_that_is_frozen_is_cut_off_as_fast() {
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let agent = Agent::new(&cli, FROZEN).joined(&cli, "default");
    remove(&cli, &up, &agent);
    // It hears of it when it goes on.
    agent.child().thaw().expect("signalled");
    agent
        .child()
        .wait_for_line("removed from the network by an operator", SOON);
    up.child().assert_log_clean(&[]);
}
