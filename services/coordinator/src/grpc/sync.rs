//! The Sync stream: netmap out, heartbeats and reports in. One task per stream.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use mesh_api::model::heartbeat::HeartbeatFacts;
use mesh_api::model::node::NodeReport;
use mesh_api::pb;
use mesh_daemon::DrainGuard;
use mesh_netmap::{EndReason, Output, SessionId};
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::codec::{BufferSettings, HEADER_SIZE};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstDecoder;

use super::auth::{caller, shown};
use super::control::party;
use super::{Grpc, MAX_REQUEST};
use crate::app::heartbeat::{HeartbeatCheck, refusal_word};
use crate::app::{Core, Party};
use crate::error::Error;
use crate::grpc_message::Response;
use crate::known::Shown;
use crate::netmap::{Of, Session};

mod outbound;

/// How long a new stream may wait with its first message.
const HELLO: Duration = Duration::from_secs(10);
/// Reports of one node are taken over at most this often; the newest counts.
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// How long after a failure a report is tried again.
const REPORT_RETRY: Duration = Duration::from_secs(5);
/// How long a goodbye may take to leave.
const GOODBYE: Duration = Duration::from_secs(1);

/// After an update the next one waits for so long; what happens meanwhile becomes part of it. So a
/// thousand changes at once are told in tens of messages.
const PACE: Duration = Duration::from_millis(50);
/// First size of the buffer for what a node says, in bytes: most messages are smaller, and thousands
/// of streams are open.
const BUFFER: usize = 256;
/// Up to how much of it is gathered.
const GATHER: usize = 32 * 1024;

type Boxed = Box<Response>;
/// For what a slow reader has yet to take; parts of netmaps wait in the engine instead.
type Outbound = outbound::Sender<Result<Boxed, Status>>;

/// Serves `Sync`.
pub(super) fn serve(grpc: &Grpc, request: axum::extract::Request) -> axum::response::Response {
    let (parts, body) = request.into_parts();
    let decoder = ProstDecoder::new(BufferSettings::new(BUFFER, GATHER));
    let inbound = Streaming::new_request(decoder, body, None, Some(MAX_REQUEST));
    let metadata = MetadataMap::from_headers(parts.headers);
    match open(
        grpc,
        Request::from_parts(metadata, parts.extensions, inbound),
    ) {
        Ok(answers) => {
            let mut response = axum::response::Response::new(axum::body::Body::new(answers));
            let headers = response.headers_mut();
            headers.insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
            response
        }
        Err(status) => status.into_http(),
    }
}

/// A stream's answers as gRPC frames them: each message behind its length, the status at the end.
///
/// Not by tonic's encoder: it keeps a buffer of the largest message's size while the stream lasts.
struct Answers {
    messages: outbound::Receiver<Result<Boxed, Status>>,
    ended: bool,
}

impl Body for Answers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.messages.poll_recv(cx)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(framed(&message))))),
            Some(Err(status)) => status,
            None => Status::new(Code::Ok, ""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        if let Err(error) = status.add_header(&mut trailers) {
            tracing::debug!(%error, "a stream ended without its reason");
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// A message behind its prefix: not compressed, so many bytes.
fn framed(message: &Response) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER_SIZE + len);
    bytes.push(0);
    // INVARIANT: parts of netmaps are cut far below this; nothing else is larger.
    bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut bytes);
    bytes.into()
}

fn open(grpc: &Grpc, request: Request<Streaming<pb::SyncRequest>>) -> Result<Answers, Status> {
    let caller = caller(&request)?;
    let party = party(&caller)?;
    let (outbound, messages) = outbound::channel();
    let stream = Stream {
        grpc: grpc.clone(),
        party,
        shown: shown(&request)?,
        outbound,
        _guard: grpc.shutdown.guard(),
    };
    let mut inbound = request.into_inner();
    grpc.spawn("sync-stream", async move { stream.run(&mut inbound).await });
    Ok(Answers {
        messages,
        ended: false,
    })
}

struct Stream {
    grpc: Grpc,
    party: Party,
    shown: Arc<Shown>,
    outbound: Outbound,
    _guard: DrainGuard,
}

/// How a stream goes on after a step.
enum Step {
    On,
    /// Says goodbye and ends.
    Bye(Boxed),
    /// Ends with this error.
    Fail(Status),
    /// The other side is gone.
    Gone,
}

/// What waits to be done for a stream.
struct Pending {
    /// The next part of the netmap, once the reader has room.
    part: Option<Boxed>,
    /// When the next update may be taken.
    part_at: Instant,
    /// The newest acknowledgement.
    ack: Option<Boxed>,
    report: Option<Box<NodeReport>>,
    report_at: Instant,
    /// The report that is being taken over. It may wait for the database, which nothing else here
    /// does.
    passing: Option<Passing>,
}

struct Passing {
    report: Box<NodeReport>,
    answer: oneshot::Receiver<Result<(), Error>>,
}

impl Stream {
    // What lasts as long as the stream is lent to these: what an async function owns is there twice.
    async fn run(&self, inbound: &mut Streaming<pb::SyncRequest>) {
        let figure = &self.core().figures.sync_streams;
        figure.inc();
        let end = self.converse(inbound).await;
        figure.dec();
        let last = match end {
            Step::On | Step::Gone => return,
            Step::Bye(goodbye) => Ok(goodbye),
            Step::Fail(status) => Err(status),
        };
        if tokio::time::timeout(GOODBYE, self.outbound.send(last))
            .await
            .is_err()
        {
            tracing::debug!(party = ?self.party, "a reader was too slow for its goodbye");
        }
    }

    fn core(&self) -> &Arc<Core> {
        &self.grpc.core
    }

    async fn converse(&self, inbound: &mut Streaming<pb::SyncRequest>) -> Step {
        // Boxed, or what it takes to open would be part of every open stream.
        let (mut session, nonce) = match Box::pin(self.open(inbound)).await {
            Ok(opened) => opened,
            Err(step) => return step,
        };
        // INVARIANT: the call was let through, so this was the enrolled one; a change of it ends us.
        let identity = self.shown.certificate.identity.clone();
        let mut check = HeartbeatCheck::new(self.party.bytes(), identity, nonce);
        self.follow(inbound, &mut session, &mut check).await
    }

    /// Hears the hello, says welcome and opens the session.
    async fn open(
        &self,
        inbound: &mut Streaming<pb::SyncRequest>,
    ) -> Result<(Session, [u8; 32]), Step> {
        let hello = match tokio::time::timeout(HELLO, inbound.message()).await {
            Ok(Ok(Some(pb::SyncRequest {
                message: Some(pb::sync_request::Message::Hello(hello)),
            }))) => hello,
            Ok(Ok(Some(_))) => {
                let status = Status::invalid_argument("the first message must be a hello");
                return Err(Step::Fail(status));
            }
            Ok(Ok(None) | Err(_)) => return Err(Step::Gone),
            Err(_) => {
                let status = Status::deadline_exceeded("no hello within 10 seconds");
                return Err(Step::Fail(status));
            }
        };
        let of = match self.party {
            Party::Node(id) => Of::Node(id, hello.cursor.map(Into::into)),
            Party::Relay(id) => Of::Relay(id),
        };
        let nonce = self
            .core()
            .nonce()
            .map_err(|error| Step::Fail(error.into()))?;
        let welcome = Box::new(Response::welcome(&nonce, self.core().now()));
        if self.outbound.send(Ok(welcome)).await.is_err() {
            return Err(Step::Gone);
        }
        let session = tokio::select! {
            opened = self.core().netmap.open(of) => opened,
            () = self.grpc.shutdown.draining() => return Err(bye_shutdown()),
        };
        match session {
            Ok(session) => {
                self.take_version(hello.version);
                Ok((session, nonce))
            }
            Err(Error::Removed(_)) => Err(bye_removed()),
            Err(error) => Err(Step::Fail(error.into())),
        }
    }

    async fn follow(
        &self,
        inbound: &mut Streaming<pb::SyncRequest>,
        session: &mut Session,
        check: &mut HeartbeatCheck,
    ) -> Step {
        let mut pending = Pending {
            part: None,
            part_at: Instant::now(),
            ack: None,
            report: None,
            report_at: Instant::now(),
            passing: None,
        };
        let mut over = pin!(self.shown.over());
        loop {
            let step = tokio::select! {
                message = inbound.message() => match take(message, &mut pending) {
                    Taken::Beat(heartbeat) => {
                        // Boxed, or every stream would keep room for it at rest.
                        let taken = Box::pin(self.take_heartbeat(heartbeat, check));
                        pending.ack = Some(taken.await);
                        Step::On
                    }
                    Taken::Step(step) => step,
                },
                news = next_after(session, pending.part_at), if pending.part.is_none() => {
                    if matches!(&news, Some(Output::Netmap(update)) if update.full && update.last) {
                        self.core().figures.full_maps.inc();
                    }
                    if matches!(&news, Some(Output::End(EndReason::Replaced))) {
                        self.core().taken_over(self.party);
                    }
                    take_news(news, &mut pending)
                }
                room = self.outbound.room(),
                    if pending.ack.is_some() || pending.part.is_some() => match room {
                    Ok(()) => {
                        let next = pending.ack.take().or_else(|| pending.part.take());
                        if let Some(next) = next {
                            self.outbound.push(Ok(next));
                        }
                        Step::On
                    }
                    Err(outbound::Gone) => Step::Gone,
                },
                () = tokio::time::sleep_until(pending.report_at),
                    if pending.report.is_some() && pending.passing.is_none() => {
                    self.pass_report(session.id(), &mut pending);
                    Step::On
                }
                answer = passed(&mut pending.passing) => self.report_passed(&mut pending, answer),
                () = &mut over => bye_removed(),
                () = self.grpc.shutdown.draining() => bye_shutdown(),
            };
            if !matches!(step, Step::On) {
                return step;
            }
        }
    }

    async fn take_heartbeat(&self, heartbeat: pb::Heartbeat, check: &mut HeartbeatCheck) -> Boxed {
        let pb::Heartbeat { body, signature } = heartbeat;
        let now = self.core().now();
        let facts = HeartbeatFacts::read(&body);
        let sequence = facts.map_or(0, |facts| facts.sequence);
        let said = facts.map(|facts| facts.standing).unwrap_or_default();
        match check.accept(&body, &signature, facts, now) {
            Ok(sequence) => {
                if let Err(error) = self.core().heartbeat(self.party, said).await {
                    let error = mesh_daemon::report::chain(&error);
                    tracing::debug!(party = ?self.party, error, "a heartbeat did not count");
                }
                Box::new(Response::ack(sequence, "", now))
            }
            Err(refusal) => {
                self.core().heartbeat_refused(self.party, refusal);
                Box::new(Response::ack(sequence, refusal_word(refusal), now))
            }
        }
    }

    /// Has the program's version noted; nobody waits for that.
    fn take_version(&self, version: String) {
        let (core, party) = (Arc::clone(self.core()), self.party);
        if !core.is_version_news(party, &version) {
            return;
        }
        let action = Box::pin(async move {
            let noted = core.again(|| core.hello(party, &version)).await;
            if let Err(error) = &noted {
                let error = mesh_daemon::report::chain(error);
                tracing::debug!(?party, error, "a program's version was not noted");
            }
            noted
        });
        drop(self.core().start("hello", action));
    }

    fn pass_report(&self, session: SessionId, pending: &mut Pending) {
        let Some(report) = pending.report.take() else {
            return;
        };
        let (core, party, again) = (Arc::clone(self.core()), self.party, report.clone());
        // Boxed, or its size would be part of every stream's.
        let action = Box::pin(async move { core.report(party, session, *again).await });
        let answer = self.core().start("report", action);
        pending.passing = Some(Passing { report, answer });
    }

    fn report_passed(&self, pending: &mut Pending, answer: Result<(), Error>) -> Step {
        let passed = pending.passing.take();
        match answer {
            Ok(()) => {
                pending.report_at = Instant::now() + REPORT_EVERY;
                Step::On
            }
            Err(Error::Removed(_)) => bye_removed(),
            Err(error) => {
                let error = mesh_daemon::report::chain(&error);
                tracing::info!(party = ?self.party, error, "a report is taken over later");
                // A newer one may have come meanwhile.
                let newest = pending.report.take();
                pending.report = newest.or(passed.map(|passed| passed.report));
                pending.report_at = Instant::now() + REPORT_RETRY;
                Step::On
            }
        }
    }
}

/// What a message from a stream asks for.
enum Taken {
    Beat(pb::Heartbeat),
    Step(Step),
}

/// Takes a message over; what may wait is answered by [`Stream::take_heartbeat`].
fn take(message: Result<Option<pb::SyncRequest>, Status>, pending: &mut Pending) -> Taken {
    use pb::sync_request::Message;

    let Ok(Some(request)) = message else {
        return Taken::Step(Step::Gone);
    };
    Taken::Step(match request.message {
        Some(Message::Heartbeat(heartbeat)) => return Taken::Beat(heartbeat),
        Some(Message::Report(report)) => match NodeReport::try_from(report) {
            Ok(report) => {
                pending.report = Some(Box::new(report));
                Step::On
            }
            Err(error) => Step::Fail(error.into()),
        },
        Some(Message::Hello(_)) => Step::Fail(Status::invalid_argument(
            "a second hello on the same stream",
        )),
        // A newer program's message: nothing we could act on.
        None => Step::On,
    })
}

/// What became of the report under way; pending while none is. Cancel-safe.
async fn passed(passing: &mut Option<Passing>) -> Result<(), Error> {
    match passing {
        Some(Passing { answer, .. }) => answer.await.map_err(|_| Error::ShuttingDown)?,
        None => std::future::pending().await,
    }
}

/// The next news, when it is time for it. Cancel-safe.
async fn next_after(session: &mut Session, at: Instant) -> Option<Output> {
    tokio::time::sleep_until(at).await;
    session.next().await
}

fn take_news(news: Option<Output>, pending: &mut Pending) -> Step {
    match news {
        Some(Output::Netmap(update)) => {
            if update.last {
                pending.part_at = Instant::now() + PACE;
            }
            pending.part = Some(Box::new(Response::netmap(update)));
            Step::On
        }
        Some(Output::End(reason)) => Step::Bye(Box::new(Response::ended(reason))),
        // A node's session brings nothing else.
        Some(Output::Routes(_) | Output::Clients(_)) => Step::On,
        None => bye_shutdown(),
    }
}

fn bye_removed() -> Step {
    Step::Bye(Box::new(Response::goodbye(
        pb::sync_goodbye::Reason::Removed,
    )))
}

fn bye_shutdown() -> Step {
    Step::Bye(Box::new(Response::goodbye(
        pb::sync_goodbye::Reason::Shutdown,
    )))
}

#[cfg(test)]
mod tests;
