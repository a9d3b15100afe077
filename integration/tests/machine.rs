//! What is typed on a machine, or done to it: leaving, Cockpit's path, Cockpit's installation.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use integration::{Agent, Cli, Field, Layout, MeshUp, MeshUpOptions, binary};
use mesh_testkit::sshd::SSHD;
use mesh_testkit::{Child, Curl, Need, Spec, Sshd, SshdOptions, eventually, needs};

const SOON: Duration = Duration::from_secs(30);
const COCKPIT_WS: &str = mesh_testkit::cockpit::COCKPIT_WS;

fn without_workers(cli: &Cli) -> MeshUp {
    MeshUp::start(
        cli,
        MeshUpOptions {
            demo: false,
            ..MeshUpOptions::default()
        },
    )
}

/// Of everything that made the machine a node nothing is left.
#[track_caller]
fn assert_forgotten(agent: &Agent) {
    for name in ["node.key", "node.crt", "ca.crt", "node.json", "netmap"] {
        let path = agent.state_dir().join(name);
        assert!(!path.exists(), "{} is left", path.display());
    }
    let again = agent.run(&["leave"]);
    assert_eq!(again.code, Some(1), "{}", again.all());
    assert!(again.stderr.contains("nothing to leave"), "{}", again.all());
}

#[test]
fn a_machine_leaves_and_may_join_again() {
    let cli = Cli::new().expect("folders");
    let mut up = without_workers(&cli);
    let gone = |name: &str| {
        eventually(&format!("{name} is no node any more"), SOON, || {
            let shown = cli.mesh(&["node", "show", name]);
            let unknown = shown.code == Some(1) && shown.stdout.is_empty();
            ensure!(unknown, "{}", shown.all());
            let status = up.curl(&format!("/{name}/"))?.status;
            ensure!(status == 404, "{status}");
            Ok(())
        });
    };
    // With the agent running: it leaves, and ends by itself.
    let mut agent = Agent::new(&cli, "attic").joined(&cli, "default");
    agent.run(&["leave"]).expect_code(0);
    let mut child = agent.take_child();
    child.finish(SOON).expect("ends").expect_code(0);
    child.assert_log_clean(&[]);
    assert_forgotten(&agent);
    gone("attic");
    let run = agent.run(&["run"]);
    assert_eq!(run.code, Some(1), "{}", run.all());
    assert!(run.stderr.contains("worker-agent join"), "{}", run.all());

    // The same machine, the same name, another node.
    let mut agent = Agent::new(&cli, "attic").joined(&cli, "default");
    cli.node_shown(&["attic"]);
    // With the agent stopped.
    agent.stop();
    agent.run(&["leave"]).expect_code(0);
    assert_forgotten(&agent);
    gone("attic");

    // Without a coordinator: not by accident.
    let mut agent = Agent::new(&cli, "attic").joined(&cli, "default");
    up.stop().expect("stopped");
    agent.stop();
    let refused = agent.run(&["leave"]);
    assert_eq!(refused.code, Some(1), "{}", refused.all());
    assert!(
        refused.stderr.contains("leave --force"),
        "{}",
        refused.all()
    );
    assert!(agent.state_dir().join("node.key").exists());
    agent.run(&["leave", "--force"]).expect_code(0);
    assert_forgotten(&agent);
}

/// A real Cockpit that reads `dir/cockpit/cockpit.conf`.
fn cockpit(host: &mesh_testkit::Host, dir: &Path) -> Child {
    Spec::new(COCKPIT_WS)
        .host(host)
        .name(format!("cockpit-{}", host.name()))
        .args(["--no-tls", "-p", "9090", "-a", "127.0.0.1"])
        .env("XDG_CONFIG_DIRS", dir)
        .spawn()
        .expect("Cockpit starts")
}

#[test]
fn cockpit_is_told_its_path_and_is_the_console_then() {
    let needed = [
        Need::Root,
        Need::Program("ip"),
        Need::Program("curl"),
        Need::Program("useradd"),
        Need::Program("setpriv"),
        Need::Program(COCKPIT_WS),
    ];
    if !needs(&needed) {
        return;
    }
    let config = tempfile::tempdir().expect("a folder");
    let conf = config.path().join("cockpit/cockpit.conf");
    let key = "MESH_WORKER_AGENT__CONSOLE__COCKPIT_CONF";
    let file = conf.display().to_string();
    let mut field = Field::with_env(Layout::Spread, None, &[(key, &file)]);
    field.add_worker("worker-node-1", "default", &[]);
    field.wait_for_console("/worker-node-1/", SOON);
    let configure = |field: &Field| {
        field
            .worker("worker-node-1")
            .run("console", &["configure"])
            .expect_code(0)
            .stdout
    };

    let said = configure(&field);
    assert!(said.contains("/worker-node-1/"), "{said}");
    assert!(said.contains("restart cockpit"), "{said}");
    let said = configure(&field);
    assert!(said.contains("already"), "{said}");
    let text = std::fs::read_to_string(&conf).expect("written");
    assert!(text.contains("UrlRoot=/worker-node-1\n"), "{text}");

    let host = field.host("worker-node-1").clone();
    let mut running = cockpit(&host, config.path());
    field.wait_for_cockpit("/worker-node-1/", SOON);

    // Another name is another path; what an administrator wrote stays.
    std::fs::write(&conf, format!("{text}\n[Session]\nIdleTimeout=15\n")).expect("written");
    field
        .operator()
        .mesh_ok(&["node", "rename", "worker-node-1", "garage"]);
    eventually("the path is the new one", SOON, || {
        configure(&field);
        let text = std::fs::read_to_string(&conf)?;
        ensure!(text.contains("UrlRoot=/garage\n"), "{text}");
        ensure!(!text.contains("worker-node-1"), "{text}");
        ensure!(text.contains("[Session]\nIdleTimeout=15\n"), "{text}");
        Ok(())
    });
    running.kill().expect("ended");
    let _running = cockpit(&host, config.path());
    field.wait_for_cockpit("/garage/", SOON);

    // Somebody who may not write there is told what to type.
    let user = std::sync::Arc::new(mesh_testkit::TestUser::create().expect("user"));
    std::fs::set_permissions(config.path(), std::fs::Permissions::from_mode(0o755))
        .expect("open to look at");
    let stranger = Cli::new()
        .expect("folders")
        .run_by(&user)
        .expect("handed over");
    let refused = stranger
        .product("worker-agent")
        .args(["console", "configure", "--prefix", "/other/"])
        .env(key, &file)
        .run(SOON)
        .expect("runs");
    assert_eq!(refused.code, Some(1), "{}", refused.all());
    let advice = "sudo worker-agent console configure";
    assert!(refused.stderr.contains(advice), "{}", refused.all());
    field.assert_logs_clean(&[]);
}

/// A machine's search path: a few of its programs, and what stands in for others.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))
            .expect("open to all");
        for name in ["sh", "id", "env", "cat", "uname", "cp", "mkdir"] {
            let real = mesh_testkit::need::program(name).expect(name);
            symlink(real, dir.path().join(name)).expect("linked");
        }
        symlink(binary("worker-agent"), dir.path().join("worker-agent")).expect("linked");
        Self(dir)
    }

    fn put(&self, name: &str, script: &str) {
        let path = self.0.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("open");
    }

    fn take(&self, name: &str) {
        std::fs::remove_file(self.0.path().join(name)).expect("was there");
    }
}

#[test]
fn install_cockpit_uses_the_machines_package_manager_and_sets_the_path() {
    let needed = [
        Need::Root,
        Need::Program("ip"),
        Need::Program("curl"),
        Need::Program("useradd"),
        Need::Program("ssh-keygen"),
        Need::Program(SSHD),
        Need::Program(COCKPIT_WS),
    ];
    if !needs(&needed) {
        return;
    }
    const NODE: &str = "worker-node-1";
    let config = tempfile::tempdir().expect("a folder");
    let conf = config.path().join("cockpit/cockpit.conf");
    let programs = Programs::new();
    let log = config.path().join("apt.log");
    let user = mesh_testkit::TestUser::create().expect("user");
    let mut field = Field::start(Layout::Spread, None);
    let host = field.prepare_host(NODE).expect("host");

    let at = SocketAddr::from(([127, 0, 0, 1], 22));
    let ca = field.operator().work("mesh-ssh-ca.pub");
    let mut options = SshdOptions::at(at);
    options.trusted_user_ca_keys = Some(ca.clone());
    let state = field
        .join_worker(NODE, "default", &[])
        .state_dir()
        .to_owned();
    let variable = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
    options.session_env = vec![
        variable("PATH", programs.0.path()),
        variable("MESH_WORKER_AGENT__STATE_DIR", &state),
        variable("MESH_WORKER_AGENT__CONSOLE__COCKPIT_CONF", &conf),
    ];
    let sshd = Sshd::start(Some(&host), options).expect("sshd");
    let host_key = sshd.host_key().with_extension("pub");
    let sets = [
        "ssh.mode=sshd".to_owned(),
        format!("ssh.sshd_addr={at}"),
        format!("ssh.host_keys={}", host_key.display()),
        "ssh.user=root".to_owned(),
    ];
    let worker = field.worker_mut(NODE);
    worker.add_settings(&sets);
    worker.start();
    field.wait_for_console("/worker-node-1/", SOON);
    let trust = field.worker(NODE).run("ssh", &["trust", "--print"]);
    std::fs::write(&ca, trust.expect_code(0).stdout).expect("the CA's file");
    let deploy = |args: &[&str]| field.operator().deploy(args);

    // The real package manager of the machine that runs this test must be out of reach.
    let apt = programs.0.path().join("apt-get");
    let look = "command -v apt-get || echo none";
    let found = || deploy(&["exec", look, NODE]).expect_code(0).stdout;
    assert_eq!(found().trim(), "none");
    let none = deploy(&["install-cockpit", NODE]);
    assert_eq!(none.code, Some(1), "{}", none.all());
    assert!(none.all().contains("has no apt-get"), "{}", none.all());
    assert!(
        none.stdout.contains("[FAIL] worker-node-1"),
        "{}",
        none.all()
    );
    assert!(!none.stdout.contains("console:"), "{}", none.all());

    programs.put(
        "apt-get",
        &format!("echo \"$DEBIAN_FRONTEND $*\" >> {}\n", log.display()),
    );
    assert_eq!(found().trim(), apt.display().to_string());
    let done = deploy(&["install-cockpit", NODE]).expect_code(0);
    let asked = std::fs::read_to_string(&log).expect("apt-get was run");
    assert_eq!(
        asked,
        "noninteractive update -qq\n\
         noninteractive install -y -qq --no-install-recommends cockpit\n"
    );
    assert!(done.stdout.contains("[OK] worker-node-1"), "{}", done.all());
    let console = "worker-node-1 console: http://localhost:8081/worker-node-1/";
    assert!(done.stdout.contains(console), "{}", done.all());
    // What was set up is what Cockpit needs.
    let _cockpit = cockpit(&host, config.path());
    field.wait_for_cockpit("/worker-node-1/", SOON);
    let page = Curl::new()
        .on(Some(field.host("edge")))
        .get("http://localhost:8081/worker-node-1/ping");
    let page = page.and_then(mesh_testkit::CurlReply::ok).expect("Cockpit");
    assert!(page.contains("cockpit"), "{page}");

    // A package manager that fails is a failed target, with its words.
    programs.put("apt-get", "echo 'no such package' >&2; exit 100\n");
    let failed = deploy(&["install-cockpit", NODE]);
    assert_eq!(failed.code, Some(1), "{}", failed.all());
    assert!(failed.all().contains("no such package"), "{}", failed.all());

    // An ordinary user needs sudo without a password.
    programs.put("sudo", "exit 1\n");
    let ordinary = deploy(&["--user", user.name(), "install-cockpit", NODE]);
    assert_eq!(ordinary.code, Some(1), "{}", ordinary.all());
    let advice = "sudo asks for a password here: use --user root";
    assert!(ordinary.all().contains(advice), "{}", ordinary.all());
    programs.take("apt-get");
    field.assert_logs_clean(&[]);
}
