//! Asks a running service's admin endpoint how it is: the whole of `<service> health`.
//!
//! A container's health check has nothing but the binary, so this is a client of its own: one
//! request on a blocking socket, and a limit for all of it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long the answer may take in all.
pub const HEALTH_LIMIT: Duration = Duration::from_secs(3);
/// No answer of the admin endpoint is longer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Whether it can serve (`/readyz`).
    Ready,
    /// Whether it runs at all (`/livez`).
    Alive,
}

/// Why a service is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// It says so itself.
    #[error("not ready:\n{reasons}")]
    NotReady {
        /// One per line.
        reasons: String,
    },
    /// Nothing answers.
    #[error(
        "no answer from the admin endpoint {addr}: does the service run, and with the same \
         admin.listen?"
    )]
    Unreachable {
        /// What was asked.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something else answers there.
    #[error("what answers at {addr} is no admin endpoint: it said {line:?}")]
    Stranger {
        /// What was asked.
        addr: SocketAddr,
        /// The first line of the answer.
        line: String,
    },
    /// The port is not known.
    #[error("admin.listen has port 0, so nobody knows the port in use: configure a fixed one")]
    AnyPort,
    /// There is no endpoint.
    #[error("the admin endpoint is switched off")]
    Off,
}

/// Asks the endpoint that is configured as `listen`, within `limit`.
///
/// # Errors
/// When it is not healthy, with the reasons.
pub fn ask(listen: SocketAddr, question: Question, limit: Duration) -> Result<(), Unhealthy> {
    if listen.port() == 0 {
        return Err(Unhealthy::AnyPort);
    }
    let addr = reachable(listen);
    let answer = exchange(addr, question, limit)
        .map_err(|source| Unhealthy::Unreachable { addr, source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let line = head.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some("200") if line.starts_with("HTTP/1.") => Ok(()),
        Some("503") if line.starts_with("HTTP/1.") => Err(Unhealthy::NotReady {
            reasons: body.trim_end().to_owned(),
        }),
        _ => Err(Unhealthy::Stranger {
            addr,
            line: line.chars().take(100).collect(),
        }),
    }
}

/// A listener on every address is reached on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn exchange(addr: SocketAddr, question: Question, limit: Duration) -> io::Result<String> {
    let deadline = Instant::now() + limit;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(io::Error::from(io::ErrorKind::TimedOut))
        } else {
            Ok(left)
        }
    };
    let path = match question {
        Question::Ready => "/readyz",
        Question::Alive => "/livez",
    };
    let mut stream = TcpStream::connect_timeout(&addr, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        let read = stream.read(&mut part)?;
        answer.extend_from_slice(&part[..read]);
        if read == 0 || answer.len() >= MAX_ANSWER {
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdminConfig, AdminServer, Handles, ShutdownTrigger, Task};

    async fn asked(addr: SocketAddr, question: Question) -> Result<(), Unhealthy> {
        tokio::task::spawn_blocking(move || ask(addr, question, HEALTH_LIMIT))
            .await
            .expect("no panic")
    }

    #[tokio::test]
    async fn the_answer_is_the_endpoints_own_with_its_reasons() {
        let handles = Handles::default();
        let store = handles.readiness.latch("store", "opening");
        let bus = handles.readiness.latch("bus", "connecting");
        let mut config = AdminConfig::at(0);
        config.listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
        let server = AdminServer::bind(&config, handles).expect("bound");
        let addr = server.local_addr();
        let (_trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(1));
        let _task = Task::spawn("admin", server.run(shutdown));

        let not_ready = asked(addr, Question::Ready).await.expect_err("not ready");
        let text = not_ready.to_string();
        assert_eq!(text, "not ready:\nstore: opening\nbus: connecting");
        asked(addr, Question::Alive).await.expect("alive");
        store.ready();
        bus.ready();
        asked(addr, Question::Ready).await.expect("ready");
    }

    #[tokio::test]
    async fn nobody_strangers_and_silence_are_told_apart() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        // Accepted by the system, answered by nobody.
        let begun = Instant::now();
        let silent = ask(addr, Question::Ready, Duration::from_millis(100));
        assert!(
            matches!(silent, Err(Unhealthy::Unreachable { .. })),
            "{silent:?}"
        );
        assert!(begun.elapsed() < HEALTH_LIMIT);
        drop(listener);
        let nobody = ask(addr, Question::Ready, HEALTH_LIMIT).expect_err("nobody");
        assert!(nobody.to_string().contains("admin.listen"), "{nobody}");

        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        let stranger = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("asked");
            // Read first: closing with unread bytes would reset the connection.
            let mut request = [0; 256];
            let _ = stream.read(&mut request).expect("read");
            stream.write_all(b"SSH-2.0-x\r\n").expect("written");
        });
        let answer = ask(addr, Question::Ready, HEALTH_LIMIT).expect_err("a stranger");
        assert!(answer.to_string().contains("SSH-2.0-x"), "{answer}");
        stranger.join().expect("no panic");
        let any = ask(([127, 0, 0, 1], 0).into(), Question::Alive, HEALTH_LIMIT);
        assert!(matches!(any, Err(Unhealthy::AnyPort)));
    }
}
