//! Commands on workers: a real sshd on one, the agent's own SSH on the other.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{Cli, Field, Layout};
use mesh_testkit::sshd::{SSHD, ssh_keygen};
use mesh_testkit::{Finished, Need, Sshd, SshdOptions, TestUser, eventually, needs};

const NEEDED: [Need; 8] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("useradd"),
    Need::Program("ssh"),
    Need::Program("rsync"),
    Need::Program("ssh-keygen"),
    Need::Program(SSHD),
];
/// With a real sshd.
const SSHD_NODE: &str = "worker-node-1";
/// With the agent's own SSH.
const AGENT_NODE: &str = "worker-node-2";
/// Joined, then stopped.
const DOWN_NODE: &str = "worker-node-3";
const SOON: Duration = Duration::from_secs(30);

struct Stand {
    field: Field,
    sshd: Sshd,
    user: TestUser,
    key: std::path::PathBuf,
    password: std::path::PathBuf,
}

fn stand() -> Stand {
    let user = TestUser::create().expect("user");
    let mut field = Field::start(Layout::Spread, None);
    let key = field.operator().work("key");
    ssh_keygen(&key).expect("key");
    let public = std::fs::read_to_string(key.with_extension("pub")).expect("public key");
    let password = field
        .operator()
        .file("password", user.password())
        .expect("file");

    let host = field.prepare_host(SSHD_NODE).expect("host");
    let at = SocketAddr::from(([127, 0, 0, 1], 22));
    let ca = field.operator().work("mesh-ssh-ca.pub");
    let mut options = SshdOptions::at(at).authorize(&user, &public);
    options.trusted_user_ca_keys = Some(ca.clone());
    let sshd = Sshd::start(Some(&host), options).expect("sshd");
    let host_key = sshd.host_key().with_extension("pub");
    let sets = [
        "ssh.mode=sshd".to_owned(),
        format!("ssh.sshd_addr={at}"),
        format!("ssh.host_keys={}", host_key.display()),
        format!("ssh.user={}", user.name()),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    field.add_worker(SSHD_NODE, "default", &sets);
    field.add_worker(AGENT_NODE, "default", &[]);
    field.add_worker(DOWN_NODE, "default", &[]);
    for name in [SSHD_NODE, AGENT_NODE, DOWN_NODE] {
        field.wait_for_console(&format!("/{name}/"), SOON);
    }
    // As an administrator would: the CA into the file that sshd's configuration names.
    let trust = field
        .worker(SSHD_NODE)
        .run("ssh", &["trust", "--print"])
        .expect_code(0);
    std::fs::write(&ca, trust.stdout).expect("the CA's file");
    Stand {
        field,
        sshd,
        user,
        key,
        password,
    }
}

impl Stand {
    fn operator(&self) -> &Cli {
        self.field.operator()
    }

    /// Every way to prove oneself that a node offers to this user.
    fn ways(&self) -> [(&'static str, Vec<String>); 3] {
        let user = vec!["--user".to_owned(), self.user.name().to_owned()];
        let key = ["--identity".to_owned(), self.key.display().to_string()];
        let password = [
            "--password-file".to_owned(),
            self.password.display().to_string(),
        ];
        [
            ("certificate", user.clone()),
            ("key", [user.clone(), key.to_vec()].concat()),
            ("password", [user, password.to_vec()].concat()),
        ]
    }

    fn deploy(&self, options: &[String], args: &[&str]) -> Finished {
        let words = options
            .iter()
            .map(String::as_str)
            .chain(args.iter().copied());
        self.operator().deploy(&words.collect::<Vec<_>>())
    }
}

fn certificate_key_and_password_work_by_both_ways(stand: &Stand) {
    let expected = format!("{}@", stand.user.name());
    let command = "echo $(id -un)@$(uname -n)";
    for (way, options) in stand.ways() {
        for via in ["socks", "grpc"] {
            let options = [options.clone(), vec!["--via".to_owned(), via.to_owned()]].concat();
            let ran = stand
                .deploy(&options, &["exec", command, SSHD_NODE])
                .expect_code(0);
            assert!(
                ran.stdout.contains(&format!("{expected}{SSHD_NODE}")),
                "{way} via {via}: {}",
                ran.all()
            );
            if way == "certificate" {
                let ran = stand
                    .deploy(&options, &["exec", command, AGENT_NODE])
                    .expect_code(0);
                assert!(
                    ran.stdout.contains(&format!("{expected}{AGENT_NODE}")),
                    "{}",
                    ran.all()
                );
                let status = stand.deploy(&options, &["status", SSHD_NODE, AGENT_NODE]);
                let status = status.expect_code(0).stdout;
                assert_eq!(
                    status.matches("[OK] ").count(),
                    2,
                    "{way} via {via}: {status}"
                );
            }
        }
    }
    let wrong = stand
        .operator()
        .file("wrong", "not-the-password")
        .expect("file");
    let wrong = wrong.display().to_string();
    let refused = stand.operator().deploy(&[
        "--user",
        stand.user.name(),
        "--password-file",
        &wrong,
        "exec",
        "true",
        SSHD_NODE,
    ]);
    assert_eq!(refused.code, Some(255), "{}", refused.all());
    // The MVP's flags, which still work and say what is wrong with them.
    let old = stand.operator().deploy(&[
        "-user",
        stand.user.name(),
        "-pass",
        stand.user.password(),
        "status",
        SSHD_NODE,
    ]);
    let old = old.expect_code(0);
    assert!(old.stderr.contains("--password-file"), "{}", old.all());
}

fn exit_codes_tell_what_happened(stand: &Stand) {
    let one = stand.deploy(&[], &["exec", "exit 7", AGENT_NODE]);
    assert_eq!(one.code, Some(7), "{}", one.all());
    let two = stand.deploy(&[], &["exec", "exit 7", SSHD_NODE, AGENT_NODE]);
    assert_eq!(two.code, Some(1), "{}", two.all());
    let nobody = stand.deploy(&[], &["exec", "true", "no-such-node"]);
    assert!(
        nobody.code.is_some_and(|code| code != 0),
        "{}",
        nobody.all()
    );
    assert!(nobody.stderr.contains("no-such-node"), "{}", nobody.all());
}

fn one_target_down_of_three_fails_alone(stand: &mut Stand) {
    let mut down = stand.field.worker_mut(DOWN_NODE).take_child();
    down.terminate().expect("signalled");
    down.finish(SOON)
        .expect("ends")
        .success()
        .expect("exit code 0");
    down.assert_log_clean(&[]);
    for via in ["socks", "grpc"] {
        let options = ["--via", via, "--timeout", "10s"].map(str::to_owned);
        let ran = stand.deploy(
            &options,
            &["exec", "uname -n", SSHD_NODE, AGENT_NODE, DOWN_NODE],
        );
        assert_eq!(ran.code, Some(1), "{}", ran.all());
        for up in [SSHD_NODE, AGENT_NODE] {
            assert!(ran.stdout.contains(up), "via {via}: {}", ran.all());
        }
        let failed: Vec<&str> = ran
            .log_lines()
            .filter(|line| line.contains("[FAIL]"))
            .collect();
        assert_eq!(failed.len(), 1, "via {via}: {}", ran.all());
        assert!(failed[0].contains(DOWN_NODE), "{}", ran.all());
        let status = stand.deploy(&options, &["status", SSHD_NODE, AGENT_NODE, DOWN_NODE]);
        assert_eq!(status.code, Some(1), "{}", status.all());
        let lines: Vec<&str> = status.stdout.lines().collect();
        assert_eq!(lines.len(), 3, "{}", status.all());
        assert!(
            lines[2].starts_with(&format!("[FAIL] {DOWN_NODE}: ")),
            "{}",
            status.all()
        );
    }
}

fn output_arrives_while_the_command_runs(stand: &Stand) {
    for via in ["socks", "grpc"] {
        let child = stand
            .operator()
            .product("deploy-cli")
            .args([
                "--via",
                via,
                "exec",
                "echo first; sleep 3; echo last",
                AGENT_NODE,
            ])
            .spawn()
            .expect("starts");
        let at = |text: &'static str| {
            child.wait_for(text, SOON, move |line| {
                line.text.contains(text).then_some(line.at)
            })
        };
        let (first, last): (Instant, Instant) = (at("first"), at("last"));
        let apart = last - first;
        assert!(
            apart > Duration::from_secs(2),
            "via {via} the lines came {apart:?} apart"
        );
    }
}

fn plain_ssh_and_rsync_work(stand: &Stand) {
    let cli = stand.operator();
    let config = cli
        .mesh_ok(&["ssh-config", "--user", stand.user.name()])
        .stdout;
    for name in [SSHD_NODE, AGENT_NODE] {
        assert!(config.contains(&format!("Host {name}")), "{config}");
    }
    let file = cli.file("ssh_config", &config).expect("file");
    let file = file.display().to_string();
    for name in [SSHD_NODE, AGENT_NODE] {
        let ran = cli
            .spec("ssh")
            .args([
                "-F",
                &file,
                "-o",
                "BatchMode=yes",
                name,
                "echo $(id -un)@$(uname -n)",
            ])
            .run(SOON)
            .expect("runs")
            .expect_code(0);
        assert_eq!(ran.stdout.trim(), format!("{}@{name}", stand.user.name()));
        let terminal = cli
            .spec("ssh")
            .args([
                "-F",
                &file,
                "-o",
                "BatchMode=yes",
                "-tt",
                name,
                "tty; stty size; exit 5",
            ])
            .run(SOON)
            .expect("runs");
        assert_eq!(terminal.code, Some(5), "{}", terminal.all());
        assert!(terminal.stdout.contains("/dev/pts/"), "{}", terminal.all());
    }
    // A certificate lives five minutes: each call must bring a fresh one, also for the first login.
    let files = config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("CertificateFile "));
    let certificates: BTreeSet<String> = files
        .flat_map(|file| {
            let file = file.trim_matches('"').replace("%r", stand.user.name());
            [SSHD_NODE, AGENT_NODE].map(|name| file.replace("%h", name))
        })
        .collect();
    assert_eq!(certificates.len(), 2, "{config}");
    for certificate in certificates {
        std::fs::remove_file(certificate).expect("the certificate's file");
    }
    let source = cli.file("to-copy", "copied by rsync\n").expect("file");
    for name in [SSHD_NODE, AGENT_NODE] {
        let target = format!("{name}:{}/copy-{name}", stand.user.home().display());
        cli.spec("rsync")
            .args(["-e", &format!("ssh -F {file} -o BatchMode=yes")])
            .arg(&source)
            .arg(target)
            .run(SOON)
            .expect("runs")
            .expect_code(0);
        let copy = stand.user.home().join(format!("copy-{name}"));
        assert_eq!(
            std::fs::read_to_string(copy).expect("the copy"),
            "copied by rsync\n"
        );
    }
}

fn a_changed_host_key_is_refused_until_accepted(stand: &mut Stand) {
    let fingerprint = |stand: &Stand| {
        let public = stand.sshd.host_key().with_extension("pub");
        let ran = stand
            .operator()
            .spec("ssh-keygen")
            .arg("-lf")
            .arg(public)
            .run(SOON);
        let line = ran.expect("runs").expect_code(0).stdout;
        line.split_whitespace()
            .nth(1)
            .expect("a fingerprint")
            .to_owned()
    };
    let before = fingerprint(stand);
    stand.sshd.change_host_key().expect("a new host key");
    let after = fingerprint(stand);
    assert_ne!(before, after);
    for via in ["socks", "grpc"] {
        let refused = stand.deploy(
            &["--via", via].map(str::to_owned),
            &["exec", "true", SSHD_NODE],
        );
        assert_eq!(refused.code, Some(255), "{}", refused.all());
        for shown in [&before, &after] {
            assert!(
                refused.all().contains(shown.as_str()),
                "{shown}: {}",
                refused.all()
            );
        }
        assert!(
            refused.all().contains("host-key accept"),
            "{}",
            refused.all()
        );
    }
    eventually("the changed key is held, then accepted", SOON, || {
        stand
            .operator()
            .mesh(&["node", "host-key", "accept", SSHD_NODE])
            .success()?;
        let ran = stand.deploy(&[], &["exec", "true", SSHD_NODE]);
        ensure!(ran.code == Some(0), "{}", ran.all());
        Ok(())
    });
}

#[test]
fn commands_run_on_sshd_and_on_the_agents_own_ssh() {
    if !needs(&NEEDED) {
        return;
    }
    let mut stand = stand();
    // Two minutes, while everything else is tried.
    let mut long = stand
        .operator()
        .product("deploy-cli")
        .args(["exec", "sleep 120; echo after two minutes", AGENT_NODE])
        .name("long-exec")
        .spawn()
        .expect("starts");

    certificate_key_and_password_work_by_both_ways(&stand);
    exit_codes_tell_what_happened(&stand);
    output_arrives_while_the_command_runs(&stand);
    plain_ssh_and_rsync_work(&stand);
    one_target_down_of_three_fails_alone(&mut stand);
    a_changed_host_key_is_refused_until_accepted(&mut stand);

    let left = Duration::from_secs(150).saturating_sub(long.started().elapsed());
    let ended = long
        .finish(left)
        .expect("the long command ends")
        .expect_code(0);
    assert!(
        ended.stdout.contains("after two minutes"),
        "{}",
        ended.all()
    );
    assert!(
        ended.elapsed >= Duration::from_secs(119),
        "{:?}",
        ended.elapsed
    );
    stand.field.assert_logs_clean(&[]);
}
