//! The proxy between a raw client and scripted upstreams on loopback.

#[path = "stage/proxy.rs"]
mod stage;

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use hyper_reverse_proxy::{Client, ProxyError, ReverseProxy, TcpConnector};
use stage::{GET, ask, exact, head, limits, proxy_to, upstream, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn many_requests_share_one_upstream_connection() {
    let (up, connections) = upstream(|mut stream| async move {
        loop {
            let asked = head(&mut stream).await;
            if asked.is_empty() {
                return;
            }
            assert!(asked.starts_with("GET /w1/a?b=c=d HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains("x-forwarded-for: 127.0.0.1\r\n"), "{asked}");
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
            stream.write_all(answer).await.expect("written");
        }
    })
    .await;
    let (addr, proxy) = proxy_to(up).await;
    for _ in 0..3 {
        let mut client = TcpStream::connect(addr).await.expect("connect");
        for _ in 0..20 {
            let answer = ask(&mut client, GET).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert_eq!(exact(&mut client, 2).await, "hi");
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    assert_eq!(proxy.client().idle_connections(), 1);
    proxy.client().sweep(|_| false);
    assert_eq!(proxy.client().idle_connections(), 0);
}

#[tokio::test]
async fn a_websocket_echoes_and_keeps_its_half_close() {
    let (up, _) = upstream(|mut stream| async move {
        let asked = head(&mut stream).await.to_ascii_lowercase();
        assert!(asked.contains("\r\nconnection: upgrade\r\n"), "{asked}");
        assert!(asked.contains("\r\nupgrade: websocket\r\n"), "{asked}");
        assert!(asked.contains("\r\nsec-websocket-protocol: cockpit1\r\n"), "{asked}");
        assert!(asked.contains("\r\norigin: http://gw:8081\r\n"), "{asked}");
        // The first bytes of the new protocol come with the head.
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
            Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: cockpit1\r\n\r\n\
            early";
        stream.write_all(answer.as_bytes()).await.expect("written");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("until the client's end");
        stream.write_all(&bytes).await.expect("echo after the client's end");
    })
    .await;
    let (addr, proxy) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let answer = ask(
        &mut client,
        "GET /w1/cockpit/socket HTTP/1.1\r\nHost: gw:8081\r\nOrigin: http://gw:8081\r\n\
         Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: cockpit1\r\n\r\n",
    )
    .await
    .to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("\r\nupgrade: websocket\r\n"), "{answer}");
    assert!(
        answer.contains("\r\nsec-websocket-protocol: cockpit1\r\n"),
        "{answer}"
    );
    assert_eq!(exact(&mut client, 5).await, "early");
    assert_eq!(proxy.tunnels(), 1);
    let upgraded = &proxy.client().connector().upgraded;
    assert_eq!(upgraded.load(Ordering::SeqCst), 1);
    client.write_all(b"ping ").await.expect("written");
    client.write_all(b"pong").await.expect("written");
    client.shutdown().await.expect("half close");
    let mut rest = String::new();
    within(client.read_to_string(&mut rest))
        .await
        .expect("read");
    assert_eq!(rest, "ping pong");
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_response() {
    let (up, _) = upstream(|mut stream| async move {
        head(&mut stream).await;
        let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
        stream.write_all(answer).await.expect("written");
        head(&mut stream).await;
    })
    .await;
    let (addr, proxy) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let answer = ask(
        &mut client,
        "GET /w1/ HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(exact(&mut client, 2).await, "no");
    assert_eq!(proxy.tunnels(), 0);
    let upgraded = &proxy.client().connector().upgraded;
    assert_eq!(upgraded.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_bad_gateway() {
    let (up, _) = upstream(|mut stream| async move {
        head(&mut stream).await;
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
        stream.write_all(answer).await.expect("written");
        head(&mut stream).await;
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let answer = ask(&mut client, GET).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn bodies_stream_both_ways_before_they_end() {
    let (up, _) = upstream(|mut stream| async move {
        let asked = head(&mut stream).await;
        assert!(asked.contains("transfer-encoding: chunked"), "{asked}");
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(answer).await.expect("written");
        let mut buf = [0; 512];
        loop {
            let n = stream.read(&mut buf).await.expect("read");
            if n == 0 {
                return;
            }
            let seen = format!("{n:x}\r\n{}\r\n", String::from_utf8_lossy(&buf[..n]));
            stream.write_all(seen.as_bytes()).await.expect("written");
        }
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let answer = ask(
        &mut client,
        "POST /w1/ HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let first = exact(&mut client, "8\r\n3\r\none\r\n\r\n".len()).await;
    assert_eq!(first, "8\r\n3\r\none\r\n\r\n");
    client.write_all(b"3\r\ntwo\r\n").await.expect("written");
    let second = exact(&mut client, "8\r\n3\r\ntwo\r\n\r\n".len()).await;
    assert_eq!(second, "8\r\n3\r\ntwo\r\n\r\n");
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced_unseen() {
    let (up, connections) = upstream(|mut stream| async move {
        head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        stream.write_all(answer).await.expect("written");
        // Closed without a word, as an upstream does that restarts.
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    for _ in 0..3 {
        let answer = ask(&mut client, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(exact(&mut client, 2).await, "hi");
        // Let the runtime see the close before the next request.
        tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>())
            .await
            .unwrap_err();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_silent_upstream_times_out_and_a_slow_client_does_not() {
    let (up, _) = upstream(|mut stream| async move {
        let asked = head(&mut stream).await;
        if asked.starts_with("POST") {
            let mut body = [0; 4];
            stream.read_exact(&mut body).await.expect("the body");
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.expect("written");
        }
        head(&mut stream).await;
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let answer = ask(&mut client, GET).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");

    let mut client = TcpStream::connect(addr).await.expect("connect");
    let post = "POST /w1/ HTTP/1.1\r\nHost: gw\r\nContent-Length: 4\r\n\r\nab";
    client.write_all(post.as_bytes()).await.expect("written");
    // Three deadlines long the client says nothing; that is not the upstream's fault.
    tokio::time::timeout(limits().first_byte * 3, client.read_u8())
        .await
        .expect_err("no answer while the request is under way");
    let answer = ask(&mut client, "cd").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_never_sends_the_rest_does_not_hold_the_upstream() {
    let (gone, mut told) = tokio::sync::mpsc::channel(1);
    let (up, _) = upstream(move |mut stream| {
        let gone = gone.clone();
        async move {
            let asked = head(&mut stream).await;
            assert!(asked.starts_with("POST "), "{asked}");
            let mut body = Vec::new();
            drop(stream.read_to_end(&mut body).await);
            gone.send(body).await.expect("told");
        }
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let post = "POST /w1/ HTTP/1.1\r\nHost: gw\r\nContent-Length: 4\r\n\r\nab";
    let answer = ask(&mut client, post).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(within(told.recv()).await.expect("it ended"), b"ab");
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_upstream_connection_along() {
    let (gone, mut told) = tokio::sync::mpsc::channel(1);
    let (up, _) = upstream(move |mut stream| {
        let gone = gone.clone();
        async move {
            head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
            stream.write_all(answer).await.expect("written");
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
            gone.send(()).await.expect("told");
        }
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let answer = ask(&mut client, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(client);
    within(told.recv()).await.expect("the upstream saw the end");
}

#[tokio::test]
async fn faults_of_upstreams_have_their_own_statuses() {
    let (garbage, _) = upstream(|mut stream| async move {
        head(&mut stream).await;
        stream
            .write_all(b"SSH-2.0-x\r\n\r\n")
            .await
            .expect("written");
    })
    .await;
    let (addr, _) = proxy_to(garbage).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    assert!(ask(&mut client, GET).await.starts_with("HTTP/1.1 502 "));

    let free = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let nobody = free.local_addr().expect("an address");
    drop(free);
    let (addr, _) = proxy_to(nobody).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    assert!(ask(&mut client, GET).await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn the_published_call_shape_forwards_below_the_given_base() {
    let (up, _) = upstream(|mut stream| async move {
        let asked = head(&mut stream).await;
        let line = asked.lines().next().expect("a line").to_owned();
        let answer = format!("HTTP/1.1 200 OK\r\nX-Asked: {line}\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.expect("written");
    })
    .await;
    let proxy: ReverseProxy<TcpConnector, Full<bytes::Bytes>> =
        ReverseProxy::new(Client::new(TcpConnector));
    let client = [192, 0, 2, 7].into();
    let request = || {
        Request::get("/x?y=z")
            .header("host", "gw")
            .body(Full::default())
            .expect("a request")
    };
    let response = proxy
        .call(client, &format!("http://{up}/base"), request())
        .await
        .expect("a response");
    assert_eq!(response.headers()["x-asked"], "GET /base/x?y=z HTTP/1.1");
    for address in [
        "https://127.0.0.1",
        "127.0.0.1:80",
        "http://",
        "http://a name/",
        "",
    ] {
        let refused = proxy.call(client, address, request()).await;
        assert!(matches!(refused, Err(ProxyError::Request(_))), "{address}");
    }
}
