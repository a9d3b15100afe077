//! No file descriptors left.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use integration::{Agent, Cli, MeshUp};
use mesh_testkit::{Need, eventually, free_tcp_port, http_get, needs};

use super::{SOON, wait_for_console, wait_for_event, wait_for_state, without_workers};

/// Of what the process had at rest, so many more.
const ROOM: usize = 30;
/// What it may have more than at rest afterwards: the asking itself leaves a connection or two.
const LEFT: usize = 8;
const TOLD: &str = "cannot accept connections for now";
/// How whatever else wants to open something meanwhile may say that it could not.
const EXHAUSTED: [&str; 2] = ["oo many open files", "unable to open database file"];

/// Asks for a page on a connection that stays open.
fn page(stream: &mut TcpStream, path: &str) -> anyhow::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        ensure!(
            read > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&text)
        );
        text.extend(&buffer[..read]);
        let so_far = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = so_far.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let line = line.to_ascii_lowercase();
                line.strip_prefix("content-length: ")?.parse::<usize>().ok()
            });
            if length.is_none_or(|length| body.len() >= length) {
                return Ok(so_far);
            }
        }
    }
}

/// Descriptors that a process has open.
fn used_by(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Lets a process have so many from now on.
#[track_caller]
fn limit(cli: &Cli, pid: i32, soft: usize) {
    let soft = format!("--nofile={soft}:");
    let ran = cli.spec("prlimit").args(["--pid", &pid.to_string(), &soft]);
    ran.run(SOON).expect("runs").expect_code(0);
}

fn connect(port: u16) -> TcpStream {
    let addr = (Ipv4Addr::LOCALHOST, port);
    let stream = TcpStream::connect(addr).expect("the system accepts");
    stream.set_read_timeout(Some(SOON)).expect("set");
    stream
}

#[test]
fn a_process_without_descriptors_keeps_what_is_open_and_accepts_again_by_itself() {
    if !needs(&[Need::Program("prlimit")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let up = MeshUp::demo(&cli);
    wait_for_state(&cli, &["worker-node-1", "worker-node-2"], "online", SOON);
    wait_for_console(&up, "worker-node-1", SOON);
    let pid = up.child().pid();
    let used = || used_by(pid);
    let connect = || connect(up.gateway_port());
    let mut open = connect();
    let told = page(&mut open, "/worker-node-1/").expect("a page");
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");

    // What is opened once and kept, whoever asks for it, is open by now.
    wait_for_console(&up, "worker-node-2", SOON);
    cli.deploy(&["exec", "true", "worker-node-1"])
        .expect_code(0);
    let at_rest = used();
    let most = at_rest + ROOM;
    limit(&cli, pid, most);
    // Past nine in ten, with room for whoever asks; they say nothing, and hold what they got.
    let some = ROOM.saturating_sub(most / 10);
    let mut crowd: Vec<TcpStream> = (0..some).map(|_| connect()).collect();
    eventually("few are left, and that is told", SOON, || {
        let now = used();
        if now < most - most / 10 {
            crowd.push(connect());
            bail!("{now} of {most} are in use");
        }
        let told = cli.mesh(&["--json", "status"]);
        let is_told = told.stdout.contains("\"descriptors-low\"");
        ensure!(is_told, "{now} of {most} are in use: {}", told.all());
        Ok(())
    });
    // More than there is room for.
    crowd.extend((0..2 * ROOM).map(|_| connect()));
    up.child().wait_for_line(TOLD, SOON);
    let told = page(&mut open, "/worker-node-1/").expect("goes on");
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");

    drop(crowd);
    wait_for_console(&up, "worker-node-2", Duration::from_secs(10));
    cli.deploy(&["exec", "true", "worker-node-1"])
        .expect_code(0);
    wait_for_state(&cli, &["worker-node-1", "worker-node-2"], "online", SOON);
    eventually("what it took it gave back", SOON, || {
        let now = used();
        ensure!(now <= at_rest + LEFT, "{now} after {at_rest}");
        Ok(())
    });
    let [system, database] = EXHAUSTED;
    up.child().assert_log_clean(&[TOLD, system, database]);
}

#[test]
fn an_agent_that_nears_its_limit_is_told_of_until_it_has_room() {
    if !needs(&[Need::Program("prlimit")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let mut up = without_workers(&cli);
    let admin = free_tcp_port();
    let mut agent = Agent::new(&cli, "attic").set(format!("admin.listen=127.0.0.1:{admin}"));
    agent = agent.joined(&cli, "default");
    wait_for_console(&up, "attic", SOON);
    let pid = agent.child().pid();
    let metric = |name: &str| {
        let addr = (Ipv4Addr::LOCALHOST, admin).into();
        let told = http_get(addr, "localhost", "/metrics", SOON)?.text();
        let mut values = told.lines().filter_map(|line| line.strip_prefix(name));
        let value = values
            .find_map(|value| value.strip_prefix(' '))
            .context("its value")?;
        anyhow::Ok(value.parse::<usize>()?)
    };
    // Whether its own status and the operator's have the finding, both of them or neither.
    let told = |wanted: bool| {
        let own = agent.run(&["status", "--json"]);
        let all = cli.mesh(&["--json", "status"]);
        for said in [own, all] {
            let is_told = said.stdout.contains("\"descriptors-low\"");
            ensure!(is_told == wanted, "{}", said.all());
        }
        anyhow::Ok(())
    };
    told(false).expect("nothing is wrong");

    let at_rest = used_by(pid);
    let most = at_rest + ROOM;
    limit(&cli, pid, most);
    let few = most - most / 10;
    let mut crowd: Vec<TcpStream> = Vec::new();
    eventually("few are left", SOON, || {
        let now = used_by(pid);
        if now < few {
            crowd.extend((now..few).map(|_| connect(admin)));
            bail!("{now} of {most} are in use");
        }
        let (open, limit) = (
            metric("mesh_process_open_files")?,
            metric("mesh_process_open_files_limit")?,
        );
        ensure!(open >= few && limit == most, "{open} of {limit}");
        Ok(())
    });
    wait_for_event(&cli, "node-trouble", "attic  descriptors-low: it has ");
    told(true).expect("both know");
    let shown = cli.mesh(&["node", "show", "attic"]).expect_code(0);
    for part in [
        "attic has hardly any file descriptors left",
        "on attic: worker-agent status",
    ] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.all());
    }
    let own = agent.run(&["status"]);
    assert!(own.stdout.contains("raise LimitNOFILE"), "{}", own.all());

    // None left at all: what needs none goes on.
    crowd.extend((0..2 * ROOM).map(|_| connect(admin)));
    eventually("all are in use", SOON, || {
        let now = used_by(pid);
        ensure!(now >= most, "{now} of {most}");
        Ok(())
    });
    wait_for_console(&up, "attic", SOON);
    wait_for_state(&cli, &["attic"], "online", SOON);

    drop(crowd);
    wait_for_event(&cli, "node-trouble-over", "attic  it was descriptors-low");
    told(false).expect("both know");
    let open = metric("mesh_process_open_files").expect("a figure");
    assert!(open <= at_rest + LEFT, "{open} after {at_rest}");
    agent.child().assert_log_clean(&EXHAUSTED);
    up.child().assert_log_clean(&[]);
    up.stop().expect("stopped");
}
