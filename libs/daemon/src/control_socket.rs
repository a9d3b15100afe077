//! The control socket: how a program's own verbs, such as `status`, ask the one that runs.
//!
//! A Unix socket (0600) in the state directory, which only its owner can enter. One line asks, one line
//! of JSON answers. Both sides look who the other is: [`check_peer`].

use std::fs::{File, Permissions};
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
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
    /// Somebody answers who cannot speak for this state directory.
    #[error(
        "a process of user id {uid} is at its control socket, though the state directory belongs to \
         user id {owner}: it was not asked; see what it is with 'ss -xlp', and who else may write \
         into that directory"
    )]
    Stranger {
        /// Whose process it is.
        uid: u32,
        /// Whose directory it is.
        owner: u32,
    },
    /// The socket cannot be used.
    #[error("its control socket cannot be used")]
    Io(#[source] io::Error),
}

/// Looks who is at the other end of a connection by a socket in `state_dir`: only its owner, root and
/// this very user are to be talked to.
///
/// # Errors
/// [`AskError::Stranger`] when it is somebody else, or who it is cannot be found out.
pub fn check_peer(stream: &UnixStream, state_dir: &Path) -> Result<(), AskError> {
    let uid = stream.peer_cred().map_err(AskError::Io)?.uid();
    let owner = std::fs::metadata(state_dir).map_err(AskError::Io)?.uid();
    let own = nix::unistd::geteuid().as_raw();
    if [owner, own, 0].contains(&uid) {
        return Ok(());
    }
    Err(AskError::Stranger { uid, owner })
}

/// Connects to the program that listens at the socket of this name in `state_dir`.
///
/// # Errors
/// Nobody listens there, or somebody whose word means nothing.
pub async fn connect(state_dir: &Path, name: &str) -> Result<UnixStream, AskError> {
    let connected = async {
        let path = SocketPath::of(state_dir, name)?;
        UnixStream::connect(&path).await
    };
    let stream = connected.await.map_err(|error| match is_nobody(&error) {
        true => AskError::NotRunning,
        false => AskError::Io(error),
    })?;
    check_peer(&stream, state_dir)?;
    Ok(stream)
}

/// Asks the program that runs with `state_dir`; gives its line of JSON.
///
/// # Errors
/// None runs, it does not answer, or who answers is not to be believed.
pub async fn ask(state_dir: &Path, request: &str) -> Result<String, AskError> {
    let asked = async {
        let mut stream = connect(state_dir, SOCKET).await?;
        let exchange = async {
            stream.write_all(format!("{request}\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.take(ANSWER_LEN).read_to_string(&mut answer).await?;
            io::Result::Ok(answer)
        };
        exchange.await.map_err(AskError::Io)
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, asked).await;
    match answer.map_err(|_| AskError::Silent)?? {
        answer if answer.is_empty() => Err(AskError::Silent),
        answer => Ok(answer),
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
                        let dir = self.path.parent().unwrap_or(&self.path);
                        if let Err(error) = check_peer(&stream, dir) {
                            tracing::debug!(%error, "a local connection was refused");
                            continue;
                        }
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
    use mesh_testkit::{Need, needs};

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

    /// Answers everything, as another user.
    struct Stranger(std::process::Child);

    impl Stranger {
        const UID: u32 = 65534;

        fn listen(dir: &Path) -> Self {
            use std::os::unix::process::CommandExt as _;
            use std::process::{Command, Stdio};

            let program = "$SIG{PIPE} = 'IGNORE'; \
                           my $l = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5) or die; \
                           while (my $c = $l->accept) { <$c>; print $c \"{}\\n\"; close $c }";
            let mut command = Command::new("perl");
            command.args(["-MIO::Socket::UNIX", "-e", program]);
            command.arg(dir.join(SOCKET)).uid(Self::UID).gid(Self::UID);
            Self(command.stdin(Stdio::null()).spawn().expect("perl starts"))
        }
    }

    impl Drop for Stranger {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[tokio::test]
    async fn a_stranger_at_the_socket_is_not_believed_and_the_owner_of_the_directory_is() {
        // Only root can be somebody else.
        if !needs(&[Need::Root, Need::Program("perl")]) {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        // A directory that others may write into, as it never should be.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("set");
        let _stranger = Stranger::listen(dir.path());
        let asked = async || loop {
            match ask(dir.path(), "status").await {
                Err(AskError::NotRunning) => tokio::time::sleep(Duration::from_millis(10)).await,
                asked => break asked,
            }
        };
        let asked = async || {
            let limit = Duration::from_secs(20);
            tokio::time::timeout(limit, asked()).await.expect("listens")
        };
        let refused = asked().await;
        let error = refused.expect_err("not believed");
        assert!(
            matches!(
                error,
                AskError::Stranger {
                    uid: Stranger::UID,
                    owner: 0
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("ss -xlp"), "{error}");
        std::os::unix::fs::chown(dir.path(), Some(Stranger::UID), None).expect("chown");
        let answer = asked().await.expect("it is the owner's now");
        assert_eq!(answer, "{}\n");
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
