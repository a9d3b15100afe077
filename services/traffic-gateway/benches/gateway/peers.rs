//! The upstream and the other proxies, each set up to be as fast as it can be in fairness: kept
//! upstream connections, no access log, one worker per core, and the forwarding headers that a
//! console needs.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const START: Duration = Duration::from_secs(10);

/// A program that listens; ends when dropped.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) addr: SocketAddr,
    child: Child,
}

impl Peer {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // SIGTERM lets nginx end its workers; they are gone with their master.
        let pid = self.child.id().to_string();
        drop(Command::new("kill").arg(pid).status());
        drop(self.child.wait());
    }
}

fn free_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// `name` in the folders where Debian puts servers, which an ordinary user's `PATH` lacks.
fn program(name: &str) -> PathBuf {
    ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| name.into())
}

fn spawn(name: &'static str, addr: SocketAddr, mut command: Command, dir: &Path) -> Result<Peer> {
    let log = fs::File::create(dir.join(format!("{name}-{}.log", addr.port())))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {name} (cargo xtask setup installs it)"))?;
    let begun = Instant::now();
    while TcpStream::connect(addr).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("{name} ended at once: {status}");
        }
        if begun.elapsed() > START {
            drop(child.kill());
            bail!("{name} does not listen on {addr}");
        }
        std::thread::yield_now();
    }
    Ok(Peer { name, addr, child })
}

const TEMPORARY: &str = "client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; \
                         uwsgi_temp_path u; scgi_temp_path s;";

fn nginx(
    name: &'static str,
    dir: &Path,
    addr: SocketAddr,
    http: &str,
    workers: usize,
) -> Result<Peer> {
    let home = dir.join(format!("{name}-{}", addr.port()));
    fs::create_dir_all(&home)?;
    let config = format!(
        "daemon off; pid nginx.pid; error_log error.log; worker_processes {workers}; \
         worker_rlimit_nofile 8192; events {{ worker_connections 2048; }} \
         http {{ access_log off; keepalive_requests 100000000; {TEMPORARY} {http} }}"
    );
    fs::write(home.join("nginx.conf"), config)?;
    let mut command = Command::new(program("nginx"));
    command
        .arg("-c")
        .arg(home.join("nginx.conf"))
        .arg("-p")
        .arg(&home);
    spawn(name, addr, command, dir)
}

/// A small static server.
pub(crate) fn upstream(dir: &Path) -> Result<Peer> {
    let addr = free_addr()?;
    let root = dir.join("www");
    let http = format!(
        "sendfile on; tcp_nopush on; open_file_cache max=10; \
         server {{ listen {addr} backlog=1024; root {}; }}",
        root.display()
    );
    nginx("upstream", dir, addr, &http, 1)
}

/// nginx, haproxy and caddy in front of `upstream`.
pub(crate) fn start_all(dir: &Path, upstream: SocketAddr) -> Result<Vec<Peer>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let addr = free_addr()?;
    let http = format!(
        "upstream u {{ server {upstream}; keepalive 128; keepalive_requests 100000000; }} \
         server {{ listen {addr} backlog=1024; location / {{ proxy_pass http://u; \
         proxy_http_version 1.1; proxy_set_header Connection \"\"; \
         proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr; \
         proxy_set_header X-Forwarded-Proto $scheme; }} }}"
    );
    let nginx = nginx("nginx", dir, addr, &http, cores)?;

    let addr = free_addr()?;
    let config = dir.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global\n maxconn 4096\n nbthread {cores}\ndefaults\n mode http\n timeout connect 5s\n \
             timeout client 60s\n timeout server 60s\n option forwardfor\n http-reuse always\n\
             frontend f\n bind {addr}\n default_backend b\nbackend b\n server s {upstream}\n"
        ),
    )?;
    let mut command = Command::new(program("haproxy"));
    command.arg("-f").arg(&config);
    let haproxy = spawn("haproxy", addr, command, dir)?;

    let addr = free_addr()?;
    let config = dir.join("Caddyfile");
    fs::write(
        &config,
        format!(
            "{{\n admin off\n auto_https off\n}}\nhttp://{addr} {{\n bind 127.0.0.1\n \
             reverse_proxy {upstream} {{\n  transport http {{\n   \
             keepalive_idle_conns_per_host 128\n  }}\n }}\n}}\n"
        ),
    )?;
    let mut command = Command::new(program("caddy"));
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&config)
        .env("XDG_DATA_HOME", dir)
        .env("XDG_CONFIG_HOME", dir);
    let caddy = spawn("caddy", addr, command, dir)?;
    Ok(vec![nginx, haproxy, caddy])
}
