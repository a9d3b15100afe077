//! No secret is ever printed: one in every place that takes one, every service at its most
//! talkative, use, misuse and outages, and then a search of everything that was printed.

#![allow(clippy::print_stdout, reason = "figures are printed")]

mod bundle;
mod markers;
mod stage;

use std::time::Instant;

use mesh_testkit::sshd::SSHD;
use mesh_testkit::{Need, eventually, needs};

use stage::{MISPLACED, SOCKS_PASSWORD, SOON, Stage, WORKERS, WRONG};

const NEEDED: [Need; 9] = [
    Need::Root,
    Need::Program("curl"),
    Need::Program("find"),
    Need::Program("redis-server"),
    Need::Program("sha256sum"),
    Need::Program("ssh-keygen"),
    Need::Program("tar"),
    Need::Program("useradd"),
    Need::Program(SSHD),
];

/// Consoles, SOCKS5, commands by every way to log in, and what an operator does.
fn use_everything(stage: &mut Stage) {
    for name in WORKERS {
        eventually(&format!("the console of {name}"), SOON, || {
            stage.browse(&format!("/{name}/"))?.ok()
        });
    }
    stage.browse("/worker-node-1/basic/").expect("curl runs");
    let unknown = stage.browse("/no-such-worker/").expect("curl runs");
    assert_eq!(unknown.status, 404, "{unknown:?}");
    let page = format!("http://{}:9090/", WORKERS[0]);
    eventually("a page by SOCKS5", SOON, || {
        stage.by_socks(SOCKS_PASSWORD, &page)?.ok()
    });
    let refused = stage.by_socks(WRONG, &page).expect("curl runs");
    assert_ne!(refused.exit, Some(0), "{refused:?}");

    let user = stage.user.name().to_owned();
    let file = |name: &str, content: &str| {
        let file = stage.cli.file(name, content).expect("a file");
        file.display().to_string()
    };
    let (right, wrong) = (
        file("ssh-password", stage.user.password()),
        file("wrong-password", WRONG),
    );
    let key = stage.cli.work("ssh-key").display().to_string();
    for via in ["socks", "grpc"] {
        for (how, file, code) in [
            ("--password-file", &right, 0),
            ("--identity", &key, 0),
            ("--password-file", &wrong, 255),
        ] {
            let words = [
                "--via", via, "--user", &user, how, file, "exec", "true", WORKERS[0],
            ];
            let ran = stage.deploy(&words).expect("runs");
            assert_eq!(ran.code, Some(code), "{how} via {via}: {}", ran.all());
        }
        let status = stage
            .deploy(&["--via", via, "status", WORKERS[1]])
            .expect("runs");
        status.expect_code(0);
    }
    stage.permit().expect("a permit");
    for words in [
        &["token", "list"][..],
        &["node", "list"],
        &["operator", "list"],
        &["events", "--json"],
        &["status"],
    ] {
        let ran = stage.mesh(words);
        stage.run("mesh", ran).expect("runs").expect_code(0);
    }
}

/// Secrets where none may be, and wrong ones.
fn misuse_everything(stage: &mut Stage) {
    for (service, set) in [
        (
            "coordinator",
            format!("store.url=postgres://mesh:{MISPLACED}@127.0.0.1:1/mesh"),
        ),
        (
            "coordinator",
            format!("bus.redis_url=redis://:{MISPLACED}@127.0.0.1:1/0"),
        ),
        ("coordinator", format!("master_key={MISPLACED}")),
        ("coordinator", format!("store.pasword={MISPLACED}")),
        ("deploy-manager", format!("token_file={MISPLACED}")),
    ] {
        let spec = stage.command(service, &["run", "--set", &set]);
        let ran = stage.run(service, spec).expect("runs");
        assert_ne!(ran.code, Some(0), "{service} {set}: {}", ran.all());
    }
    let damaged = format!("mesh1.{MISPLACED}{MISPLACED}{MISPLACED}");
    let file = stage.cli.file("damaged.token", &damaged).expect("a file");
    let spec = stage
        .command(WORKERS[1], &["join", "--token-file"])
        .arg(file);
    let state = stage.cli.work("state-nobody");
    let spec = spec.args(["--set", &format!("state_dir={}", state.display())]);
    let ran = stage.run("join", spec).expect("runs");
    assert_ne!(ran.code, Some(0), "{}", ran.all());

    let wrong = stage.cli.file("wrong-database", WRONG).expect("a file");
    let sets = [
        format!("state_dir={}", stage.cli.work("state-stranger").display()),
        "server.listen=127.0.0.1:0".to_owned(),
        "admin.listen=127.0.0.1:0".to_owned(),
        "store.wait=1s".to_owned(),
    ];
    let mut spec = stage.command("coordinator", &["run"]);
    for set in &sets {
        spec = spec.args(["--set", set]);
    }
    let spec = spec.env("MESH_COORDINATOR__STORE__PASSWORD_FILE", wrong);
    let ran = stage.run("coordinator", spec).expect("runs");
    assert_eq!(ran.code, Some(1), "{}", ran.all());
}

/// Database and Redis go away and come back: what is said of them names no password.
fn lose_everything(stage: &mut Stage) {
    stage.bus.kill().expect("ends");
    stage.wait_until("coordinator", 200, "bus: degraded");
    stage.postgres.stop().expect("stops");
    stage
        .mesh(&["token", "create"])
        .run(SOON)
        .expect("runs")
        .expect_code(1);
    stage.wait_until("coordinator", 503, "store");
    stage.postgres.start_again().expect("starts again");
    stage.bus.start_again().expect("starts again");
    stage.wait_until("coordinator", 200, "");
    stage.stop("worker-node-2");
    let away = stage.browse("/worker-node-2/").expect("curl runs");
    assert!(away.status >= 500, "{away:?}");
    stage.stop("coordinator");
    stage.wait_until("traffic-gateway", 200, "coordinator");
}

#[test]
fn no_secret_is_printed_by_any_service_at_any_level() {
    if !needs(&NEEDED) {
        return;
    }
    let started = Instant::now();
    let mut stage = Stage::start().expect("an installation");
    use_everything(&mut stage);
    stage.ask_all().expect("answers");
    bundle::gather(&mut stage).expect("a bundle");
    misuse_everything(&mut stage);
    lose_everything(&mut stage);
    let (markers, printed) = stage.finish();

    // A log without its details would prove nothing, and so would a search that finds nothing.
    let mut traced = 0;
    let mut lines = 0;
    for (name, text) in &printed {
        traced += usize::from(text.contains(" TRACE ") && text.contains(" DEBUG "));
        lines += text.lines().count();
        if let Some(line) = text.lines().find(|line| line.contains(" INFO ")) {
            markers.assert_search_works(line);
        }
        let found = markers.found_in(text);
        assert!(
            found.is_empty(),
            "{name} tells a secret:\n{}",
            found.join("\n")
        );
        assert!(
            !text.contains("PRIVATE KEY-----"),
            "{name} tells a private key"
        );
    }
    assert!(traced >= 6, "only {traced} logs are at trace");
    println!(
        "{} forms of secrets searched in {lines} lines of {} outputs, in {:?}",
        markers.len(),
        printed.len(),
        started.elapsed()
    );
}
