//! Exchanges that do not go by the book: what the proxy makes of upstreams that answer early,
//! twice, too little or nothing.

#[path = "stage/proxy.rs"]
mod stage;

use std::sync::atomic::Ordering;
use std::time::Duration;

use stage::{GET, ask, exact, head, limits, proxy_to, upstream, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An upstream that gives `answer` to each request of each connection.
async fn answering(answer: &'static str) -> TcpStream {
    let (up, _) = upstream(move |mut stream| async move {
        while !head(&mut stream).await.is_empty() {
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    TcpStream::connect(addr).await.expect("connect")
}

#[tokio::test]
async fn a_response_that_can_be_read_in_two_ways_is_a_bad_gateway() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nhi",
    ] {
        let mut client = answering(answer).await;
        let got = ask(&mut client, GET).await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{answer}: {got}");
    }
}

#[tokio::test]
async fn the_reason_and_equal_headers_reach_the_client() {
    let mut client = answering(
        "HTTP/1.1 401 authentication-failed\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         Content-Length: 0\r\n\r\n",
    )
    .await;
    let got = ask(&mut client, GET).await;
    assert!(
        got.starts_with("HTTP/1.1 401 authentication-failed\r\n"),
        "{got}"
    );
    assert_eq!(got.matches("set-cookie: ").count(), 2, "{got}");
}

#[tokio::test]
async fn answers_without_a_body_are_followed_by_the_next_one() {
    let (up, connections) = upstream(|mut stream| async move {
        loop {
            let asked = head(&mut stream).await;
            let answer = match asked.split(' ').next() {
                Some("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                Some("DELETE") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("GET") => {
                    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
                    HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"
                }
                _ => return,
            };
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    for (method, status) in [
        ("HEAD", "200"),
        ("DELETE", "204"),
        ("GET", "304"),
        ("HEAD", "200"),
    ] {
        let text = format!("{method} /w1/ HTTP/1.1\r\nHost: gw\r\n\r\n");
        let got = ask(&mut client, &text).await;
        assert!(
            got.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method}: {got}"
        );
        assert_eq!(got.contains("content-length: 5\r\n"), method == "HEAD");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_early_answer_is_passed_on_and_ends_the_connection() {
    let (up, connections) = upstream(|mut stream| async move {
        head(&mut stream).await;
        let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno";
        stream.write_all(answer).await.expect("written");
        // Not read any further, and not closed either.
        std::future::pending::<()>().await;
    })
    .await;
    let (addr, proxy) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let got = ask(
        &mut client,
        "POST /w1/ HTTP/1.1\r\nHost: gw\r\nContent-Length: 1000000\r\n\r\nabc",
    )
    .await;
    assert!(got.starts_with("HTTP/1.1 413 "), "{got}");
    assert_eq!(exact(&mut client, 2).await, "no");
    assert_eq!(proxy.client().idle_connections(), 0);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn large_bodies_arrive_whole_with_and_without_a_length() {
    const LEN: usize = 3_000_000;
    let (up, _) = upstream(|mut stream| async move {
        loop {
            let asked = head(&mut stream).await;
            if asked.is_empty() {
                return;
            }
            let mut body = Vec::new();
            if asked.contains("content-length: 3000000\r\n") {
                body.resize(LEN, 0);
                stream.read_exact(&mut body).await.expect("the body");
            } else {
                assert!(asked.contains("transfer-encoding: chunked\r\n"), "{asked}");
                loop {
                    let mut line = String::new();
                    while !line.ends_with("\r\n") {
                        line.push(char::from(stream.read_u8().await.expect("a size")));
                    }
                    let size = usize::from_str_radix(line.trim(), 16).expect("hexadecimal");
                    let mut chunk = vec![0; size + 2];
                    stream.read_exact(&mut chunk).await.expect("a chunk");
                    assert_eq!(chunk.split_off(size), b"\r\n");
                    if size == 0 {
                        break;
                    }
                    body.extend(chunk);
                }
            }
            let sum = body.iter().map(|&b| u64::from(b)).sum::<u64>();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nX-Sum: {sum}\r\nX-Len: {}\r\nContent-Length: {LEN}\r\n\r\n",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.expect("written");
            stream.write_all(&body).await.expect("written");
        }
    })
    .await;
    let (addr, proxy) = proxy_to(up).await;
    let body: Vec<u8> = (0..251_u8).cycle().take(LEN).collect();
    let sum = body.iter().map(|&b| u64::from(b)).sum::<u64>();
    for chunked in [false, true] {
        let (mut read, mut write) = TcpStream::connect(addr)
            .await
            .expect("connect")
            .into_split();
        let sent = body.clone();
        let sending = tokio::spawn(async move {
            let length = if chunked {
                "Transfer-Encoding: chunked"
            } else {
                "Content-Length: 3000000"
            };
            let text = format!("POST /w1/ HTTP/1.1\r\nHost: gw\r\n{length}\r\n\r\n");
            write.write_all(text.as_bytes()).await.expect("written");
            if chunked {
                for piece in sent.chunks(70_000) {
                    let size = format!("{:x}\r\n", piece.len());
                    write.write_all(size.as_bytes()).await.expect("written");
                    write.write_all(piece).await.expect("written");
                    write.write_all(b"\r\n").await.expect("written");
                }
                write.write_all(b"0\r\n\r\n").await.expect("written");
            } else {
                write.write_all(&sent).await.expect("written");
            }
            write
        });
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            got.push(within(read.read_u8()).await.expect("a head"));
        }
        let got = String::from_utf8(got).expect("UTF-8");
        assert!(got.contains(&format!("x-sum: {sum}\r\n")), "{got}");
        assert!(got.contains("x-len: 3000000\r\n"), "{got}");
        let mut back = vec![0; LEN];
        within(read.read_exact(&mut back)).await.expect("the body");
        assert!(back == body, "the body came back changed");
        sending.await.expect("sent");
    }
    assert_eq!(proxy.client().idle_connections(), 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_made_whole_on_either_side() {
    // The upstream's: the client must see that something is missing.
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n5\r\n",
    ] {
        let mut client = answering_once(answer).await;
        client.write_all(GET.as_bytes()).await.expect("written");
        let mut all = Vec::new();
        let end = within(client.read_to_end(&mut all)).await;
        let all = String::from_utf8_lossy(&all);
        assert!(!all.ends_with("0\r\n\r\n"), "{all}");
        let body = all.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(
            end.is_err() || body.len() < 9 || all.contains("chunked"),
            "{all}"
        );
    }

    // The client's: the upstream must not take it for a whole one.
    let (told, mut seen) = tokio::sync::mpsc::channel(1);
    let (up, _) = upstream(move |mut stream| {
        let told = told.clone();
        async move {
            head(&mut stream).await;
            let mut body = Vec::new();
            drop(stream.read_to_end(&mut body).await);
            told.send(body).await.expect("told");
        }
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let half = "POST /w1/ HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    client.write_all(half.as_bytes()).await.expect("written");
    client.shutdown().await.expect("shut down");
    drop(client);
    let body = within(seen.recv()).await.expect("the upstream saw the end");
    assert!(!body.ends_with(b"0\r\n\r\n"), "{body:?}");
}

/// An upstream that says `answer` and closes.
async fn answering_once(answer: &'static str) -> TcpStream {
    let (up, _) = upstream(move |mut stream| async move {
        head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.expect("written");
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    TcpStream::connect(addr).await.expect("connect")
}

#[tokio::test]
async fn a_farewell_on_a_kept_connection_answers_no_request() {
    let (up, connections) = upstream(|mut stream| async move {
        head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        stream.write_all(answer).await.expect("written");
        // What some servers say to a connection that is unused for too long.
        let farewell = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n";
        drop(stream.write_all(farewell).await);
        head(&mut stream).await;
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    for _ in 0..3 {
        let got = ask(&mut client, GET).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
        assert_eq!(exact(&mut client, 2).await, "hi");
        tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>())
            .await
            .unwrap_err();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_deadline_begins_anew_when_the_last_of_the_body_has_moved() {
    let (up, _) = upstream(|mut stream| async move {
        head(&mut stream).await;
        stream.read_exact(&mut [0; 4]).await.expect("the body");
        // Two thirds of the deadline after the request's end.
        quiet(&mut stream, limits().first_byte * 2 / 3).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.expect("written");
        head(&mut stream).await;
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let post = "POST /w1/ HTTP/1.1\r\nHost: gw\r\nContent-Length: 4\r\n\r\nab";
    client.write_all(post.as_bytes()).await.expect("written");
    quiet(&mut client, limits().first_byte * 5 / 3).await;
    let answer = ask(&mut client, "cd").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// Nothing comes in for so long.
async fn quiet(stream: &mut TcpStream, time: Duration) {
    tokio::time::timeout(time, stream.read_u8())
        .await
        .expect_err("nothing comes in");
}

#[tokio::test]
async fn a_client_that_sends_everything_before_it_reads_gets_an_early_answer_whole() {
    const LEN: usize = 24 << 20;
    let (up, _) = upstream(|mut stream| async move {
        head(&mut stream).await;
        let (mut read, mut write) = stream.split();
        let answer = async {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n");
            write.write_all(head.as_bytes()).await.expect("written");
            write.write_all(&vec![b'd'; LEN]).await.expect("written");
        };
        let mut body = vec![0; LEN];
        let (asked, ()) = tokio::join!(read.read_exact(&mut body), answer);
        asked.expect("the body");
        assert!(body.iter().all(|&b| b == b'u'));
        head(&mut stream).await;
    })
    .await;
    let (addr, proxy) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let text = format!("POST /w1/ HTTP/1.1\r\nHost: gw\r\nContent-Length: {LEN}\r\n\r\n");
    client.write_all(text.as_bytes()).await.expect("written");
    within(client.write_all(&vec![b'u'; LEN]))
        .await
        .expect("written");
    let got = within(head(&mut client)).await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    let mut body = vec![0; LEN];
    within(client.read_exact(&mut body))
        .await
        .expect("the body");
    assert!(body.iter().all(|&b| b == b'd'));
    assert_eq!(proxy.client().idle_connections(), 1);
}

#[tokio::test]
async fn what_changes_nothing_is_asked_again_once_when_a_kept_connection_ends() {
    let (up, connections) = upstream(|mut stream| async move {
        // Every second request of a connection gets no answer, however soon it comes.
        head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.expect("written");
        head(&mut stream).await;
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    for number in 1..=4 {
        let got = ask(&mut client, GET).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{number}: {got}");
        assert_eq!(connections.load(Ordering::SeqCst), number);
    }
    let post = "POST /w1/ HTTP/1.1\r\nHost: gw\r\n\r\n";
    let got = ask(&mut client, post).await;
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");

    // A fresh connection that ends is an answer.
    let (up, connections) = upstream(|mut stream| async move {
        head(&mut stream).await;
    })
    .await;
    let (addr, _) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let got = ask(&mut client, GET).await;
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn half_a_tunnel_that_stands_still_is_closed_and_one_that_moves_is_not() {
    let (gone, mut told) = tokio::sync::mpsc::channel(1);
    let (up, _) = upstream(move |mut stream| {
        let gone = gone.clone();
        async move {
            head(&mut stream).await;
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                Upgrade: x\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("written");
            stream.shutdown().await.expect("half closed");
            let mut bytes = Vec::new();
            drop(stream.read_to_end(&mut bytes).await);
            gone.send(bytes.len()).await.expect("told");
        }
    })
    .await;
    let (addr, proxy) = proxy_to(up).await;
    let mut client = TcpStream::connect(addr).await.expect("connect");
    let upgrade = "GET /w1/ HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let got = ask(&mut client, upgrade).await;
    assert!(got.starts_with("HTTP/1.1 101 "), "{got}");
    within(client.read_to_end(&mut Vec::new()))
        .await
        .expect("the upstream's end");
    // Four deadlines long it moves.
    for _ in 0..12 {
        client.write_all(b"x").await.expect("open");
        let told = tokio::time::timeout(limits().half_closed / 3, told.recv()).await;
        assert!(told.is_err(), "closed while it moved");
    }
    assert_eq!(within(told.recv()).await, Some(12));
    assert_eq!(proxy.tunnels(), 0);
}
