//! Finds requests whose length can be read in two ways (RFC 9112, 6.1), which hyper hides.
//!
//! Given both `Content-Length` and `Transfer-Encoding`, hyper drops the length before anybody can
//! see it. That is a lawful reading, and nothing can be smuggled through a proxy that frames every
//! message anew; but such a request is an attack or a fault, and it is to be refused. So this
//! watches the bytes of a client's connection on their way to hyper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const LENGTH: &[u8] = b"content-length";
const ENCODING: &[u8] = b"transfer-encoding";
/// Longer than either name with its colon.
const NAME: usize = 24;

/// What was seen on a connection: whether a block of header lines named both lengths.
#[derive(Debug, Clone, Default)]
pub struct Framing(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    ambiguous: AtomicBool,
    stopped: AtomicBool,
}

impl Framing {
    /// Whether a request with two lengths has come in since this was asked last. Ask it for each
    /// request that has a `Transfer-Encoding`; bodies that look like such a request are then read
    /// as one at worst, and refusing is safe.
    pub fn take_ambiguous(&self) -> bool {
        self.0.ambiguous.load(Ordering::Relaxed) && self.0.ambiguous.swap(false, Ordering::Relaxed)
    }

    /// From now on the connection does not carry HTTP: it has switched protocols.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Relaxed)
    }

    fn note(&self) {
        self.0.ambiguous.store(true, Ordering::Relaxed);
    }
}

/// Follows lines and remembers which of the two names the present block of lines has had.
#[derive(Debug, Default)]
struct Scanner {
    name: [u8; NAME],
    /// Bytes of the present line so far, saturating; the first of them are in `name`.
    len: usize,
    length: bool,
    encoding: bool,
}

impl Scanner {
    /// Whether a block with both names was seen in `bytes`.
    fn scan(&mut self, bytes: &[u8]) -> bool {
        let mut both = false;
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest);
            let line = &rest[..end.unwrap_or(rest.len())];
            if self.len < NAME {
                let take = line.len().min(NAME - self.len);
                self.name[self.len..self.len + take].copy_from_slice(&line[..take]);
            }
            self.len = self.len.saturating_add(line.len());
            let Some(end) = end else {
                break;
            };
            both |= self.end_line();
            rest = &rest[end + 1..];
        }
        both
    }

    fn end_line(&mut self) -> bool {
        let line = &self.name[..self.len.min(NAME)];
        let blank = line.is_empty() || line == b"\r";
        if blank {
            self.length = false;
            self.encoding = false;
        } else if matches!(line[0] | 0x20, b'c' | b't') {
            let is = |name: &[u8]| {
                line.get(..name.len())
                    .is_some_and(|head| head.eq_ignore_ascii_case(name))
                    && matches!(line.get(name.len()), Some(b':' | b' ' | b'\t'))
            };
            self.length |= is(LENGTH);
            self.encoding |= is(ENCODING);
        }
        self.len = 0;
        self.length && self.encoding
    }
}

/// Several pieces of up to so many bytes together are written as one: copying them costs less than
/// a system call that gathers them.
const TOGETHER: usize = 4 * 1024;

/// A client's connection that is watched for requests of two lengths.
#[derive(Debug)]
pub struct GuardedIo<T> {
    io: T,
    together: Vec<u8>,
    scanner: Scanner,
    framing: Framing,
}

impl<T> GuardedIo<T> {
    /// Watches `io`.
    pub fn new(io: T) -> (Self, Framing) {
        let framing = Framing::default();
        let guarded = Self {
            io,
            together: Vec::new(),
            scanner: Scanner::default(),
            framing: framing.clone(),
        };
        (guarded, framing)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for GuardedIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        if !new.is_empty() && !this.framing.is_stopped() && this.scanner.scan(new) {
            this.framing.note();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for GuardedIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let io = Pin::new(&mut this.io);
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > TOGETHER {
            return io.poll_write_vectored(cx, bufs);
        }
        this.together.clear();
        for buf in bufs {
            this.together.extend_from_slice(buf);
        }
        io.poll_write(cx, &this.together)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ambiguous(text: &str, step: usize) -> bool {
        let mut scanner = Scanner::default();
        let mut seen = false;
        for piece in text.as_bytes().chunks(step) {
            seen |= scanner.scan(piece);
        }
        seen
    }

    #[test]
    fn both_lengths_in_one_head_are_found_however_the_bytes_arrive() {
        let heads = [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\nX: y\r\nCONTENT-LENGTH : 5\r\n\r\n",
            "GET / HTTP/1.1\n\nPOST / HTTP/1.1\nContent-Length:1\nTransfer-Encoding:x\n\n",
        ];
        for head in heads {
            for step in 1..40 {
                assert!(ambiguous(head, step), "{step}: {head}");
            }
        }
    }

    #[test]
    fn one_length_for_each_request_is_fine() {
        let heads = [
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length-X: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nX: Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        ];
        for head in heads {
            for step in 1..40 {
                assert!(!ambiguous(head, step), "{step}: {head}");
            }
        }
    }
}
