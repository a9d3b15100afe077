//! Those who use the mesh meanwhile, each again and again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::hostile::{self, Ask};
use integration::server::drain;
use integration::soak::Served;
use integration::socks::{self, Wanted};
use integration::{Agent, Cli, WebSocket};
use mesh_testkit::{eventually, rest};

use crate::stage::{SERVING, Stage, WORKING};

/// How long an answer may take on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a kept connection or an open WebSocket is used before a new one is taken.
const USES: u32 = 200;
/// Each load must have been done once by then.
const FIRST: Duration = Duration::from_secs(120);

/// All of them.
pub(crate) struct Loads {
    stop: Arc<AtomicBool>,
    loads: Vec<Load>,
}

struct Load {
    what: &'static str,
    counts: Arc<Counts>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

impl Loads {
    /// They begin.
    pub(crate) fn start(stage: &Stage) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let often = Duration::from_millis(50);
        let mostly = Duration::from_millis(500);
        let seldom = Duration::from_secs(3);
        let loads: [(&'static str, Duration, Ask); 10] = [
            ("page, new connection", often, hostile::page(stage.up())),
            ("page, kept connection", often, kept_connection(stage)),
            ("WebSocket", often, websocket(stage)),
            ("coordinator", mostly, hostile::coordinator(stage.up())?),
            (
                "SOCKS5 connection",
                often,
                hostile::through_socks(stage.up()),
            ),
            ("SOCKS5 transfer", mostly, transfer(stage)),
            ("command", seldom, command(stage.cli())),
            ("join and leave", seldom, join_and_leave(stage)),
            ("publish and withdraw", seldom, publish(stage)),
            ("new endpoint", seldom, new_endpoint(stage)),
        ];
        let loads = loads.map(|(what, pause, ask)| Load::start(what, pause, ask, &stop));
        Ok(Self {
            stop,
            loads: loads.into(),
        })
    }

    /// Waits until each has succeeded once.
    pub(crate) fn wait_until_each_is_done_once(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut loads = self.loads.iter();
            let Some(load) = loads.find(|load| load.counts.done.load(Ordering::Relaxed) == 0)
            else {
                return Ok(());
            };
            let served = load.counts.served(load.what);
            ensure!(begun.elapsed() < FIRST, "not once in {FIRST:?}: {served:?}");
            rest(Duration::from_millis(100));
        }
    }

    /// They stop, and tell how they were served.
    pub(crate) fn end(self) -> Vec<Served> {
        self.stop.store(true, Ordering::Relaxed);
        let end = |load: Load| {
            let (what, counts) = (load.what, Arc::clone(&load.counts));
            // Panics were counted where they happened.
            drop(load.thread.join());
            counts.served(what)
        };
        self.loads.into_iter().map(end).collect()
    }
}

impl Load {
    fn start(what: &'static str, pause: Duration, mut ask: Ask, stop: &Arc<AtomicBool>) -> Self {
        let counts = Arc::<Counts>::default();
        let (counted, stop) = (Arc::clone(&counts), Arc::clone(stop));
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // The harness panics where a journey would fail; here that is one failure of many.
                let asked = catch_unwind(AssertUnwindSafe(&mut ask));
                match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))) {
                    Ok(()) => {
                        counted.done.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => counted.fail(&error),
                }
                rest(pause);
            }
        });
        Self {
            what,
            counts,
            thread,
        }
    }
}

impl Counts {
    fn served(&self, what: &'static str) -> Served {
        let last = self.last_failure.lock();
        Served {
            what,
            done: self.done.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            last_failure: last.unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn fail(&self, error: &anyhow::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let last = self.last_failure.lock();
        *last.unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
    }
}

/// Requests over a connection that is kept, now and then a new one.
fn kept_connection(stage: &Stage) -> Ask {
    let (addr, host) = stage.gateway();
    let mut kept: Option<(BufReader<TcpStream>, u32)> = None;
    Box::new(move || {
        let (mut stream, uses) = match kept.take().filter(|(_, uses)| *uses < USES) {
            Some(kept) => kept,
            None => (BufReader::new(connect(addr)?), 0),
        };
        let body = request(&mut stream, &host, &format!("/{SERVING}/s/web/hi"))?;
        ensure!(body.starts_with(b"hello from "), "{body:?}");
        kept = Some((stream, uses + 1));
        Ok(())
    })
}

fn connect(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One of several requests over a connection; the answer's body, which says how long it is.
fn request(stream: &mut BufReader<TcpStream>, host: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "{line:?}");
    let mut length = None;
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse()?);
        }
    }
    let mut body = vec![0; length.context("a length")?];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// A WebSocket that says something and hears it back, now and then a new one.
fn websocket(stage: &Stage) -> Ask {
    let (addr, host) = stage.gateway();
    let mut kept: Option<(WebSocket, u32)> = None;
    Box::new(move || {
        let (mut socket, uses) = match kept.take().filter(|(_, uses)| *uses < USES) {
            Some(kept) => kept,
            None => {
                let path = format!("/{SERVING}/s/echo/");
                (WebSocket::open(addr, &host, &path, PATIENCE)?, 0)
            }
        };
        socket.echo("are you there?")?;
        kept = Some((socket, uses + 1));
        Ok(())
    })
}

/// A file from a worker through SOCKS5.
fn transfer(stage: &Stage) -> Ask {
    let proxy = stage.up().socks("default");
    let port = stage.web_port();
    Box::new(move || {
        let wanted = Wanted::Name(SERVING.to_owned(), port);
        let (reply, mut stream) = socks::connect(proxy, &wanted)?;
        ensure!(reply.granted(), "{reply:?}");
        let request = format!("GET /file HTTP/1.1\r\nHost: {SERVING}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut stream = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let read = drain(stream.take(length))?;
        ensure!(read == length && length > 0, "{read} of {length}");
        Ok(())
    })
}

/// A command on a worker.
fn command(cli: &Cli) -> Ask {
    let cli = cli.clone();
    Box::new(move || {
        let ran = cli.deploy(&["exec", "echo done", WORKING]);
        ensure!(ran.code == Some(0), "{}", ran.all());
        Ok(())
    })
}

/// A machine joins, is seen, and leaves for good.
fn join_and_leave(stage: &Stage) -> Ask {
    let cli = stage.cli().clone();
    let (addr, host) = stage.gateway();
    let mut count = 0;
    Box::new(move || {
        count += 1;
        let name = format!("guest-{}-{count}", std::process::id());
        let mut agent = Agent::new(&cli, &name).joined(&cli, "default");
        wait_for_page(addr, &host, &name);
        agent.run(&["leave"]).expect_code(0);
        agent.take_child().finish(PATIENCE)?.success()?;
        std::fs::remove_dir_all(agent.state_dir()).context("remove what it left")
    })
}

fn wait_for_page(addr: SocketAddr, host: &str, name: &str) {
    eventually(&format!("{name} is seen"), PATIENCE, || {
        let reply = mesh_testkit::http_get(addr, host, &format!("/{name}/"), PATIENCE)?;
        ensure!(reply.status == 200, "status {}", reply.status);
        Ok(())
    });
}

/// A worker publishes something and takes it back.
fn publish(stage: &Stage) -> Ask {
    let agent = Agent::new(stage.cli(), WORKING);
    let port = stage.web_port().to_string();
    Box::new(move || {
        let ran = agent.run(&["publish", "extra", &port]);
        ensure!(ran.code == Some(0), "{}", ran.all());
        let ran = agent.run(&["unpublish", "extra"]);
        ensure!(ran.code == Some(0), "{}", ran.all());
        Ok(())
    })
}

/// A worker that starts again each time, on another port.
fn new_endpoint(stage: &Stage) -> Ask {
    let cli = stage.cli().clone();
    let (addr, host) = stage.gateway();
    let name = "moving";
    let mut agent = Agent::new(&cli, name);
    Box::new(move || {
        if !agent.state_dir().exists() {
            agent.join(&cli.token(&[])).expect_code(0);
        }
        agent.start();
        wait_for_page(addr, &host, name);
        agent.stop();
        Ok(())
    })
}
