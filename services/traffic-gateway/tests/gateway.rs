//! The gateway's core on loopback: real connections on both sides, plain TCP in place of the mesh.

mod failing;
mod stage;

use std::sync::atomic::Ordering;

use mesh_types::NodeState;
use stage::{Reply, Stage, Worker, cockpit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn the_bare_prefix_is_redirected_and_never_forwarded() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("worker-node-1", &worker)]).await;
    for (method, path, wanted) in [
        ("GET", "/worker-node-1", "/worker-node-1/"),
        ("HEAD", "/worker-node-1?a=b&c", "/worker-node-1/?a=b&c"),
        ("POST", "/worker-node-1", "/worker-node-1/"),
    ] {
        let reply = stage.ask(method, path, &[]).await;
        assert_eq!(reply.status, 308, "{method} {path}");
        assert_eq!(reply.header("location"), wanted);
    }
    assert_eq!(worker.requests().len(), 0);
}

#[tokio::test]
async fn two_workers_under_one_origin_keep_their_sessions_apart() {
    let (one, two) = (Worker::start(cockpit).await, Worker::start(cockpit).await);
    let stage = Stage::start(&[("worker-node-1", &one), ("worker-node-2", &two)]).await;
    for name in ["worker-node-1", "worker-node-2"] {
        let reply = stage.get(&format!("/{name}/cockpit/login")).await;
        assert_eq!(reply.status, 200);
        let path = format!("Path=/{name}/");
        assert_eq!(
            reply.all("set-cookie"),
            [
                format!("cockpit=v; HttpOnly; {path}"),
                format!("gone=deleted; {path}")
            ]
        );
        assert!(reply.body.contains(&format!("asked /{name}/cockpit/login")));
    }
    assert_eq!((one.requests().len(), two.requests().len()), (1, 1));
}

#[tokio::test]
async fn the_worker_sees_the_host_the_origin_and_who_asks() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    let host = format!("localhost:{}", stage.addr.port());
    let origin = format!("http://{host}");
    let reply = stage
        .ask(
            "GET",
            "/w/?q=1",
            &[
                ("Host", &host),
                ("Origin", &origin),
                ("Authorization", "Basic eA=="),
                ("Cookie", "cockpit=v"),
                ("X-Forwarded-For", "6.6.6.6"),
                ("X-Forwarded-Proto", "https"),
            ],
        )
        .await;
    let seen = worker.requests().remove(0).to_ascii_lowercase();
    for line in [
        format!("host: {host}"),
        format!("origin: {origin}"),
        "authorization: basic ea==".into(),
        "cookie: cockpit=v".into(),
        "x-forwarded-for: 127.0.0.1".into(),
        "x-forwarded-proto: http".into(),
        format!("x-forwarded-host: {host}"),
        "x-forwarded-prefix: /w".into(),
        format!("x-request-id: {}", reply.header("x-request-id")),
    ] {
        assert!(
            seen.contains(&format!("\r\n{line}\r\n")),
            "{line} in {seen}"
        );
    }
    assert!(!seen.contains("6.6.6.6"));
    let reply = stage
        .ask("GET", "/w/", &[("X-Request-Id", "my-id-1")])
        .await;
    assert_eq!(reply.header("x-request-id"), "my-id-1");
}

#[tokio::test]
async fn a_published_service_never_sees_the_sessions_of_its_console() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    let cookie = (
        "Cookie",
        "a=b; cockpit=secret; machine-cockpit+10.0.0.7=secret; c=d",
    );
    let own = ("Host", "w.localhost");
    for (path, headers) in [
        ("/w/s/web/", &[cookie][..]),
        ("/w/s/web/", &[cookie, own]),
        ("/w/", &[cookie]),
    ] {
        let reply = stage.ask("GET", path, headers).await;
        assert_eq!(reply.status, 200, "{path}");
    }
    let seen = worker.requests();
    for service in &seen[..2] {
        let service = service.to_ascii_lowercase();
        assert!(service.contains("\r\ncookie: a=b; c=d\r\n"), "{service}");
    }
    let console = seen[2].to_ascii_lowercase();
    assert!(
        console.contains(&cookie.1.to_ascii_lowercase()),
        "{console}"
    );
}

#[tokio::test]
async fn hosts_that_are_not_ours_are_misdirected() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    for host in [
        "evil.example",
        "w.evil.example",
        "localhost.evil.example:80",
    ] {
        let reply = stage.ask("GET", "/w/", &[("Host", host)]).await;
        assert_eq!(reply.status, 421, "{host}");
        let health = stage.ask("GET", "/health", &[("Host", host)]).await;
        assert_eq!((health.status, health.body.as_str()), (200, "OK"));
    }
    for host in ["localhost", "127.0.0.1:1", "LOCALHOST:99"] {
        let reply = stage.ask("GET", "/w/", &[("Host", host)]).await;
        assert_eq!(reply.status, 200, "{host}");
    }
    assert_eq!(worker.requests().len(), 3);
}

#[tokio::test]
async fn a_host_name_of_its_own_leads_to_one_worker() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("worker-node-1", &worker)]).await;
    let host = ("Host", "worker-node-1.localhost:8081");
    let reply = stage.ask("GET", "/ping?x=y", &[host]).await;
    assert_eq!(reply.status, 200);
    assert!(
        reply.body.contains("asked /worker-node-1/ping?x=y"),
        "{}",
        reply.body
    );
    // A browser is sent to the prefix that the console builds its links from.
    let reply = stage
        .ask("GET", "/", &[host, ("Accept", "text/html")])
        .await;
    assert_eq!(
        (reply.status, reply.header("location")),
        (307, "/worker-node-1/")
    );
    let reply = stage.ask("GET", "/", &[("Host", "nobody.localhost")]).await;
    assert_eq!(reply.status, 404);
}

#[tokio::test]
async fn requests_with_two_lengths_are_refused_and_end_the_connection() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    let smuggled = "0\r\n\r\nGET /w/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let heads = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length: +5\r\n",
        "Content-Length : 5\r\n",
    ];
    for lines in heads {
        let mut client = stage.connect().await;
        let text = format!("POST /w/ HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{smuggled}");
        client.write_all(text.as_bytes()).await.expect("written");
        let mut all = String::new();
        stage::within(client.read_to_string(&mut all))
            .await
            .expect("until the end");
        assert!(all.starts_with("HTTP/1.1 400 "), "{lines}: {all}");
        assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{lines}: {all}");
    }
    let lengthy = format!(
        "GET /w/ HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(70_000)
    );
    assert_eq!(
        Reply::read(&mut stage.send(&lengthy).await).await.status,
        431
    );
    assert_eq!(worker.requests().len(), 0);
}

#[tokio::test]
async fn a_websocket_needs_a_page_of_the_same_host() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    let upgrade = |origin: &str| {
        format!(
            "GET /w/cockpit/socket HTTP/1.1\r\nHost: localhost:8081\r\nOrigin: {origin}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n\
             Sec-WebSocket-Version: 13\r\n\r\n"
        )
    };
    for origin in [
        "http://evil.example",
        "null",
        "http://localhost",
        "https://localhost:8081",
    ] {
        let reply = Reply::read(&mut stage.send(&upgrade(origin)).await).await;
        assert_eq!(reply.status, 403, "{origin}");
    }
    assert_eq!(worker.requests().len(), 0);
    let mut client = stage.send(&upgrade("http://localhost:8081")).await;
    let reply = Reply::head(&mut client).await;
    assert_eq!(reply.status, 101);
    assert_eq!(reply.header("sec-websocket-protocol"), "cockpit1");
    client
        .write_all(b"Transfer-Encoding: x\nContent-Length: y\n")
        .await
        .expect("written");
    let mut echo = [0; 39];
    stage::within(client.read_exact(&mut echo))
        .await
        .expect("an echo");
    assert_eq!(&echo, b"Transfer-Encoding: x\nContent-Length: y\n");
}

#[tokio::test]
async fn the_fleet_is_a_page_a_table_or_json_and_changes_by_itself() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("worker-node-1", &worker)]).await;
    assert!(stage.get("/").await.body.contains("worker-node-1  online"));
    let json = stage
        .ask("GET", "/", &[("Accept", "application/json")])
        .await;
    let fleet: serde_json::Value = serde_json::from_str(&json.body).expect("JSON");
    assert_eq!(fleet["nodes"][0]["url"], "/worker-node-1/");
    let page = stage.ask("GET", "/", &[("Accept", "text/html")]).await;
    assert!(page.body.contains("EventSource"));
    assert_eq!(stage.ask("POST", "/", &[]).await.status, 405);

    let mut events = stage
        .send("GET /_mesh/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        .await;
    assert_eq!(
        Reply::head(&mut events).await.header("content-type"),
        "text/event-stream"
    );
    stage::read_until(&mut events, "\"state\":\"online\"").await;
    stage.add_nobody("worker-node-2", NodeState::Offline);
    let seen = stage::read_until(&mut events, "worker-node-2").await;
    assert!(seen.contains("event: fleet"), "{seen}");
}

#[tokio::test]
async fn a_stopped_gateway_lets_open_requests_finish_and_takes_no_new_ones() {
    let (release, gate) = tokio::sync::watch::channel(false);
    let worker = Worker::gated(gate).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    let mut open = stage
        .send("GET /w/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    worker.wait_for_requests(1).await;
    let mut idle = stage.connect().await;
    let done = stage.stop();
    let mut rest = Vec::new();
    stage::within(idle.read_to_end(&mut rest)).await.ok();
    assert!(rest.is_empty());
    release.send_replace(true);
    assert_eq!(Reply::read(&mut open).await.status, 200);
    stage::within(done).await.expect("the core ended");
}

#[tokio::test]
async fn under_tls_cookies_are_secure_and_both_protocols_work() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::tls(&[("w", &worker)]).await;
    for (alpn, version) in [(&b"h2"[..], "HTTP/2.0"), (&b"http/1.1"[..], "HTTP/1.1")] {
        let (status, cookies, seen) = stage.get_tls("/w/cockpit/login", alpn).await;
        assert_eq!((status, seen.as_str()), (200, version));
        assert_eq!(
            cookies,
            [
                "cockpit=v; HttpOnly; Path=/w/; Secure",
                "gone=deleted; Path=/w/; Secure"
            ]
        );
    }
    for seen in worker.requests() {
        assert!(seen.contains("x-forwarded-proto: https\r\n"), "{seen}");
        assert!(
            seen.to_ascii_lowercase().contains("\r\nhost: localhost"),
            "{seen}"
        );
    }
    assert_eq!(
        worker.connections.load(Ordering::SeqCst),
        1,
        "one kept connection serves both"
    );
}

/// Opens a WebSocket, which is at work until its end.
async fn websocket(stage: &Stage) -> tokio::net::TcpStream {
    let mut socket = stage
        .send(
            "GET /w/cockpit/socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .await;
    assert_eq!(Reply::head(&mut socket).await.status, 101);
    socket
}

/// Asks again and again, over new connections, until the worker answers.
async fn until_served(stage: &Stage) {
    stage::within(async {
        while stage.get("/w/").await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn beyond_the_limit_connections_are_told_so_and_a_websocket_counts_until_its_end() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::small(&[("w", &worker)], 2).await;
    let mut sockets = [websocket(&stage).await, websocket(&stage).await];

    // A third one is told, whatever it asks for, and closed.
    for path in ["/w/", "/health"] {
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut third = stage.send(&text).await;
        let mut all = String::new();
        stage::within(third.read_to_string(&mut all))
            .await
            .expect("until the end");
        assert!(all.starts_with("HTTP/1.1 503 "), "{all}");
        assert!(all.contains("server.max_connections"), "{all}");
    }

    // Those that are in are served on.
    for socket in &mut sockets {
        socket.write_all(b"echo").await.expect("written");
        stage::read_until(socket, "echo").await;
    }

    // The WebSocket's place is free once it has ended.
    let [_socket, ended] = sockets;
    drop(ended);
    until_served(&stage).await;
}

#[tokio::test]
async fn who_asks_for_nothing_makes_room_for_who_asks() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::small(&[("w", &worker)], 2).await;
    let mut socket = websocket(&stage).await;
    for ask in ["GET /w/ HTTP/1.1\r\nHost: localhost\r\n\r\n", ""] {
        let mut waits = stage.send(ask).await;
        if !ask.is_empty() {
            assert_eq!(Reply::read(&mut waits).await.status, 200);
        }
        until_served(&stage).await;
        let mut rest = String::new();
        let end = stage::within(waits.read_to_string(&mut rest)).await;
        assert!(end.is_err() || rest.is_empty(), "{rest}");
    }
    socket.write_all(b"echo").await.expect("written");
    stage::read_until(&mut socket, "echo").await;
}

#[tokio::test]
async fn of_a_burst_for_one_place_each_is_answered() {
    // More than it accepts at a stretch, and fewer than it tells at a time that it is full.
    const BURST: usize = 60;
    let worker = Worker::start(cockpit).await;
    let stage = Stage::small(&[("w", &worker)], 2).await;
    let _socket = websocket(&stage).await;
    // All of them have asked before the gateway, which is on this thread, gets a turn.
    let asked = (0..BURST).map(|_| {
        let mut stream = std::net::TcpStream::connect(stage.addr).expect("connected");
        let ask = b"GET /w/ HTTP/1.1\r\nHost: localhost\r\n\r\n";
        std::io::Write::write_all(&mut stream, ask).expect("written");
        stream.set_nonblocking(true).expect("set");
        tokio::net::TcpStream::from_std(stream).expect("registered")
    });
    let asked: Vec<_> = asked.collect();
    let mut served = 0;
    for mut stream in asked {
        match Reply::read(&mut stream).await.status {
            200 => served += 1,
            status => assert_eq!(status, 503),
        }
    }
    assert!(served > 0, "there is one place");
}
