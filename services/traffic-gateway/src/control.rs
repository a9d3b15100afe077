//! The control socket: how `traffic-gateway join` and `status` talk to the running gateway.
//!
//! A Unix socket in the state directory, which only its owner can enter. One line asks, one line
//! of JSON answers.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_node::NodeStatus;
use mesh_node::advice::advice_of_all;
use mesh_types::{Finding, OpenFiles, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::networks::Networks;

const SOCKET: &str = "control.sock";
/// Longer paths do not fit into a socket address.
const PATH_LIMIT: usize = 100;
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const REQUEST_LEN: u64 = 64;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// How it is doing.
    Status,
    /// Look for networks that were joined.
    Scan,
}

impl Request {
    const fn word(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scan => "scan",
        }
    }
}

/// What `status --json` prints is of this schema.
pub const SCHEMA: &str = "mesh.traffic-gateway/1";

/// The answer to [`Request::Status`], and what `status --json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Of this format.
    pub version: u32,
    /// The gateway's own version.
    pub gateway: String,
    /// Its process.
    pub pid: u32,
    /// Where browsers find it.
    pub url: String,
    /// The networks it is in.
    pub networks: Vec<NetworkStatus>,
    /// What is wrong, network by network, the most far-reaching first.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// One network of the gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub network: String,
    /// The gateway's name in it.
    pub name: String,
    /// The gateway's overlay address.
    pub address: Option<String>,
    /// The connection to the coordinator: `connected`, `connecting`, ….
    pub control: String,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Workers with a route.
    pub routes: usize,
}

/// Asks the gateway that runs with `state_dir`; an error when none does.
pub async fn ask(state_dir: &Path, request: Request) -> io::Result<String> {
    let asked = async {
        let (path, _dir) = socket_path(state_dir)?;
        let mut stream = UnixStream::connect(path).await?;
        let line = format!("{}\n", request.word());
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(ANSWER_LIMIT, asked)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// A path to the socket that fits into an address; the directory stays open as long as it is used.
fn socket_path(state_dir: &Path) -> io::Result<(PathBuf, Option<std::fs::File>)> {
    let path = state_dir.join(SOCKET);
    if path.as_os_str().len() <= PATH_LIMIT {
        return Ok((path, None));
    }
    let dir = std::fs::File::open(state_dir)?;
    let short = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    Ok((short.into(), Some(dir)))
}

/// The control socket of a running gateway.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds it. An error of kind `AddrInUse` when another gateway runs with this directory.
    pub async fn bind(state_dir: &Path) -> io::Result<Self> {
        let (path, _dir) = socket_path(state_dir)?;
        if UnixStream::connect(&path).await.is_ok() {
            let text = format!(
                "another gateway runs with the state directory {}; stop it, or choose another one \
                 with --state-dir",
                state_dir.display()
            );
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Self {
            listener,
            path: state_dir.join(SOCKET),
        })
    }

    /// Answers until it is dropped.
    pub async fn serve(self, networks: Arc<Networks>, url: String) -> io::Result<()> {
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (networks, url) = (Arc::clone(&networks), url.clone());
                        open.spawn(async move {
                            let answered = answer(stream, &networks, url);
                            tokio::time::timeout(ANSWER_LIMIT, answered).await.ok();
                        });
                    }
                    Err(err) => {
                        tracing::debug!(error = %err, "control socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = open.join_next() => {}
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // A stale socket is replaced at the next start, so it does no harm either.
        drop(std::fs::remove_file(&self.path));
    }
}

async fn answer(stream: UnixStream, networks: &Networks, url: String) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_LEN))
        .read_line(&mut line)
        .await?;
    let answer = match line.trim() {
        "status" => serde_json::to_value(status(networks, url))?,
        "scan" => match networks.scan().await {
            Ok(started) => serde_json::json!({ "started": started }),
            Err(err) => {
                let text = mesh_daemon::report::chain(&err);
                tracing::warn!(error = text, "a joined network cannot be served");
                serde_json::json!({ "error": text })
            }
        },
        _ => serde_json::json!({ "error": "unknown request" }),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await?;
    write.shutdown().await
}

fn status(networks: &Networks, url: String) -> Status {
    let table = networks.table().current();
    let routes = table.entries();
    let (networks, statuses): (Vec<NetworkStatus>, Vec<NodeStatus>) = networks
        .nodes()
        .into_iter()
        .map(|(network, node)| {
            let status = node.status();
            let shown = NetworkStatus {
                name: status.name.to_string(),
                address: status.addrs.map(|addrs| addrs.v4.to_string()),
                control: word_of(&status.control.state),
                error: status.control.last_error.clone(),
                routes: routes
                    .iter()
                    .filter(|entry| entry.route.network == network)
                    .count(),
                network: network.to_string(),
            };
            (shown, status)
        })
        .unzip();
    let (used, limit) = mesh_daemon::open_files();
    let mut findings = advice_of_all(&statuses, Timestamp::from(SystemTime::now()));
    findings.extend(OpenFiles { used, limit }.finding("the gateway", "mesh-traffic-gateway"));
    Status {
        schema: SCHEMA.to_owned(),
        version: 1,
        gateway: mesh_daemon::build_info::VERSION.to_owned(),
        pid: std::process::id(),
        url,
        networks,
        findings,
    }
}

/// The state's word as it stands in JSON.
fn word_of(state: &mesh_node::ControlState) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => format!("{state:?}").to_lowercase(),
    }
}
