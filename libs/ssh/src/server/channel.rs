//! One session channel: what the client asks for, the process that comes of it, and the bytes
//! between the two (RFC 4254, section 6).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::{Buf, Bytes};
use mesh_trace::{Span, TraceParent, Tracer};
use nix::pty::Winsize;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::time::{Instant, sleep_until};

use super::account::Account;
use super::process::{Io, Process, Program, Terminal, read_terminal, write_terminal};
use super::{platform, signal};

/// Input that the process has not taken yet is held up to this many bytes; then the connection is
/// read no further until it takes some.
///
/// It is as large as this because a connection that is not read carries no window updates either:
/// a process that echoes its input would stop for good with a small one.
const INPUT_LIMIT: usize = 32 * 1024 * 1024;
/// After the leader of a terminal has ended, what it wrote last is collected for this long.
const TERMINAL_DRAIN: Duration = Duration::from_millis(300);
/// The status of a command whose process could not be started, as shells give it.
const CANNOT_START: u32 = 126;
const READ_SIZE: usize = 32 * 1024;
/// The terminal's end-of-file character, ^D.
const END_OF_FILE: &[u8] = b"\x04";

/// What the client asked for before the start.
#[derive(Default)]
struct Setup {
    terminal: Option<Terminal>,
    env: BTreeMap<String, String>,
    /// The span that the client works in; the process is not told.
    parent: Option<TraceParent>,
}

/// What a channel is served with.
pub(super) struct Serving {
    pub(super) handle: Handle,
    pub(super) account: Account,
    /// Whether a terminal may be had.
    pub(super) pty: bool,
    pub(super) tracer: Tracer,
    pub(super) node: String,
}

/// Serves one channel to its end.
pub(super) async fn serve(channel: Channel<Msg>, serving: Serving) {
    let id = channel.id();
    let (mut requests, output) = channel.split();
    let Some((program, setup)) = setup(&mut requests, serving.pty).await else {
        return;
    };
    // Neither what is run nor what it says is anybody's who reads traces.
    let name = match program {
        Program::Command(_) => "ssh exec",
        Program::LoginShell => "ssh shell",
    };
    let span = serving.tracer.answer(name, || setup.parent);
    if serving.tracer.is_on() {
        span.set("mesh.node", serving.node.clone());
        span.set("mesh.ssh.user", serving.account.name.clone());
    }
    let work = start((id, requests, output), &serving, &program, &setup, &span);
    span.scope(work).await;
}

type Ends = (ChannelId, ChannelReadHalf, ChannelWriteHalf<Msg>);

async fn start(
    (id, requests, output): Ends,
    serving: &Serving,
    program: &Program,
    setup: &Setup,
    span: &Span,
) {
    let (handle, account) = (&serving.handle, &serving.account);
    match Process::start(account, program, setup.terminal.as_ref(), &setup.env) {
        Ok((process, io)) => {
            tracing::debug!(user = account.name, channel = %id, "process started");
            let run = Run {
                process,
                requests,
                output: &output,
            };
            match run.until_end(io).await {
                Some(status) => {
                    if let Some(code) = status.code() {
                        span.set("process.exit.code", i64::from(code));
                    }
                    report(handle, id, status).await;
                }
                None => return,
            }
        }
        Err(error) => {
            span.fail("not started");
            let shell = account.shell.display();
            let text = format!("mesh: cannot start {shell}: {error}\r\n");
            drop(output.extended_data_bytes(1, text).await);
            let _ = handle.exit_status_request(id, CANNOT_START).await;
        }
    }
    let _ = handle.eof(id).await;
    let _ = handle.close(id).await;
}

/// Collects requests until something is to be started; `None` when the client goes first.
async fn setup(requests: &mut ChannelReadHalf, pty: bool) -> Option<(Program, Setup)> {
    let mut setup = Setup::default();
    loop {
        match requests.wait().await? {
            ChannelMsg::RequestPty {
                term,
                col_width,
                row_height,
                pix_width,
                pix_height,
                ..
            } if pty => {
                setup.terminal = Some(Terminal {
                    term: if term.is_empty() {
                        "dumb".to_owned()
                    } else {
                        term
                    },
                    size: window(col_width, row_height, pix_width, pix_height),
                });
            }
            ChannelMsg::WindowChange {
                col_width,
                row_height,
                pix_width,
                pix_height,
            } => {
                if let Some(terminal) = &mut setup.terminal {
                    terminal.size = window(col_width, row_height, pix_width, pix_height);
                }
            }
            ChannelMsg::SetEnv {
                variable_name,
                variable_value,
                ..
            } if variable_name == crate::TRACEPARENT => {
                setup.parent = TraceParent::parse(&variable_value);
            }
            ChannelMsg::SetEnv {
                variable_name,
                variable_value,
                ..
            } if super::accepts_env(&variable_name) => {
                setup.env.insert(variable_name, variable_value);
            }
            ChannelMsg::Exec { command, .. } => {
                let line = String::from_utf8_lossy(&command).into_owned();
                return Some((Program::Command(line), setup));
            }
            ChannelMsg::RequestShell { .. } => return Some((Program::LoginShell, setup)),
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

fn window(columns: u32, rows: u32, width: u32, height: u32) -> Winsize {
    let cell = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Winsize {
        ws_col: cell(columns),
        ws_row: cell(rows),
        ws_xpixel: cell(width),
        ws_ypixel: cell(height),
    }
}

async fn report(handle: &Handle, id: ChannelId, status: ExitStatus) {
    if let Some(number) = status.signal() {
        let signal = signal::from_system(number);
        let dumped = status.core_dumped();
        let sent = handle.exit_signal_request(id, signal, dumped, String::new(), "en".to_owned());
        let _ = sent.await;
    } else {
        let code = status.code().and_then(|code| u32::try_from(code).ok());
        let _ = handle.exit_status_request(id, code.unwrap_or(255)).await;
    }
}

struct Run<'a> {
    process: Process,
    requests: ChannelReadHalf,
    output: &'a ChannelWriteHalf<Msg>,
}

/// Bytes on their way into the process.
#[derive(Default)]
struct Input {
    queue: VecDeque<Bytes>,
    held: usize,
    /// The client will send no more.
    ended: bool,
    /// The process takes no more.
    refused: bool,
}

impl Input {
    fn push(&mut self, data: Bytes) {
        if !self.refused && !data.is_empty() {
            self.held += data.len();
            self.queue.push_back(data);
        }
    }

    fn took(&mut self, n: usize) {
        self.held -= n;
        if let Some(front) = self.queue.front_mut() {
            front.advance(n);
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    fn refuse(&mut self) {
        self.queue.clear();
        self.held = 0;
        self.refused = true;
    }

    fn has_room(&self) -> bool {
        self.held < INPUT_LIMIT
    }
}

enum Sink {
    Pipe(Option<ChildStdin>),
    Terminal,
}

impl Run<'_> {
    /// Moves bytes until the process has ended and all it wrote is sent; `None` when the client
    /// went first, and the process was ended for it.
    async fn until_end(self, io: Io) -> Option<ExitStatus> {
        match io {
            Io::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let output = self.output;
                let pumps = async {
                    tokio::join!(pump(stdout, output, None), pump(stderr, output, Some(1)));
                };
                self.turn(pumps, Sink::Pipe(Some(stdin)), None).await
            }
            Io::Terminal(terminal) => {
                let pumps = pump_terminal(&terminal, self.output);
                self.turn(pumps, Sink::Terminal, Some(&terminal)).await
            }
        }
    }

    async fn turn(
        mut self,
        pumps: impl Future<Output = ()>,
        mut sink: Sink,
        terminal: Option<&AsyncFd<OwnedFd>>,
    ) -> Option<ExitStatus> {
        let mut pumps = pin!(pumps);
        let mut input = Input::default();
        let mut status = None;
        let mut drained = false;
        let mut drain_until = Instant::now();
        loop {
            if let Some(status) = status
                && drained
            {
                return Some(status);
            }
            let queued = !input.queue.is_empty();
            tokio::select! {
                exited = self.process.wait(), if status.is_none() => match exited {
                    Ok(exited) => {
                        status = Some(exited);
                        drain_until = Instant::now() + TERMINAL_DRAIN;
                    }
                    Err(error) => {
                        tracing::info!(%error, "cannot wait for a process");
                        self.process.hang_up().await;
                        return None;
                    }
                },
                () = &mut pumps, if !drained => drained = true,
                // Something in the background may hold the terminal open for ever.
                () = sleep_until(drain_until), if status.is_some() && terminal.is_some() => {
                    drained = true;
                }
                message = self.requests.wait(), if input.has_room() => {
                    if !self.handle(message, &mut input, terminal) {
                        self.process.hang_up().await;
                        return None;
                    }
                }
                written = write(&mut sink, terminal, &input), if queued => match written {
                    Ok(n) => input.took(n),
                    Err(_closed) => input.refuse(),
                },
            }
            if (input.refused || (input.ended && input.queue.is_empty()))
                && let Sink::Pipe(pipe) = &mut sink
            {
                *pipe = None;
            }
        }
    }

    /// Takes in one message; `false` when the client has gone.
    fn handle(
        &self,
        message: Option<ChannelMsg>,
        input: &mut Input,
        terminal: Option<&AsyncFd<OwnedFd>>,
    ) -> bool {
        match message {
            None | Some(ChannelMsg::Close) => return false,
            Some(ChannelMsg::Data { data }) => input.push(data),
            Some(ChannelMsg::Eof) => {
                if terminal.is_some() {
                    input.push(Bytes::from_static(END_OF_FILE));
                }
                input.ended = true;
            }
            Some(ChannelMsg::Signal { signal }) => {
                if let Some(signal) = signal::to_system(&signal) {
                    self.process.signal(signal);
                }
            }
            Some(ChannelMsg::WindowChange {
                col_width,
                row_height,
                pix_width,
                pix_height,
            }) => {
                if let Some(terminal) = terminal {
                    let size = window(col_width, row_height, pix_width, pix_height);
                    if let Err(error) = platform::resize(terminal, &size) {
                        tracing::debug!(%error, "cannot resize a terminal");
                    }
                }
            }
            Some(_) => {}
        }
        true
    }
}

/// Hands the first queued bytes to the process. Cancel safe.
async fn write(
    sink: &mut Sink,
    terminal: Option<&AsyncFd<OwnedFd>>,
    input: &Input,
) -> io::Result<usize> {
    let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
    let front = input.queue.front().ok_or_else(closed)?;
    match (sink, terminal) {
        (Sink::Pipe(Some(pipe)), _) => pipe.write(front).await,
        (Sink::Terminal, Some(terminal)) => write_terminal(terminal, front).await,
        _ => Err(closed()),
    }
}

/// Sends all that `from` gives; stops when the client takes no more.
async fn pump(mut from: impl AsyncRead + Unpin, to: &ChannelWriteHalf<Msg>, extended: Option<u32>) {
    let mut buf = vec![0; READ_SIZE];
    while let Ok(n) = from.read(&mut buf).await {
        if n == 0 {
            break;
        }
        let data = Bytes::copy_from_slice(&buf[..n]);
        let sent = match extended {
            None => to.data_bytes(data).await,
            Some(code) => to.extended_data_bytes(code, data).await,
        };
        if sent.is_err() {
            break;
        }
    }
}

async fn pump_terminal(from: &AsyncFd<OwnedFd>, to: &ChannelWriteHalf<Msg>) {
    let mut buf = vec![0; READ_SIZE];
    while let Ok(n) = read_terminal(from, &mut buf).await {
        if n == 0
            || to
                .data_bytes(Bytes::copy_from_slice(&buf[..n]))
                .await
                .is_err()
        {
            break;
        }
    }
}
