//! Files that are not what was written.

use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::findings::finding;
use integration::mesh_up::PORTS;
use integration::{Agent, Cli, MeshUp, MeshUpOptions, metrics};
use mesh_testkit::{Curl, Spec, eventually, free_tcp_port};
use serde_json::Value;

use super::{SOON, wait_for_console, wait_for_state, without_workers};

/// Bytes of a page of the database.
const PAGE: u64 = 4096;
/// A store that is down is tried each second.
const TRIALS: Duration = Duration::from_secs(3);

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

/// Names and ids of all nodes.
#[track_caller]
fn nodes(cli: &Cli) -> Vec<(Value, Value)> {
    let listed = cli.mesh_json(&["node", "list"]);
    let nodes = listed["nodes"].as_array().expect("nodes");
    let kept = |node: &Value| (node["name"].clone(), node["id"].clone());
    nodes.iter().map(kept).collect()
}

/// Overwrites all pages of a database but the first, in the file that a process has open.
fn overwrite(path: &Path) {
    let mut file = OpenOptions::new().write(true).open(path).expect("a file");
    let pages = file.metadata().expect("a file").len() - PAGE;
    file.seek(SeekFrom::Start(PAGE)).expect("seeks");
    let garbage = vec![0xa5; usize::try_from(pages).expect("fits")];
    file.write_all(&garbage).expect("written");
}

#[test]
fn a_database_damaged_under_its_coordinator_is_told_and_what_runs_goes_on() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::start(&cli, MeshUpOptions::default());
    let before = nodes(&cli);
    // What was written so far is in the file itself after an end, and the copy is of then.
    up.stop().expect("stopped");
    let dir = cli.work("state").join("coordinator");
    let path = dir.join("coordinator.db");
    let copy = std::fs::read(&path).expect("a database");
    let mut up = MeshUp::start(&cli, MeshUpOptions::default());
    wait_for_state(&cli, &["worker-node-1", "worker-node-2"], "online", SOON);
    wait_for_console(&up, "worker-node-1", SOON);

    overwrite(&path);
    eventually("changes are refused, with the reason", SOON, || {
        // Whatever a connection remembers of the file is whole; others read it.
        cli.mesh(&["token", "list"]);
        let refused = cli.mesh(&["token", "create"]);
        ensure!(refused.code == Some(1), "{}", refused.all());
        ensure!(refused.stderr.contains("malformed"), "{}", refused.all());
        Ok(())
    });
    // What runs goes on.
    for name in ["worker-node-1", "worker-node-2"] {
        wait_for_console(&up, name, SOON);
        cli.deploy(&["exec", "true", name]).expect_code(0);
    }
    wait_for_state(&cli, &["worker-node-1", "worker-node-2"], "online", SOON);
    // It is told as long as it is so, although single writes may go through.
    let store = "mesh_process_latch_ready{latch=\"coordinator/store\"} 0";
    let since = Instant::now();
    eventually("it was tried again", SOON, || {
        let told = finding(&cli.mesh(&["--json", "status"]), "store-down").expect("told");
        assert_eq!(told["severity"], "error", "{told}");
        assert!(told["next"].to_string().contains("mesh db check"), "{told}");
        let figures = up.metrics()?;
        assert!(figures.lines().any(|line| line == store), "{figures}");
        ensure!(since.elapsed() > TRIALS, "not yet");
        Ok(())
    });
    up.stop().expect("stopped");
    let told = "the store takes no changes until it heals";
    // Nothing that happened is lost without a word: it is in the log.
    let owed = "the audit never got what it was owed; this log has it";
    up.child().assert_log_clean(&[told, owed]);
    assert_eq!(up.child().log().alarms(&[owed]).len(), 1, "told once");
    assert_eq!(up.child().log().alarms(&[told]).len(), 1, "and this");

    // What docs/failures.md says to do.
    let aside = cli.work("aside");
    std::fs::create_dir(&aside).expect("made");
    for name in ["coordinator.db", "coordinator.db-wal", "coordinator.db-shm"] {
        if dir.join(name).exists() {
            std::fs::rename(dir.join(name), aside.join(name)).expect("moved");
        }
    }
    let check = || {
        let spec = cli.product("mesh").args(["db", "check", "--dev"]);
        let ran = spec.arg("--state-dir").arg(&dir).run(SOON);
        ran.expect("runs")
    };
    std::fs::copy(aside.join("coordinator.db"), &path).expect("copied");
    let damaged = check();
    assert_eq!(damaged.code, Some(1), "{}", damaged.all());
    assert!(damaged.stderr.contains("is damaged"), "{}", damaged.all());
    std::fs::write(&path, copy).expect("written");
    let whole = check().expect_code(0);
    assert!(whole.stdout.contains("No damage found."), "{}", whole.all());
    let up = MeshUp::start(&cli, MeshUpOptions::default());
    assert_eq!(nodes(&cli), before);
    wait_for_console(&up, "worker-node-1", SOON);
    cli.mesh_ok(&["token", "create"]);
    up.child().assert_log_clean(&[]);
}

#[test]
fn a_damaged_or_lost_database_is_told_and_left_and_a_copy_heals() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::start(&cli, MeshUpOptions::default());
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

/// Runs `status` of a program on a directory in which this file is damaged.
#[track_caller]
fn assert_names(status: Spec, file: &Path, rejoin: &str) {
    let ran = status.run(SOON).expect("runs");
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    let told = finding(&ran, "file-damaged").expect("told");
    assert_eq!(told["severity"], "error", "{told}");
    let file = file.display().to_string();
    let (what, next) = (told["what"].to_string(), told["next"].to_string());
    assert!(what.contains(&format!("{file} is damaged")), "{told}");
    let next_is = next.contains(&format!("put {file} back")) && next.contains(rejoin);
    assert!(next_is, "{told}");
    // It was told as one of these.
    for word in ["not-running", "not-answering", "not-joined"] {
        assert!(!ran.stdout.contains(word), "{}", ran.all());
    }
}

/// After the end of `mesh up`, whose programs are asked one by one: each names the file.
fn assert_each_program_names_its_damaged_file(cli: &Cli) {
    for (program, role, below) in [
        ("relay", "relay", "relay"),
        (
            "traffic-gateway",
            "gateway",
            "traffic-gateway/network-default",
        ),
        (
            "deploy-manager",
            "deployer",
            "deploy-manager/network-default",
        ),
    ] {
        let dir = cli
            .work("state")
            .join(below.split('/').next().unwrap_or(below));
        let set = format!("state_dir={}", dir.display());
        let status = || {
            cli.product(program)
                .args(["status", "--json", "--set", &set])
        };
        let well = status().run(SOON).expect("runs");
        finding(&well, "not-running").expect("nothing is damaged");
        let file = cli.work("state").join(below).join("node.key");
        let whole = damage(&file);
        let rejoin = format!(
            "{program} join --token-file FILE, with a token of 'mesh token create --role {role}'"
        );
        assert_names(status(), &file, &rejoin);
        std::fs::write(&file, whole).expect("written");
    }
}

#[test]
fn an_agents_damaged_files_are_named_and_a_damaged_netmap_heals_by_itself() {
    let cli = Cli::new().expect("folders");
    let mut up = without_workers(&cli);
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()));
    let mut agent = Agent::new(&cli, "attic").set(format!("admin.listen={admin}"));
    agent.join(&cli.token(&[])).expect_code(0);
    let file = |name: &str| agent.state_dir().join(name);
    let status = || agent.verb(&["status", "--json"]);
    let asked = status().run(SOON).expect("runs");
    finding(&asked, "not-running").expect("nothing is damaged");

    let paths = ["node.key", "node.crt", "ca.crt", "node.json"].map(file);
    for path in &paths {
        let whole = damage(path);
        let damaged = std::fs::read(path).expect("there");
        let refused = agent.run(&["run"]);
        assert_eq!(refused.code, Some(1), "{}", refused.all());
        assert!(!refused.all().contains("panicked"), "{}", refused.all());
        let name = path.display().to_string();
        for part in [&*name, "damaged", "join again"] {
            assert!(refused.stderr.contains(part), "{part}: {}", refused.all());
        }
        assert_names(status(), path, "worker-agent join --token-file FILE");
        // It was not replaced by something new: the identity would be lost.
        assert_eq!(std::fs::read(path).expect("there"), damaged);
        std::fs::write(path, whole).expect("written");
    }
    // Nor are the keys made anew that are gone.
    let key = &paths[0];
    let kept = std::fs::read(key).expect("there");
    std::fs::remove_file(key).expect("removed");
    let refused = agent.run(&["run"]);
    assert_eq!(refused.code, Some(1), "{}", refused.all());
    assert!(refused.stderr.contains("it is gone"), "{}", refused.all());
    assert_names(status(), key, "'mesh node permit NODE'");
    assert!(!key.exists());
    std::fs::write(key, kept).expect("written");
    // To the operator it is one who is not there.
    eventually("the coordinator misses it", SOON, || {
        let told = finding(&cli.mesh(&["--json", "status"]), "node-offline")?;
        ensure!(told["what"].to_string().contains("attic joined"), "{told}");
        let missing = metrics::count(&up.metrics()?, &["mesh_coordinator_nodes_missing"]);
        ensure!(missing == 1, "{missing} nodes are missing");
        Ok(())
    });

    agent.start();
    wait_for_console(&up, "attic", SOON);
    let netmap = agent.state_dir().join("netmap");
    let aside = agent.state_dir().join("netmap.bad");
    eventually("a stored netmap", SOON, || Ok(std::fs::metadata(&netmap)?));
    agent.stop();

    // The netmap is set aside, and comes again from the coordinator.
    damage(&netmap);
    agent.start();
    agent.child().wait_for_line("set aside", SOON);
    assert!(aside.exists());
    wait_for_state(&cli, &["attic"], "online", SOON);
    wait_for_console(&up, "attic", SOON);
    eventually("a new one is stored", SOON, || {
        Ok(std::fs::metadata(&netmap)?)
    });
    let asked = || agent.run(&["status", "--json"]);
    let told = eventually("that it was set aside is told", SOON, || {
        finding(&asked(), "netmap-set-aside")
    });
    assert_eq!(told["severity"], "notice", "{told}");
    assert_eq!(
        told["next"],
        format!("is the disk well (dmesg)? Then: rm {}", aside.display())
    );
    asked().expect_code(0);
    std::fs::remove_file(&aside).expect("removed");
    eventually("and no more once somebody removed it", SOON, || {
        let asked = asked().success()?;
        ensure!(
            finding(&asked, "netmap-set-aside").is_err(),
            "{}",
            asked.all()
        );
        Ok(())
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
        finding(&said, "no-netmap")?;
        finding(&said, "netmap-set-aside")?;
        let figures = Curl::new().get(format!("http://{admin}/metrics"))?.ok()?;
        let none = "mesh_process_latch_ready{latch=\"netmap\"} 0";
        ensure!(figures.lines().any(|line| line == none), "{figures}");
        Ok(())
    });
    assert_each_program_names_its_damaged_file(&cli);
    let up = without_workers(&cli);
    wait_for_console(&up, "attic", SOON);
}
