//! A service ends in the middle of somebody's work: asked to, it lets the work finish; killed, it does
//! not take along what goes on without it.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::journeys::transfers::{download, wait_for_service};
use integration::server::{sha256, write_noise};
use integration::{Field, Layout, Server};
use mesh_testkit::{Child, Curl, CurlReply, Host, Need, eventually, needs};

const NEEDED: [Need; 3] = [Need::Root, Need::Program("ip"), Need::Program("curl")];
const NODE: &str = "worker-node-1";
const SOON: Duration = Duration::from_secs(20);
/// How soon a service that was asked to end says so.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long its work goes on after that, at least.
const WORK: Duration = Duration::from_secs(3);
const LINE: &str = "the second half\n";
/// The example of RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

#[derive(Debug, Default)]
struct Held {
    asked: usize,
    released: bool,
}

/// A server on a worker's loopback that begins each answer and finishes it when it is told to;
/// `/late` not even begins. `/socket` is a WebSocket that says back what it hears.
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
    if path == "/socket" {
        write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        )?;
        loop {
            let said = read_frame(&mut reader)?;
            write_frame(&mut stream, &said, None)?;
        }
    }
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

/// One short frame of RFC 6455, section 5.2, unmasked.
fn read_frame(from: &mut impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 2];
    from.read_exact(&mut head)?;
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        from.read_exact(&mut mask)?;
    }
    let mut payload = vec![0; usize::from(head[1] & 0x7f)];
    from.read_exact(&mut payload)?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(payload)
}

fn write_frame(
    to: &mut impl std::io::Write,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> std::io::Result<()> {
    let length = u8::try_from(payload.len()).expect("a short one");
    let mut frame = vec![0x81, length | if mask.is_some() { 0x80 } else { 0 }];
    frame.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    let payload = payload.iter().zip(mask.iter().cycle());
    frame.extend(payload.map(|(byte, mask)| byte ^ mask));
    to.write_all(&frame)
}

/// A WebSocket through the gateway, from the clients' segment.
struct Socket(TcpStream);

impl Socket {
    fn open(field: &Field) -> Self {
        let mut stream = field
            .client()
            .enter(|| TcpStream::connect(field.gateway_addr()))
            .expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("set");
        write!(
            stream,
            "GET /{NODE}/s/slow/socket HTTP/1.1\r\nHost: gateway:8081\r\n\
             Origin: http://gateway:8081\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        )
        .expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self(stream)
    }

    /// Says something and hears it said back.
    fn echo(&mut self, text: &str) {
        write_frame(&mut self.0, text.as_bytes(), Some([7, 77, 177, 27])).expect("written");
        let heard = read_frame(&mut self.0).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&heard), text);
    }
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
        eventually("the routes are there", SOON, || {
            let page = field.curl("/")?.ok()?;
            ensure!(page.contains(NODE) && page.contains("slow"), "{page}");
            Ok(())
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

#[test]
fn what_is_open_goes_on_when_the_coordinator_is_killed() {
    /// More than all buffers on the way together, so that most of it travels after the kill.
    const FILE: usize = 64 << 20;
    if !needs(&NEEDED) {
        return;
    }
    let mut site = Site::start();
    let source = write_noise(site.field.operator().work("noise"), FILE).expect("file");
    let host = site.field.worker(NODE).host().clone();
    let server = Server::start(Some(&host), NODE, Some(&source)).expect("server");
    site.field.worker(NODE).publish("files", server.port());
    wait_for_service(&site.field, "default", NODE, NODE, server.port());

    let mut socket = Socket::open(&site.field);
    socket.echo("before");
    let mut command = site.command("exec", &[]);
    let into = site.field.operator().work("copy");
    let transfer = download(&site.field, server.port(), &into, "8M").name("transfer");
    let mut transfer = transfer.spawn().expect("starts");
    let arrived = || std::fs::metadata(&into).map_or(0, |file| file.len());
    eventually("the transfer is under way", SOON, || {
        ensure!(arrived() > 4 << 20, "{} bytes", arrived());
        Ok(())
    });
    let connections = server.connections();

    site.field
        .take_service("coordinator")
        .kill()
        .expect("killed");
    let at = arrived();
    assert!(
        at < u64::try_from(FILE / 2).expect("fits"),
        "{at} bytes came before"
    );
    let token = site.field.operator().mesh(&["token", "create"]);
    assert_eq!(token.code, Some(1), "there is none: {}", token.all());
    socket.echo("while it is away");
    transfer.finish(SOON).expect("ends").expect_code(0);
    assert_eq!(server.connections(), connections, "in one go");
    assert_eq!(sha256(&into).expect("sum"), sha256(&source).expect("sum"));
    site.let_end("exec");
    let ran = command.finish(SOON).expect("ends").expect_code(0);
    assert_eq!(ran.stdout, "done\n", "{}", ran.all());
    // What begins now finds its way too.
    let console = site.field.curl(&format!("/{NODE}/")).expect("curl runs");
    assert_eq!(console.status, 200, "{console:?}");
    wait_for_service(&site.field, "default", NODE, NODE, server.port());
    println!("{at} of {FILE} bytes had come when the coordinator was killed");

    site.field.start_coordinator().expect("starts again");
    eventually("changes are taken again", SOON, || {
        site.field.operator().mesh(&["token", "create"]).success()
    });
    socket.echo("after");
    site.field.assert_logs_clean(&[]);
}
