//! A proxy between a raw client and scripted upstreams on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_reverse_proxy::{
    Client, ConnectError, Connector, GuardedIo, Inbound, Limits, Mount, ReverseProxy, Scheme,
    TcpConnector, Upstream,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in good time")
}

pub(crate) fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(2),
        first_byte: Duration::from_millis(300),
        client_silence: Duration::from_millis(1500),
        half_closed: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// Dials TCP, and counts the streams that it is told have switched protocols.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    pub(crate) upgraded: AtomicUsize,
}

impl Connector for Counting {
    type Target = SocketAddr;
    type Stream = TcpStream;

    async fn connect(&self, target: &SocketAddr) -> Result<TcpStream, ConnectError> {
        TcpConnector.connect(target).await
    }

    fn upgraded(&self, stream: &TcpStream) {
        assert!(stream.peer_addr().is_ok(), "it is connected");
        self.upgraded.fetch_add(1, Ordering::SeqCst);
    }
}

/// A proxy on loopback that forwards everything to `upstream`, mounted at `/w1/`.
pub(crate) async fn proxy_to(upstream: SocketAddr) -> (SocketAddr, ReverseProxy<Counting>) {
    let proxy = ReverseProxy::new(Client::with_limits(Counting::default(), limits()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    let upstream = Arc::new(Upstream {
        target: upstream,
        mount: Mount::keep("/w1/").expect("a prefix"),
        authority: Some(upstream.to_string().into()),
    });
    let serving = proxy.clone();
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            stream.set_nodelay(true).expect("nodelay");
            let inbound = Arc::new(Inbound::new(peer.ip(), Scheme::Http, false));
            let (proxy, upstream) = (serving.clone(), Arc::clone(&upstream));
            let service = service_fn(move |request: Request<Incoming>| {
                let (proxy, upstream) = (proxy.clone(), Arc::clone(&upstream));
                let inbound = Arc::clone(&inbound);
                async move {
                    let answer = proxy.forward(&inbound, &upstream, request).await;
                    Ok::<_, std::convert::Infallible>(match answer {
                        Ok(response) => response.map(Either::Left),
                        Err(err) => {
                            let text = format!("{err:?}");
                            let mut response = Response::new(Either::Right(Full::from(text)));
                            *response.status_mut() = err.status();
                            response
                        }
                    })
                }
            });
            let (io, _framing) = GuardedIo::new(stream);
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades();
            tokio::spawn(async move { connection.await.ok() });
        }
    });
    (addr, proxy)
}

/// An upstream that runs `script` on each connection; counts the connections.
pub(crate) async fn upstream<F, Fut>(script: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(script(stream));
        }
    });
    (addr, count)
}

/// Reads one message head, byte by byte, so that nothing of the body is taken.
pub(crate) async fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).expect("UTF-8")
}

pub(crate) async fn exact(stream: &mut TcpStream, len: usize) -> String {
    let mut bytes = vec![0; len];
    within(stream.read_exact(&mut bytes)).await.expect("a body");
    String::from_utf8(bytes).expect("UTF-8")
}

pub(crate) async fn ask(stream: &mut TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.expect("written");
    within(head(stream)).await
}

pub(crate) const GET: &str = "GET /w1/a?b=c=d HTTP/1.1\r\nHost: gw:8081\r\n\r\n";
