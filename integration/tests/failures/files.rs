//! Files that are not what was written.

use std::path::Path;

use integration::mesh_up::PORTS;
use integration::{Agent, Cli, MeshUp, MeshUpOptions};
use mesh_testkit::eventually;

use super::{SOON, wait_for_console, wait_for_state, without_workers};

/// Turns the bytes in the middle of a file over, and gives back what it held.
fn damage(path: &Path) -> Vec<u8> {
    let whole = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle..(middle + 16).min(whole.len())]
        .iter_mut()
        .for_each(|byte| *byte = !*byte);
    assert_ne!(bytes, whole, "{}", path.display());
    std::fs::write(path, bytes).expect("written");
    whole
}

#[test]
fn a_damaged_or_lost_database_is_told_and_left_and_a_copy_heals() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::start(&cli, MeshUpOptions::default());
    let nodes = |cli: &Cli| {
        let listed = cli.mesh_json(&["node", "list"]);
        let nodes = listed["nodes"].as_array().expect("nodes").clone();
        let kept = |node: &serde_json::Value| (node["name"].clone(), node["id"].clone());
        nodes.iter().map(kept).collect::<Vec<_>>()
    };
    let before = nodes(&cli);
    up.stop().expect("stopped");

    let path = cli.work("state").join("coordinator/coordinator.db");
    let whole = std::fs::read(&path).expect("a database");
    let start = || {
        let state = cli.work("state").display().to_string();
        let mut args = vec!["up", "--state-dir", &state];
        for port in PORTS {
            args.extend([port, "0"]);
        }
        cli.mesh(&args)
    };
    let mut page_lost = whole.clone();
    page_lost[4096..8192].fill(0);
    for (bytes, word) in [
        (page_lost, "is damaged"),
        (b"a letter to a friend".repeat(500), "is damaged"),
        (whole[..whole.len() / 2].to_vec(), "is damaged"),
        (Vec::new(), "is empty or gone"),
    ] {
        std::fs::write(&path, &bytes).expect("written");
        let refused = start();
        assert_eq!(refused.code, Some(1), "{}", refused.all());
        for part in [word, "coordinator.db", "put a copy of"] {
            assert!(refused.stderr.contains(part), "{part}: {}", refused.all());
        }
        assert_eq!(std::fs::read(&path).expect("there"), bytes, "left as it is");
    }

    std::fs::write(&path, whole).expect("written");
    let up = MeshUp::start(&cli, MeshUpOptions::default());
    assert_eq!(nodes(&cli), before);
    wait_for_state(&cli, &["worker-node-1", "worker-node-2"], "online", SOON);
    wait_for_console(&up, "worker-node-1", SOON);
    up.child().assert_log_clean(&[]);
}

#[test]
fn an_agents_damaged_files_are_named_and_a_damaged_netmap_heals_by_itself() {
    let cli = Cli::new().expect("folders");
    let mut up = without_workers(&cli);
    let mut agent = Agent::new(&cli, "attic").joined(&cli, "default");
    wait_for_console(&up, "attic", SOON);
    let file = |name: &str| agent.state_dir().join(name);
    eventually("a stored netmap", SOON, || {
        Ok(std::fs::metadata(file("netmap"))?)
    });
    let paths = ["node.key", "node.crt", "ca.crt", "node.json"].map(file);
    let netmap = file("netmap");
    agent.stop();

    for path in paths {
        let whole = damage(&path);
        let damaged = std::fs::read(&path).expect("there");
        let refused = agent.run(&["run"]);
        assert_eq!(refused.code, Some(1), "{}", refused.all());
        assert!(!refused.all().contains("panicked"), "{}", refused.all());
        let name = path.display().to_string();
        for part in [&*name, "damaged", "join again"] {
            assert!(refused.stderr.contains(part), "{part}: {}", refused.all());
        }
        let status = agent.run(&["status", "--json"]);
        assert_eq!(status.code, Some(1), "{}", status.all());
        let code = if path.ends_with("node.key") {
            "\"not-answering\""
        } else {
            "\"not-running\""
        };
        assert!(status.stdout.contains(code), "{name}: {}", status.all());
        // It was not replaced by something new: the identity would be lost.
        assert_eq!(std::fs::read(&path).expect("there"), damaged);
        std::fs::write(&path, whole).expect("written");
    }

    // The netmap is set aside, and comes again from the coordinator.
    damage(&netmap);
    agent.start();
    agent.child().wait_for_line("set aside", SOON);
    assert!(agent.state_dir().join("netmap.bad").exists());
    wait_for_state(&cli, &["attic"], "online", SOON);
    wait_for_console(&up, "attic", SOON);
    eventually("a new one is stored", SOON, || {
        Ok(std::fs::metadata(&netmap)?)
    });
    agent.child().assert_log_clean(&[]);
    agent.stop();

    // With nobody to ask it is not used either: there is none then, and that is said.
    up.stop().expect("stopped");
    damage(&netmap);
    let running = agent.verb(&["run"]).spawn().expect("starts");
    running.wait_for_line("set aside", SOON);
    eventually("the agent says what it lacks", SOON, || {
        let said = agent.run(&["status", "--json"]);
        anyhow::ensure!(said.stdout.contains("\"no-netmap\""), "{}", said.all());
        Ok(())
    });
    let up = without_workers(&cli);
    wait_for_console(&up, "attic", SOON);
}
