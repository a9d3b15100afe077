//! What waits to be written to one client: bounded, and when it is full the oldest goes.
//!
//! Packets are of more use the younger they are, and their senders repeat what is lost; so a
//! client that reads slowly loses old packets and delays nobody else. What the relay itself says
//! (welcome, pongs, who is gone, its health) goes first and is never pushed out by packets.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Most frames that wait for a client.
pub const MAX_FRAMES: usize = 1024;
/// Most bytes that wait for a client.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Most frames of the relay's own that wait for a client.
pub const MAX_CONTROL: usize = 64;

/// The bounded queue itself.
#[derive(Debug, Default)]
pub struct Queue {
    control: VecDeque<Vec<u8>>,
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Queue {
    /// Appends a frame; returns how many old ones were dropped to make room.
    pub fn push(&mut self, frame: Vec<u8>) -> usize {
        let mut dropped = 0;
        while !self.frames.is_empty()
            && (self.frames.len() >= MAX_FRAMES || self.bytes + frame.len() > MAX_BYTES)
        {
            if let Some(oldest) = self.frames.pop_front() {
                self.bytes -= oldest.len();
                dropped += 1;
            }
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        dropped
    }

    /// Appends a frame of the relay's own. `false`: too many wait already, and those stay; who
    /// reads none of them misses nothing by it.
    pub fn push_control(&mut self, frame: Vec<u8>) -> bool {
        let fits = self.control.len() < MAX_CONTROL;
        if fits {
            self.control.push_back(frame);
        }
        fits
    }

    /// Moves frames into `into` until it has at least `enough` bytes or nothing is left.
    pub fn take(&mut self, into: &mut Vec<u8>, enough: usize) {
        while into.len() < enough {
            if let Some(frame) = self.control.pop_front() {
                into.extend_from_slice(&frame);
                continue;
            }
            let Some(frame) = self.frames.pop_front() else {
                return;
            };
            self.bytes -= frame.len();
            into.extend_from_slice(&frame);
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.frames.is_empty()
    }
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    closed: bool,
}

/// A client's queue, shared between the connections that send to it and the one that writes.
#[derive(Debug, Default)]
pub struct Mailbox {
    state: Mutex<State>,
    changed: Notify,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A queue is never half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame; returns how many old ones were dropped to make room.
    pub fn push(&self, frame: Vec<u8>) -> usize {
        let dropped = {
            let mut state = self.state();
            if state.closed {
                return 0;
            }
            state.queue.push(frame)
        };
        self.changed.notify_one();
        dropped
    }

    /// Queues a frame of the relay's own, which no packet pushes out. `false`: too many wait.
    pub fn push_control(&self, frame: Vec<u8>) -> bool {
        let fits = {
            let mut state = self.state();
            if state.closed {
                return true;
            }
            state.queue.push_control(frame)
        };
        self.changed.notify_one();
        fits
    }

    /// Queues a last frame, whatever waits already, and closes.
    pub fn close_with(&self, last: Vec<u8>) {
        {
            let mut state = self.state();
            if !state.closed {
                state.queue.control.push_back(last);
                state.closed = true;
            }
        }
        self.changed.notify_one();
    }

    /// Nothing is queued any more; what waits is still written, then the connection ends.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Closes, and throws away what waits: the client may have nothing more.
    pub fn cut(&self) {
        {
            let mut state = self.state();
            state.closed = true;
            state.queue = Queue::default();
        }
        self.changed.notify_one();
    }

    /// Whether [`Mailbox::close`] or [`Mailbox::cut`] was called.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Waits for frames and takes up to about `enough` bytes of them. `false` when the mailbox is
    /// closed and empty. Cancel-safe; one reader only.
    pub async fn take(&self, into: &mut Vec<u8>, enough: usize) -> bool {
        loop {
            {
                let mut state = self.state();
                state.queue.take(into, enough);
                if !into.is_empty() {
                    return true;
                }
                if state.closed {
                    return false;
                }
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_its_oldest_by_count_and_by_bytes() {
        let mut queue = Queue::default();
        for n in 0..MAX_FRAMES {
            assert_eq!(queue.push(vec![u8::try_from(n % 256).expect("small")]), 0);
        }
        assert_eq!(queue.push(vec![9]), 1);
        let mut out = Vec::new();
        queue.take(&mut out, usize::MAX);
        assert_eq!((out.len(), out[0], out[MAX_FRAMES - 1]), (MAX_FRAMES, 1, 9));

        let half = MAX_BYTES / 2;
        assert_eq!(queue.push(vec![1; half]), 0);
        assert_eq!(queue.push(vec![2; half]), 0);
        assert_eq!(queue.push(vec![3; half]), 1);
        out.clear();
        queue.take(&mut out, 1);
        assert_eq!((out.len(), out[0]), (half, 2));
        assert_eq!(queue.push(vec![4; MAX_BYTES]), 1);
    }

    #[test]
    fn no_flood_of_packets_pushes_out_what_the_relay_says() {
        let mut queue = Queue::default();
        assert!(queue.push_control(vec![1]));
        for _ in 0..3 * MAX_FRAMES {
            queue.push(vec![2; 4096]);
        }
        assert!(queue.push_control(vec![3]));
        let mut out = Vec::new();
        queue.take(&mut out, 2);
        assert_eq!(out, [1, 3], "it goes first");
        let kept = (0..2 * MAX_CONTROL)
            .filter(|_| queue.push_control(vec![4]))
            .count();
        assert_eq!(kept, MAX_CONTROL, "and is bounded itself");
    }

    #[tokio::test]
    async fn the_last_word_gets_through_a_full_mailbox() {
        let mailbox = Mailbox::new();
        while mailbox.push_control(vec![1]) {}
        for _ in 0..2 * MAX_FRAMES {
            mailbox.push(vec![2]);
        }
        mailbox.close_with(vec![9]);
        mailbox.close_with(vec![8]);
        let mut out = Vec::new();
        assert!(mailbox.take(&mut out, usize::MAX).await);
        assert_eq!(out[MAX_CONTROL], 9);
        assert_eq!(out.len(), MAX_CONTROL + 1 + MAX_FRAMES);
        out.clear();
        assert!(!mailbox.take(&mut out, 1).await);
    }

    #[tokio::test]
    async fn what_waits_at_the_close_is_still_given_out() {
        let mailbox = Mailbox::new();
        mailbox.push(vec![1, 2]);
        mailbox.close();
        mailbox.push(vec![3]);
        let mut out = Vec::new();
        assert!(mailbox.take(&mut out, 100).await);
        assert_eq!(out, [1, 2]);
        out.clear();
        assert!(!mailbox.take(&mut out, 100).await);
    }

    #[tokio::test]
    async fn what_waits_at_the_cut_is_thrown_away() {
        let mailbox = Mailbox::new();
        mailbox.push(vec![1, 2]);
        mailbox.cut();
        mailbox.push(vec![3]);
        let mut out = Vec::new();
        assert!(!mailbox.take(&mut out, 100).await);
        assert!(out.is_empty());
    }
}
