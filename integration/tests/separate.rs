//! The same mesh from separate binaries, and a worker that joins a running one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{Field, Layout};
use mesh_testkit::{Curl, CurlReply, Need, TestUser, eventually, needs};

const NEEDED: [Need; 5] = [
    Need::Root,
    Need::Program("ip"),
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
    let mut coordinator = field.take_service("coordinator");
    coordinator.terminate().expect("signalled");
    coordinator
        .finish(Duration::from_secs(30))
        .expect("ends")
        .success()
        .expect("exit code 0");
    coordinator.assert_log_clean(&[]);
    wait_for_followers(&field, true);
    for name in WORKERS {
        let reply = field.curl(&format!("/{name}/")).expect("curl runs");
        assert_eq!(reply.status, 200, "{name} without coordinator: {reply:?}");
    }
    let mut stopped = field.worker_mut(WORKERS[0]).take_child();
    stopped.terminate().expect("signalled");
    stopped
        .finish(Duration::from_secs(30))
        .expect("ends")
        .success()
        .expect("exit code 0");
    stopped.assert_log_clean(&[]);
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
    field.assert_logs_clean(&[]);
}
