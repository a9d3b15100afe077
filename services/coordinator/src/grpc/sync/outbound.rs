//! What waits for the reader of one stream: two messages at most.
//!
//! tokio's channel keeps room for 32 and takes a kilobyte; this one takes a hundred bytes, and
//! thousands of streams are open (ADR 0026).

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A stream's end; there is one.
#[derive(Debug)]
pub(super) struct Sender<T>(Arc<Mutex<State<T>>>);

/// The reader's end.
#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Mutex<State<T>>>);

/// The reader is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

#[derive(Debug)]
struct State<T> {
    /// INVARIANT: without a first there is no second.
    first: Option<T>,
    second: Option<T>,
    is_over: bool,
    is_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

pub(super) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = Arc::new(Mutex::new(State {
        first: None,
        second: None,
        is_over: false,
        is_gone: false,
        reader: None,
        writer: None,
    }));
    (Sender(Arc::clone(&state)), Receiver(state))
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    // Each change of it is an assignment or two, which do not panic.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<T> Sender<T> {
    /// Waits for room; it stays until something is sent. Cancel-safe.
    pub(super) async fn room(&self) -> Result<(), Gone> {
        poll_fn(|cx| self.poll_room(cx)).await
    }

    fn poll_room(&self, cx: &Context<'_>) -> Poll<Result<(), Gone>> {
        let mut state = lock(&self.0);
        if state.is_gone {
            return Poll::Ready(Err(Gone));
        }
        if state.second.is_none() {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends, once there is room.
    pub(super) async fn send(&self, message: T) -> Result<(), Gone> {
        self.room().await?;
        self.push(message);
        Ok(())
    }

    /// Sends into the room that was waited for. Nobody hears it when the reader has gone since.
    pub(super) fn push(&self, message: T) {
        let mut state = lock(&self.0);
        if state.is_gone {
            return;
        }
        let place = match state.first {
            None => &mut state.first,
            Some(_) => &mut state.second,
        };
        *place = Some(message);
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_over = true;
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }
}

impl<T> Receiver<T> {
    /// The next message; `None` when the stream is over and all was taken.
    pub(super) fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.0);
        if let Some(message) = state.first.take() {
            state.first = state.second.take();
            let writer = state.writer.take();
            drop(state);
            wake(writer);
            return Poll::Ready(Some(message));
        }
        if state.is_over {
            return Poll::Ready(None);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_gone = true;
        let unread = (state.first.take(), state.second.take());
        let writer = state.writer.take();
        drop(state);
        drop(unread);
        wake(writer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counted() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_third_message_waits_until_one_was_read() {
        let (woken, waker) = counted();
        let cx = Context::from_waker(&waker);
        let (sender, mut receiver) = channel();
        for message in [1, 2] {
            assert_eq!(sender.poll_room(&cx), Poll::Ready(Ok(())));
            sender.push(message);
        }
        assert_eq!(sender.poll_room(&cx), Poll::Pending);
        assert_eq!(receiver.poll_recv(&cx), Poll::Ready(Some(1)));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(sender.poll_room(&cx), Poll::Ready(Ok(())));
        sender.push(3);
        assert_eq!(receiver.poll_recv(&cx), Poll::Ready(Some(2)));
        assert_eq!(receiver.poll_recv(&cx), Poll::Ready(Some(3)));
        assert_eq!(receiver.poll_recv(&cx), Poll::Pending);
    }

    #[test]
    fn a_reader_that_waits_hears_each_message_and_the_end() {
        let (woken, waker) = counted();
        let cx = Context::from_waker(&waker);
        let (sender, mut receiver) = channel();
        assert_eq!(receiver.poll_recv(&cx), Poll::Pending);
        sender.push("last");
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(receiver.poll_recv(&cx), Poll::Ready(Some("last")));
        assert_eq!(receiver.poll_recv(&cx), Poll::Pending);
        sender.push("words");
        drop(sender);
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert_eq!(receiver.poll_recv(&cx), Poll::Ready(Some("words")));
        assert_eq!(receiver.poll_recv(&cx), Poll::Ready(None));
    }

    #[test]
    fn a_reader_that_goes_ends_the_wait_for_room_and_frees_what_it_left() {
        let (woken, waker) = counted();
        let cx = Context::from_waker(&waker);
        let (sender, receiver) = channel();
        let message = Arc::new(());
        sender.push(Arc::clone(&message));
        sender.push(Arc::clone(&message));
        assert_eq!(sender.poll_room(&cx), Poll::Pending);
        drop(receiver);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(sender.poll_room(&cx), Poll::Ready(Err(Gone)));
        sender.push(Arc::clone(&message));
        assert_eq!(Arc::strong_count(&message), 1);
    }

    #[test]
    fn it_takes_little_memory() {
        assert!(size_of::<Mutex<State<[usize; 2]>>>() <= 112);
    }
}
