//! The same mesh from separate binaries, and a worker that joins a running one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::field::DERP_PORT;
use integration::journeys::fleet::{Reached, Target};
use integration::{Field, Layout};
use mesh_testkit::{Child, Curl, CurlReply, Need, TestUser, eventually, needs};
use serde_json::Value;

const NEEDED: [Need; 6] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("useradd"),
    Need::Program("setpriv"),
];
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];

/// Where each that follows the coordinator tells whether it is ready, and what it goes by when the
/// coordinator is away.
const FOLLOWERS: [(u16, &str); 4] = [
    (9465, "the netmap"),
    (9466, "the netmap"),
    (9467, "the netmap"),
    (9468, "the list of clients"),
];

/// Waits until every follower of the coordinator says that it has none, or none says so; ready all
/// the time.
#[track_caller]
fn wait_for_followers(field: &Field, lost: bool) {
    for (port, held) in FOLLOWERS {
        eventually(&format!("{port} knows"), Duration::from_secs(20), || {
            let url = format!("http://127.0.0.1:{port}/readyz");
            let body = Curl::new().on(Some(field.host("core"))).get(url)?.ok()?;
            let told = body
                .lines()
                .filter(|line| line.starts_with("coordinator") && line.contains(": degraded: "))
                .filter(|line| line.contains(&format!("; acting on {held} of 2")));
            let degraded = body.contains("degraded");
            ensure!((told.count() == 1) == lost && degraded == lost, "{body}");
            Ok(())
        });
    }
}

fn reached(field: &Field, action: impl FnOnce(&Reached<'_>)) {
    action(&Reached {
        cli: field.operator(),
        curl: &|| field.client_curl(),
        url: &|path| field.url(path),
    });
}

/// What the coordinator knows of every node that a restart must not change.
fn identities(field: &Field) -> BTreeSet<String> {
    let listed = field.operator().mesh_json(&["node", "list"]);
    let nodes = listed["nodes"].as_array().expect("nodes");
    let of = |node: &Value| {
        ["name", "id", "role", "addrs", "wg_key", "ssh_host_keys"]
            .map(|key| node[key].to_string())
            .join(" ")
    };
    nodes.iter().map(of).collect()
}

/// Ends a process as a service manager does.
fn stop(mut child: Child) {
    child.terminate().expect("signalled");
    let ended = child.finish(Duration::from_secs(30)).expect("ends");
    ended.success().expect("exit code 0");
    child.assert_log_clean(&[]);
}

/// Ends all of it and starts it again: everybody is who they were.
fn stop_and_start_all(field: &mut Field) {
    let before = identities(field);
    for name in WORKERS {
        stop(field.worker_mut(name).take_child());
    }
    for name in ["deploy-manager", "gateway", "relay", "coordinator"] {
        stop(field.take_service(name));
    }
    field.start_coordinator().expect("starts again");
    field.start_relay().expect("starts again");
    field.start_gateway().expect("starts again");
    field.start_deploy_manager().expect("starts again");
    for name in WORKERS {
        field.worker_mut(name).start();
        field.wait_for_console(&format!("/{name}/"), Duration::from_secs(20));
    }
    assert_eq!(identities(field), before);
}

fn assert_fleet_works(field: &Field, workers: &[&str]) {
    let page = field
        .curl("/")
        .and_then(CurlReply::ok)
        .expect("the list of workers");
    let status = field
        .operator()
        .deploy(&[&["status"], workers].concat())
        .expect_code(0);
    let lines: Vec<&str> = status.stdout.lines().collect();
    assert_eq!(lines.len(), workers.len(), "{}", status.all());
    for (name, line) in workers.iter().zip(lines) {
        assert!(page.contains(name), "{name} is not on the page:\n{page}");
        assert!(
            line.starts_with(&format!("[OK] {name} -> hostname: ")),
            "{line}"
        );
        let reply = field.curl(&format!("/{name}/")).expect("curl runs");
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.body.contains(name), "{reply:?}");
    }
    let ran = field
        .operator()
        .deploy(&["exec", "uname -n", "all"])
        .expect_code(0);
    for name in workers {
        assert!(ran.stdout.contains(name), "{}", ran.all());
    }
    let id = |name: &str| {
        let status = field.worker(name).status().expect("a status");
        let id = status["enrolled"]["node"].as_str().expect("an id");
        (name.to_owned(), id.to_owned())
    };
    let nodes: Vec<_> = workers.iter().map(|name| id(name)).collect();
    reached(field, |mesh| mesh.assert_consoles(&nodes));
}

#[test]
fn separate_binaries_make_the_same_mesh_and_a_third_worker_is_there_at_once() {
    if !needs(&NEEDED) {
        return;
    }
    let user = Arc::new(TestUser::create().expect("user"));
    let mut field = Field::start(Layout::Single, Some(&user));
    for (name, sets) in WORKERS
        .into_iter()
        .zip([&["admin.listen=127.0.0.1:9467"][..], &[]])
    {
        field.add_worker(name, "default", sets);
        field.wait_for_console(&format!("/{name}/"), Duration::from_secs(20));
    }
    assert_fleet_works(&field, &WORKERS);

    let started = Instant::now();
    field.join_worker("worker-node-3", "default", &[]);
    field.worker_mut("worker-node-3").start();
    field.wait_for_console("/worker-node-3/", Duration::from_secs(20));
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(3),
        "the third worker took {took:?}"
    );
    assert_fleet_works(&field, &[WORKERS[0], WORKERS[1], "worker-node-3"]);

    wait_for_followers(&field, false);
    // What runs goes on while the coordinator is away, also for a worker that starts again then.
    stop(field.take_service("coordinator"));
    wait_for_followers(&field, true);
    for name in WORKERS {
        let reply = field.curl(&format!("/{name}/")).expect("curl runs");
        assert_eq!(reply.status, 200, "{name} without coordinator: {reply:?}");
    }
    stop(field.worker_mut(WORKERS[0]).take_child());
    field.worker_mut(WORKERS[0]).start();
    field.wait_for_console("/worker-node-1/", Duration::from_secs(20));
    wait_for_followers(&field, true);
    field
        .start_coordinator()
        .expect("the coordinator starts again");
    eventually("everybody is back", Duration::from_secs(20), || {
        let listed = field.operator().mesh(&["node", "list"]).success()?.stdout;
        let online = listed
            .lines()
            .filter(|line| line.contains("online"))
            .count();
        ensure!(online >= 5, "{online} online:\n{listed}");
        Ok(())
    });

    wait_for_followers(&field, false);
    // A removed worker is gone within 2 s, everywhere.
    field
        .operator()
        .mesh_ok(&["node", "remove", "--yes", "worker-node-3"]);
    let removed = Instant::now();
    eventually(
        "the removed worker is unknown",
        Duration::from_secs(10),
        || {
            let status = field.curl("/worker-node-3/")?.status;
            ensure!(status == 404, "status {status}");
            Ok(())
        },
    );
    assert!(
        removed.elapsed() < Duration::from_secs(2),
        "gone after {:?}",
        removed.elapsed()
    );
    assert_fleet_works(&field, &WORKERS);

    let status = field.worker(WORKERS[0]).status().expect("a status");
    let wg_port = status["wg_port"].as_u64();
    let target = Target {
        name: WORKERS[0],
        host: field.host("core"),
        wg_port: wg_port
            .and_then(|port| port.try_into().ok())
            .expect("a port"),
        derp_port: DERP_PORT,
    };
    reached(&field, |mesh| mesh.assert_fails_alone(target, WORKERS[1]));
    stop_and_start_all(&mut field);
    assert_fleet_works(&field, &WORKERS);
    field.assert_logs_clean(&[]);
}
