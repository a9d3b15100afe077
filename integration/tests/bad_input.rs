//! Mistakes of people and of networks, each with a message that says what to do.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use integration::mesh_up::PORTS;
use integration::{Agent, Cli, MeshUp, MeshUpOptions, binary};
use mesh_testkit::{Finished, Need, Spec, TestUser, eventually, needs};
use mesh_types::JoinToken;

const SOON: Duration = Duration::from_secs(60);

fn coordinator(cli: &Cli) -> MeshUp {
    MeshUp::start(
        cli,
        MeshUpOptions {
            demo: false,
            ..MeshUpOptions::default()
        },
    )
}

fn join_spec(cli: &Cli, name: &str, token: &str) -> Spec {
    let file = cli
        .file(&format!("{name}.token"), token)
        .expect("token file");
    let state = cli.work(&format!("state-{name}"));
    cli.product("worker-agent")
        .args(["join", "--token-file"])
        .arg(file)
        .args(["--hostname", name, "--state-dir"])
        .arg(state)
}

fn ran(spec: Spec) -> Finished {
    let ran = spec.run(SOON).expect("runs");
    assert!(!ran.all().contains("panicked"), "{}", ran.all());
    ran
}

/// It failed, on purpose, and said something with all of `parts` in it.
#[track_caller]
fn assert_says(ran: &Finished, code: i32, parts: &[&str]) {
    assert_eq!(ran.code, Some(code), "{}", ran.all());
    for part in parts {
        assert!(
            ran.stderr.to_lowercase().contains(&part.to_lowercase()),
            "{part:?} is not in: {}",
            ran.all()
        );
    }
}

/// A token whose coordinator is somewhere else.
fn moved(token: &str, to: &str) -> String {
    let mut token: JoinToken = token.parse().expect("a join token");
    token.coordinators = vec![to.to_owned()];
    token.reveal()
}

#[test]
fn an_address_that_leads_nowhere_is_named() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let token = cli.token(&["--reusable"]);
    let unknown = ran(join_spec(
        &cli,
        "unknown",
        &moved(&token, "no-such-host.invalid:8080"),
    ));
    assert_says(&unknown, 1, &["no-such-host.invalid:8080"]);
    let nobody = ran(join_spec(&cli, "nobody", &moved(&token, "127.0.0.1:1")));
    assert_says(&nobody, 1, &["127.0.0.1:1"]);
    // The gateway speaks no TLS: a wrong port of the right machine.
    let gateway = format!("127.0.0.1:{}", up.gateway_port());
    let wrong = ran(join_spec(&cli, "wrong", &moved(&token, &gateway)));
    assert_says(&wrong, 1, &[&gateway, "port"]);
    up.child().assert_log_clean(&[]);
}

#[test]
fn a_coordinator_that_is_down_is_named_by_every_command() {
    let cli = Cli::new().expect("folders");
    let mut up = coordinator(&cli);
    let addr = up.ready().coordinator.addr.clone();
    up.stop().expect("stopped");
    for args in [
        &["node", "list"][..],
        &["token", "create"],
        &["network", "list"],
    ] {
        assert_says(&cli.mesh(args), 1, &[&addr]);
    }
    let status = cli.mesh(&["status"]);
    assert_eq!(status.code, Some(1), "{}", status.all());
    assert!(
        status.all().contains(&addr) && status.all().contains("mesh up"),
        "{}",
        status.all()
    );
    let exec = cli.deploy(&["exec", "true", "all"]);
    assert!(exec.code.is_some_and(|code| code != 0), "{}", exec.all());
    assert!(exec.stderr.contains(&addr), "{}", exec.all());
}

#[test]
fn without_a_context_the_next_command_is_named() {
    let cli = Cli::new().expect("folders");
    assert_says(&cli.mesh(&["node", "list"]), 1, &["mesh up", "mesh login"]);
    assert_says(
        &cli.deploy(&["status", "all"]),
        1,
        &["mesh up", "mesh login"],
    );
    let wrong = cli.mesh(&["--context", "elsewhere", "node", "list"]);
    assert_says(&wrong, 1, &["elsewhere"]);
}

#[test]
fn usage_and_configuration_faults_have_their_own_exit_codes() {
    let cli = Cli::new().expect("folders");
    assert_eq!(cli.mesh(&["nonsense"]).code, Some(2));
    assert_eq!(
        cli.mesh(&["token", "create", "--expires", "25h"]).code,
        Some(2)
    );
    assert_eq!(cli.deploy(&["exec"]).code, Some(2));
    for service in ["coordinator", "relay", "traffic-gateway", "deploy-manager"] {
        let spec = cli
            .product(service)
            .args(["--set", "no.such.key=1", "--set", "admin.listen=x"]);
        let faults = ran(spec.arg("--check-config"));
        assert_says(&faults, 64, &["no", "admin.listen"]);
        let state = format!("state_dir={}", cli.work(service).display());
        let printed = ran(cli
            .product(service)
            .args(["--set", &state, "--print-config"]));
        assert_eq!(printed.code, Some(0), "{service}: {}", printed.all());
        assert!(
            printed.stdout.contains("listen"),
            "{service}: {}",
            printed.all()
        );
    }
}

#[test]
fn a_state_directory_is_taken_by_one_process_of_one_user_and_one_version() {
    let cli = Cli::new().expect("folders");
    let mut up = coordinator(&cli);
    let state = cli.work("state");
    let again = ran(second(&cli, &state));
    assert_says(&again, 1, &["state"]);
    assert!(
        again.stderr.contains("already") || again.stderr.contains("another"),
        "{}",
        again.all()
    );
    // The first one is none the worse for it.
    cli.mesh_ok(&["node", "list"]);

    let token = cli.token(&[]);
    ran(join_spec(&cli, "worker", &token)).expect_code(0);
    let agent_state = cli.work("state-worker");
    let versions: Vec<_> = ["format", "version"]
        .iter()
        .map(|name| agent_state.join(name))
        .filter(|path| path.is_file())
        .collect();
    assert_eq!(
        versions.len(),
        1,
        "one file tells the format: {:?}",
        list(&agent_state)
    );
    std::fs::write(&versions[0], "9999\n").expect("written");
    let run = |cli: &Cli| {
        cli.product("worker-agent")
            .args(["run", "--state-dir"])
            .arg(&agent_state)
    };
    assert_says(&ran(run(&cli)), 1, &["9999", "format"]);

    up.stop().expect("stopped");
    if needs(&[
        Need::Root,
        Need::Program("useradd"),
        Need::Program("setpriv"),
    ]) {
        let user = Arc::new(TestUser::create().expect("user"));
        let stranger = Cli::new()
            .expect("folders")
            .run_by(&user)
            .expect("handed over");
        // Reachable for the stranger, and still not the stranger's.
        for dir in cli.work("x").ancestors().skip(1).take(2) {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("opened");
        }
        for (refused, dir) in [
            (ran(second(&stranger, &state)), &state),
            (ran(run(&stranger)), &agent_state),
        ] {
            assert_says(&refused, 1, &[&dir.display().to_string()]);
            let text = refused.stderr.to_lowercase();
            let told = ["owner", "belongs", "another user"];
            assert!(
                told.iter().any(|word| text.contains(word)),
                "{}",
                refused.all()
            );
        }
    }
}

#[test]
fn a_coordinators_directory_of_a_newer_version_is_refused_and_left_as_it_is() {
    if !needs(&[Need::Program("sqlite3")]) {
        return;
    }
    const MIGRATION: &str = "m20991231_000001_not_written_yet";
    let cli = Cli::new().expect("folders");
    let mut up = coordinator(&cli);
    up.stop().expect("stopped");
    let state = cli.work("state");
    let database = state.join("coordinator/coordinator.db");
    let sql = |statement: &str| {
        let ran = cli.spec("sqlite3").arg(&database).arg(statement).run(SOON);
        ran.expect("runs").expect_code(0).stdout
    };
    let version = "SELECT value FROM meta WHERE name = 'state_version'";
    let known = sql(version);
    for (change, found, undo) in [
        (
            "UPDATE meta SET value = 9999 WHERE name = 'state_version'".to_owned(),
            "state 9999",
            format!("UPDATE meta SET value = {known} WHERE name = 'state_version'"),
        ),
        (
            format!("INSERT INTO seaql_migrations VALUES ('{MIGRATION}', 1)"),
            MIGRATION,
            format!("DELETE FROM seaql_migrations WHERE version = '{MIGRATION}'"),
        ),
    ] {
        sql(&change);
        let alone = cli
            .product("coordinator")
            .args(["--set", "server.listen=127.0.0.1:0", "--state-dir"])
            .arg(state.join("coordinator"));
        for refused in [ran(second(&cli, &state)), ran(alone)] {
            assert_says(
                &refused,
                1,
                &["newer version", found, "upgrade this program"],
            );
            let last = refused.stderr.lines().last().unwrap_or_default();
            assert_eq!(last.matches(found).count(), 1, "{}", refused.all());
        }
        // It was only looked at.
        sql(&undo);
        assert_eq!(sql(version), known);
    }
    let up = coordinator(&cli);
    up.child().assert_log_clean(&[]);
}

fn list(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn second(cli: &Cli, state: &Path) -> Spec {
    let mut spec = cli.product("mesh").arg("up").arg("--state-dir").arg(state);
    for port in PORTS {
        spec = spec.args([port, "0"]);
    }
    spec
}

/// A proxy that answers TLS with a certificate of its own for whatever name is asked.
fn intercepting_proxy() -> std::net::SocketAddr {
    let key = rcgen::KeyPair::generate().expect("key");
    let name = mesh_api::tls::COORDINATOR_NAME.to_owned();
    let params = rcgen::CertificateParams::new(vec![name]).expect("name");
    let certificate = params.self_signed(&key).expect("certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .expect("identity");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let addr = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(tls) = rustls::ServerConnection::new(Arc::clone(&config)) else {
                return;
            };
            let mut stream = rustls::StreamOwned::new(tls, stream);
            // The client ends it as soon as it sees the certificate.
            let mut first = [0; 1];
            drop(stream.read(&mut first).and_then(|_| stream.flush()));
        }
    });
    addr
}

#[test]
fn a_wrong_authority_or_an_intercepting_proxy_is_told_and_sees_no_secret() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let token = cli.token(&["--reusable"]);
    let proxy = intercepting_proxy().to_string();
    let intercepted = ran(join_spec(&cli, "intercepted", &moved(&token, &proxy)));
    assert_says(&intercepted, 1, &[&proxy, "certificate authority", "proxy"]);

    let other_cli = Cli::new().expect("folders");
    let other = coordinator(&other_cli);
    let addr = other.ready().coordinator.addr.clone();
    let wrong = ran(join_spec(&cli, "wrong-ca", &moved(&token, &addr)));
    assert_says(&wrong, 1, &[&addr, "certificate authority"]);

    // The same for an operator whose context leads to somebody else's coordinator.
    let contexts = cli.contexts();
    let mut context = cli.context().expect("a context");
    context.coordinators = vec![addr.clone()];
    contexts.save("elsewhere", &context, false).expect("saved");
    let listed = cli.mesh(&["--context", "elsewhere", "node", "list"]);
    assert_says(&listed, 1, &[&addr, "certificate authority"]);
    // Neither is a coordinator that is down, which is another finding.
    context.coordinators = vec![format!("127.0.0.1:{}", up.gateway_port())];
    contexts.save("no-tls", &context, false).expect("saved");
    for name in ["elsewhere", "no-tls"] {
        let status = cli.mesh(&["--json", "--context", name, "status"]);
        assert_eq!(status.code, Some(1), "{}", status.all());
        let told: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
        let finding = &told["status"]["findings"][0];
        assert_eq!(finding["code"], "wrong-address", "{told}");
    }
    for running in [&up, &other] {
        running.child().assert_log_clean(&[]);
    }
}

#[test]
fn a_service_is_told_of_a_token_of_another_installation_or_for_another_program() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let other_cli = Cli::new().expect("folders");
    let other = coordinator(&other_cli);
    let worker = cli.file("worker", &cli.token(&[])).expect("token file");
    for (service, role) in [
        ("relay", "relay"),
        ("traffic-gateway", "gateway"),
        ("deploy-manager", "deployer"),
    ] {
        let network = format!("of-{role}");
        let words = ["--role", role, "--network", &network];
        let words = match role {
            "relay" => &words[..2],
            _ => {
                cli.mesh_ok(&["network", "create", &network]);
                &words[..]
            }
        };
        let state = cli.work(&format!("state-{service}"));
        let verb = |words: &[&str], token: &Path| {
            let spec = cli.product(service).args(words).arg("--token-file");
            let state = format!("state_dir={}", state.display());
            ran(spec.arg(token).args(["--set", &state]))
        };
        let made = format!("mesh token create --role {role}");
        assert_says(
            &verb(&["join"], &worker),
            1,
            &["for a worker", "not for", service, "not used up", &made],
        );
        let token = cli.file(role, &cli.token(words)).expect("token file");
        verb(&["join"], &token).expect_code(0);
        let theirs = other_cli.token(&["--role", role]);
        let theirs = cli.file("theirs", &theirs).expect("token file");
        let refused = verb(&[], &theirs);
        let addrs = [&up, &other].map(|up| up.ready().coordinator.addr.clone());
        let dir = state.display().to_string();
        let told = [&addrs[0], &addrs[1], &dir, "away and start again"];
        assert_says(&refused, 1, &told);
    }
    // The worker's token is as good as before, and its refusals left nobody behind.
    let nodes = cli.mesh_json(&["node", "list"]);
    assert!(
        !nodes.to_string().contains("\"role\":\"worker\""),
        "{nodes}"
    );
    let token = std::fs::read_to_string(&worker).expect("read");
    Agent::new(&cli, "in-time").join(&token).expect_code(0);
    for running in [&up, &other] {
        running.child().assert_log_clean(&[]);
    }
}

/// How far a clock is off, as faketime takes it, and how an agent says it.
const DAY_OFF: [(&str, &str, &str); 2] = [
    ("yesterday", "-1d", "behind the coordinator's"),
    ("tomorrow", "+1d", "ahead of the coordinator's"),
];

#[test]
fn a_clock_that_is_off_by_a_day_is_told_at_the_join_and_the_token_stays_good() {
    if !needs(&[Need::Program("faketime")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let token = cli.token(&[]);
    let machine = binary("worker-agent");
    for (name, shift, way) in DAY_OFF {
        let agent = Agent::new(&cli, name);
        let faked = cli.spec("faketime").args(["-f", shift]).arg(&machine);
        let join = ["join", "--token-file", "-", "--hostname", name];
        let joined = ran(agent.verb_of(faked, &join).stdin(format!("{token}\n")));
        assert_says(
            &joined,
            1,
            &[
                "this machine's clock (",
                way,
                "set it, then join again",
                "the token was not used",
            ],
        );
    }
    // Further off than any certificate allows for.
    for (name, shift) in [("last-week", "-7d"), ("next-month", "+40d")] {
        let agent = Agent::new(&cli, name);
        let faked = cli.spec("faketime").args(["-f", shift]).arg(&machine);
        let join = ["join", "--token-file", "-", "--hostname", name];
        let joined = ran(agent.verb_of(faked, &join).stdin(format!("{token}\n")));
        assert_says(&joined, 1, &["set this machine's clock, then join again"]);
    }
    Agent::new(&cli, "in-time").join(&token).expect_code(0);
    up.child().assert_log_clean(&[]);
}

#[test]
fn a_clock_that_goes_off_by_a_day_later_is_told_by_the_agent_and_to_the_operator() {
    if !needs(&[Need::Program("faketime")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    for (name, shift, way) in DAY_OFF {
        let mut agent = Agent::new(&cli, name).joined(&cli, "default");
        agent.stop();
        let faked = cli
            .spec("faketime")
            .args(["-f", shift])
            .arg(binary("worker-agent"));
        let running = agent.verb_of(faked, &["run"]).spawn().expect("starts");
        // The machine's own administrator sees it without asking the coordinator.
        eventually("the agent names its clock", SOON, || {
            let ran = agent.verb(&["status"]).run(SOON)?;
            let status = &ran.stdout;
            let says = [
                "this machine's clock is",
                way,
                "next: timedatectl set-ntp true",
            ];
            let says = says.iter().all(|part| status.contains(part));
            anyhow::ensure!(says && ran.code == Some(1), "{}", ran.all());
            Ok(())
        });
        eventually("the skew is an event", SOON, || {
            let events = cli.mesh(&["events", "-n", "100"]).success()?.stdout;
            let told = events
                .lines()
                .any(|line| line.contains("skew") && line.contains(name));
            anyhow::ensure!(told, "{events}");
            Ok(())
        });
        // Set right again, all is well.
        drop(running);
        agent.start();
        eventually("the agent is content", SOON, || {
            let status = agent.verb(&["status"]).run(SOON)?.success()?.stdout;
            anyhow::ensure!(!status.contains("clock"), "{status}");
            Ok(())
        });
        eventually("that it is over is an event", SOON, || {
            let events = cli.mesh(&["events", "-n", "100"]).success()?.stdout;
            let over = format!("  heartbeat-accepted  {name}  after skew");
            anyhow::ensure!(events.contains(&over), "{events}");
            Ok(())
        });
        agent.child().assert_log_clean(&[]);
    }
    // An operator whose own clock is off is told as well.
    for (_, shift, _) in DAY_OFF {
        let mesh = binary("mesh");
        let status = ran(cli
            .spec("faketime")
            .args(["-f", shift])
            .arg(mesh)
            .arg("status"));
        assert!(status.all().contains("clock"), "{}", status.all());
    }
    up.child().assert_log_clean(&[]);
}

#[test]
fn a_running_agents_clock_that_jumps_a_day_and_is_set_right_needs_no_hand() {
    if !needs(&[Need::Program("faketime"), Need::Program("curl")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    // Both ways at once: what is waited for is the next heartbeat.
    let agents = DAY_OFF.map(|(name, shift, way)| {
        let agent = Agent::new(&cli, name);
        agent.join(&cli.token(&[])).expect_code(0);
        let clock = cli.file(&format!("{name}.clock"), "+0\n").expect("file");
        // The wall clock alone jumps, and it is the file that says how far.
        let program = cli
            .spec("faketime")
            .args(["-f", "+0", "env", "-u", "FAKETIME"])
            .arg(binary("worker-agent"))
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let child = agent.verb_of(program, &["run"]).spawn().expect("starts");
        child.wait_for_line(": ready ", SOON);
        (agent, child, clock, shift, way)
    });
    let set = |clock: &Path, shift: &str| {
        // By a new file in its place, so that nobody reads half of it.
        let fresh = clock.with_extension("fresh");
        std::fs::write(&fresh, format!("{shift}\n")).expect("written");
        std::fs::rename(&fresh, clock).expect("in its place");
    };
    let told = |rest: &str| {
        eventually(rest, SOON, || {
            let events = cli.mesh(&["events", "-n", "100"]).success()?.stdout;
            anyhow::ensure!(events.contains(rest), "{events}");
            Ok(())
        });
    };
    let used = || {
        for (agent, ..) in &agents {
            let page = up.curl(&format!("/{}/", agent.name())).expect("an answer");
            assert_eq!(page.status, 200, "{page:?}");
        }
    };
    for (agent, ..) in &agents {
        eventually("its console answers", SOON, || {
            up.curl(&format!("/{}/", agent.name()))?.ok().map(drop)
        });
    }

    let jumped = Instant::now();
    for (_, _, clock, shift, _) in &agents {
        set(clock, shift);
    }
    for (agent, _, _, _, way) in &agents {
        told(&format!("  heartbeat-refused  {}  skew", agent.name()));
        eventually("the agent names its clock", SOON, || {
            let status = agent.verb(&["status"]).run(SOON)?.stdout;
            let says = status.contains("this machine's clock is") && status.contains(way);
            anyhow::ensure!(says, "{status}");
            Ok(())
        });
    }
    let noticed = jumped.elapsed();
    used();

    let right = Instant::now();
    for (_, _, clock, _, _) in &agents {
        set(clock, "+0");
    }
    for (agent, ..) in &agents {
        told(&format!(
            "  heartbeat-accepted  {}  after skew",
            agent.name()
        ));
        eventually("it is online and content", SOON, || {
            let state = cli.node_shown(&[agent.name()])["state"].clone();
            anyhow::ensure!(state == "online", "{state}");
            let status = agent.verb(&["status"]).run(SOON)?.success()?.stdout;
            anyhow::ensure!(!status.contains("clock"), "{status}");
            Ok(())
        });
    }
    println!(
        "noticed after {noticed:?}, well again after {:?}",
        right.elapsed()
    );
    used();
    for (_, child, ..) in &agents {
        child.assert_log_clean(&[]);
    }
    up.child().assert_log_clean(&[]);
}

#[test]
fn damaged_tokens_and_odd_files_are_told_apart() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let token = cli.token(&["--reusable"]);
    let cut = token[..token.len() - 5].to_owned();
    assert_says(&ran(join_spec(&cli, "cut", &cut)), 1, &["damaged"]);
    assert_says(
        &ran(join_spec(&cli, "other", "hello")),
        1,
        &["mesh1.", "mesh token create"],
    );
    assert_says(&ran(join_spec(&cli, "empty", "")), 1, &["mesh1."]);
    let missing = cli
        .product("worker-agent")
        .args(["join", "--token-file", "/no/such/file", "--state-dir"])
        .arg(cli.work("state-missing"));
    assert_says(&ran(missing), 1, &["/no/such/file"]);
    // Blanks and line ends around a good one do no harm; and by standard input it works as well.
    let padded = cli
        .product("worker-agent")
        .args([
            "join",
            "--token-file",
            "-",
            "--hostname",
            "padded",
            "--state-dir",
        ])
        .arg(cli.work("state-padded"))
        .stdin(format!("  {token}\n\n"));
    ran(padded).expect_code(0);
    // As an argument it works, with a warning: other users of the machine can see arguments.
    let shown = cli
        .product("worker-agent")
        .args(["join", &token, "--hostname", "shown", "--state-dir"])
        .arg(cli.work("state-shown"));
    let shown = ran(shown).expect_code(0);
    assert!(shown.stderr.contains("--token-file"), "{}", shown.all());
    up.child().assert_log_clean(&[]);
}
