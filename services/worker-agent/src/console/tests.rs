use std::sync::Mutex;

use mesh_types::{NetworkName, NodeId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpListener;

use super::*;

/// A server that answers some paths like Cockpit, and everything else with 404.
struct Fake {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _task: mesh_daemon::Task,
}

async fn fake(ping: &'static str, refusal: &'static str) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let serve = async move {
        // Like cockpit-ws, it does not close connections after an answer.
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 4096];
            let len = stream.read(&mut bytes).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&bytes[..len]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer = if path == ping {
                "HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n{ \"service\": \"cockpit\" }"
                    .to_owned()
            } else {
                format!("HTTP/1.1 404 Not Found\r\n{refusal}\r\nno")
            };
            seen.lock().expect("not poisoned").push(path);
            drop(stream.write_all(answer.as_bytes()).await);
            open.push(stream);
        }
    };
    Fake {
        addr,
        asked,
        _task: mesh_daemon::Task::spawn("fake", serve),
    }
}

fn console(mode: ConsoleMode, cockpit: SocketAddr) -> (Arc<Console>, watch::Sender<Facts>) {
    let (facts, facts_in) = watch::channel(Facts {
        name: "w".parse().expect("a name"),
        id: NodeId::from_bytes([3; 16]),
        network: NetworkName::default_network(),
        addrs: None,
        online: true,
        version: "0",
        prefix: "/w/".into(),
    });
    let config = ConsoleConfig {
        mode,
        cockpit,
        cockpit_conf: "/nonexistent/cockpit.conf".into(),
        ..ConsoleConfig::default()
    };
    (
        Arc::new(Console::new(&config, facts_in, Tracer::off())),
        facts,
    )
}

async fn closed() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    listener.local_addr().expect("bound")
}

async fn state_with(ping: &'static str, refusal: &'static str) -> ConsoleState {
    let cockpit = fake(ping, refusal).await;
    let (console, _facts) = console(ConsoleMode::Auto, cockpit.addr);
    console.look().await;
    let asked = cockpit.asked.lock().expect("not poisoned").clone();
    assert!(
        !asked.contains(&"/w".to_owned()),
        "the bare prefix aborts cockpit-ws: {asked:?}"
    );
    *console.state().borrow()
}

#[tokio::test]
async fn cockpit_is_the_console_when_it_serves_the_prefix() {
    assert_eq!(state_with("/w/ping", "").await, ConsoleState::Cockpit);
}

#[tokio::test]
async fn cockpit_for_another_path_is_a_named_error() {
    assert_eq!(state_with("/ping", "").await, ConsoleState::UrlRootMismatch);
    let manner = "X-DNS-Prefetch-Control: off\r\nCross-Origin-Resource-Policy: same-origin\r\n";
    assert_eq!(
        state_with("/other/ping", manner).await,
        ConsoleState::UrlRootMismatch
    );
}

#[tokio::test]
async fn something_else_on_the_port_is_not_cockpit() {
    assert_eq!(state_with("/none", "").await, ConsoleState::Page);
}

#[tokio::test]
async fn without_cockpit_it_depends_on_what_is_wanted() {
    for (mode, state) in [
        (ConsoleMode::Auto, ConsoleState::Page),
        (ConsoleMode::Page, ConsoleState::Page),
        (ConsoleMode::Cockpit, ConsoleState::NoCockpit),
    ] {
        let (console, _facts) = console(mode, closed().await);
        console.look().await;
        assert_eq!(*console.state().borrow(), state);
    }
}

async fn ask(client: &mut DuplexStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: w\r\nX-Request-Id: q-1\r\n\r\n");
    client.write_all(request.as_bytes()).await.expect("written");
    let mut bytes = vec![0; 16 * 1024];
    let len = client.read(&mut bytes).await.expect("read");
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

#[tokio::test]
async fn the_page_is_served_and_keep_alive_ends_when_cockpit_comes() {
    let cockpit = fake("/w/ping", "").await;
    let (console, _facts) = console(ConsoleMode::Auto, cockpit.addr);
    let (mut client, server) = duplex(64 * 1024);
    let serving = Arc::clone(&console);
    let task = mesh_daemon::Task::spawn("c", async move { serving.connection(server).await });
    for _ in 0..2 {
        let reply = ask(&mut client, "/w/").await;
        assert!(
            reply.starts_with("HTTP/1.1 200") && reply.contains("q-1"),
            "{reply}"
        );
    }
    console.look().await;
    let mut rest = Vec::new();
    let ended = client.read_to_end(&mut rest);
    tokio::time::timeout(Duration::from_secs(5), ended)
        .await
        .expect("ends")
        .expect("reads");
    drop(task);
}

#[tokio::test]
async fn connections_are_copied_to_cockpit_and_fall_back_when_it_is_gone() {
    let cockpit = fake("/w/ping", "").await;
    let (console, _facts) = console(ConsoleMode::Auto, cockpit.addr);
    console.look().await;
    let (mut client, server) = duplex(64 * 1024);
    let serving = Arc::clone(&console);
    let _task = mesh_daemon::Task::spawn("c", async move { serving.connection(server).await });
    assert!(ask(&mut client, "/w/ping").await.contains("cockpit"));

    drop(cockpit);
    let (mut client, server) = duplex(64 * 1024);
    let serving = Arc::clone(&console);
    let _task = mesh_daemon::Task::spawn("c", async move { serving.connection(server).await });
    let reply = ask(&mut client, "/w/").await;
    assert!(
        reply.starts_with("HTTP/1.1 200") && reply.contains("q-1"),
        "{reply}"
    );
    assert_eq!(*console.state().borrow(), ConsoleState::Page);
}
