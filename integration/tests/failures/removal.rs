//! A node that an operator removes is out everywhere within two seconds.

use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{Agent, Cli, metrics};
use mesh_testkit::{Child, eventually};

use super::{SOON, wait_for_console, without_workers};

const NODE: &str = "attic";
const LIMIT: Duration = Duration::from_secs(2);

/// A command that runs until its connection ends.
fn endless(cli: &Cli, via: &str) -> Child {
    let spec = cli.product("deploy-cli");
    let spec = spec.args(["--via", via, "exec", "echo begun; sleep 300", NODE]);
    let child = spec.name(format!("exec-{via}")).spawn().expect("starts");
    child.wait_for_line("begun", SOON);
    child
}

#[test]
fn a_removed_node_is_cut_from_stream_relay_peers_and_ssh_within_two_seconds() {
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let clients = || {
        let text = up.metrics()?;
        Ok::<_, anyhow::Error>(metrics::count(&text, &["mesh_relay_clients"]))
    };
    let mut agent = Agent::new(&cli, NODE).joined(&cli, "default");
    wait_for_console(&up, NODE, SOON);
    // Gateway, deploy-manager and the agent.
    let before = eventually("all are at the relay", SOON, || {
        let now = clients()?;
        ensure!(now >= 3, "{now} clients");
        Ok(now)
    });
    let mut commands = ["socks", "grpc"].map(|via| endless(&cli, via));

    let remove = ["node", "remove", "--yes", NODE];
    let removing = cli.product("mesh").args(remove).run(SOON);
    removing.expect("runs").expect_code(0);
    // The coordinator answers when the node is out.
    let removed = Instant::now();
    for command in &mut commands {
        let ran = command.finish(LIMIT).expect("ends");
        assert_eq!(ran.code, Some(255), "{}", ran.all());
    }
    let ssh = removed.elapsed();
    agent
        .child()
        .wait_for_line("removed from the network by an operator", LIMIT);
    let stream = removed.elapsed();
    eventually("the relay has one client fewer", LIMIT, || {
        let now = clients()?;
        ensure!(now < before, "{now} of {before} clients");
        Ok(())
    });
    let relay = removed.elapsed();
    eventually("the gateway knows it no more", LIMIT, || {
        let status = up.get(&format!("/{NODE}/"))?.status;
        ensure!(status == 404, "{status}");
        Ok(())
    });
    let gateway = removed.elapsed();
    println!("ssh {ssh:?}, stream {stream:?}, relay {relay:?}, gateway {gateway:?}");
    assert!(gateway < LIMIT, "all of it took {gateway:?}");
    // A new start hears it at once.
    agent.stop();
    let again = agent.verb(&["run"]).spawn().expect("starts");
    again.wait_for_line("removed from the network by an operator", SOON);
    up.child().assert_log_clean(&[]);
}
