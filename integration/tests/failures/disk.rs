//! A disk without room.

use anyhow::ensure;
use integration::{Agent, Cli, MeshUp, MeshUpOptions};
use mesh_testkit::{Need, SmallDisk, eventually, needs, with_own_mounts};

use super::{SOON, wait_for_console, wait_for_event, wait_for_state, without_workers};

/// What the process logs as long as its disk is full.
const TOLD: [&str; 2] = [
    "the store takes no changes until it heals",
    "the netmap was not stored",
];

#[test]
fn a_coordinator_without_room_refuses_changes_keeps_everything_and_heals_by_itself() {
    if !needs(&[Need::Root, Need::Program("curl")]) {
        return;
    }
    with_own_mounts(|| {
        let cli = Cli::new().expect("folders");
        let state = cli.work("state");
        let disk = SmallDisk::mount(&state, 16 * 1024).expect("a disk");
        let mut up = MeshUp::start(&cli, MeshUpOptions::default());
        let token = cli.token(&[]);
        wait_for_state(&cli, &["worker-node-1", "worker-node-2"], "online", SOON);
        let tokens = || cli.mesh_json(&["token", "list"]);

        let filled = disk.fill().expect("filled");
        // The first changes may still fit into what the database has already.
        eventually("changes are refused, with the reason", SOON, || {
            let refused = cli.mesh(&["token", "create"]);
            ensure!(refused.code == Some(1), "{}", refused.all());
            ensure!(refused.stderr.contains("disk is full"), "{}", refused.all());
            Ok(())
        });
        up.child().wait_for_line(TOLD[0], SOON);
        let before = tokens();
        let late = Agent::new(&cli, "late").join(&token);
        assert_eq!(late.code, Some(1), "{}", late.all());
        assert!(late.stderr.contains("disk is full"), "{}", late.all());
        let status = cli.mesh(&["status"]);
        assert_eq!(status.code, Some(1), "{}", status.all());
        assert!(status.all().contains("disk is full"), "{}", status.all());
        // What is there goes on: lists, pages, commands.
        assert_eq!(tokens(), before);
        wait_for_console(&up, "worker-node-1", SOON);
        cli.deploy(&["exec", "true", "worker-node-1"])
            .expect_code(0);

        filled.free().expect("freed");
        eventually("changes are taken again", SOON, || {
            cli.mesh(&["token", "create"]).success()
        });
        up.child()
            .wait_for_line("the store takes changes again", SOON);
        // Told afterwards, since the events lie on that disk.
        wait_for_event(&cli, "store-down", "store  ");
        wait_for_event(&cli, "store-up", "store  it was away for ");
        // The token that was refused was not used up.
        let late = Agent::new(&cli, "late").joined(&cli, "default");
        let spare = Agent::new(&cli, "spare");
        spare.join(&token).expect_code(0);
        late.child().assert_log_clean(&[]);
        up.child().assert_log_clean(&TOLD);

        let known = cli.mesh_json(&["node", "list"])["nodes"]
            .as_array()
            .map(Vec::len);
        up.stop().expect("stopped");
        let whole = cli
            .product("mesh")
            .args(["db", "check", "--dev", "--state-dir"])
            .arg(state.join("coordinator"))
            .run(SOON)
            .expect("runs");
        whole.expect_code(0);
        let up = MeshUp::start(&cli, MeshUpOptions::default());
        let after = cli.mesh_json(&["node", "list"])["nodes"]
            .as_array()
            .map(Vec::len);
        assert_eq!(after, known);
        let listed = |value: &serde_json::Value| value["tokens"].as_array().map_or(0, Vec::len);
        assert!(listed(&tokens()) > listed(&before), "{}", tokens());
        up.child().assert_log_clean(&[]);
    });
}

#[test]
fn an_agent_without_room_goes_on_and_stores_its_netmap_when_there_is_room() {
    if !needs(&[Need::Root, Need::Program("curl")]) {
        return;
    }
    with_own_mounts(|| {
        let cli = Cli::new().expect("folders");
        let mut up = without_workers(&cli);
        let mut agent = Agent::new(&cli, "attic");
        let disk = SmallDisk::mount(agent.state_dir(), 256).expect("a disk");
        agent = agent.joined(&cli, "default");
        wait_for_console(&up, "attic", SOON);
        let stored = || std::fs::read(agent.state_dir().join("netmap"));
        eventually("a stored netmap", SOON, || Ok(stored()?));

        let filled = disk.fill().expect("filled");
        let before = stored().expect("still there");
        // Something that it has to store.
        let neighbour = Agent::new(&cli, "cellar").joined(&cli, "default");
        agent
            .child()
            .wait_for_line("the netmap was not stored", SOON);
        assert_eq!(stored().expect("the last good one"), before);
        wait_for_console(&up, "attic", SOON);
        wait_for_state(&cli, &["attic", "cellar"], "online", SOON);
        // The coordinator hears of it with the next heartbeat.
        wait_for_event(&cli, "node-trouble", "attic  netmap-unsaved: ");
        let shown = cli.mesh(&["node", "show", "attic"]).expect_code(0);
        let named = shown.stdout.contains("attic cannot store its netmap");
        assert!(named, "{}", shown.all());

        filled.free().expect("freed");
        agent
            .child()
            .wait_for_line("the netmap is stored again", SOON);
        assert_ne!(stored().expect("there"), before);
        wait_for_event(&cli, "node-trouble-over", "attic  it was netmap-unsaved");
        agent
            .child()
            .assert_log_clean(&["the netmap was not stored"]);
        neighbour.child().assert_log_clean(&[]);
        // It is a whole one: the agent starts by it, with nobody to ask.
        up.stop().expect("stopped");
        agent.stop();
        agent.start();
        agent.child().assert_log_clean(&[]);
        assert!(!agent.state_dir().join("netmap.bad").exists());
    });
}
