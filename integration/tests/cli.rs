//! What an operator types: names, people, networks, tokens, removals.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::ensure;
use integration::{Agent, Cli, MeshUp, MeshUpOptions, Server};
use mesh_testkit::{Curl, Finished, Need, eventually, free_tcp_port, needs};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// What the issue calls at once.
const AT_ONCE: Duration = Duration::from_secs(5);

fn without_workers(cli: &Cli) -> MeshUp {
    MeshUp::start(
        cli,
        MeshUpOptions {
            demo: false,
            ..MeshUpOptions::default()
        },
    )
}

/// A mesh that is started again: whoever has joined looks for the coordinator where it was.
fn at_one_address(cli: &Cli, demo: bool, port: u16) -> MeshUp {
    let options = MeshUpOptions {
        demo,
        args: vec!["--coordinator-port".to_owned(), port.to_string()],
        ..MeshUpOptions::default()
    };
    MeshUp::start(cli, options)
}

/// It failed, on purpose, and said all of `parts`.
#[track_caller]
fn assert_refused(ran: &Finished, parts: &[&str]) {
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    assert!(!ran.all().contains("panicked"), "{}", ran.all());
    for part in parts {
        assert!(
            ran.stderr.contains(part),
            "{part:?} is not in: {}",
            ran.all()
        );
    }
}

#[track_caller]
fn node(cli: &Cli, name: &str) -> Value {
    cli.node_shown(&[name])
}

fn console_status(up: &MeshUp, name: &str) -> anyhow::Result<u16> {
    Ok(up.curl(&format!("/{name}/"))?.status)
}

/// What `deploy-cli` prints for one node that works.
#[track_caller]
fn assert_answers(cli: &Cli, name: &str) {
    let status = cli.deploy(&["status", name]).expect_code(0);
    let expected = format!("[OK] {name} -> hostname: ");
    assert!(status.stdout.starts_with(&expected), "{}", status.all());
}

#[test]
fn a_renamed_node_answers_to_its_new_name_alone_with_the_same_keys() {
    if !needs(&[Need::Program("curl"), Need::Program("ssh")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let up = MeshUp::demo(&cli);
    let socks = up.socks("default").to_string();
    let by_socks = |name: &str| {
        Curl::new()
            .args(["--socks5-hostname", &socks])
            .get(format!("http://{name}:9090/{name}/"))
            .expect("curl runs")
    };
    let ssh = |name: &str| {
        let blocks = cli.mesh_ok(&["ssh-config"]).stdout;
        let config = cli.file("ssh.config", &blocks).expect("file");
        let spec = cli.spec("ssh").arg("-F").arg(config);
        spec.args([name, "uname -n"]).run(SOON).expect("runs")
    };
    let before = node(&cli, "worker-node-2");
    assert_eq!(by_socks("worker-node-2").status, 200);
    ssh("worker-node-2").expect_code(0);

    cli.mesh_ok(&["node", "rename", "worker-node-2", "garage"]);
    eventually("the gateway knows the new name alone", AT_ONCE, || {
        let (new, old) = (
            console_status(&up, "garage")?,
            console_status(&up, "worker-node-2")?,
        );
        ensure!((new, old) == (200, 404), "new {new}, old {old}");
        Ok(())
    });
    eventually("SOCKS5 knows the new name alone", AT_ONCE, || {
        let (new, old) = (by_socks("garage"), by_socks("worker-node-2"));
        ensure!(new.status == 200, "{new:?}");
        // curl's 97: the proxy said no.
        ensure!(old.status == 0 && old.exit == Some(97), "{old:?}");
        Ok(())
    });
    assert_answers(&cli, "garage");
    let gone = cli.deploy(&["status", "worker-node-2"]);
    assert_eq!(gone.code, Some(1), "{}", gone.all());
    let said = "[FAIL] worker-node-2: no such node in network default";
    assert!(gone.stdout.contains(said), "{}", gone.all());
    // Pinned keys belong to the node, not to its name.
    let after = node(&cli, "garage");
    for same in ["id", "addrs", "ssh_host_keys", "wg_key"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert!(!after["ssh_host_keys"].as_array().expect("keys").is_empty());
    ssh("garage").expect_code(0);
    assert_ne!(ssh("worker-node-2").code, Some(0));

    let taken = cli.mesh(&["node", "rename", "garage", "worker-node-1"]);
    assert_refused(&taken, &["worker-node-1"]);
    assert_refused(
        &cli.mesh(&["node", "rename", "nobody", "somebody"]),
        &["nobody"],
    );
    assert_eq!(
        cli.mesh(&["node", "rename", "garage", "not a name"]).code,
        Some(2)
    );
    assert_answers(&cli, "worker-node-1");
    up.child().assert_log_clean(&[]);
}

#[test]
fn a_new_operator_can_what_the_first_one_can_until_revoked() {
    let (alice, bob) = (Cli::new().expect("folders"), Cli::new().expect("folders"));
    let up = MeshUp::demo(&alice);
    let file = |cli: &Cli, name: &str| cli.work(name).display().to_string();
    let request = file(&bob, "bob.request");
    bob.mesh_ok(&["login", "--request", &request]);
    let credential = file(&alice, "credential.json");
    let (name, output) = (["operator", "add", "bob"], ["--output", &credential]);
    alice.mesh_ok(&[&name[..], &["--request", &request], &output].concat());
    // What is carried from machine to machine is of no use to a third one.
    let carol = Cli::new().expect("folders");
    assert_refused(
        &carol.mesh(&["login", &credential]),
        &["mesh login --request"],
    );
    bob.mesh_ok(&["login", &credential]);
    let listed = alice.mesh_json(&["operator", "list"]);
    let operators = listed["operators"].as_array().expect("operators");
    assert!(operators.iter().any(|one| one["name"] == "bob"), "{listed}");

    let (socks, grpc) = (up.socks("default"), up.ready().deploy_manager.grpc.clone());
    let socks = format!("default={socks}");
    let set = bob.mesh_ok(&["context", "set", "--socks", &socks, "--deploy", &grpc]);
    assert!(!set.stderr.contains("warning"), "{}", set.all());
    let set = bob.mesh_ok(&["context", "set", "--socks", "spare=localhost:1"]);
    let said = "nothing is reached at localhost:1 from here (Connection refused";
    assert!(set.stderr.contains(said), "{}", set.all());
    bob.mesh_ok(&["node", "list"]);
    let exec = |via: &str| bob.deploy(&["--via", via, "exec", "true", "worker-node-1"]);
    for via in ["socks", "grpc"] {
        exec(via).expect_code(0);
    }
    let mut follows = bob
        .product("mesh")
        .args(["events", "--follow"])
        .spawn()
        .expect("starts");
    follows.wait_for_line("bob", SOON);

    alice.mesh_ok(&["operator", "revoke", "bob"]);
    eventually("bob is turned away", AT_ONCE, || {
        let ran = bob.mesh(&["node", "list"]);
        ensure!(ran.code == Some(1), "{}", ran.all());
        let advice = "was revoked: ask another operator for 'mesh operator add'";
        ensure!(ran.stderr.contains(advice), "{}", ran.all());
        Ok(())
    });
    for via in ["socks", "grpc"] {
        let ran = exec(via);
        assert_eq!(ran.code, Some(255), "via {via}: {}", ran.all());
    }
    assert_ne!(bob.mesh(&["token", "create"]).code, Some(0));
    // What was open ends too.
    let ended = follows.finish(AT_ONCE).expect("the watch ends");
    assert_eq!(ended.code, Some(1), "{}", ended.all());

    alice.mesh_ok(&["node", "list"]);
    assert_answers(&alice, "worker-node-1");
    assert_refused(&alice.mesh(&["operator", "revoke", "nobody"]), &["nobody"]);
    let state = alice.mesh_ok(&["operator", "list"]).stdout;
    let bob = state.lines().find(|line| line.starts_with("bob"));
    assert!(bob.is_some_and(|line| line.contains("revoked")), "{state}");
    up.child().assert_log_clean(&[]);
}

#[test]
fn a_network_with_nodes_in_it_is_deleted_only_by_force() {
    let cli = Cli::new().expect("folders");
    let port = free_tcp_port();
    let mut up = at_one_address(&cli, false, port);
    cli.mesh_ok(&["network", "create", "lab"]);
    assert_refused(&cli.mesh(&["network", "create", "lab"]), &["lab"]);
    let agent = Agent::new(&cli, "bench").joined(&cli, "lab");
    eventually("the worker is at the gateway", SOON, || {
        let status = up.curl("/n/lab/bench/")?.status;
        ensure!(status == 200, "{status}");
        Ok(())
    });
    let waiting = cli.token(&["--network", "lab"]);

    assert_refused(
        &cli.mesh(&["network", "delete", "lab"]),
        &["lab", "--force"],
    );
    assert_refused(&cli.mesh(&["network", "delete", "default"]), &["default"]);
    assert_refused(&cli.mesh(&["network", "delete", "attic"]), &["attic"]);
    assert_eq!(up.curl("/n/lab/bench/").expect("curl runs").status, 200);

    cli.mesh_ok(&["network", "delete", "lab", "--force"]);
    let left = cli.mesh_json(&["network", "list"]);
    let left: Vec<&Value> = left["networks"]
        .as_array()
        .expect("networks")
        .iter()
        .map(|network| &network["name"])
        .collect();
    assert_eq!(left, ["default"]);
    eventually("its console is gone", AT_ONCE, || {
        let status = up.curl("/n/lab/bench/")?.status;
        ensure!(status == 404, "{status}");
        Ok(())
    });
    agent
        .child()
        .wait_for_line("removed from the network by an operator", SOON);
    let late = Agent::new(&cli, "late").join(&waiting);
    assert_eq!(late.code, Some(1), "{}", late.all());

    // The rest is none the worse for it, and the name is free again.
    cli.mesh_ok(&["network", "create", "lab"]);
    let again = Agent::new(&cli, "again").joined(&cli, "lab");
    eventually("a worker of the new one is at the gateway", SOON, || {
        let status = up.curl("/n/lab/again/")?.status;
        ensure!(status == 200, "{status}");
        Ok(())
    });
    for child in [up.child(), agent.child(), again.child()] {
        child.assert_log_clean(&[]);
    }

    // What is left of the deleted one keeps nobody from starting again.
    cli.mesh_ok(&["network", "delete", "lab", "--force"]);
    up.stop().expect("stopped");
    let up = at_one_address(&cli, false, port);
    eventually("what is left of it is put aside", SOON, || {
        for role in ["deploy-manager", "traffic-gateway"] {
            let left = cli.work("state").join(role).join("network-lab");
            ensure!(!left.exists(), "{}", left.display());
        }
        Ok(())
    });
    up.child().assert_log_clean(&[]);
}

#[test]
fn the_demo_goes_on_without_a_removed_worker_and_has_it_again_after_a_restart() {
    let cli = Cli::new().expect("folders");
    let port = free_tcp_port();
    let mut up = at_one_address(&cli, true, port);
    let before = node(&cli, "worker-node-2");
    cli.mesh_ok(&["node", "remove", "--yes", "worker-node-2"]);
    eventually("its console is gone", AT_ONCE, || {
        let status = console_status(&up, "worker-node-2")?;
        ensure!(status == 404, "{status}");
        Ok(())
    });
    assert_answers(&cli, "worker-node-1");
    up.child().assert_log_clean(&[]);
    up.stop().expect("it ran until now");

    let up = at_one_address(&cli, true, port);
    assert_answers(&cli, "worker-node-2");
    assert_ne!(before["id"], node(&cli, "worker-node-2")["id"]);
    up.child().assert_log_clean(&[]);
}

#[test]
fn tokens_are_listed_without_their_secrets_and_revoked() {
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let states = || -> Vec<(String, String)> {
        let listed = cli.mesh_json(&["token", "list"]);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let tokens = listed["tokens"].as_array().expect("tokens").iter();
        let tokens = tokens.filter(|token| token["role"] == "worker");
        tokens
            .map(|token| (text(&token["id"]), text(&token["state"])))
            .collect()
    };
    assert!(states().is_empty());
    let (used, revoked) = (cli.token(&[]), cli.token(&["--reusable"]));
    Agent::new(&cli, "one").join(&used).expect_code(0);
    let listed = cli.mesh_ok(&["token", "list"]).stdout;
    for secret in [&used, &revoked] {
        assert!(!listed.contains(secret.as_str()), "{listed}");
    }
    let usable: Vec<String> = states()
        .into_iter()
        .filter(|(_, state)| state == "usable")
        .map(|(id, _)| id)
        .collect();
    let [id] = usable.as_slice() else {
        panic!("one is usable: {usable:?}")
    };
    Agent::new(&cli, "two").join(&revoked).expect_code(0);
    cli.mesh_ok(&["token", "revoke", id]);
    let refused = Agent::new(&cli, "three").join(&revoked);
    assert_refused(&refused, &["revoked"]);
    let after = states();
    assert!(
        after.contains(&(id.clone(), "revoked".to_owned())),
        "{after:?}"
    );
    assert!(after.iter().any(|(_, state)| state == "used"), "{after:?}");
    // Who joined by it stays, though it never ran, which its exit code tells.
    let stays = cli.mesh(&["node", "show", "two"]);
    assert_eq!(stays.code, Some(1), "{}", stays.all());
    assert!(stays.stdout.contains("was never seen"), "{}", stays.all());

    assert_refused(
        &cli.mesh(&["token", "revoke", "nonsense"]),
        &["mesh token list"],
    );
    let unknown = id.chars().rev().collect::<String>();
    assert_eq!(cli.mesh(&["token", "revoke", &unknown]).code, Some(1));
    let elsewhere = cli.mesh(&["token", "create", "--network", "attic"]);
    assert_refused(&elsewhere, &["attic"]);
    up.child().assert_log_clean(&[]);
}

#[test]
fn a_removed_node_is_out_at_once_and_asked_for_first() {
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let agent = Agent::new(&cli, "shed").joined(&cli, "default");
    eventually("the worker is at the gateway", SOON, || {
        ensure!(console_status(&up, "shed")? == 200, "not there");
        Ok(())
    });
    // Nobody is there to be asked.
    assert_refused(&cli.mesh(&["node", "remove", "shed"]), &["--yes"]);
    assert_answers(&cli, "shed");
    assert_refused(&cli.mesh(&["node", "remove", "--yes", "attic"]), &["attic"]);

    cli.mesh_ok(&["node", "remove", "--yes", "shed"]);
    eventually("its console is gone", Duration::from_secs(2), || {
        let status = console_status(&up, "shed")?;
        ensure!(status == 404, "{status}");
        Ok(())
    });
    assert_ne!(cli.deploy(&["exec", "true", "shed"]).code, Some(0));
    assert_refused(&cli.mesh(&["node", "show", "shed"]), &["shed"]);
    agent
        .child()
        .wait_for_line("removed from the network by an operator", SOON);
    // It says so itself, and what to do; what it was is of no use any more.
    let status = agent.run(&["status"]);
    assert!(status.all().contains("removed"), "{}", status.all());
    for child in [up.child(), agent.child()] {
        child.assert_log_clean(&[]);
    }
}

/// Its node is at an end before the agent serves anything: the first look for Cockpit, between the
/// two, waits for a configuration that nobody has written yet.
#[test]
fn an_agent_whose_node_ended_by_its_removal_before_it_serves_says_so() {
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let mut agent = Agent::new(&cli, "shed").joined(&cli, "default");
    agent.stop();
    cli.mesh_ok(&["node", "remove", "--yes", "shed"]);

    let cockpit = Server::start(None, "cockpit", None).expect("a port");
    let conf = cli.work("cockpit.conf");
    nix::unistd::mkfifo(&conf, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let sets = [
        format!("console.cockpit={}", cockpit.addr()),
        format!("console.cockpit_conf={}", conf.display()),
    ];
    let run = agent.verb(&["run"]);
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let mut again = run.args(sets).spawn().expect("starts");
    let addr = again.wait_for("where WireGuard is", SOON, |line| {
        let (_, addr) = line.text.split_once("WireGuard addr=")?;
        Some(addr.trim().to_owned())
    });
    again.wait_for_line("this node was removed from its network", SOON);
    // The node lets go of its socket after all else.
    eventually("the node has ended", SOON, || {
        UdpSocket::bind(&addr)?;
        Ok(())
    });
    // Who reads the pipe is at its end when nobody writes to it any more.
    let writer = std::fs::OpenOptions::new().write(true).open(&conf);
    std::fs::remove_file(&conf).expect("removed");
    drop(writer.expect("opened"));

    again.wait_for_line("removed from the network by an operator", SOON);
    let status = agent.run(&["status"]);
    assert!(status.all().contains("removed"), "{}", status.all());
    again.terminate().expect("signalled");
    let ran = again.finish(SOON).expect("ends").expect_code(0);
    assert!(
        !ran.all().contains("this node is stopping"),
        "{}",
        ran.all()
    );
    for child in [up.child(), &again] {
        child.assert_log_clean(&[]);
    }
}
