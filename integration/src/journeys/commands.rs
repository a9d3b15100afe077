//! Commands on workers: a real sshd on one, the agent's own SSH on the other.

mod host_key;
mod plain;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_testkit::sshd::{SSHD, ssh_keygen};
use mesh_testkit::{Child, Finished, Need, Sshd, SshdOptions, TestUser, eventually};

use super::WORKERS;
use crate::{Cli, Field};

/// What the journey needs of the machine.
pub const NEEDED: [Need; 8] = [
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
pub const SSHD_NODE: &str = WORKERS[0];
/// With the agent's own SSH.
pub const AGENT_NODE: &str = WORKERS[1];
/// Joined, then stopped.
pub const DOWN_NODE: &str = "worker-node-3";
const SOON: Duration = Duration::from_secs(30);

/// sshd on one worker's host, and everything that a person logs in with.
#[derive(Debug)]
pub struct Commands {
    sshd: Sshd,
    user: TestUser,
    key: PathBuf,
    password: PathBuf,
    ca: PathBuf,
}

impl Commands {
    /// Starts sshd on [`SSHD_NODE`]'s host and makes the operator's key and password files.
    ///
    /// # Panics
    /// When something does not start; so do the checks below when something is not as it must be.
    pub fn install(field: &mut Field) -> Self {
        let user = TestUser::create().expect("user");
        let host = field.prepare_host(SSHD_NODE).expect("host");
        let operator = field.operator();
        let key = operator.work("key");
        ssh_keygen(&key).expect("key");
        let public = std::fs::read_to_string(key.with_extension("pub")).expect("public key");
        let password = operator.file("password", user.password()).expect("file");
        let ca = operator.work("mesh-ssh-ca.pub");
        let mut options = SshdOptions::at(sshd_addr()).authorize(&user, &public);
        options.trusted_user_ca_keys = Some(ca.clone());
        let sshd = Sshd::start(Some(&host), options).expect("sshd");
        Self {
            sshd,
            user,
            key,
            password,
            ca,
        }
    }

    /// The three workers join, and sshd is told of the network's authority, as an administrator
    /// would do it: by the file that its configuration names.
    pub fn join(&self, field: &mut Field) {
        let host_key = self.sshd.host_key().with_extension("pub");
        let sets = [
            "ssh.mode=sshd".to_owned(),
            format!("ssh.sshd_addr={}", sshd_addr()),
            format!("ssh.host_keys={}", host_key.display()),
            format!("ssh.user={}", self.user.name()),
        ];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        field.add_worker(SSHD_NODE, "default", &sets);
        field.add_worker(AGENT_NODE, "default", &[]);
        field.add_worker(DOWN_NODE, "default", &[]);
        for name in [SSHD_NODE, AGENT_NODE, DOWN_NODE] {
            field.wait_for_console(&format!("/{name}/"), SOON);
        }
        let trust = field
            .worker(SSHD_NODE)
            .run("ssh", &["trust", "--print"])
            .expect_code(0);
        std::fs::write(&self.ca, trust.stdout).expect("the CA's file");
    }

    /// Starts the command of two minutes by each way on each node; [`LongRuns::finish`] before the
    /// host key is changed, which ends sshd's sessions.
    pub fn start_long(&self, field: &Field) -> LongRuns {
        let command = "sleep 120; echo after two minutes";
        let stand = Stand { kit: self, field };
        let before = stand.accepted().len();
        let runs = BY_EACH_WAY.map(|(via, name)| {
            let spec = field.operator().product("deploy-cli");
            let spec = spec.args(["--via", via, "exec", command, name]);
            let child = spec.name(format!("long-{via}-{name}")).spawn();
            child.expect("starts")
        });
        // Later checks look at how logins proved themselves.
        eventually("the long commands have logged in", SOON, || {
            let logins = stand.accepted().len() - before;
            ensure!(logins == 2, "{logins} logins at sshd");
            Ok(())
        });
        LongRuns(runs.into())
    }

    /// Point 4 of the issue but for commands of two minutes and changed host keys. Returns at least
    /// how many bytes went to the workers. Stops [`DOWN_NODE`].
    pub fn use_all(&self, field: &mut Field) -> u64 {
        let stand = Stand { kit: self, field };
        certificate_key_and_password_work_by_both_ways(&stand);
        the_agents_own_ssh_takes_certificates_only(&stand);
        exit_codes_tell_what_happened(&stand);
        output_arrives_while_the_command_runs(&stand);
        let moved = plain::ssh_and_rsync_work(&stand);
        one_target_down_of_three_fails_alone(field, self);
        moved
    }

    /// The rest of point 4: [`SSHD_NODE`] gets another host key.
    pub fn change_host_key(&mut self, field: &Field) {
        host_key::a_changed_one_is_refused_until_accepted(field, self);
    }
}

/// Both ways of `deploy-cli`, to both kinds of SSH.
const BY_EACH_WAY: [(&str, &str); 4] = [
    ("socks", SSHD_NODE),
    ("socks", AGENT_NODE),
    ("grpc", SSHD_NODE),
    ("grpc", AGENT_NODE),
];

/// Commands that take two minutes.
#[derive(Debug)]
pub struct LongRuns(Vec<Child>);

impl LongRuns {
    /// Waits for their ends, none of which came early.
    ///
    /// # Panics
    /// When one failed, or did not take its time.
    pub fn finish(self) {
        for mut run in self.0 {
            let left = Duration::from_secs(150).saturating_sub(run.started().elapsed());
            let ended = run.finish(left).expect("the long command ends");
            let ended = ended.expect_code(0);
            let told = ended.stdout.contains("after two minutes");
            assert!(told, "{}: {}", run.name(), ended.all());
            let took = ended.elapsed;
            assert!(took >= Duration::from_secs(120), "{}: {took:?}", run.name());
        }
    }
}

fn sshd_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 22))
}

struct Stand<'a> {
    kit: &'a Commands,
    field: &'a Field,
}

impl Stand<'_> {
    fn operator(&self) -> &Cli {
        self.field.operator()
    }

    fn user(&self) -> &TestUser {
        &self.kit.user
    }

    /// Every way to prove oneself that a node offers to this user.
    fn ways(&self) -> [(&'static str, Vec<String>); 3] {
        let user = vec!["--user".to_owned(), self.user().name().to_owned()];
        let key = ["--identity".to_owned(), self.kit.key.display().to_string()];
        let password = [
            "--password-file".to_owned(),
            self.kit.password.display().to_string(),
        ];
        [
            ("certificate", user.clone()),
            ("key", [user.clone(), key.to_vec()].concat()),
            ("password", [user, password.to_vec()].concat()),
        ]
    }

    /// How each login so far proved itself, as sshd logs it.
    fn accepted(&self) -> Vec<&'static str> {
        let lines = self.kit.sshd.child().log().lines();
        lines
            .iter()
            .filter_map(|line| {
                let (_, how) = line.text.split_once("Accepted ")?;
                match how {
                    how if how.starts_with("password for ") => Some("password"),
                    // What only looks at a key before it is used is told in other words.
                    how if !how.starts_with("publickey for ") => None,
                    how if how.contains("-CERT ") => Some("certificate"),
                    _ => Some("key"),
                }
            })
            .collect()
    }

    fn deploy(&self, options: &[String], args: &[&str]) -> Finished {
        let words = options
            .iter()
            .map(String::as_str)
            .chain(args.iter().copied());
        self.operator().deploy(&words.collect::<Vec<_>>())
    }
}

fn certificate_key_and_password_work_by_both_ways(stand: &Stand<'_>) {
    let expected = format!("{}@", stand.user().name());
    let command = "echo $(id -un)@$(uname -n)";
    for (way, options) in stand.ways() {
        for via in ["socks", "grpc"] {
            let options = [options.clone(), vec!["--via".to_owned(), via.to_owned()]].concat();
            let before = stand.accepted();
            let ran = stand
                .deploy(&options, &["exec", command, SSHD_NODE])
                .expect_code(0);
            let accepted = eventually("sshd logs the login", SOON, || {
                let accepted = stand.accepted()[before.len()..].to_vec();
                ensure!(!accepted.is_empty(), "nothing yet");
                Ok(accepted)
            });
            assert_eq!(accepted, [way], "what sshd let in by {way} via {via}");
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
        stand.user().name(),
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
        stand.user().name(),
        "-pass",
        stand.user().password(),
        "status",
        SSHD_NODE,
    ]);
    let old = old.expect_code(0);
    assert!(old.stderr.contains("--password-file"), "{}", old.all());
}

fn exit_codes_tell_what_happened(stand: &Stand<'_>) {
    for via in ["socks", "grpc"] {
        let options = ["--via", via].map(str::to_owned);
        for name in [SSHD_NODE, AGENT_NODE] {
            let one = stand.deploy(&options, &["exec", "exit 7", name]);
            assert_eq!(one.code, Some(7), "{name} via {via}: {}", one.all());
        }
        let two = stand.deploy(&options, &["exec", "exit 7", SSHD_NODE, AGENT_NODE]);
        assert_eq!(two.code, Some(1), "via {via}: {}", two.all());
        let nobody = stand.deploy(&options, &["exec", "true", "no-such-node"]);
        assert_eq!(nobody.code, Some(255), "via {via}: {}", nobody.all());
        assert!(nobody.stderr.contains("no-such-node"), "{}", nobody.all());
    }
}

fn one_target_down_of_three_fails_alone(field: &mut Field, kit: &Commands) {
    let mut down = field.worker_mut(DOWN_NODE).take_child();
    down.terminate().expect("signalled");
    down.finish(SOON)
        .expect("ends")
        .success()
        .expect("exit code 0");
    down.assert_log_clean(&[]);
    let stand = Stand { kit, field };
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

/// The agent's own SSH has neither keys nor passwords of people: it says what it takes.
fn the_agents_own_ssh_takes_certificates_only(stand: &Stand<'_>) {
    for (way, options) in &stand.ways()[1..] {
        for via in ["socks", "grpc"] {
            let options = [&options[..], &["--via", via].map(str::to_owned)].concat();
            let refused = stand.deploy(&options, &["exec", "true", AGENT_NODE]);
            assert_eq!(refused.code, Some(255), "via {via}: {}", refused.all());
            let user = stand.user().name();
            let why = format!("{AGENT_NODE} does not let {user:?} in with this {way}");
            assert!(refused.stderr.contains(&why), "{}", refused.all());
        }
    }
}

fn output_arrives_while_the_command_runs(stand: &Stand<'_>) {
    let runs = BY_EACH_WAY.map(|(via, name)| {
        let command = "echo first; sleep 3; echo last";
        let spec = stand.operator().product("deploy-cli");
        let spec = spec.args(["--via", via, "exec", command, name]);
        (via, name, spec.spawn().expect("starts"))
    });
    for (via, name, child) in runs {
        let at = |text: &'static str| {
            child.wait_for(text, SOON, move |line| {
                line.text.contains(text).then_some(line.at)
            })
        };
        let (first, last): (Instant, Instant) = (at("first"), at("last"));
        let apart = last - first;
        assert!(
            apart > Duration::from_secs(2),
            "of {name} via {via} the lines came {apart:?} apart"
        );
    }
}
