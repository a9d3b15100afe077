//! A service that is asked to end in the middle of somebody's work lets the work finish. One that is
//! killed: `coordinator_killed.rs`, `relay.rs`.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{Field, Layout};
use mesh_testkit::{Child, Curl, CurlReply, Host, Need, eventually, needs};

const NEEDED: [Need; 3] = [Need::Root, Need::Program("ip"), Need::Program("curl")];
const NODE: &str = "worker-node-1";
const SOON: Duration = Duration::from_secs(20);
/// How soon a service that was asked to end says so.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long its work goes on after that, at least.
const WORK: Duration = Duration::from_secs(3);
const LINE: &str = "the second half\n";

#[derive(Debug, Default)]
struct Held {
    asked: usize,
    released: bool,
}

/// A server on a worker's loopback that begins each answer and finishes it when it is told to;
/// `/late` not even begins, and `/ready` is answered at once.
#[derive(Debug)]
struct Slow {
    addr: SocketAddr,
    held: Arc<(Mutex<Held>, Condvar)>,
}

impl Slow {
    fn start(host: &Host) -> Self {
        let listener = host
            .enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .expect("bound");
        let addr = listener.local_addr().expect("bound");
        let held = Arc::<(Mutex<Held>, Condvar)>::default();
        let shared = Arc::clone(&held);
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || drop(answer(stream, &shared)));
            }
        });
        Self { addr, held }
    }

    /// Waits until so many requests have arrived.
    fn wait_for(&self, requests: usize) {
        eventually("the requests are under way", SOON, || {
            let asked = self.held.0.lock().expect("no panic").asked;
            ensure!(asked == requests, "{asked} of {requests}");
            Ok(())
        });
    }

    fn release(&self) {
        self.held.0.lock().expect("no panic").released = true;
        self.held.1.notify_all();
    }
}

fn answer(mut stream: TcpStream, held: &(Mutex<Held>, Condvar)) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 2 {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let begin = |stream: &mut TcpStream| {
        let length = LINE.len() + 2;
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n1 "
        )
    };
    if path != "/late" {
        begin(&mut stream)?;
    }
    if path == "/ready" {
        return stream.write_all(LINE.as_bytes());
    }
    let mut now = held.0.lock().expect("no panic");
    now.asked += 1;
    drop(
        held.1
            .wait_while(now, |now| !now.released)
            .expect("no panic"),
    );
    if path == "/late" {
        begin(&mut stream)?;
    }
    stream.write_all(LINE.as_bytes())
}

struct Site {
    field: Field,
    slow: Slow,
}

impl Site {
    fn start() -> Self {
        let mut field = Field::start(Layout::Single, None);
        field.add_worker(NODE, "default", &[]);
        let slow = Slow::start(field.worker(NODE).host());
        field.worker(NODE).publish("slow", slow.addr.port());
        // The page of the fleet may know the service before it is routed: they are told apart.
        eventually("the service is routed", SOON, || {
            field.curl(&format!("/{NODE}/s/slow/ready"))?.ok()
        });
        field.wait_for_console(&format!("/{NODE}/"), SOON);
        Self { field, slow }
    }

    /// A request of a service that is slow.
    fn request(&self, path: &str) -> Child {
        let curl = self.field.client_curl().into_spec().name("curl");
        curl.arg(self.field.url(&format!("/{NODE}/s/slow{path}")))
            .spawn()
            .expect("starts")
    }

    /// A command that has begun on the worker, and ends once the file `<name>-go` is there.
    fn command(&self, name: &str, options: &[&str]) -> Child {
        let at = |suffix: &str| self.field.operator().work(&format!("{name}-{suffix}"));
        let (begun, go) = (at("begun"), at("go"));
        let script = format!(
            "touch {}; until [ -e {} ]; do sleep 0.05; done; echo done",
            begun.display(),
            go.display()
        );
        let deploy = self.field.operator().product("deploy-cli").name(name);
        let child = deploy
            .args(options)
            .args(["exec", &script, NODE])
            .spawn()
            .expect("starts");
        eventually("the command runs", SOON, || {
            ensure!(begun.exists(), "not yet");
            Ok(())
        });
        child
    }

    fn let_end(&self, name: &str) {
        let go = self.field.operator().work(&format!("{name}-go"));
        std::fs::write(go, "").expect("written");
    }
}

/// What a service's `/readyz` says.
fn readiness(field: &Field, host: &str, admin: u16) -> anyhow::Result<CurlReply> {
    let url = format!("http://127.0.0.1:{admin}/readyz");
    Curl::new().on(Some(field.host(host))).get(&url)
}

/// Asks a service to end. Its `/readyz` says so at once, and for as long as its work goes on.
#[track_caller]
fn ask_to_end(field: &Field, service: &str, host: &str, admin: u16, work: &mut [Child]) {
    let asked = Instant::now();
    field.service(service).terminate().expect("signalled");
    let told = eventually("it says that it is going", AT_ONCE, || {
        let reply = readiness(field, host, admin)?;
        ensure!(reply.status == 503, "{reply:?}");
        Ok(reply.body)
    });
    println!("{service}: {:?} after {:?}", told.trim(), asked.elapsed());
    assert!(told.contains("shutting down"), "{told}");
    while asked.elapsed() < WORK {
        let reply = readiness(field, host, admin).expect("curl runs");
        assert_eq!(reply.status, 503, "after {:?}: {reply:?}", asked.elapsed());
        for child in &mut *work {
            assert!(
                child.is_running(),
                "{}: {}",
                child.name(),
                child.log().tail(5)
            );
        }
    }
}

/// It ends by itself, with exit code 0, soon after its last work.
#[track_caller]
fn ended(mut child: Child) {
    let asked = Instant::now();
    let ended = child.finish(SOON).expect("ends").expect_code(0);
    println!("{}: gone after {:?}", child.name(), asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(5), "{}", ended.all());
    child.assert_log_clean(&[]);
}

#[test]
fn a_gateway_that_is_asked_to_end_answers_what_it_was_asked() {
    if !needs(&NEEDED) {
        return;
    }
    let mut site = Site::start();
    let mut requests = ["/late", "/begun"].map(|path| site.request(path));
    site.slow.wait_for(requests.len());
    ask_to_end(&site.field, "gateway", "edge", 9465, &mut requests);
    // Whoever comes now is not let in, and the others do not notice.
    let late = site.field.curl(&format!("/{NODE}/")).expect("curl runs");
    assert_eq!(late.status, 0, "{late:?}");
    let gateway = site.field.take_service("gateway");
    site.slow.release();
    for request in &mut requests {
        let answer = request.finish(SOON).expect("ends").expect_code(0);
        assert_eq!(answer.stdout, format!("1 {LINE}\nhttp-code: 200\n"));
    }
    ended(gateway);
    site.field.assert_logs_clean(&[]);
}

#[test]
fn a_deploy_manager_that_is_asked_to_end_lets_commands_finish() {
    if !needs(&NEEDED) {
        return;
    }
    let mut site = Site::start();
    let ways = [("socks", &[][..]), ("grpc", &["--via", "grpc"])];
    let mut commands = ways.map(|(name, options)| site.command(name, options));
    ask_to_end(&site.field, "deploy-manager", "edge", 9466, &mut commands);
    let late = site.field.operator().deploy(&["exec", "echo late", NODE]);
    assert_eq!(late.code, Some(255), "{}", late.all());
    let manager = site.field.take_service("deploy-manager");
    for ((name, _), command) in ways.iter().zip(&mut commands) {
        site.let_end(name);
        let ran = command.finish(SOON).expect("ends").expect_code(0);
        assert_eq!(ran.stdout, "done\n", "{}", ran.all());
    }
    ended(manager);
    site.field.assert_logs_clean(&[]);
}
