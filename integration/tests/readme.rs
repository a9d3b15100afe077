//! The README, typed by somebody who has nothing but it.
//!
//! What is run is taken from README.md itself. A command there that this test does not know fails
//! it, and so does one that it knows and README.md lacks.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::terminal::{Installed, PROGRAMS};
use integration::{Names, Terminal};
use mesh_testkit::documented::{self, Typed};
use mesh_testkit::{Finished, Lab, Need, TestUser, eventually, needs};

const NEEDED: [Need; 7] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("bash"),
    Need::Program("curl"),
    Need::Program("ssh"),
    Need::Program("useradd"),
    Need::Program("setpriv"),
];
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
const SOON: Duration = Duration::from_secs(60);

/// Where a command of the README is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// The first section, by this test.
    First,
    /// The second section, by this test.
    Second,
    /// By another test, or by whoever runs this one; why not here.
    Elsewhere(&'static str),
}

use Where::{Elsewhere, First, Second};

/// The commands of README.md, in its order, without their remarks.
const KNOWN: &[(&str, Where)] = &[
    ("cargo run -- up --demo", First),
    (
        "cargo xtask test",
        Elsewhere("what runs this test, in CI on a bare machine: xtask/src/ci.rs"),
    ),
    ("curl localhost:8081/worker-node-1/", First),
    ("cargo run -- deploy status all", First),
    ("cargo run -- deploy exec \"uname -n\" all", First),
    ("cargo run -- status", First),
    (
        "worker-agent console configure",
        Elsewhere("for root, on a machine with Cockpit: tests/machine.rs"),
    ),
    (
        "cargo build --release --workspace --bins",
        Elsewhere("a build; the binaries under test are those it makes, for debugging"),
    ),
    (
        "coordinator --set server.advertise=mesh.example.org:8080 &",
        Second,
    ),
    (
        "mesh login --coordinator-state ~/.local/share/mesh/coordinator",
        Second,
    ),
    (
        "mesh token create --role relay    --output relay.token    && \
         relay           --token-file relay.token --set advertise.host=mesh.example.org &",
        Second,
    ),
    (
        "mesh token create --role gateway  --output gateway.token  && \
         traffic-gateway --token-file gateway.token &",
        Second,
    ),
    (
        "mesh token create --role deployer --output deployer.token && \
         deploy-manager  --token-file deployer.token &",
        Second,
    ),
    (
        "mesh context set --socks default=localhost:1080 --deploy localhost:8082 \
         --gateway http://localhost:8081/",
        Second,
    ),
    ("mesh token create --role worker", Second),
    ("worker-agent join --token-file -", Second),
    ("worker-agent run", Second),
    ("deploy-cli status all", Second),
    (
        "mkdir -p ~/.ssh && mesh ssh-config >> ~/.ssh/config",
        Second,
    ),
    (
        "docker compose -f deploy/docker-compose.yml up --wait",
        Elsewhere("needs a container engine: xtask/src/compose.rs"),
    ),
    (
        "docker compose -f deploy/docker-compose.yml exec deploy-manager deploy-cli status all",
        Elsewhere("needs a container engine: xtask/src/compose.rs"),
    ),
];

/// What README.md tells people to type.
struct Readme {
    commands: Vec<String>,
}

impl Readme {
    /// Reads it, and makes sure that every command in it is known here.
    #[track_caller]
    fn read() -> Self {
        let path = documented::root().join("README.md");
        let text = std::fs::read_to_string(path).expect("README.md");
        let commands: Vec<String> = documented::typed(&text)
            .into_iter()
            .filter(is_command)
            .map(|typed| without_remark(&typed.text))
            .collect();
        let known: Vec<&str> = KNOWN.iter().map(|(text, _)| *text).collect();
        assert_eq!(
            commands, known,
            "README.md (left) and this test (right) differ: whatever is typed there must be run"
        );
        Self { commands }
    }

    /// A command by its beginning, as it stands in the README.
    #[track_caller]
    fn line(&self, section: Where, beginning: &str) -> &str {
        let mut fitting = self
            .commands
            .iter()
            .zip(KNOWN)
            .filter(|(text, (_, place))| *place == section && text.starts_with(beginning));
        let found = fitting.next();
        assert!(fitting.next().is_none(), "several begin with {beginning:?}");
        found.unwrap_or_else(|| panic!("no {beginning:?}")).0
    }
}

/// A line of a block, or a code span of several words that begins with a program.
fn is_command(typed: &Typed) -> bool {
    let first = typed.text.split(' ').next().unwrap_or_default();
    let program = PROGRAMS.contains(&first) || ["cargo", "docker", "mkdir"].contains(&first);
    typed.whole || (program && typed.text.contains(' '))
}

fn without_remark(line: &str) -> String {
    line.split("  #")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[track_caller]
fn good(ran: Finished) -> String {
    ran.expect_code(0).stdout
}

#[track_caller]
fn assert_ok_lines(text: &str, workers: &[&str]) {
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), workers.len(), "{text}");
    for (line, name) in lines.iter().zip(workers) {
        let expected = format!("[OK] {name} -> hostname: {name}, mesh IP: 100.");
        let demo = format!("[OK] {name} -> hostname: ");
        assert!(line.starts_with(&demo), "{line}");
        assert!(line.contains(", mesh IP: 100."), "{line} beside {expected}");
    }
}

#[test]
fn every_command_of_the_readme_is_run_by_a_test() {
    let readme = Readme::read();
    assert_eq!(readme.commands.len(), KNOWN.len());
    // `cargo run` and `cargo xtask` are what the README takes them for.
    let read = |name: &str| std::fs::read_to_string(documented::root().join(name)).expect(name);
    assert!(read("Cargo.toml").contains("default-members = [\"services/mesh\"]\n"));
    assert!(read("services/mesh/Cargo.toml").contains("[[bin]]\nname = \"mesh\"\n"));
    assert!(read(".cargo/config.toml").contains("xtask = \"run --quiet --package xtask --\"\n"));
    for place in KNOWN.iter().filter_map(|(_, place)| match place {
        Elsewhere(place) => Some(place),
        _ => None,
    }) {
        let Some((_, file)) = place.rsplit_once(": ") else {
            continue;
        };
        let here = documented::root();
        let found = [here.join(file), here.join("integration").join(file)];
        assert!(found.iter().any(|path| Path::is_file(path)), "no {file}");
    }
}

#[test]
fn the_first_section_works_word_for_word() {
    if !needs(&NEEDED) {
        return;
    }
    let readme = Readme::read();
    let lab = Lab::new().expect("lab");
    let laptop = lab.host("laptop").expect("host");
    let user = Arc::new(TestUser::create().expect("user"));
    let terminal = Terminal::new(&laptop, &user, Installed::Cargo).expect("terminal");

    let started = Instant::now();
    let mut up = terminal.start(readme.line(First, "cargo run -- up"));
    up.wait_for_line("Ctrl-C stops everything", SOON);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "ready after {took:?}");

    let page = good(terminal.run("curl -s http://localhost:8081/", SOON));
    for name in WORKERS {
        assert!(page.contains(name), "{name} is not on the page:\n{page}");
    }
    let console = good(terminal.run(readme.line(First, "curl"), SOON));
    assert!(console.contains(WORKERS[0]), "{console}");
    assert_ok_lines(
        &good(terminal.run(readme.line(First, "cargo run -- deploy status"), SOON)),
        &WORKERS,
    );
    let ran = good(terminal.run(readme.line(First, "cargo run -- deploy exec"), SOON));
    for name in WORKERS {
        assert!(ran.contains(&format!("[OK] {name}\n")), "{ran}");
    }
    let status = good(terminal.run(readme.line(First, "cargo run -- status"), SOON));
    assert!(status.contains("Nothing is wrong."), "{status}");

    // What it says itself, where it was started.
    let said = up.log().lines();
    let next: Vec<String> = said
        .iter()
        .skip_while(|line| !line.text.starts_with("Try next"))
        .skip(1)
        .take_while(|line| !line.text.is_empty())
        .map(|line| line.text.trim().to_owned())
        .collect();
    assert_eq!(next.len(), 5, "{next:?}");
    for line in &next {
        let answer = good(terminal.run_with(line, "uname -n\n", SOON));
        assert!(!answer.is_empty(), "{line} says nothing");
        if line.contains("&& ssh ") {
            let laptop = laptop.name();
            assert!(answer.contains(laptop), "{line} says {answer}");
        }
    }

    let asked = Instant::now();
    up.interrupt().expect("Ctrl-C");
    up.finish(SOON).expect("ends").expect_code(0);
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "ended after {took:?}");
    up.assert_log_clean(&[]);
}

#[test]
fn the_second_section_works_word_for_word() {
    if !needs(&NEEDED) {
        return;
    }
    let readme = Readme::read();
    let lab = Lab::new().expect("lab");
    let segment = lab.segment(24).expect("segment");
    let addr = Ipv4Addr::new(10, 90, 0, 1);
    let core = lab.host_on("core", &segment, addr).expect("host");
    let far = Ipv4Addr::new(10, 90, 0, 21);
    let garage = lab.host_on("garage", &segment, far).expect("host");
    let _names = Names::add(&[&core, &garage], "mesh.example.org", addr).expect("names");
    let [operator, owner] =
        [0, 1].map(|_| Arc::new(TestUser::create().expect("a user of a machine")));
    let here = Terminal::new(&core, &operator, Installed::Programs).expect("terminal");
    let there = Terminal::new(&garage, &owner, Installed::Programs).expect("terminal");

    let services = [
        "coordinator ",
        "mesh login ",
        "mesh token create --role relay ",
        "mesh token create --role gateway ",
        "mesh token create --role deployer ",
        "mesh context set ",
    ];
    let services = services.map(|beginning| readme.line(Second, beginning));
    let running = here.type_all(&services, SOON);

    let shown = good(here.run(readme.line(Second, "mesh token create --role worker"), SOON));
    let token = shown.lines().find(|line| line.starts_with("mesh1."));
    let pasted = format!("{}\n", token.expect("a token"));
    good(there.run_with(readme.line(Second, "worker-agent join"), &pasted, SOON));
    let started = Instant::now();
    let agent = there.start(readme.line(Second, "worker-agent run"));
    eventually("the worker's page is at the gateway", SOON, || {
        let code = "curl -s -o /dev/null -w '%{http_code}' http://localhost:8081/garage/";
        let code = here.run(code, SOON).stdout;
        ensure!(code.trim() == "200", "{code}");
        Ok(())
    });
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?} are not seconds");

    eventually("the worker answers", Duration::from_secs(10), || {
        let ran = here
            .run(readme.line(Second, "deploy-cli"), SOON)
            .success()?;
        assert_ok_lines(&ran.stdout, &["garage"]);
        Ok(())
    });
    good(here.run(readme.line(Second, "mkdir"), SOON));
    let ran = good(here.run("ssh garage uname -n", SOON));
    assert_eq!(ran.trim(), "garage");
    let status = good(here.run("mesh status", SOON));
    assert!(status.contains("Nothing is wrong."), "{status}");
    for child in [&running, &agent] {
        child.assert_log_clean(&[]);
    }
}
