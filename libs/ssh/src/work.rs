//! One command on one target, from the open stream to its end.

use std::error::Error;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::client::{Credential, ExecEvent, Exit, Session, Target};
use crate::fanout::Connected;
use crate::report::Outcome;

/// What to run, where, and as whom.
#[derive(Debug, Clone)]
pub struct Work {
    /// The target's position in the run; comes back with each event.
    pub index: usize,
    /// Whom to reach, and its pinned keys.
    pub target: Target,
    /// The user to log in as.
    pub user: String,
    /// How to log in.
    pub credential: Credential,
    /// The command line for the user's shell.
    pub command: String,
}

impl Work {
    /// Runs the command over `stream`; what it writes goes to `output` as it comes. The command
    /// waits while `output` is full.
    pub async fn run<S>(
        self,
        stream: S,
        connected: Connected,
        output: mpsc::Sender<(usize, ExecEvent)>,
    ) -> Outcome
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self.attempt(stream, connected, output).await {
            Ok(exit) => Outcome::Exited(exit),
            Err(error) => Outcome::Failed(reason(&*error)),
        }
    }

    async fn attempt<S>(
        self,
        stream: S,
        connected: Connected,
        output: mpsc::Sender<(usize, ExecEvent)>,
    ) -> Result<Exit, Box<dyn Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut session = Session::connect(stream, &self.target).await?;
        session.authenticate(&self.user, &self.credential).await?;
        let mut exec = session.exec(&self.command).await?;
        connected.now().await;
        let mut exit = Exit::Lost;
        while let Some(event) = exec.next().await {
            match event {
                ExecEvent::Exit(how) => exit = how,
                // Nobody listens any more: the run is over for its caller, and so it is here.
                event => output.send((self.index, event)).await?,
            }
        }
        session.close().await;
        Ok(exit)
    }
}

/// The error and all that lies beneath it, in one line for people.
pub fn reason(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
