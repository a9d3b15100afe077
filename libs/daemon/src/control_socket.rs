//! The control socket: how a program's own verbs, such as `status`, ask the one that runs.
//!
//! A Unix socket (0600) in the state directory, which only its owner can enter. One line asks, one line
//! of JSON answers.

use std::fs::{File, Permissions};
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

const SOCKET: &str = "control.sock";
/// The longest path that fits into a socket address, in bytes.
const PATH_MAX: usize = 107;

/// A path that fits into a socket address. A long one goes through the open directory.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _dir: Option<File>,
}

impl SocketPath {
    /// The path of this name in `dir`; good as long as it is held.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn of(dir: &Path, name: &str) -> io::Result<Self> {
        let path = dir.join(name);
        if path.as_os_str().len() <= PATH_MAX {
            return Ok(Self { path, _dir: None });
        }
        let dir = File::open(dir)?;
        let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).into();
        Ok(Self {
            path,
            _dir: Some(dir),
        })
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Most bytes of a request.
const REQUEST_LEN: u64 = 64;
/// Most bytes of an answer.
const ANSWER_LEN: u64 = 16 << 20;
/// Requests that are answered at the same time; others wait.
const MOST: usize = 32;

/// A running program could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("nothing runs with this state directory")]
    NotRunning,
    /// No answer within ten seconds, or none at all.
    #[error("it does not answer")]
    Silent,
    /// The socket cannot be used.
    #[error("its control socket cannot be used")]
    Io(#[source] io::Error),
}

/// Asks the program that runs with `state_dir`; gives its line of JSON.
///
/// # Errors
/// None runs, or it does not answer.
pub async fn ask(state_dir: &Path, request: &str) -> Result<String, AskError> {
    let asked = async {
        let path = SocketPath::of(state_dir, SOCKET)?;
        let mut stream = UnixStream::connect(&path).await?;
        stream.write_all(format!("{request}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(ANSWER_LEN).read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, asked).await;
    match answer.map_err(|_| AskError::Silent)? {
        Ok(answer) if answer.is_empty() => Err(AskError::Silent),
        Ok(answer) => Ok(answer),
        Err(error) if is_nobody(&error) => Err(AskError::NotRunning),
        Err(error) => Err(AskError::Io(error)),
    }
}

/// Whether a connection failed because nobody listens.
fn is_nobody(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(
        kind,
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// The control socket of a running program. Removed when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds it in `state_dir`, which only its owner must be able to enter.
    ///
    /// # Errors
    /// It cannot be bound; of kind `AddrInUse` when another program runs with this directory.
    pub async fn bind(state_dir: &Path) -> io::Result<Self> {
        let path = SocketPath::of(state_dir, SOCKET)?;
        let is_taken = match UnixStream::connect(&path).await {
            Ok(_) => true,
            // A full queue says that somebody is there.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) if is_nobody(&error) => false,
            Err(error) => return Err(error),
        };
        if is_taken {
            let text = format!(
                "another one runs with the state directory {}; stop it, or choose another one \
                 with --state-dir",
                state_dir.display()
            );
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self {
            listener,
            path: state_dir.join(SOCKET),
        })
    }

    /// Answers requests until it is dropped.
    pub async fn serve<A, F>(self, answer: A)
    where
        A: Fn(String) -> F + Clone + Send + 'static,
        F: Future<Output = serde_json::Value> + Send + 'static,
    {
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if open.len() < MOST => match accepted {
                    Ok((stream, _)) => {
                        let exchange = exchange(stream, answer.clone());
                        open.spawn(tokio::time::timeout(ANSWER_LIMIT, exchange));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "control socket");
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

async fn exchange<A, F>(stream: UnixStream, answer: A) -> io::Result<()>
where
    A: Fn(String) -> F,
    F: Future<Output = serde_json::Value>,
{
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_LEN))
        .read_line(&mut line)
        .await?;
    let answer = answer(line.trim().to_owned()).await;
    write.write_all(format!("{answer}\n").as_bytes()).await?;
    write.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    async fn serving(dir: &Path) -> Task {
        let socket = ControlSocket::bind(dir).await.expect("binds");
        let answer = |request| async move { serde_json::json!({ "asked": request }) };
        Task::spawn("control", socket.serve(answer))
    }

    #[tokio::test]
    async fn one_line_asks_and_one_answers_under_a_long_path_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let long = dir.path().join("x".repeat(120));
        std::fs::create_dir(&long).expect("made");
        for dir in [dir.path(), &long] {
            let _serving = serving(dir).await;
            let answer = ask(dir, "status").await.expect("answered");
            assert_eq!(answer, "{\"asked\":\"status\"}\n");
            let second = ControlSocket::bind(dir).await.expect_err("one runs");
            assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[tokio::test]
    async fn nobody_is_told_from_one_who_is_silent() {
        let dir = tempfile::tempdir().expect("a directory");
        let asked = ask(dir.path(), "status").await;
        assert!(matches!(asked, Err(AskError::NotRunning)), "{asked:?}");
        // What a killed program left behind is the same, and in nobody's way.
        drop(UnixListener::bind(dir.path().join(SOCKET)).expect("binds"));
        let asked = ask(dir.path(), "status").await;
        assert!(matches!(asked, Err(AskError::NotRunning)), "{asked:?}");
        drop(ControlSocket::bind(dir.path()).await.expect("binds"));
        assert!(!dir.path().join(SOCKET).exists());

        let mute = UnixListener::bind(dir.path().join(SOCKET)).expect("binds");
        let _mute = Task::spawn("mute", async move {
            while let Ok((stream, _)) = mute.accept().await {
                drop(stream);
            }
        });
        let asked = ask(dir.path(), "status").await;
        // It may hang up before the request is written, or after.
        assert!(
            matches!(asked, Err(AskError::Silent | AskError::Io(_))),
            "{asked:?}"
        );
    }
}
