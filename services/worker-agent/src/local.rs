//! The local control socket: `agent.sock` in the state directory.
//!
//! One request and one answer per connection, each one line of JSON. The directory (0700) and the
//! socket (0600) let in the agent's own user and root; both sides check who the other is.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_daemon::Tasks;
use mesh_daemon::control_socket::{self, SocketPath};
use mesh_node::{StateDir, StateDirError};
use mesh_types::ServiceName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::services::Offer;
use crate::status::AgentStatus;

/// The socket's name in the state directory.
const NAME: &str = "agent.sock";
/// A request is not longer, in bytes.
const REQUEST_MAX: u64 = 64 * 1024;
/// An answer is not longer, in bytes.
const ANSWER_MAX: u64 = 64 * 1024 * 1024;
/// How long a request may take to arrive.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long an agent may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long an agent that holds the lock may take to listen.
const STARTING_LIMIT: Duration = Duration::from_secs(5);
/// How long a verb may hold the lock of a stopped agent.
const VERB_LIMIT: Duration = Duration::from_secs(2);
/// How often either is looked at again.
const RETRY: Duration = Duration::from_millis(50);
/// Requests that wait for the agent.
pub(crate) const QUEUE: usize = 16;
/// Connections at the same time.
const CONNECTIONS: usize = 32;

/// What can be asked of a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub(crate) enum Request {
    Status,
    Publish { service: Offer },
    Unpublish { name: ServiceName },
    Leave { force: bool },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub(crate) enum Answer {
    Status(Box<AgentStatus>),
    Done,
    Refused { message: String },
}

/// A request and where its answer goes.
pub(crate) type Asked = (Request, oneshot::Sender<Answer>);

/// An agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No agent listens.
    #[error("the agent does not run: start it with 'worker-agent run'")]
    NotRunning,
    /// The socket belongs to another user.
    #[error("the agent's socket belongs to another user: run this as that user, or as root")]
    NotAllowed,
    /// Who listens is neither the state directory's owner nor root.
    #[error(transparent)]
    Stranger(mesh_daemon::AskError),
    /// The agent does not answer in time.
    #[error("the agent does not answer: look at its log")]
    Silent,
    /// The agent is of another version.
    #[error("the running agent does not understand this program: restart it with this version")]
    OtherVersion(#[source] serde_json::Error),
    /// The connection broke.
    #[error("the connection to the agent broke")]
    Io(#[source] io::Error),
    /// The agent refused; its own words.
    #[error("{0}")]
    Refused(String),
    /// No agent runs, and its state directory cannot be used in its place.
    #[error(transparent)]
    State(#[from] StateDirError),
}

/// Who took a request.
#[derive(Debug)]
pub(crate) enum Reached {
    /// The running agent; its answer.
    Agent(Answer),
    /// Nobody: no agent runs, and the state directory is the caller's now.
    Nobody(StateDir),
}

/// The agent's end of the socket. Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalSocket {
    /// Binds it. The state directory's lock says that no other agent uses it, so a socket that is
    /// there is a dead one's.
    pub(crate) fn bind(state_dir: &Path) -> io::Result<Self> {
        let short = SocketPath::of(state_dir, NAME)?;
        match std::fs::remove_file(&short) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&short)?;
        std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            listener,
            path: state_dir.join(NAME),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes requests and hands them to the agent; ends when the agent does.
    pub(crate) async fn serve(self, agent: mpsc::Sender<Asked>) {
        let mut open = Tasks::new();
        let dir = self.path.parent().unwrap_or(&self.path);
        while !agent.is_closed() {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = agent.closed() => break,
            };
            open.reap();
            match accepted {
                Ok((stream, _)) if open.len() < CONNECTIONS && is_trusted(&stream, dir) => {
                    let agent = agent.clone();
                    open.spawn("local request", async move { answer(stream, agent).await });
                }
                Ok(_) => tracing::debug!("a local connection was refused"),
                Err(error) => {
                    tracing::debug!(%error, "a local connection broke");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // Answers under way, such as that to `leave`, still go out.
        open.join_all(Duration::from_secs(1)).await;
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // Gone already with the state directory, or left for the next agent to remove.
        drop(std::fs::remove_file(&self.path));
    }
}

fn is_trusted(stream: &UnixStream, state_dir: &Path) -> bool {
    control_socket::check_peer(stream, state_dir).is_ok()
}

async fn answer(stream: UnixStream, agent: mpsc::Sender<Asked>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(REQUEST_MAX));
    let arrived = tokio::time::timeout(REQUEST_LIMIT, read.read_line(&mut line)).await;
    let answer = match (arrived, serde_json::from_str::<Request>(&line)) {
        (Ok(Ok(_)), Ok(request)) => {
            let (reply, replied) = oneshot::channel();
            match agent.send((request, reply)).await {
                Ok(()) => replied.await.unwrap_or_else(|_| stopping()),
                Err(_) => stopping(),
            }
        }
        (Ok(Ok(_)), Err(error)) => Answer::Refused {
            message: format!("this request is not understood: {error}"),
        },
        (Ok(Err(_)) | Err(_), _) => return,
    };
    let Ok(mut bytes) = serde_json::to_vec(&answer) else {
        return;
    };
    bytes.push(b'\n');
    if let Err(error) = write.write_all(&bytes).await {
        tracing::debug!(%error, "a local answer was not taken");
    }
}

fn stopping() -> Answer {
    Answer::Refused {
        message: "the agent is stopping".into(),
    }
}

/// Asks the agent that runs on this state directory.
pub(crate) async fn ask(state_dir: &Path, request: &Request) -> Result<Answer, AskError> {
    let stream = control_socket::connect(state_dir, NAME)
        .await
        .map_err(unreached)?;
    let (read, mut write) = stream.into_split();
    let mut bytes = serde_json::to_vec(request).map_err(AskError::OtherVersion)?;
    bytes.push(b'\n');
    let exchange = async {
        write.write_all(&bytes).await.map_err(AskError::Io)?;
        let mut line = String::new();
        let mut read = BufReader::new(read.take(ANSWER_MAX));
        read.read_line(&mut line).await.map_err(AskError::Io)?;
        if line.is_empty() {
            return Err(AskError::Silent);
        }
        serde_json::from_str(&line).map_err(AskError::OtherVersion)
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, exchange).await;
    match answer.map_err(|_| AskError::Silent)?? {
        Answer::Refused { message } => Err(AskError::Refused(message)),
        answer => Ok(answer),
    }
}

/// Asks the agent that runs on this state directory, also one that is just starting and holds the
/// lock already; with no agent, opens the directory.
pub(crate) async fn ask_or_open(state_dir: &Path, request: &Request) -> Result<Reached, AskError> {
    let deadline = tokio::time::Instant::now() + STARTING_LIMIT;
    loop {
        match ask(state_dir, request).await {
            Err(AskError::NotRunning) => {}
            answered => return answered.map(Reached::Agent),
        }
        match StateDir::open(state_dir) {
            Err(StateDirError::InUse { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(RETRY).await;
            }
            opened => return Ok(Reached::Nobody(opened?)),
        }
    }
}

/// Opens the state directory for a running agent. Verbs such as `publish` hold its lock for a
/// moment when no agent runs, so a short while is waited for it.
pub(crate) async fn open_for_running(state_dir: &Path) -> Result<StateDir, StateDirError> {
    let deadline = tokio::time::Instant::now() + VERB_LIMIT;
    loop {
        match StateDir::open(state_dir) {
            Err(StateDirError::InUse { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(RETRY).await;
            }
            opened => return opened,
        }
    }
}

fn unreached(error: mesh_daemon::AskError) -> AskError {
    use mesh_daemon::AskError as Unreached;

    match error {
        Unreached::NotRunning => AskError::NotRunning,
        Unreached::Silent => AskError::Silent,
        Unreached::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            AskError::NotAllowed
        }
        Unreached::Io(error) => AskError::Io(error),
        stranger @ Unreached::Stranger { .. } => AskError::Stranger(stranger),
    }
}

#[cfg(test)]
mod tests {
    use mesh_daemon::Task;

    use super::*;

    fn agent(dir: &Path) -> (Task, Task) {
        let socket = LocalSocket::bind(dir).expect("binds");
        let (requests, mut asked) = mpsc::channel::<Asked>(QUEUE);
        let serve = Task::spawn("socket", socket.serve(requests));
        let agent = Task::spawn("agent", async move {
            while let Some((request, reply)) = asked.recv().await {
                let answer = match request {
                    Request::Leave { .. } => Answer::Refused {
                        message: "no".into(),
                    },
                    _ => Answer::Done,
                };
                drop(reply.send(answer));
            }
        });
        (serve, agent)
    }

    #[tokio::test]
    async fn a_running_agent_answers_and_its_refusals_are_errors() {
        let dir = tempfile::tempdir().expect("a directory");
        let _agent = agent(dir.path());
        let done = ask(dir.path(), &Request::Status).await.expect("answered");
        assert_eq!(done, Answer::Done);
        let error = ask(dir.path(), &Request::Leave { force: false })
            .await
            .expect_err("refused");
        assert_eq!(error.to_string(), "no");
    }

    #[tokio::test]
    async fn the_socket_is_private_and_works_under_a_long_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let long = dir.path().join("x".repeat(120));
        std::fs::create_dir(&long).expect("made");
        let _agent = agent(&long);
        assert!(ask(&long, &Request::Status).await.is_ok());
        let meta = std::fs::metadata(long.join(NAME)).expect("there");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn without_an_agent_the_next_command_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = ask(dir.path(), &Request::Status).await.expect_err("nobody");
        assert!(error.to_string().contains("worker-agent run"), "{error}");
        // A socket that a killed agent left behind is the same.
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(NAME)).expect("binds"));
        assert!(matches!(
            ask(dir.path(), &Request::Status).await,
            Err(AskError::NotRunning)
        ));
        assert!(LocalSocket::bind(dir.path()).is_ok());
    }

    #[tokio::test]
    async fn an_agent_that_is_just_starting_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let lock = StateDir::open(&path).expect("opens");
        let starting = path.clone();
        let _late = Task::spawn("late", async move {
            tokio::time::sleep(RETRY * 3).await;
            let _agent = agent(&starting);
            std::future::pending::<()>().await;
        });
        let reached = ask_or_open(&path, &Request::Status)
            .await
            .expect("answered");
        assert!(
            matches!(reached, Reached::Agent(Answer::Done)),
            "{reached:?}"
        );
        drop(lock);
    }

    #[tokio::test]
    async fn without_an_agent_a_verb_and_then_an_agent_get_the_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        let reached = ask_or_open(&path, &Request::Status).await.expect("opened");
        let Reached::Nobody(state) = reached else {
            panic!("nobody runs")
        };
        let _verb = Task::spawn("verb", async move {
            tokio::time::sleep(RETRY * 3).await;
            drop(state);
        });
        assert!(open_for_running(&path).await.is_ok());
    }

    #[tokio::test]
    async fn nonsense_is_refused_politely() {
        let dir = tempfile::tempdir().expect("a directory");
        let _agent = agent(dir.path());
        let mut stream = UnixStream::connect(dir.path().join(NAME))
            .await
            .expect("connects");
        stream
            .write_all(b"{\"verb\":\"dance\"}\n")
            .await
            .expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        assert!(answer.contains("not understood"), "{answer}");
    }
}
