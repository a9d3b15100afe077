//! What a process costs while somebody means it harm, and how long everybody else waits meanwhile.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_testkit::{http_get, rest};

use crate::MeshUp;
use crate::socks::{self, Wanted};

/// How long anybody else's request may take while an attack is under way.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often somebody asks.
const PAUSE: Duration = Duration::from_millis(50);
/// Ticks of `/proc/PID/stat` in a second, on every Linux that is in use.
const TICKS: u64 = 100;

/// Memory that a process holds, in bytes.
pub fn resident(pid: i32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}

/// Processor time that a process has used so far.
pub fn used(pid: i32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name, in brackets.
    let (_, fields) = stat.rsplit_once(") ").context("a name in brackets")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let tick = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let ticks = tick(11).context("user time")? + tick(12).context("system time")?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// The part of one core that a process uses over `span`, in percent.
pub fn load(pid: i32, span: Duration) -> anyhow::Result<u128> {
    let before = used(pid)?;
    rest(span);
    Ok((used(pid)? - before).as_millis() * 100 / span.as_millis())
}

/// Raises how many files this process, and whoever it starts from now on, may have open, as far
/// as it may; how many that are.
pub fn raise_open_files(wanted: u64) -> anyhow::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let goal = wanted.min(hard);
    if soft < goal {
        setrlimit(Resource::RLIMIT_NOFILE, goal, hard)?;
    }
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// People who use the mesh meanwhile: one reads a worker's page, one asks the coordinator, one goes
/// through SOCKS5, each again and again over a new connection.
#[derive(Debug)]
pub struct Others {
    stop: Arc<AtomicBool>,
    people: Vec<JoinHandle<anyhow::Result<Served>>>,
}

/// How one of them was served.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// What was asked for.
    pub what: &'static str,
    /// How often.
    pub times: usize,
    /// The longest wait.
    pub worst: Duration,
}

/// Something that somebody asks again and again.
pub type Ask = Box<dyn FnMut() -> anyhow::Result<()> + Send>;

impl Others {
    /// They begin.
    ///
    /// # Errors
    /// There is nobody to ask.
    pub fn of(up: &MeshUp) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let people = [
            ("a page", page(up)),
            ("the coordinator", coordinator(up)?),
            ("SOCKS5", through_socks(up)),
        ];
        let people = people.map(|(what, ask)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || keep_asking(what, ask, &stop))
        });
        Ok(Self {
            stop,
            people: people.into(),
        })
    }

    /// They stop, and tell.
    ///
    /// # Errors
    /// One of them was not served, or not in time.
    pub fn tell(self) -> anyhow::Result<Vec<Served>> {
        self.stop.store(true, Ordering::Relaxed);
        let told = self.people.into_iter().map(|person| {
            let served = person
                .join()
                .map_err(|_| anyhow::anyhow!("it panicked"))??;
            ensure!(served.times > 0 && served.worst < PATIENCE, "{served:?}");
            Ok(served)
        });
        told.collect()
    }
}

fn keep_asking(what: &'static str, mut ask: Ask, stop: &AtomicBool) -> anyhow::Result<Served> {
    let mut served = Served {
        what,
        times: 0,
        worst: Duration::ZERO,
    };
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        ask().with_context(|| format!("{what}, after {} times", served.times))?;
        served.worst = served.worst.max(asked.elapsed());
        served.times += 1;
        rest(PAUSE);
    }
    Ok(served)
}

/// A worker's page over a new connection.
pub fn page(up: &MeshUp) -> Ask {
    let port = up.gateway_port();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    Box::new(move || {
        let reply = http_get(
            addr,
            &format!("localhost:{port}"),
            "/worker-node-1/",
            PATIENCE,
        )?;
        ensure!(reply.status == 200, "status {}", reply.status);
        Ok(())
    })
}

/// The coordinator's status over a new connection.
///
/// # Errors
/// There is no context to ask it by.
pub fn coordinator(up: &MeshUp) -> anyhow::Result<Ask> {
    let context = up.cli().context()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(Box::new(move || {
        runtime.block_on(async {
            let asked = async {
                let mut admin = AdminServiceClient::new(context.coordinator().await?);
                admin.status(pb::AdminStatusRequest {}).await?;
                anyhow::Ok(())
            };
            tokio::time::timeout(PATIENCE, asked).await?
        })
    }))
}

/// A worker's console through SOCKS5, opened and left.
pub fn through_socks(up: &MeshUp) -> Ask {
    let proxy = up.socks("default");
    Box::new(move || {
        let worker = Wanted::Name("worker-node-1".to_owned(), 9090);
        let (reply, _stream) = socks::connect(proxy, &worker)?;
        ensure!(reply.granted(), "{reply:?}");
        Ok(())
    })
}

/// Connections opened at a time, before whoever accepts them gets a turn.
const AT_ONCE: usize = 32;

/// Connections that say nothing. As many as were let in within `within`, of `wanted`.
///
/// # Errors
/// A connection was refused for another reason than that there are too many.
pub fn silent(to: SocketAddr, wanted: usize, within: Duration) -> anyhow::Result<Vec<TcpStream>> {
    let begun = Instant::now();
    let mut streams = Vec::with_capacity(wanted);
    while streams.len() < wanted {
        let left = within.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&to, left) {
            Ok(stream) => streams.push(stream),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => break,
            Err(error) => return Err(error).context(format!("after {}", streams.len())),
        }
        if streams.len().is_multiple_of(AT_ONCE) {
            rest(Duration::from_millis(2));
        }
    }
    Ok(streams)
}

/// How many of them the other side has closed.
pub fn closed(streams: &[TcpStream]) -> usize {
    let is_closed = |stream: &&TcpStream| {
        let mut byte = [0];
        let ready = stream
            .set_nonblocking(true)
            .and_then(|()| stream.peek(&mut byte));
        match ready {
            Ok(length) => length == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    streams.iter().filter(is_closed).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_figures() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert!(resident(own).expect("memory") > 1 << 20);
        assert!(used(own).expect("time") < Duration::from_secs(3600));
        assert!(resident(-1).is_err());
    }

    #[test]
    fn a_closed_connection_is_told_from_an_open_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let at = listener.local_addr().expect("bound");
        let streams = silent(at, 2, Duration::from_secs(5)).expect("connected");
        let (first, _) = listener.accept().expect("accepted");
        let (_second, _) = listener.accept().expect("accepted");
        assert_eq!(closed(&streams), 0);
        drop(first);
        mesh_testkit::eventually("one is closed", PATIENCE, || {
            ensure!(closed(&streams) == 1, "{}", closed(&streams));
            Ok(())
        });
    }
}
