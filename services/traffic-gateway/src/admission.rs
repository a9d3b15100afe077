//! How many clients may be connected, and which core serves each of them.
//!
//! The kernel spreads connections over the cores by a hash, which is even in the long run only: of
//! 64 connections one core of two may get 40, and the clients there wait longer. So a core that
//! has accepted a connection hands it over to the core with the fewest.
//!
//! When there are as many as there may be, those that have waited longest for a request make room
//! ([`mesh_daemon::Places`]): clients that say nothing lock nobody out.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_daemon::{Turn, UnderWay};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::metrics::GatewayMetrics;

/// Connections that may be on their way to a core; beyond that they stay where they were accepted.
const ON_THE_WAY: usize = 128;
/// How long a newcomer keeps its place whoever else comes, once what it sent so far was read and is
/// no request. Not at all: others would be refused meanwhile, and as a rule thousands must come
/// after it before it is its turn.
const GRACE: Duration = Duration::ZERO;

/// A connection on its way from one core to another one.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) place: Place,
}

/// Counts the connections of all cores together.
#[derive(Debug)]
struct Places {
    free: mesh_daemon::Places,
    by_core: Box<[AtomicUsize]>,
    gauge: Gauge,
    refused: Counter,
}

/// The permit of one connection. Lives as long as the connection does, a tunnel's included.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    core: usize,
    seat: mesh_daemon::Place,
}

impl Places {
    fn take(self: &Arc<Self>, core: usize) -> Option<Place> {
        let Some(seat) = self.free.take() else {
            self.refused.inc();
            return None;
        };
        self.gauge.inc();
        self.by_core[core].fetch_add(1, Ordering::Relaxed);
        Some(Place {
            places: Arc::clone(self),
            core,
            seat,
        })
    }

    fn idlest(&self) -> Option<(usize, usize)> {
        let loads = self.by_core.iter().map(|load| load.load(Ordering::Relaxed));
        loads.enumerate().min_by_key(|&(_, load)| load)
    }
}

impl Place {
    /// Whether this connection has a request under way.
    pub(crate) fn turn(&self) -> &Turn {
        self.seat.turn()
    }

    /// Whether another core has so much less to do that this connection is better off there.
    fn better(&self) -> Option<usize> {
        let (core, load) = self.places.idlest()?;
        let own = self.places.by_core[self.core].load(Ordering::Relaxed);
        (load + 1 < own).then_some(core)
    }

    fn move_to(&mut self, core: usize) {
        self.places.by_core[core].fetch_add(1, Ordering::Relaxed);
        self.places.by_core[self.core].fetch_sub(1, Ordering::Relaxed);
        self.core = core;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.by_core[self.core].fetch_sub(1, Ordering::Relaxed);
        self.places.gauge.dec();
    }
}

/// One core's door: what it accepts, and what others hand over to it.
#[derive(Debug)]
pub(crate) struct Door {
    core: usize,
    places: Arc<Places>,
    others: Arc<[mpsc::Sender<Handed>]>,
    handed: mpsc::Receiver<Handed>,
}

/// What becomes of an accepted connection.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// It is served here.
    Here(TcpStream, Place),
    /// Another core serves it.
    Elsewhere,
    /// There are as many as there may be.
    Full(TcpStream),
}

impl Door {
    /// The doors of so many cores, for `limit` connections together.
    pub(crate) fn open(cores: usize, limit: usize, metrics: &GatewayMetrics) -> Vec<Self> {
        let places = Arc::new(Places {
            free: mesh_daemon::Places::new(limit, GRACE, metrics.shed.clone()),
            by_core: (0..cores).map(|_| AtomicUsize::new(0)).collect(),
            gauge: metrics.connections.clone(),
            refused: metrics.refused.clone(),
        });
        let (others, handed): (Vec<_>, Vec<_>) =
            (0..cores).map(|_| mpsc::channel(ON_THE_WAY)).unzip();
        let others: Arc<[_]> = others.into();
        let door = |(core, handed)| Self {
            core,
            places: Arc::clone(&places),
            others: Arc::clone(&others),
            handed,
        };
        handed.into_iter().enumerate().map(door).collect()
    }

    /// Finds a place for a connection that was accepted here.
    pub(crate) fn admit(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<Admitted> {
        let Some(mut place) = self.places.take(self.core) else {
            return Ok(Admitted::Full(stream));
        };
        let Some(core) = place.better() else {
            return Ok(Admitted::Here(stream, place));
        };
        let Ok(way) = self.others[core].try_reserve() else {
            return Ok(Admitted::Here(stream, place));
        };
        place.move_to(core);
        way.send(Handed {
            stream: stream.into_std()?,
            peer,
            place,
        });
        Ok(Admitted::Elsewhere)
    }

    /// The next connection from another core.
    pub(crate) async fn handed(&mut self) -> Option<Handed> {
        self.handed.recv().await
    }
}

/// A connection with its place, which goes when the connection does.
///
/// What its client has yet to take of an answer is a request under way, though all of it was made.
#[derive(Debug)]
pub(crate) struct Placed<T> {
    io: T,
    place: Place,
    unsent: Option<UnderWay>,
}

impl<T> Placed<T> {
    pub(crate) fn new(io: T, place: Place) -> Self {
        Self {
            io,
            place,
            unsent: None,
        }
    }

    fn noting<R>(&mut self, sent: Poll<R>) -> Poll<R> {
        if sent.is_pending() {
            if self.unsent.is_none() {
                self.unsent = self.place.turn().request();
            }
        } else if self.unsent.is_some() {
            self.unsent = None;
        }
        sent
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Placed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Placed<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write(cx, buf);
        self.noting(sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.noting(sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.io).poll_flush(cx);
        self.noting(sent)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(cores: usize, limit: usize) -> Arc<Places> {
        let metrics = GatewayMetrics::new(&mesh_daemon::Metrics::default());
        Arc::clone(&Door::open(cores, limit, &metrics)[0].places)
    }

    #[test]
    fn the_limit_is_for_all_cores_together_and_places_come_back() {
        let places = places(2, 3);
        let mut taken: Vec<Place> = (0..3).filter_map(|at| places.take(at % 2)).collect();
        assert_eq!(taken.len(), 3);
        assert!(places.take(0).is_none());
        assert!(places.take(1).is_none());
        assert_eq!((places.gauge.get(), places.refused.get()), (3, 2));
        taken.pop();
        assert!(places.take(1).is_some(), "given back at once, too");
        taken.clear();
        assert_eq!(places.gauge.get(), 0);
        assert!(
            places
                .by_core
                .iter()
                .all(|load| load.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn whoever_comes_in_goes_where_the_fewest_are() {
        let places = places(3, 100);
        let mut taken = Vec::new();
        for _ in 0..60 {
            let mut place = places.take(1).expect("a place");
            if let Some(core) = place.better() {
                place.move_to(core);
            }
            taken.push(place);
        }
        let loads: Vec<usize> = places
            .by_core
            .iter()
            .map(|load| load.load(Ordering::Relaxed))
            .collect();
        assert_eq!(loads, [20, 20, 20]);
        let lone = places.take(0).expect("a place");
        assert_eq!(lone.better(), None, "one more is no reason to move");
    }
}
