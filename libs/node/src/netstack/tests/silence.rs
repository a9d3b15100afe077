//! Peers that vanish, and connections that only wait, on a clock that the test turns.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::*;

/// Two stacks whose packets cross at once while the cable is in.
struct Clocked {
    stacks: [Netstack; 2],
    now: Instant,
    is_cut: bool,
}

impl Clocked {
    fn new() -> Self {
        let now = Instant::now();
        let stack = |n: u8| {
            let config = StackConfig {
                seed: n.into(),
                ..StackConfig::default()
            };
            let stack = Netstack::new(config, Arc::new(Notify::new()), now);
            stack.set_addrs(addrs(n));
            stack
        };
        Self {
            stacks: [stack(1), stack(2)],
            now,
            is_cut: false,
        }
    }

    /// Carries packets until none are left; says who wants to be called next, and when.
    fn settle(&mut self) -> Option<Instant> {
        let mut queues: [Vec<Vec<u8>>; 2] = Default::default();
        let mut batch = Batch::new();
        loop {
            let mut next = None;
            for side in 0..2 {
                let inbound = std::mem::take(&mut queues[side]);
                let mut packets = inbound.iter().map(Vec::as_slice);
                let due = self.stacks[side].exchange(&mut packets, &mut batch, self.now);
                next = [next, due].into_iter().flatten().min();
                if !self.is_cut {
                    queues[1 - side].extend(batch.iter().map(<[u8]>::to_vec));
                }
                batch.clear();
            }
            let waits = next.is_none_or(|next| next > self.now);
            if waits && queues.iter().all(Vec::is_empty) {
                return next;
            }
        }
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.settle().filter(|&next| next < end);
            let Some(next) = next else { break };
            self.now = next;
        }
        self.now = end;
        self.settle();
    }

    /// A connection from the first to the second, reset by the first after 15 s of silence.
    async fn connect(&mut self) -> (OverlayStream, OverlayStream) {
        let mut listener = self.stacks[1].listen(80).expect("free");
        let dialler = self.stacks[0].clone();
        let silence = Some(Duration::from_secs(15));
        let mut dialled = pin!(dialler.open(v4(2, 80), LIMIT, silence));
        let near = poll_fn(|cx| {
            let polled = dialled.as_mut().poll(cx);
            self.settle();
            match polled {
                Poll::Pending => dialled.as_mut().poll(cx),
                ready => ready,
            }
        });
        let near = near.await.expect("connects");
        let (far, _) = listener.accept().await.expect("arrives");
        (near, far)
    }
}

/// What there is to read at once.
fn read(stream: &mut OverlayStream) -> Poll<io::Result<usize>> {
    let mut bytes = [0; 64 * 1024];
    let mut buf = ReadBuf::new(&mut bytes);
    let mut cx = Context::from_waker(Waker::noop());
    let polled = Pin::new(stream).poll_read(&mut cx, &mut buf);
    polled.map_ok(|()| buf.filled().len())
}

fn write(stream: &mut OverlayStream, data: &[u8]) -> Poll<io::Result<usize>> {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(stream).poll_write(&mut cx, data)
}

fn is_reset(stream: &mut OverlayStream) -> bool {
    matches!(read(stream), Poll::Ready(Err(err)) if err.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn an_idle_connection_to_a_vanished_peer_ends_after_15_s() {
    let mut lab = Clocked::new();
    let (mut near, _far) = lab.connect().await;
    lab.pass(Duration::from_secs(100));
    assert!(read(&mut near).is_pending());
    lab.is_cut = true;
    // The last that was heard is at most 5 s old.
    lab.pass(Duration::from_secs(9));
    assert!(read(&mut near).is_pending());
    lab.pass(Duration::from_secs(8));
    assert!(is_reset(&mut near));
    lab.pass(Duration::from_secs(1));
    drop(near);
    lab.pass(Duration::from_secs(3));
    assert_eq!(lab.stacks[0].connections(), 0);
}

#[tokio::test]
async fn unacknowledged_data_is_sent_again_for_20_s() {
    let mut lab = Clocked::new();
    let (mut near, _far) = lab.connect().await;
    lab.is_cut = true;
    assert!(matches!(write(&mut near, b"hello?"), Poll::Ready(Ok(6))));
    lab.pass(Duration::from_secs(19));
    assert!(read(&mut near).is_pending());
    lab.pass(Duration::from_secs(4));
    assert!(is_reset(&mut near));
}

#[tokio::test]
async fn a_cable_that_is_back_in_time_is_nothing() {
    let mut lab = Clocked::new();
    let (mut near, mut far) = lab.connect().await;
    assert!(matches!(write(&mut near, b"ping"), Poll::Ready(Ok(4))));
    lab.is_cut = true;
    lab.pass(Duration::from_secs(12));
    lab.is_cut = false;
    lab.pass(Duration::from_secs(30));
    assert!(matches!(read(&mut far), Poll::Ready(Ok(4))));
    assert!(read(&mut near).is_pending());
}

#[tokio::test]
async fn connections_that_wait_live_on() {
    let mut lab = Clocked::new();
    let (mut near, mut far) = lab.connect().await;
    // Nobody says anything.
    lab.pass(Duration::from_secs(1200));
    // Nobody reads, so that the window closes and its probes come ever more rarely.
    let data = [7; 16 * 1024];
    let mut sent = 0;
    loop {
        lab.settle();
        match write(&mut near, &data) {
            Poll::Ready(written) => sent += written.expect("open"),
            Poll::Pending => break,
        }
    }
    lab.pass(Duration::from_secs(1200));
    let mut got = 0;
    while got < sent {
        match read(&mut far) {
            Poll::Ready(len) => got += len.expect("open"),
            Poll::Pending => lab.pass(Duration::from_secs(1)),
        }
    }
    assert!(matches!(write(&mut far, b"all there"), Poll::Ready(Ok(9))));
    lab.settle();
    assert!(matches!(read(&mut near), Poll::Ready(Ok(9))));
}

#[tokio::test]
async fn a_node_that_stood_still_blames_nobody() {
    let mut lab = Clocked::new();
    let (mut near, mut far) = lab.connect().await;
    lab.pass(Duration::from_secs(3));
    lab.now += Duration::from_secs(60);
    lab.pass(Duration::from_secs(30));
    assert!(matches!(write(&mut near, b"on"), Poll::Ready(Ok(2))));
    lab.settle();
    assert!(matches!(read(&mut far), Poll::Ready(Ok(2))));
}

#[tokio::test]
async fn what_is_not_watched_outlasts_silence() {
    let mut lab = Clocked::new();
    let (mut near, mut far) = lab.connect().await;
    near.outlast_silence();
    lab.pass(Duration::from_secs(3));
    lab.is_cut = true;
    // Data is on the way in both directions all the time.
    assert!(matches!(write(&mut near, b"on"), Poll::Ready(Ok(2))));
    assert!(matches!(write(&mut far, b"and on"), Poll::Ready(Ok(6))));
    lab.pass(Duration::from_secs(200));
    lab.is_cut = false;
    lab.pass(Duration::from_secs(90));
    assert!(matches!(read(&mut far), Poll::Ready(Ok(2))));
    assert!(matches!(read(&mut near), Poll::Ready(Ok(6))));
}
