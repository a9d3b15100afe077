//! DNS that does not answer.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{Agent, Cli};
use mesh_testkit::{Need, eventually, needs, stand_in, with_own_mounts};
use mesh_types::JoinToken;

use super::{SOON, wait_for_console, wait_for_event, wait_for_state, without_workers};

/// Known to nobody but this test.
const NAME: &str = "coordinator.failures.test";
/// How long a node has to be on its stored netmap for it to be told, and a little.
const TOLD_FROM: Duration = Duration::from_secs(16);

#[test]
fn without_dns_tunnels_go_on_a_restart_uses_what_is_stored_and_the_name_is_told() {
    if !needs(&[Need::Root]) {
        return;
    }
    with_own_mounts(|| {
        let cli = Cli::new().expect("folders");
        let good = format!("127.0.0.1 localhost {NAME}\n");
        let hosts = cli.file("hosts", &good).expect("file");
        // Nobody answers there.
        let servers = "nameserver 127.0.0.53\noptions timeout:1 attempts:1\n";
        let servers = cli.file("resolv.conf", servers).expect("file");
        stand_in(&hosts, Path::new("/etc/hosts")).expect("mounted");
        stand_in(&servers, Path::new("/etc/resolv.conf")).expect("mounted");

        let up = without_workers(&cli);
        let mut token: JoinToken = cli.token(&[]).parse().expect("a token");
        let addr = up.ready().coordinator.addr.clone();
        let port = addr.rsplit(':').next().expect("a port");
        token.coordinators = vec![format!("{NAME}:{port}")];
        let mut agent = Agent::new(&cli, "attic");
        agent.join(&token.reveal()).expect_code(0);
        agent.start();
        wait_for_console(&up, "attic", SOON);
        let netmap = agent.state_dir().join("netmap");
        eventually("a stored netmap", SOON, || Ok(std::fs::metadata(&netmap)?));

        std::fs::write(&hosts, "127.0.0.1 localhost\n").expect("written");
        // What is open goes on.
        wait_for_console(&up, "attic", SOON);
        wait_for_state(&cli, &["attic"], "online", SOON);
        // Started again, it knows its peers, and says what it lacks.
        agent.stop();
        agent.start();
        let started = Instant::now();
        wait_for_console(&up, "attic", SOON);
        eventually("the name is told", SOON, || {
            let status = agent.run(&["status"]);
            let told = status.all();
            ensure!(told.contains(NAME) && told.contains("DNS"), "{told}");
            Ok(())
        });

        // What is shorter than 15 s is not told when it is over.
        eventually("it is on its stored netmap for long enough", SOON, || {
            ensure!(started.elapsed() >= TOLD_FROM, "not yet");
            Ok(())
        });

        std::fs::write(&hosts, good).expect("written");
        wait_for_state(&cli, &["attic"], "online", SOON);
        eventually("the agent is content", SOON, || {
            let status = agent.run(&["status"]);
            let told = status.all();
            ensure!(!told.contains(NAME), "{told}");
            Ok(())
        });
        wait_for_event(&cli, "node-netmap-stored", "attic  ");
        agent.child().assert_log_clean(&[]);
        up.child().assert_log_clean(&[]);
    });
}
