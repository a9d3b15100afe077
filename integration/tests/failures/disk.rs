//! A disk without room.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use integration::findings::finding;
use integration::{Agent, Cli, MeshUp, MeshUpOptions, metrics};
use mesh_testkit::{
    Curl, CurlReply, Need, SmallDisk, eventually, free_tcp_port, needs, with_own_mounts,
};
use serde_json::Value;

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
        let listed = |value: &Value| value["tokens"].as_array().map_or(0, Vec::len);
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
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()));
        let mut agent = Agent::new(&cli, "attic").set(format!("admin.listen={admin}"));
        let failures = || {
            let figures = Curl::new().get(format!("http://{admin}/metrics"));
            let figures = figures.and_then(CurlReply::ok).expect("metrics");
            let name = "mesh_agent_netmap_store_failures_total";
            assert!(figures.contains(name), "{figures}");
            metrics::count(&figures, &[name])
        };
        let disk = SmallDisk::mount(agent.state_dir(), 256).expect("a disk");
        agent = agent.joined(&cli, "default");
        wait_for_console(&up, "attic", SOON);
        let stored = || std::fs::read(agent.state_dir().join("netmap"));
        eventually("a stored netmap", SOON, || Ok(stored()?));

        assert_eq!(failures(), 0);
        let filled = disk.fill().expect("filled");
        let before = stored().expect("still there");
        // Something that it has to store.
        let neighbour = Agent::new(&cli, "cellar").joined(&cli, "default");
        agent
            .child()
            .wait_for_line("the netmap was not stored", SOON);
        assert_eq!(stored().expect("the last good one"), before);
        assert!(failures() > 0, "it is counted");
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

#[test]
fn a_relay_without_room_goes_on_and_stores_its_clients_when_there_is_room() {
    if !needs(&[Need::Root, Need::Program("curl")]) {
        return;
    }
    with_own_mounts(|| {
        let cli = Cli::new().expect("folders");
        let mut up = without_workers(&cli);
        let dir = cli.work("state-spare");
        let disk = SmallDisk::mount(&dir, 256).expect("a disk");
        let relay = |words: &[&str]| {
            let mut spec = cli.product("relay").name(format!("spare-{}", words[0]));
            spec = spec.args(words).arg("--state-dir").arg(&dir);
            for listens in ["server.listen", "stun.listen", "admin.listen"] {
                spec = spec.args(["--set", &format!("{listens}=127.0.0.1:0")]);
            }
            spec
        };
        let token = cli.token(&["--role", "relay"]);
        let join = relay(&["join", "--token-file", "-", "--hostname", "spare"]);
        let joined = join.stdin(format!("{token}\n")).run(SOON);
        joined.expect("runs").expect_code(0);
        let running = relay(&["run"]).spawn().expect("starts");
        let asked = || relay(&["status", "--json"]).run(SOON).expect("runs");
        let allowed = || -> anyhow::Result<u64> {
            let told: Value = serde_json::from_str(&asked().stdout)?;
            told["allowed"].as_u64().context("how many may use it")
        };
        let stored = || std::fs::read(dir.join("clients.json"));
        // Gateway and deploy-manager.
        eventually("a stored list of clients", SOON, || {
            let (allowed, stored) = (allowed()?, stored()?);
            ensure!(allowed == 2 && !stored.is_empty(), "{allowed} are allowed");
            Ok(())
        });

        let filled = disk.fill().expect("filled");
        let before = stored().expect("still there");
        // Somebody new is let in, and on the list that cannot be stored.
        let agent = Agent::new(&cli, "attic").joined(&cli, "default");
        let told = eventually("the relay says that it cannot store its list", SOON, || {
            finding(&asked(), "client-list-unsaved")
        });
        assert_eq!(told["severity"], "warning", "{told}");
        assert!(told["next"].to_string().contains("df -h"), "{told}");
        assert_eq!(allowed().expect("status"), 3);
        assert_eq!(stored().expect("the last good one"), before);
        asked().expect_code(0);

        filled.free().expect("freed");
        eventually("the list is stored again, without a hand", SOON, || {
            let asked = asked();
            let told = finding(&asked, "client-list-unsaved");
            ensure!(told.is_err(), "{}", asked.all());
            ensure!(stored()? != before, "it is as it was");
            Ok(())
        });
        let unsaved = "the list of clients could not be stored";
        running.assert_log_clean(&[unsaved]);
        assert!(!running.log().alarms(&[]).is_empty(), "it is told");
        agent.child().assert_log_clean(&[]);

        // It is a whole one: with nobody to ask, the relay knows the newcomer.
        up.stop().expect("stopped");
        drop(running);
        let again = relay(&["run"]).spawn().expect("starts");
        eventually("all three are known", SOON, || {
            let allowed = allowed()?;
            ensure!(allowed == 3, "{allowed}");
            Ok(())
        });
        again.assert_log_clean(&[]);
    });
}
