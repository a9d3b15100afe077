//! What an HTTP/2 connection may have open, and how long it may stand idle: from its preface on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::listen::STALLED;

mod answer;

pub(super) use answer::Answer;

/// Requests that may be under way at a time on one connection.
pub(super) const MAX_STREAMS: u32 = 100;
/// Bytes of each answer that are held for a client that does not read.
pub(super) const SEND_BUFFER: usize = 64 * 1024;
/// How long a client may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);
/// How often it is looked whether a client takes anything: who has not for [`STALLED`] is cut off
/// at the next look.
const LOOKS: u32 = 4;

/// The requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: AtomicUsize,
    /// How many there have been.
    begun: AtomicUsize,
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
        Stream(Arc::clone(self))
    }
}

/// One request; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Stream(Arc<Streams>);

impl Stream {
    /// Something waits for the client, until this is dropped.
    fn offer(&self) -> Offer {
        self.0.offers.fetch_add(1, Ordering::Relaxed);
        Offer(Arc::clone(&self.0))
    }

    /// The client took something.
    fn taken(&self) {
        self.0.taken.fetch_add(1, Ordering::Relaxed);
    }
}

/// Something that the client has yet to take.
#[derive(Debug)]
struct Offer(Arc<Streams>);

impl Drop for Offer {
    fn drop(&mut self) {
        self.0.offers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that ends when it has had no request for a while, the first one included, or when
/// its client has taken nothing for [`STALLED`] of what waits for it.
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
    /// What had been taken at the last look, and at how many in a row nothing more.
    taken: usize,
    in_vain: u32,
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
            taken: 0,
            in_vain: 0,
            look: Box::pin(tokio::time::sleep(STALLED / LOOKS)),
        }
    }

    /// Whether the client has taken nothing for too long.
    fn is_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        while self.look.as_mut().poll(cx).is_ready() {
            let taken = self.streams.taken.load(Ordering::Relaxed);
            let waits = self.streams.offers.load(Ordering::Relaxed) > 0;
            self.in_vain = match waits && taken == self.taken {
                true => self.in_vain + 1,
                false => 0,
            };
            self.taken = taken;
            self.look.as_mut().reset(Instant::now() + STALLED / LOOKS);
        }
        self.in_vain >= LOOKS
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
    async fn a_connection_without_a_request_ends_after_its_limit_and_a_goodbye() {
        let connection = std::future::pending::<hyper::Result<()>>();
        let patient = Patient::new(connection, Arc::default(), LIMIT, |_| {});
        let begun = Instant::now();
        patient.await.expect("in peace");
        assert_eq!(begun.elapsed().as_secs(), (LIMIT + GOODBYE).as_secs());
    }
}
