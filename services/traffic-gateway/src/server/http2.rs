//! What an HTTP/2 connection may have open, and how long it may stand idle: from its preface on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

mod answer;
mod request;

pub(super) use answer::Answer;
pub(super) use request::Requests;
use request::Waiting;

/// Requests that may be under way at a time on one connection.
pub(super) const MAX_STREAMS: u32 = 100;
/// Bytes of each answer that are held for a client that does not read.
pub(super) const SEND_BUFFER: usize = 64 * 1024;
/// How long a client may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);
/// Who takes nothing of what waits for it for this long is cut off, at the next look. Longer than by
/// HTTP/1.1, since here the kernel does the taking: of one who reads slowly it does so in pieces of
/// more than a megabyte.
pub(super) const NO_ROOM: Duration = Duration::from_secs(300);
/// How often it is looked in this time.
const LOOKS: u32 = 4;

/// The requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: AtomicUsize,
    /// How many there have been.
    begun: AtomicUsize,
    /// Those without an answer so far: the client sends, or its worker works.
    unanswered: AtomicUsize,
    /// Things that wait for the client to make room for them.
    offers: AtomicUsize,
    /// How often it has.
    taken: AtomicUsize,
}

impl Streams {
    /// A request begins.
    pub(super) fn enter(self: &Arc<Self>) -> Stream {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        Stream {
            streams: Arc::clone(self),
            waiting: Arc::default(),
            is_answered: false,
        }
    }
}

/// Looks, [`LOOKS`] times in [`NO_ROOM`], whether anything is taken of what waits for the client.
#[derive(Debug, Default)]
struct Looks {
    /// What had been taken at the last look, and at how many in a row nothing more.
    taken: usize,
    in_vain: u32,
}

impl Looks {
    fn look(&mut self, waits: bool, taken: usize) {
        self.in_vain = match waits && taken == self.taken {
            true => self.in_vain + 1,
            false => 0,
        };
        self.taken = taken;
    }

    /// Whether nothing was taken for too long. The first look came some time after whatever waits.
    fn is_stalled(&self) -> bool {
        self.in_vain > LOOKS
    }
}

/// One request; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Stream {
    streams: Arc<Streams>,
    waiting: Arc<Waiting>,
    is_answered: bool,
}

impl Stream {
    /// Its answer begins.
    fn answered(&mut self) {
        if !self.is_answered {
            self.is_answered = true;
            self.streams.unanswered.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Something waits for the client, until this is dropped.
    fn offer(&self) -> Offer {
        self.streams.offers.fetch_add(1, Ordering::Relaxed);
        self.waiting.offers.fetch_add(1, Ordering::Relaxed);
        Offer(Arc::clone(&self.streams), Arc::clone(&self.waiting))
    }

    /// The client took something.
    fn taken(&self) {
        self.streams.taken.fetch_add(1, Ordering::Relaxed);
        self.waiting.taken.fetch_add(1, Ordering::Relaxed);
    }
}

/// Something that the client has yet to take.
#[derive(Debug)]
struct Offer(Arc<Streams>, Arc<Waiting>);

impl Drop for Offer {
    fn drop(&mut self) {
        self.0.offers.fetch_sub(1, Ordering::Relaxed);
        self.1.offers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.answered();
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that ends when it has had no request for a while, the first one included, or when
/// its client has taken nothing for [`NO_ROOM`] of what waits for it. While a request on it has no
/// answer so far, that one is worth more than the room that others hold. An answer of which nothing is
/// taken beside others that are ends by itself: [`Requests`].
pub(super) struct Patient<F, E> {
    connection: Pin<Box<F>>,
    /// Tells the connection to end.
    end: E,
    streams: Arc<Streams>,
    /// How many requests there had been when the time began.
    begun: usize,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    is_ending: bool,
    looks: Looks,
    look: Pin<Box<Sleep>>,
}

impl<F, E: Fn(Pin<&mut F>)> Patient<F, E> {
    /// `end` asks the connection to end.
    pub(super) fn new(connection: F, streams: Arc<Streams>, limit: Duration, end: E) -> Self {
        Self {
            connection: Box::pin(connection),
            end,
            streams,
            begun: 0,
            limit,
            timer: Box::pin(tokio::time::sleep(limit)),
            is_ending: false,
            looks: Looks::default(),
            look: Box::pin(tokio::time::sleep(NO_ROOM / LOOKS)),
        }
    }

    /// Whether the client has taken nothing for too long.
    fn is_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        while self.look.as_mut().poll(cx).is_ready() {
            let taken = self.streams.taken.load(Ordering::Relaxed);
            let offers = self.streams.offers.load(Ordering::Relaxed);
            let unanswered = self.streams.unanswered.load(Ordering::Relaxed);
            self.looks.look(offers > 0 && unanswered == 0, taken);
            self.look.as_mut().reset(Instant::now() + NO_ROOM / LOOKS);
        }
        self.looks.is_stalled()
    }

    /// Asks the connection to end.
    pub(super) fn end(&mut self) {
        (self.end)(self.connection.as_mut());
    }
}

impl<F, E> Future for Patient<F, E>
where
    F: Future<Output = hyper::Result<()>>,
    E: Fn(Pin<&mut F>) + Unpin,
{
    type Output = hyper::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(end) = this.connection.as_mut().poll(cx) {
                return Poll::Ready(end);
            }
            if this.is_stalled(cx) {
                tracing::debug!("a client takes nothing of its answers");
                return Poll::Ready(Ok(()));
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let begun = this.streams.begun.load(Ordering::Relaxed);
            let open = this.streams.open.load(Ordering::Relaxed);
            let is_idle = open == 0 && begun == this.begun;
            this.begun = begun;
            let time = if this.is_ending {
                // A request may have come in the moment in which the end was announced.
                if open == 0 {
                    return Poll::Ready(Ok(()));
                }
                GOODBYE.min(this.limit)
            } else if is_idle {
                this.is_ending = true;
                this.end();
                GOODBYE.min(this.limit)
            } else {
                this.limit
            };
            this.timer.as_mut().reset(Instant::now() + time);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_as_the_end_is_announced_is_answered_first() {
        let streams = Arc::new(Streams::default());
        let late: Arc<Mutex<Option<Stream>>> = Arc::default();
        let (entered, held) = (Arc::clone(&streams), Arc::clone(&late));
        let connection = std::future::pending::<hyper::Result<()>>();
        let mut patient = Patient::new(connection, streams, LIMIT, move |_| {
            *held.lock().expect("not poisoned") = Some(entered.enter());
        });
        let begun = Instant::now();
        let ended = tokio::time::timeout(100 * LIMIT, &mut patient).await;
        assert!(ended.is_err(), "it ended beside an open request");
        let stream = late.lock().expect("not poisoned").take();
        assert!(stream.is_some(), "the end was announced");
        drop(stream);
        let ended = tokio::time::timeout(GOODBYE, patient).await;
        ended.expect("soon").expect("in peace");
        assert!(begun.elapsed() <= 100 * LIMIT + GOODBYE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_keeps_the_connection_from_being_cut_off() {
        let streams = Arc::new(Streams::default());
        let mut stalled = streams.enter();
        stalled.answered();
        let _offer = stalled.offer();
        let uploads = streams.enter();
        let connection = std::future::pending::<hyper::Result<()>>();
        let mut patient = Patient::new(connection, streams, LIMIT, |_| {});
        let early = tokio::time::timeout(4 * NO_ROOM, &mut patient).await;
        assert!(early.is_err(), "an upload goes on");
        drop(uploads);
        let early = tokio::time::timeout(NO_ROOM, &mut patient).await;
        assert!(early.is_err(), "it had no time to take anything");
        let late = tokio::time::timeout(NO_ROOM, &mut patient).await;
        late.expect("nobody waits for ever").expect("in peace");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_ends_after_its_limit_and_a_goodbye() {
        let connection = std::future::pending::<hyper::Result<()>>();
        let patient = Patient::new(connection, Arc::default(), LIMIT, |_| {});
        let begun = Instant::now();
        patient.await.expect("in peace");
        assert_eq!(begun.elapsed().as_secs(), (LIMIT + GOODBYE).as_secs());
    }
}
